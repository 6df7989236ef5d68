import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import numpy as np
import pytest
import torch

from fastfeed import Mix, MixedTarget, Prefetcher
from fastfeed.data.finish import SampleParameters, finish_reference
from fastfeed.data.mix import draw_mix, mix_target
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = {"device": "cpu"}


def random_images(*shape, seed=0):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def pairs(count, n=4, h=6, w=5):
    """Batches of images and targets, all different."""
    return [(random_images(n, h, w, 3, seed=i), torch.arange(n) + 10 * i) for i in range(count)]


def reference(images, parameters=None, dtype=torch.float32):
    return finish_reference(images, parameters, IMAGENET_MEAN, IMAGENET_STD, dtype)


def assert_same(got, batches, dtype=torch.float32):
    assert len(got) == len(batches)
    for (images, target), (expected, expected_target) in zip(got, batches, strict=True):
        assert images.dtype == dtype
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(images, reference(expected, dtype=dtype))
        assert torch.equal(target, expected_target)


Pair = namedtuple("Pair", "image label")


@dataclasses.dataclass(frozen=True)
class Sample:
    image: Any
    label: Any = None


# ---- what a batch may be

STRUCTURES = {
    "tensor": (lambda x, y: x, lambda b: (b, None)),
    "tuple": (lambda x, y: (x, y), lambda b: b),
    "target first": (lambda x, y: (y, x), lambda b: b[::-1]),
    "list": (lambda x, y: [x, y, "name"], lambda b: b[:2]),
    "dict": (lambda x, y: {"image": x, "label": y, "id": ["a", 3]}, lambda b: (b["image"], b["label"])),
    "ordered dict": (lambda x, y: OrderedDict(label=y, image=x), lambda b: (b["image"], b["label"])),
    "named tuple": (lambda x, y: Pair(x, y), lambda b: (b.image, b.label)),
    "dataclass": (lambda x, y: Sample(x, y), lambda b: (b.image, b.label)),
    "nested": (lambda x, y: {"in": [{"x": x}, None], "out": Sample((), (y,))},
               lambda b: (b["in"][0]["x"], b["out"].label[0])),
    "array": (lambda x, y: (x.numpy(), y), lambda b: b),
}  # fmt: skip


@pytest.mark.parametrize("structure", STRUCTURES)
def test_structures_of_batches(structure):
    make, parts = STRUCTURES[structure]
    batches = [make(images, target) for images, target in pairs(5)]
    got = list(Prefetcher(batches, **CPU))
    for new, old, (images, target) in zip(got, batches, pairs(5), strict=True):
        assert type(new) is (torch.Tensor if structure == "tensor" else type(old))
        new_images, new_target = parts(new)
        assert torch.equal(new_images, reference(images))
        assert new_target is None if structure == "tensor" else torch.equal(new_target, target)
        assert torch.as_tensor(parts(old)[0]).dtype == torch.uint8  # the loader's own batch is left alone
    if structure == "list":
        assert got[0][2] == "name"
    if structure == "dict":
        assert got[0]["id"] == ["a", 3]


@pytest.mark.filterwarnings("ignore:Sparse CSR|The PyTorch API of nested tensors")
def test_the_rest_is_passed_through():
    sparse, csr = torch.eye(4).to_sparse(), torch.eye(4).to_sparse_csr()
    nested = torch.nested.nested_tensor([torch.zeros(2, 4, 3), torch.ones(1, 4, 3)])
    sparse_images, array = torch.zeros(2, 4, 4, 3, dtype=torch.uint8).to_sparse(), np.zeros((2, 4, 4, 3))
    things = [sparse, csr, nested, sparse_images, array, None, "text", torch.tensor(3), torch.zeros(0, 5), {1, 2}]
    for mix in (None, Mix(mixup=1.0)):
        (got,) = Prefetcher([(random_images(2, 6, 5, 3), torch.arange(2), things)], mix=mix, **CPU)
        assert all(new is old for new, old in zip(got[2], things, strict=True))


