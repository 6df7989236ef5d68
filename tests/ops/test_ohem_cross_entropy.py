"""OHEM against a sort of the rows' losses, through the kernels and the reference."""

import math

import pytest
import torch
import torch.nn.functional as F

import fastfeed.ops.cross_entropy
import fastfeed.ops.ohem_cross_entropy as op
from fastfeed import MixedTarget, nn
from fastfeed.functional import ohem_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    if request.param == "reference":
        for module in (fastfeed.ops.cross_entropy, op):
            monkeypatch.setattr(module, "kernel_takes", lambda *tensors: False)
    else:
        assert op.kernel_takes(torch.ones(1, device=DEVICE)), "the tests must reach the kernel"
    return request.param


def draw(shape, classes, dtype=torch.float32, ignored=True):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape[0], classes, *shape[1:], generator=generator) * 3).to(dtype).to(DEVICE)
    target = torch.randint(0, classes, shape, generator=generator)
    if ignored and target.numel() > 2:
        target.view(-1)[::3] = -100
    return logits, target.to(DEVICE)


def chosen(hardness, valid, count):
    """Return the indices of the hardest rows, by a stable sort in Python."""
    rows = [i for i in range(len(hardness)) if valid[i]]
    return sorted(rows, key=lambda i: -hardness[i])[:count]


def expected(logits, target, count, reduction="mean", threshold=math.inf, hardness_of=None, **options):
    """Return the loss, in float64, of the rows that should count, from float64 logits that need a gradient."""
    loss = F.cross_entropy(logits, target, reduction="none", **options).flatten()
    hard = (loss if hardness_of is None else hardness_of).detach().flatten().tolist()
    valid = (target != -100).flatten().tolist()
    rows = set(chosen(hard, valid, count)) | {i for i, h in enumerate(hard) if valid[i] and h > threshold}
    kept = torch.zeros_like(loss)
    kept[sorted(rows)] = 1
    loss = loss * kept
    return {"mean": loss.sum() / len(rows), "sum": loss.sum(), "none": loss.reshape(target.shape)}[reduction]


def check(logits, target, ours, true, rtol=3e-6):
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss, truth = ours(x), true(y)
    assert loss.dtype == logits.dtype
    torch.testing.assert_close(loss.double(), truth, rtol=rtol, atol=1e-5)
    grad = torch.randn(loss.shape, generator=torch.Generator().manual_seed(1)).to(loss)
    loss.backward(grad)
    truth.backward(grad.double())
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=rtol, atol=1e-6)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(("k", "count"), [(0.7, 27), (1.0, 39), (5, 5), (1, 1), (1000, 39), (0.001, 1), (0.999, 38)])
def test_the_hardest_rows_count(path, k, count, reduction):
    logits, target = draw((39,), 7)
    check(
        logits,
        target,
        lambda x: ohem_cross_entropy(x, target, k=k, reduction=reduction),
        lambda y: expected(y, target, count, reduction),
    )


@pytest.mark.parametrize(
    "options", [{"label_smoothing": 0.1}, {"weight": True}, {"label_smoothing": 0.1, "weight": True}]
)
@pytest.mark.parametrize("shape", [(13,), (2, 3, 5)])
def test_with_weights_and_smoothing(path, shape, options):
    logits, target = draw(shape, 7)
    weight = torch.rand(7, device=DEVICE) + 0.5 if options.get("weight") else None
    smoothing = options.get("label_smoothing", 0.0)
    check(
        logits,
        target,
        lambda x: ohem_cross_entropy(x, target, weight, label_smoothing=smoothing, k=5),
        lambda y: expected(y, target, 5, weight=None if weight is None else weight.double(), label_smoothing=smoothing),
    )
    # The threshold is of the probability, whatever the weights and the smoothing make of the loss.
    plain = F.cross_entropy(logits.double(), target, reduction="none")
    check(
        logits,
        target,
        lambda x: ohem_cross_entropy(x, target, weight, label_smoothing=smoothing, thresh=0.2, min_kept=3),
        lambda y: expected(
            y, target, 3, threshold=-math.log(0.2), hardness_of=plain, label_smoothing=smoothing,
            weight=None if weight is None else weight.double(),
        ),
    )  # fmt: skip


@pytest.mark.parametrize(("thresh", "min_kept"), [(0.3, None), (0.3, 0), (0.01, 8), (0.0, 4), (1.0, None), (0.3, 1000)])
def test_a_threshold(path, thresh, min_kept):
    logits, target = draw((2, 4, 4), 5)
    threshold = -math.log(thresh) if thresh else math.inf
    check(
        logits,
        target,
        lambda x: ohem_cross_entropy(x, target, thresh=thresh, min_kept=min_kept),
        lambda y: expected(y, target, min_kept or 0, threshold=threshold),
    )


