import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fastfeed.data.mix import Mix, MixedTarget, draw_mix, mix_target

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

ALPHAS = st.one_of(st.just(0.0), st.floats(0, 1e308), st.floats(0.05, 5))
WORDS = st.integers(0, 2**32 - 1)


@st.composite
def declarations(draw):
    mixup, cutmix = draw(st.tuples(ALPHAS, ALPHAS).filter(any))
    return Mix(mixup, cutmix, probability=draw(st.floats(0, 1)), per=draw(st.sampled_from(["batch", "sample"])))


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(
    mix=declarations(),
    batch_size=st.integers(0, 40),
    height=st.integers(1, 3000),
    width=st.integers(1, 3000),
    seed=st.integers(0, 2**64 - 1),
    epoch=WORDS,
    batch=WORDS,
)
def test_every_plan_is_whole(mix, batch_size, height, width, seed, epoch, batch):
    with np.errstate(all="raise"):
        p = draw_mix(mix, batch_size, height, width, seed=seed, epoch=epoch, batch=batch)
    assert np.array_equal(np.sort(p.partner), np.arange(batch_size))
    assert ((p.weight >= 0) & (p.weight <= 1) & (p.lam >= 0) & (p.lam <= 1)).all()
    top, left, box_height, box_width = p.box.T.astype(np.int64)
    assert (p.box >= 0).all()
    assert (top + box_height <= height).all()
    assert (left + box_width <= width).all()
    cut = box_height > 0
    assert np.array_equal(cut, box_width > 0)
    assert not (cut & (p.weight < 1)).any()
    area = box_height * box_width / (height * width)
    assert np.array_equal(p.lam, np.where(cut, 1 - area, p.weight).astype(np.float32))
    if mix.mixup == 0 or mix.probability == 0:
        assert (p.weight == 1).all()
    if mix.cutmix == 0 or mix.probability == 0:
        assert (p.box == 0).all()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(mix=declarations(), sizes=st.tuples(st.integers(1, 40), st.integers(1, 40)), seed=WORDS)
def test_a_prefix_of_a_batch_is_drawn_alike(mix, sizes, seed):
    a, b = (draw_mix(mix, n, 31, 17, seed=seed, epoch=0, batch=0) for n in sizes)
    n = min(sizes)
    for name in ("weight", "box", "lam"):
        np.testing.assert_array_equal(getattr(a, name)[:n], getattr(b, name)[:n])


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    labels=st.lists(st.integers(0, 9), max_size=20), mix=declarations(), seed=WORDS, spare=st.integers(0, 3)
)
def test_dense_targets_are_probabilities(labels, mix, seed, spare):
    p = draw_mix(mix, len(labels), 31, 17, seed=seed, epoch=0, batch=0)
    target = mix_target(torch.tensor(labels, dtype=torch.int64), p)
    dense = target.dense(10 + spare)
    assert isinstance(target, MixedTarget)
    assert dense.shape == (len(labels), 10 + spare)
    torch.testing.assert_close(dense.sum(dim=1), torch.ones(len(labels)), rtol=0, atol=1e-6)
    own, other = F.one_hot(target.a, 10 + spare), F.one_hot(torch.tensor(labels)[p.partner].long(), 10 + spare)
    lam = torch.from_numpy(p.lam)[:, None]
    torch.testing.assert_close(dense, lam * own + (1 - lam) * other, rtol=0, atol=1e-7)


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    labels=st.lists(st.integers(0, 9), max_size=20),
    mix=declarations(),
    seed=WORDS,
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
)
def test_rows_are_mixed_as_class_indices_are(labels, mix, seed, dtype):
    p = draw_mix(mix, len(labels), 31, 17, seed=seed, epoch=0, batch=0)
    target = torch.tensor(labels, dtype=torch.int64)
    expected = mix_target(target, p).dense(10, torch.float64)
    for shape in ((10,), (2, 5), (10, 1, 1)):
        rows = F.one_hot(target, 10).to(dtype).reshape(-1, *shape)
        mixed = mix_target(rows, p)
        assert (mixed.dtype, mixed.shape) == (dtype, rows.shape)
        error = torch.finfo(dtype).eps
        torch.testing.assert_close(mixed.double().reshape(-1, 10), expected, rtol=0, atol=max(error, 2e-7))
        # Where the partner gives nothing, nothing of it is seen: not even by infinite values times 0.
        infinite = mix_target(rows.masked_fill(rows > 0, float("inf")), p)
        untouched = torch.from_numpy(p.lam == 1)
        assert torch.equal(infinite[untouched] > 0, rows[untouched] > 0)
        assert not infinite[untouched].isnan().any()