MEMORIES = {
    "NHWC": lambda x: x,
    "NCHW": lambda x: x.permute(0, 3, 1, 2).contiguous(),
    "NCHW, channels-last": lambda x: x.permute(0, 3, 1, 2),
    "NHWC, planar": lambda x: x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "sliced": lambda x: torch.cat([x, x], dim=2)[:, :, : x.shape[2]],
    "every other sample": lambda x: x.repeat_interleave(2, dim=0)[::2],
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "array": lambda x: x.numpy(),
    "array, mirrored": lambda x: x.numpy()[:, :, ::-1].copy()[:, :, ::-1],
    "array, read-only": lambda x: np.frombuffer(x.numpy().tobytes(), np.uint8).reshape(x.shape),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory", MEMORIES)
def test_memories_of_images(memory, dtype, recwarn):
    batches = [(MEMORIES[memory](images), target) for images, target in pairs(3)]
    assert_same(list(Prefetcher(batches, dtype=dtype, **CPU)), pairs(3), dtype)
    assert not recwarn.list


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_expanded_images(dim):
    images = random_images(4, 6, 5, 3).select(dim, 0).unsqueeze(dim).expand(4, 6, 5, 3)
    (got,) = Prefetcher([images], **CPU)
    assert torch.equal(got, reference(images.contiguous()))


@pytest.mark.parametrize("shape", [(0, 6, 5, 3), (2, 0, 5, 3), (2, 6, 0, 3), (0, 3, 6, 5)])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_batches_of_no_size(shape, dtype):
    nhwc = shape[3] == 3
    n, c, h, w = (shape[0], 3, *shape[1:3]) if nhwc else shape
    loader = [(torch.zeros(shape, dtype=dtype), torch.zeros(n, dtype=torch.int64)) for _ in range(4)]
    got = list(Prefetcher(loader, layout="NHWC" if nhwc else "NCHW", **CPU))
    assert [(list(images.shape), len(target)) for images, target in got] == [([n, c, h, w], n)] * 4
    if h and w and dtype == torch.uint8:
        assert list(next(iter(Prefetcher(loader, mix=Mix(cutmix=1.0), **CPU)))[1].a) == []


@pytest.mark.parametrize("output", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("nhwc", [False, True])
def test_floating_point_images_are_normalised_and_cast(dtype, output, nhwc):
    values = torch.rand(3, 6, 5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    (got,) = Prefetcher([values if nhwc else values.permute(0, 3, 1, 2)], dtype=output, **CPU)
    expected = (values.float() - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    assert got.dtype == output
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(got, expected.permute(0, 3, 1, 2).to(output))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_channels_layouts_and_names(channels):
    statistics = {"mean": (0.5,) * channels, "std": (0.25,) * channels}
    images = random_images(2, channels, 4, channels)  # of either layout
    for layout, nhwc in (("NHWC", images), ("NCHW", images.permute(0, 2, 3, 1))):
        (got,) = Prefetcher([images], layout=layout, memory_format=torch.contiguous_format, **statistics, **CPU)
        assert got.is_contiguous()
        assert torch.equal(got, finish_reference(nhwc, None, **statistics))
    first, second = random_images(2, 5, 6, channels), random_images(2, 5, 6, channels, seed=1)
    for name, path in (("b", ("b",)), (("b",), ("b",))):
        (got,) = Prefetcher([{"a": first, "b": second}], image=name, **statistics, **CPU)
        assert got["a"] is first, path
        assert torch.equal(got["b"], finish_reference(second, None, **statistics))
    (got,) = Prefetcher([[first, {"x": second}]], image=(1, "x"), **statistics, **CPU)
    assert torch.equal(got[1]["x"], finish_reference(second, None, **statistics))


# ---- mixing


@pytest.mark.parametrize("mix", [Mix(mixup=0.4), Mix(cutmix=1.0), Mix(0.2, 1.0, per="sample")])
@pytest.mark.parametrize("depth", [1, 3])
def test_mix_is_drawn_from_seed_epoch_and_position(mix, depth):
    data = Prefetcher(pairs(4), mix=mix, seed=9, depth=depth, **CPU)
    for epoch in (0, 1, 5):
        data.epoch = epoch
        for position, (got, (images, target)) in enumerate(zip(data, pairs(4), strict=True)):
            plan = draw_mix(mix, 4, 6, 5, seed=9, epoch=epoch, batch=position)
            parameters = SampleParameters(4, partner=plan.partner, weight=plan.weight, cut=plan.box)
            assert torch.equal(got[0], reference(images, parameters))
            assert isinstance(got[1], MixedTarget)
            assert all(map(torch.equal, got[1], mix_target(target, plan)))
    assert data.epoch == 6


def test_ranks_mix_apart(monkeypatch):
    lams = []
    for rank in range(3):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
        lams += [target.lam[0].item() for _, target in Prefetcher(pairs(4), mix=Mix(mixup=1.0), **CPU)]
    expected = [
        draw_mix(Mix(mixup=1.0), 4, 6, 5, seed=0, epoch=0, batch=i * 3 + r).lam[0] for r in range(3) for i in range(4)
    ]
    assert lams == expected
    assert len(set(lams)) == 12


def test_the_target_is_found_or_named():
    batch = {"x": random_images(4, 6, 5, 3), "weight": torch.rand(4), "label": torch.arange(4)}
    (got,) = Prefetcher([batch], mix=Mix(mixup=1.0), **CPU)
    assert isinstance(got["label"], MixedTarget)
    assert got["weight"] is batch["weight"]
    (got,) = Prefetcher([{**batch, "id": torch.arange(4)}], mix=Mix(mixup=1.0), target="label", **CPU)
    assert isinstance(got["label"], MixedTarget)
    assert torch.equal(got["id"], torch.arange(4))


def test_probabilities_instead_of_two_labels():
    batch = {"x": random_images(4, 6, 5, 3), "label": torch.arange(4)}
    (two,), (dense,) = (Prefetcher([batch], mix=Mix(0.4, num_classes=n), **CPU) for n in (None, 5))
    assert torch.equal(dense["x"], two["x"])
    assert torch.equal(dense["label"], two["label"].dense(5))
    with pytest.raises(ValueError, match="stable_addresses gives the targets of mix as a MixedTarget"):
        Prefetcher([batch], mix=Mix(0.4, num_classes=5), stable_addresses=True, **CPU)


# ---- stable addresses


def test_stable_addresses():
    data = Prefetcher(pairs(5), stable_addresses=True, **CPU)
    places = set()
    for epoch in range(3):
        for position, ((images, target), expected) in enumerate(zip(data, pairs(5), strict=True)):
            places.add((images.data_ptr(), target.data_ptr()))
            assert_same([(images, target)], [expected])
            if (epoch, position) == (1, 2):
                break
    assert len(places) == 1


def test_stable_addresses_need_one_shape():
    got = []
    with pytest.raises(ValueError, match=r"images are \[N, C, H, W\] = \[3, 3, 6, 5\].*\[4, 3, 6, 5\].*drop_last=True"):
        for images, _ in Prefetcher([*pairs(2), *pairs(1, n=3)], stable_addresses=True, **CPU):
            got.append(images.clone())
    assert len(got) == 2


# ---- bad input

FOUND = r"expected one uint8 or floating point tensor \[N, H, W, 3\] or \[N, 3, H, W\], as many channels as mean has"
U8 = {"dtype": torch.uint8}
MIX = {"mix": Mix(mixup=1.0)}
BAD_BATCHES = [
    (None, {}, ValueError, "no image in the batch, which has batch: NoneType; " + FOUND),
    ("text", {}, ValueError, "which has batch: str"),
    ([], {}, ValueError, "which has nothing"),
    ((), MIX, ValueError, "which has nothing"),
    ({"x": np.zeros((2, 4, 4, 3), np.int16)}, {}, ValueError, r"batch\['x'\]: int16 \[2, 4, 4, 3\]"),
    ([torch.zeros(4, 4, 3, **U8)], {}, ValueError, r"batch\[0\]: torch.uint8 \[4, 4, 3\]"),
    (torch.zeros(2, 4, 4, 3, dtype=torch.int64), {}, ValueError, r"batch: torch.int64 \[2, 4, 4, 3\]; expected"),
    (torch.zeros(2, 4, 4, 2, **U8), {}, ValueError, FOUND),
    (torch.zeros(2, 3, 4, 4, **U8), {"mean": (0.5,), "std": (0.5,)}, ValueError, r"\[N, H, W, 1\] or \[N, 1, H, W\]"),
    (torch.zeros(2, 3, 4, 3, **U8), {}, ValueError, "Say which with layout='NHWC' or layout='NCHW'"),
    (torch.zeros(2, 3, 4, 4, **U8), {"layout": "NHWC"}, ValueError, "expected NHWC with 3 channels"),
    (torch.zeros(2, 4, 4, 3, **U8), {"layout": "NCHW"}, ValueError, "but mean has 3 values; expected NCHW with 3"),
    (torch.zeros(2, 4, 4, 2, **U8), {"image": ()}, ValueError, "but mean has 3 values; expected NHWC or NCHW with 3"),
    (torch.zeros(2, 4, 4, 3, device="meta", **U8), {}, ValueError, "batch is on meta; expected a CPU or CUDA tensor"),
    (torch.zeros(2, 4, 4, 3, **U8).to_sparse(), {}, ValueError, "batch: torch.uint8, torch.sparse_coo; expected one"),
    ([torch.zeros(2, 4, 4, 3).to_sparse()], {"image": 0}, ValueError,
     r"batch\[0\] is torch.float32, torch.sparse_coo; expected uint8"),
    ([1, torch.zeros(2, 4, 4, 3, **U8)], {"image": 0}, ValueError, r"batch\[0\] is int; expected uint8 or floating"),
    (["a.jpg", "b.jpg"], {"image": 0}, ValueError, r"batch\[0\] is str; expected uint8"),
    ([torch.zeros(4, 3, **U8)], {"image": 0}, ValueError, r"batch\[0\] is torch.uint8 \[4, 3\]; expected"),
    ([np.zeros((2, 4, 4, 3), object)], {"image": 0}, ValueError, r"batch\[0\] is object \[2, 4, 4, 3\]; expected"),
    ([np.zeros((2, 4, 4, 3), ">u2")], {"image": 0}, ValueError, r"batch\[0\] is >u2 \[2, 4, 4, 3\]; expected"),
    ([torch.zeros(2, 4, 4, 3, dtype=torch.int16)], {"image": 0}, ValueError, r"is torch.int16 \[2, 4, 4, 3\]"),
    ((torch.zeros(2, 4, 4, 3, **U8),) * 2, {}, ValueError,
     r"several images: batch\[0\], batch\[1\]. Say which is meant, as image=0$"),
    ({"a": torch.zeros(2, 4, 4, 3, **U8), "b": [torch.zeros(2, 3, 4, 4, **U8)]}, {}, ValueError, "as image='a'$"),
    ({"a": [torch.zeros(2, 4, 4, 3, **U8)] * 2}, {}, ValueError, r"as image=\('a', 0\)$"),
    ({("a", 1): torch.zeros(2, 4, 4, 3, **U8), None: torch.zeros(2, 4, 4, 3, **U8)}, {}, ValueError,
     r"as image=\(\('a', 1\),\)$"),
    (torch.zeros(2, 4, 4, 3, **U8), {"image": "x"}, KeyError, r"there is no batch\['x'\]; the batch has batch"),
    ([1, {"y": 2}], {"image": (1, "x")}, KeyError,
     r"there is no batch\[1\]\['x'\]; the batch has batch\[0\], batch\[1\]\['y'\]"),
    ((torch.zeros(2, 4, 4, 3, **U8),), {"image": -2}, KeyError, r"there is no batch\[-2\]"),
    ({}, {"image": "x"}, KeyError, "the batch has nothing"),
    (torch.zeros(2, 4, 4, 3, **U8), MIX, ValueError, r"mix needs class indices, a tensor of int64 \[2\]"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.zeros(2)), MIX, ValueError,
     r"and the batch has batch\[0\]: torch.uint8 .*, batch\[1\]: torch.float32 \[2\]"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.zeros(3)), {**MIX, "target": 1}, ValueError,
     r"batch\[1\]: target is torch.float32 \[3\]; expected class indices, torch.int64 \[2\], or floating-point rows"),
    ((torch.zeros(2, 4, 4, 3, **U8), [0, 1]), {**MIX, "target": (1, 0)}, ValueError,
     r"batch\[1\]\[0\]: target is int; expected class indices"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.arange(3)), {**MIX, "target": 1}, ValueError, r"is torch.int64 \[3\]"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.arange(2)), {**MIX, "target": 2}, KeyError, r"there is no batch\[2\]"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.arange(2), torch.arange(2)), MIX, ValueError,
     r"several targets: batch\[1\], batch\[2\]. Say which is meant, as target=1$"),
    ((torch.zeros(2, 4, 4, 3), torch.arange(2)), MIX, ValueError,
     r"batch\[0\] is torch.float32, and mix needs uint8 images: leave ToTensor and Normalize out"),
    ((torch.zeros(2, 4, 4, 3, **U8), torch.zeros(3, device="meta")), {}, NotImplementedError, "meta"),
]  # fmt: skip


