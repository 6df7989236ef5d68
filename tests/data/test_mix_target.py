"""MixedTarget: the labels of mixed batches."""

import copy
import math
import pickle
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.data._utils.pin_memory import pin_memory

from fastfeed.data.mix import Mix, MixedTarget, MixPlan, draw_mix, mix_target


def draw(batch_size):
    return draw_mix(Mix(1.0), batch_size, 8, 8, seed=5, epoch=2, batch=3)


def example_target(n=5, classes=7):
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, classes, (2, n), generator=generator)
    return MixedTarget(a, b, torch.rand(n, generator=generator))


def test_mix_target_takes_the_labels_of_the_partners():
    p = MixPlan(
        partner=np.array([2, 0, 3, 1]),
        weight=np.array([0.25, 1, 1, 1], np.float32),
        box=np.array([[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 1, 1], [0, 0, 2, 2]], np.int32),
        lam=np.array([0.25, 1, 0.75, 0], np.float32),
    )
    target = mix_target(torch.tensor([10, 11, 12, 13]), p)
    assert target.a.tolist() == [10, 11, 12, 13]
    assert target.b.tolist() == [12, 11, 13, 11]  # the second takes nothing of its partner: its own label
    assert target.lam.tolist() == [0.25, 1, 0.75, 0]
    assert (target.a.dtype, target.b.dtype, target.lam.dtype) == (torch.int64, torch.int64, torch.float32)


@pytest.mark.parametrize(("target", "message"), [
    (torch.zeros(3), r"torch.float32 \[3\]; expected class indices, torch.int64 \[4\], or floating-point rows"),
    (torch.zeros(()), r"target is torch.float32 \[\]"),
    ([0, 1, 2, 3], "target is list"),
    (torch.zeros(4, 2, dtype=torch.bool), r"target is torch.bool \[4, 2\]"),
    (torch.zeros(4, dtype=torch.int32), "target is torch.int32"),
    (torch.zeros(3, dtype=torch.int64), r"target is torch.int64 \[3\]"),
    (torch.zeros(4, 1, dtype=torch.int64), r"target is torch.int64 \[4, 1\]"),
    (torch.zeros(4, dtype=torch.int64, device="meta"), "target is on meta; expected a CPU tensor"),
])  # fmt: skip
def test_mix_target_of_a_bad_target(target, message):
    with pytest.raises(ValueError, match=message):
        mix_target(target, draw(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_dense_is_one_hot_arithmetic(dtype):
    target = example_target(50)
    lam = target.lam.double()[:, None]
    expected = lam * F.one_hot(target.a, 7) + (1 - lam) * F.one_hot(target.b, 7)
    got = target.dense(7, dtype)
    assert got.dtype == dtype
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=torch.finfo(dtype).eps)
    if dtype.itemsize < 4:
        assert torch.equal(got, target.dense(7).to(dtype))  # rounded once
    assert torch.equal(target.dense(7).sum(dim=1)[target.a == target.b], torch.ones(int((target.a == target.b).sum())))


def test_dense_by_hand():
    target = MixedTarget(torch.tensor([0, 2, 1]), torch.tensor([1, 2, 0]), torch.tensor([0.25, 0.4, 1.0]))
    assert target.dense(3).tolist() == [[0.25, 0.75, 0], [0, 0, 1], [0, 1, 0]]
    assert target.dense(4)[:, 3].tolist() == [0, 0, 0]


def test_dense_of_pixels():
    a, b = torch.zeros(2, 2, 3, dtype=torch.int64), torch.ones(2, 2, 3, dtype=torch.int64)
    dense = MixedTarget(a, b, torch.tensor([1.0, 0.25])).dense(3)
    assert dense.shape == (2, 3, 2, 3)
    assert dense[:, :, 1, 2].tolist() == [[1, 0, 0], [0.25, 0.75, 0]]
    for lam in (torch.tensor(0.25), torch.tensor([0.25])):
        assert MixedTarget(a, b, lam).dense(3)[0, :, 0, 0].tolist() == [0.25, 0.75, 0]
        assert MixedTarget(a[:, 0, 0], b[:, 0, 0], lam).dense(3)[1].tolist() == [0.25, 0.75, 0]
    a[0, 1, 0] = 3
    with pytest.raises(IndexError, match="Target 3 is out of bounds"):
        MixedTarget(a, b, lam).dense(3)


@pytest.mark.parametrize("shapes", [((4,), (3,), (4,)), ((4, 2), (4,), (4,)), ((4,), (4,), (3,)), ((), (), ())])
def test_dense_refuses_shapes_that_do_not_go_together(shapes):
    a, b, lam = (torch.zeros(shape) for shape in shapes)
    with pytest.raises(
        ValueError, match=re.escape(f"a {list(shapes[0])}, b {list(shapes[1])}, lam {list(shapes[2])};")
    ):
        MixedTarget(a.long(), b.long(), lam).dense(3)


@pytest.mark.parametrize("name", ["shape", "size", "cuda", "long"])
def test_who_takes_the_target_for_a_tensor_is_told_the_way_out(name):
    assert not hasattr(example_target(), name)
    with pytest.raises(AttributeError, match=rf"no attribute '{name}'.*target\.a are .*target\.dense\(num_classes\)"):
        getattr(example_target(), name)


@pytest.mark.parametrize("label", [-1, 7, -100, 2**40])
@pytest.mark.parametrize("which", ["a", "b"])
def test_dense_refuses_a_label_that_is_no_class(label, which):
    target = example_target()
    getattr(target, which)[3] = label
    with pytest.raises(IndexError, match=f"Target {label} is out of bounds: expected 0 to 6"):
        target.dense(7)


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ((0,), ValueError, "num_classes is 0; expected at least 1"),
    ((-1,), ValueError, "num_classes is -1"),
    ((7.0,), TypeError, "'float' object cannot be interpreted as an integer"),
    ((7, torch.int64), ValueError, "dtype is torch.int64; expected a floating-point dtype"),
    ((7, "float32"), ValueError, "dtype is 'float32'"),
])  # fmt: skip
def test_bad_arguments_of_dense(arguments, error, message):
    with pytest.raises(error, match=message):
        example_target().dense(*arguments)


