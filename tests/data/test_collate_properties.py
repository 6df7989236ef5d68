"""Apart from test_collate.py, which is run on GPU machines that need not have hypothesis."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fastfeed._extension import extension
from tests.data.test_collate import check

SIDES = st.integers(1, 25)


def views(array, order, steps, flips):
    """`array` with its dimensions in another order in memory, gaps between the values, and negative strides."""
    padded = np.zeros([n * step for n, step in zip(array.shape, steps, strict=True)], np.uint8)
    memory = np.ascontiguousarray(padded.transpose(order)).transpose(np.argsort(order))
    slices = tuple(slice(None, None, -step if flip else step) for step, flip in zip(steps, flips, strict=True))
    view = memory[slices]
    view[...] = array
    return view


@settings(deadline=None)
@given(
    shape=st.tuples(SIDES, SIDES, SIDES | st.sampled_from([1, 3, 4])),
    layouts=st.lists(
        st.tuples(
            st.permutations(range(3)),
            st.tuples(*[st.integers(1, 3)] * 3),
            st.tuples(*[st.booleans()] * 3),
        ),
        min_size=1,
        max_size=4,
    ),
    seed=st.integers(0, 99),
)
def test_any_strides(shape, layouts, seed):
    arrays = np.random.default_rng(seed).integers(0, 256, (len(layouts), *shape), dtype=np.uint8)
    check([views(array, *layout) for array, layout in zip(arrays, layouts, strict=True)], arrays)


@settings(deadline=None)
@given(
    size=st.tuples(st.integers(0, 40), st.integers(0, 40)),
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    number=st.integers(1, 4),
    own=st.booleans(),
    seed=st.integers(0, 99),
)
def test_any_pil_image(size, mode, number, own, seed):
    arrays = np.random.default_rng(seed).integers(0, 256, (number, *size, len(mode)), dtype=np.uint8)
    # frombytes copies into memory of Pillow's own, frombuffer leaves the pixels of some modes where they are.
    images = [
        (Image.frombytes if own else Image.frombuffer)(mode, size[::-1], array.tobytes(), "raw", mode, 0, 1)
        if array.size
        else Image.new(mode, size[::-1])
        for array in arrays
    ]
    check(images, arrays)


@settings(deadline=None)
@given(
    number=st.integers(1, 5),
    shape=st.tuples(st.integers(1, 9), st.integers(1, 70_000), st.sampled_from([1, 3])),
    padding=st.sampled_from([0, 1]),
    threads=st.integers(0, 5),
)
def test_any_number_of_threads(number, shape, padding, threads):
    # Few long rows: pieces of work begin and end everywhere.
    arrays = np.random.default_rng(0).integers(0, 256, (number, *shape[:2], shape[2] + padding), dtype=np.uint8)
    arrays = arrays[..., : shape[2]]
    # One byte more on each side, which must stay as it is.
    output = torch.full((arrays.size + 2,), 7, dtype=torch.uint8)
    extension().stack(tuple(arrays), shape, output.data_ptr() + 1, threads)
    np.testing.assert_array_equal(output[1:-1].numpy(), arrays.flatten())
    assert output[0] == output[-1] == 7