def test_of_equally_hard_rows_the_first_count(path):
    logits = torch.zeros(10, 4, device=DEVICE)
    logits[7] = 1.0
    target = torch.tensor([0, 1, 2, -100, 0, 1, 2, 3, 0, 1], device=DEVICE)
    for k in range(1, 10):
        loss = ohem_cross_entropy(logits, target, k=k, reduction="none")
        assert (loss > 0).nonzero().flatten().tolist() == [i for i in range(10) if i != 3][:k]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(path, dtype):
    logits, target = draw((50,), 300, dtype)
    rtol = {torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    check(
        logits,
        target,
        lambda x: ohem_cross_entropy(x, target),
        lambda y: expected(y, target, 35),
        rtol,
    )


def test_two_labels(path):
    logits, a = draw((20,), 7, ignored=False)
    b = a.roll(1)
    lam = torch.rand(20, generator=torch.Generator().manual_seed(3)).to(DEVICE)
    a[4], a[5], b[5] = -100, -100, -100
    x = logits.clone().requires_grad_()
    loss = ohem_cross_entropy(x, MixedTarget(a, b, lam), k=6)
    loss.backward()
    y = logits.double().requires_grad_()
    rows = lam * F.cross_entropy(y, a, reduction="none") + (1 - lam) * F.cross_entropy(y, b, reduction="none")
    kept = chosen(rows.tolist(), [i != 5 for i in range(20)], 6)
    rows[kept].mean().backward()
    torch.testing.assert_close(loss.double(), rows[kept].mean(), rtol=1e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-7)


def test_nothing_counts(path):
    logits, target = draw((4,), 5)
    target.fill_(-100)
    x = logits.requires_grad_()
    loss = ohem_cross_entropy(x, target)
    assert loss.isnan()
    loss.backward()
    assert torch.equal(x.grad, torch.zeros_like(x.grad))
    assert ohem_cross_entropy(x, target, reduction="sum") == 0
    empty = ohem_cross_entropy(torch.zeros(0, 5, device=DEVICE), torch.zeros(0, dtype=torch.int64, device=DEVICE))
    assert empty.isnan()


def test_a_loss_that_is_nan_is_not_lost(path):
    logits, target = draw((9,), 5, ignored=False)
    logits[3, 2] = float("nan")
    assert ohem_cross_entropy(logits, target, k=1).isnan()
    assert ohem_cross_entropy(logits, target, k=4, reduction="none").isnan().tolist() == [i == 3 for i in range(9)]


def test_second_derivatives(path):
    logits, target = draw((8,), 5)

    def second(function, x):
        x = x.clone().requires_grad_()
        (dx,) = torch.autograd.grad(function(x).square(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    ours = second(lambda x: ohem_cross_entropy(x, target, k=3), logits)
    torch.testing.assert_close(
        ours.double(), second(lambda y: expected(y, target, 3), logits.double()), rtol=1e-4, atol=1e-5
    )


def test_opcheck():
    loss = torch.rand(9, device=DEVICE, requires_grad=True)
    valid = torch.rand(9, device=DEVICE) < 0.8
    for reduction, threshold in (("mean", None), ("none", 0.5), ("sum", None)):
        arguments = (loss, loss.detach(), valid, 4, threshold, reduction, torch.float32)
        torch.library.opcheck(torch.ops.fastfeed.ohem.default, arguments)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    compiled = torch.compile(
        lambda x, t: ohem_cross_entropy(x * 2, t, k=0.5), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for n in (6, 8):
        logits, target = draw((n,), 5)
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        compiled(x, target).backward()
        ohem_cross_entropy(y * 2, target, k=0.5).backward()
        torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"k": 0}, ValueError, "k is 0; expected at least 1 row"),
    ({"k": 1.5}, ValueError, "k is 1.5; expected a share above 0, to 1"),
    ({"k": True}, TypeError, "k is True"),
    ({"k": "half"}, TypeError, "k is 'half'"),
    ({"thresh": 1.5}, ValueError, "thresh is 1.5"),
    ({"min_kept": 3}, ValueError, "min_kept is 3, and thresh None"),
    ({"thresh": 0.5, "min_kept": -1}, ValueError, "min_kept is -1"),
    ({"thresh": 0.5, "min_kept": 0.5}, TypeError, "min_kept is 0.5"),
    ({"target": torch.rand(4, 5)}, ValueError, "target is torch.float32; expected class indices"),
    ({"target": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target is \[3\]; expected \[4\]"),
    ({"reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction"),
])  # fmt: skip
def test_errors(options, error, message):
    with pytest.raises(error, match=message):
        ohem_cross_entropy(**{"input": torch.zeros(4, 5), "target": torch.zeros(4, dtype=torch.int64), **options})


def test_module():
    logits, target = draw((12,), 5)
    module = nn.OHEMCrossEntropyLoss(k=4, label_smoothing=0.1)
    assert module(logits, target) == ohem_cross_entropy(logits, target, k=4, label_smoothing=0.1)
    assert repr(module) == "OHEMCrossEntropyLoss(k=4)"
    assert repr(nn.OHEMCrossEntropyLoss(thresh=0.7, min_kept=10)) == "OHEMCrossEntropyLoss(thresh=0.7, min_kept=10)"


@pytest.mark.gpu
@pytest.mark.parametrize("shape", [(1024,), (8, 256, 256)])
def test_gpu_never_synchronises(shape):
    logits, target = draw(shape, 19, torch.bfloat16)
    logits.requires_grad_()
    ohem_cross_entropy(logits, target).backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(2):
            loss = ohem_cross_entropy(logits, target, thresh=0.7, min_kept=1000)
            loss.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert loss.isfinite()