@pytest.mark.parametrize(("bad", "options", "error", "message"), BAD_BATCHES)
def test_bad_batches_are_errors_after_the_good_ones(bad, options, error, message):
    with pytest.raises(error, match=message):
        list(Prefetcher([bad], **options, **CPU))
    if options in ({}, MIX):
        got = []
        with pytest.raises(error, match=message):
            for batch in Prefetcher([*pairs(3), bad], **options, **CPU):
                got.append(batch)
        assert len(got) == 3


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize(("size", "message"), [(0, "storage has been resized"), (2 * 64 * 64 * 3 - 1, "resized")])
def test_a_tensor_that_lost_its_memory(dtype, size, message):
    images = torch.zeros(2, 64, 64, 3, dtype=dtype)
    images.untyped_storage().resize_(size * images.itemsize)
    with pytest.raises(ValueError, match=rf"batch\[0\] is {dtype} \[2, 64, 64, 3\], but its .*{message}"):
        list(Prefetcher([(images,)], **CPU))


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"loader": 5}, TypeError, "loader is int; expected an iterable of batches: put a dataset into a torch.utils.data"),
    ({"loader": "folder"}, TypeError, "loader is str.*give a folder of files to fastfeed.DataLoader"),
    ({"loader": None}, TypeError, "loader is NoneType"),
    ({"depth": 0}, ValueError, "depth is 0; expected a whole number, 1 or more"),
    ({"depth": 1.5}, ValueError, "depth is 1.5"),
    ({"num_threads": -1}, ValueError, "num_threads is -1"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"seed": 2**64}, ValueError, "seed is 18446744073709551616; expected at most"),
    ({"mix": 0.2}, TypeError, "mix is float; expected a fastfeed.Mix, as"),
    ({"layout": "nchw"}, ValueError, "layout is 'nchw'; expected 'NHWC', 'NCHW'"),
    ({"target": 1}, ValueError, "target is 1, but without mix nothing is done to it"),
    ({"dtype": torch.float64}, ValueError, "dtype is torch.float64"),
    ({"dtype": "bfloat16"}, ValueError, "dtype is 'bfloat16'"),
    ({"memory_format": torch.preserve_format}, ValueError, "memory_format is torch.preserve_format"),
    ({"mean": (0.5,)}, ValueError, "have 1 and 3 values"),
    ({"mean": (0.5, 0.5), "std": (1, 1)}, ValueError, "have 2 and 2 values; expected 1, 3 or 4"),
    ({"std": (1, 0, 1)}, ValueError, r"std is \(1, 0, 1\); expected positive"),
    ({"device": "mps"}, ValueError, "device is 'mps'"),
    ({"device": "gpu"}, RuntimeError, "device is 'gpu', which is none"),
    ({"depht": 3}, TypeError, "depht"),
])  # fmt: skip
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        Prefetcher(**{"loader": [], "device": "cpu", **options})


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match="device is 'cuda:2', but there are 2 GPUs, numbered from 0"):
        Prefetcher([], "cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RuntimeError, match="device is 1, but PyTorch sees no NVIDIA GPU"):
        Prefetcher([], 1)
    assert Prefetcher([]).device == torch.device("cpu")


def test_a_graph_captured_under_one_iterator_reads_what_another_brings():
    data = Prefetcher(pairs(3), stable_addresses=True, **CPU)
    alive = iter(data)
    first = next(alive)
    for batch in data:
        assert [tensor.data_ptr() for tensor in batch] == [tensor.data_ptr() for tensor in first]


def test_batches_drawn_ahead_in_inference_mode_can_be_trained_with():
    for stable in (False, True):
        iterator = iter(Prefetcher(pairs(4), stable_addresses=stable, **CPU))
        with torch.inference_mode():
            next(iterator)
        images = next(iterator)[0]
        weight = torch.ones((), requires_grad=True)
        (images * weight).sum().backward()
        torch.testing.assert_close(weight.grad, images.sum())


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_the_memory_format_of_floating_images_of_any_strides(memory_format):
    images = torch.rand(2, 3, 8, 6).transpose(2, 3)
    (got,) = Prefetcher([images], memory_format=memory_format, **CPU)
    assert got.is_contiguous(memory_format=memory_format)


def test_floating_arrays_are_found():
    images = torch.rand(2, 3, 8, 6)
    (got,) = Prefetcher([images.numpy()], **CPU)
    (expected,) = Prefetcher([images], **CPU)
    assert torch.equal(got, expected)