def test_both_ways_of_the_documentation_give_the_same_loss():
    target, logits = example_target(20), torch.randn(20, 7, generator=torch.Generator().manual_seed(1))
    a = F.cross_entropy(logits, target.a, reduction="none")
    b = F.cross_entropy(logits, target.b, reduction="none")
    loss = (target.lam * a + (1 - target.lam) * b).mean()
    torch.testing.assert_close(loss, F.cross_entropy(logits, target.dense(num_classes=7)))


def test_an_impossible_partner_that_gives_nothing_does_not_spoil_the_loss():
    logits = torch.tensor([[0.0, -math.inf], [0.0, 1.0]])
    p = MixPlan(np.array([1, 0]), np.ones(2, np.float32), np.zeros((2, 4), np.int32), np.ones(2, np.float32))
    target = mix_target(torch.tensor([0, 1]), p)
    b = F.cross_entropy(logits, target.b, reduction="none")
    assert ((1 - target.lam) * b).tolist() == [0, 0]


def test_pytrees_copies_and_pickles():
    target = example_target()
    leaves, spec = tree_flatten(target)
    assert len(leaves) == 3
    for copied in (
        tree_unflatten(leaves, spec),
        tree_map(torch.clone, {"target": [target]})["target"][0],
        pickle.loads(pickle.dumps(target)),
        copy.deepcopy(target),
        target.to("cpu"),
        target.to(torch.device("cpu"), non_blocking=True),
    ):
        assert type(copied) is MixedTarget
        assert all(torch.equal(x, y) for x, y in zip(copied, target, strict=True))
    assert {tensor.device.type for tensor in target.to("meta")} == {"meta"}
    batch = torch.utils.data.default_collate([MixedTarget(1, 2, 0.5), MixedTarget(3, 4, 0.25)])
    assert type(batch) is MixedTarget
    assert batch.a.tolist() == [1, 3]


def test_dense_compiles_without_a_graph_break():
    target = example_target()
    compiled = torch.compile(lambda target: target.dense(7), fullgraph=True, backend="eager")
    assert torch.equal(compiled(target), target.dense(7))
    target.b[3] = 7
    assert compiled(target).isnan().all(1).tolist() == [False, False, False, True, False]


def test_the_default_device_of_pytorch_changes_nothing():
    with torch.device("meta"):
        target = mix_target(torch.arange(4, device="cpu"), draw(4))
        assert target.dense(4).device.type == "cpu"


@pytest.mark.gpu
def test_gpu_dense_equals_the_cpu():
    target = example_target(50)
    moved = pin_memory(target).to("cuda", non_blocking=True)
    assert type(moved) is MixedTarget
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        assert torch.equal(moved.dense(7, dtype).cpu(), target.dense(7, dtype))


@pytest.mark.gpu
def test_gpu_dense_waits_for_nothing_and_marks_labels_that_are_no_class():
    target = example_target()
    expected = target.dense(7)
    target.b[3], target.a[1] = -100, 7
    moved = target.to("cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = moved.dense(7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert got[[1, 3]].isnan().all()
    assert torch.equal(got[[0, 2, 4]].cpu(), expected[[0, 2, 4]])
