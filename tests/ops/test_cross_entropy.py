"""The public function against torch.nn.functional.cross_entropy in float64, through the kernel and the reference.

On a machine without a GPU the kernel runs in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastfeed.functional
import fastfeed.ops.cross_entropy as op
from fastfeed import MixedTarget, nn
from tests.ops.labels import DEVICE, TOLERANCE, check, cross_entropy, gradients, make

SHAPES = [(0, 7), (1, 1), (1, 2), (37, 7), (289, 41), (1024, 2), (5, 1000), (3, 1001), (2, 4096), (2, 4097)]
WIDE = [(2, 21841), (3, 21843), (1, 32768), (2, 32769), (1, 128256)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(path, shape, dtype):
    check(*make(*shape, dtype), label_smoothing=0.1)


@pytest.mark.parametrize("shape", WIDE)
def test_wide_heads(path, shape):
    check(*make(*shape, torch.bfloat16), label_smoothing=0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_reductions_and_smoothing(path, dtype, reduction, smoothing):
    check(*make(37, 11, dtype), reduction=reduction, label_smoothing=smoothing)


def test_upstream_gradient_per_row(path):
    check(*make(37, 11), grad=torch.randn(37, generator=torch.Generator().manual_seed(1)).to(DEVICE), reduction="none")


def test_upstream_gradient_is_applied_before_rounding(path):
    # A loss scale as GradScaler's lifts gradients of fp16 logits out of the subnormal range; rounding them first
    # would lose what it saves. Each gradient must be within one rounding of the truth.
    logits, target = make(64, 1000, torch.float16, scale=1.0, ignored=False)
    _, dx = gradients(lambda x, t: cross_entropy(x, t).float(), logits, target, torch.tensor(4096.0, device=DEVICE))
    _, true = gradients(F.cross_entropy, logits.double(), target, torch.tensor(4096.0, device=DEVICE).double())
    # the loss itself is fp16, so is its gradient, which 4096 survives exactly
    torch.testing.assert_close(dx.double(), true, rtol=1e-3, atol=0)


@pytest.mark.parametrize("ignore_index", [0, 3, 255, -1])
def test_ignore_index(path, ignore_index):
    logits, target = make(20, 5)
    target[target == -100] = ignore_index
    check(logits, target, ignore_index=ignore_index, label_smoothing=0.1)


@pytest.mark.parametrize(("reduction", "expected"), [("mean", float("nan")), ("sum", 0.0)])
def test_every_row_ignored(path, reduction, expected):
    logits, target = make(4, 5)
    target.fill_(-100)
    loss, dx = gradients(cross_entropy, logits, target, torch.tensor(1.0, device=DEVICE), reduction=reduction)
    torch.testing.assert_close(loss.cpu(), torch.tensor(expected), equal_nan=True)
    assert torch.equal(dx, torch.zeros_like(dx))


@pytest.mark.parametrize("values", [(1e4, -1e4), (88.0, -88.0), (0.0, 0.0), (1e-30, 0.0)])
def test_extreme_logits(path, values):
    logits, target = make(8, 9, ignored=False)
    logits = torch.where(logits > 0, values[0], values[1])
    check(logits, target, label_smoothing=0.1)


def test_minus_infinity_beside_the_target(path):
    logits, target = make(6, 5000, ignored=False)
    logits[:, :4096] = -float("inf")  # the whole first tile of the kernel
    target.fill_(4500)
    check(logits, target)
    smoothed = cross_entropy(logits, target, label_smoothing=0.1)
    assert smoothed == float("inf") == F.cross_entropy(logits, target, label_smoothing=0.1)


def test_nan_in_an_ignored_row_reaches_neither_loss_nor_gradient():
    logits, target = make(5, 7)
    logits[1] = float("nan")
    loss, dx = gradients(cross_entropy, logits, target, torch.tensor(1.0, device=DEVICE), label_smoothing=0.1)
    assert loss.isfinite()
    assert torch.equal(dx[1], torch.zeros_like(dx[1]))
    assert dx.isfinite().all()


def test_nan_in_a_row_that_counts_is_not_hidden(path):
    logits, target = make(5, 7)
    logits[2, 3] = float("nan")
    loss = cross_entropy(logits, target, reduction="none")
    assert loss.isnan().tolist() == [False, False, True, False, False]


def test_views(path):
    logits, target = make(40, 33)
    check(logits[::2], target[::2])
    check(logits.t().contiguous().t(), target)
    check(logits[:, 1:], target.clamp(max=31))
    check(logits[:1].expand(40, 33), target)
    check(logits.reshape(-1)[3 : 3 + 30 * 33].view(30, 33), target[:30])  # rows not aligned to 16 bytes


def test_shift_invariance(path):
    logits, target = make(16, 100)
    a, b = cross_entropy(logits, target), cross_entropy(logits + 8.0, target)
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("target", [
    torch.rand(6, 5).softmax(1),  # probabilities
    torch.randint(0, 5, (6,), dtype=torch.uint8),
    torch.randint(0, 5, (6,)),
])  # fmt: skip
def test_what_goes_to_pytorchs_own(target):
    logits, _ = make(6, 5, torch.float64)
    target = target.to(DEVICE)
    for options in ({}, {"label_smoothing": 0.1}, {"weight": torch.rand(5, device=DEVICE, dtype=torch.float64)}):
        expected = F.cross_entropy(logits, target, **options)
        assert torch.equal(cross_entropy(logits, target, **options), expected)


@pytest.mark.parametrize("change", [
    {"reduction": "avg"},
    {"label_smoothing": 1.5},
    {"target": torch.zeros(3, dtype=torch.int64)},
    {"target": torch.zeros(4, 2, dtype=torch.int64)},
    {"target": torch.zeros(4, dtype=torch.int32)},
    {"target": torch.zeros(4, 5, dtype=torch.int64)},
    {"target": torch.zeros(4, dtype=torch.int64, device="meta")},
    {"weight": torch.ones(4)},
    {"weight": torch.ones(5, 1)},
    {"weight": torch.ones(5, dtype=torch.float64)},
    {"weight": torch.ones(5, requires_grad=True)},
    {"input": torch.zeros(4, 5, dtype=torch.int64)},
    {"input": torch.zeros((), dtype=torch.float32)},
])  # fmt: skip
def test_errors_are_pytorchs(change):
    """The same type, and words; with a weight that needs a gradient, in the backward."""
    arguments = {"input": torch.zeros(4, 5, requires_grad=True), "target": torch.zeros(4, dtype=torch.int64), **change}

    def outcome(function):
        try:
            function(**arguments).backward()
        except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError) as error:
            return type(error), str(error)

    if DEVICE == "cuda":
        arguments = {k: v.cuda() if isinstance(v, torch.Tensor) and v.device.type == "cpu" else v
                     for k, v in arguments.items()}  # fmt: skip
    expected = outcome(F.cross_entropy)
    assert expected is not None
    assert outcome(cross_entropy) == expected


@pytest.mark.parametrize(("change", "error", "message"), [
    ({"reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction"),
    ({"label_smoothing": 1.5}, RuntimeError, "label_smoothing is 1.5"),
    ({"a": torch.zeros(3, dtype=torch.int64)}, ValueError, r"target is \[3\]; expected \[4\], for input \[4, 5\]"),
    ({"b": torch.zeros(4, 1, dtype=torch.int64)}, ValueError, r"target.b is \[4, 1\]; expected \[4\]"),
    ({"b": torch.zeros(4)}, RuntimeError, "target.b is torch.float32; expected class indices"),
    ({"b": torch.zeros(4, dtype=torch.int64, device="meta")}, RuntimeError, "target.b on meta"),
    ({"b": torch.tensor([0, 1, 7, 0])}, IndexError, r"Target 7 is out of bounds: expected 0 to 4.*target\[2\]"),
    ({"lam": torch.zeros(3)}, ValueError, r"target.lam is \[3\]; expected one number, or \[4\]"),
    ({"lam": torch.zeros(4, device="meta")}, RuntimeError, "target.lam on meta"),
    ({"weight": torch.ones(4)}, RuntimeError, r"weight is \[4\]; expected \[5\]"),
    ({"input": torch.zeros(5)}, ValueError, r"input is \[5\]; expected \[N, C\]"),
])  # fmt: skip
def test_errors_of_two_labels(change, error, message):
    """On the CPU, on a machine with a GPU too."""
    labels = torch.zeros(4, dtype=torch.int64)
    parts = {"a": labels, "b": labels, "lam": torch.ones(4), "input": torch.zeros(4, 5), **change}
    target = MixedTarget(parts.pop("a"), parts.pop("b"), parts.pop("lam"))
    with pytest.raises(error, match=message):
        cross_entropy(target=target, **parts)


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU this would need a synchronisation; the loss is NaN instead")
@pytest.mark.parametrize("wrong", [5, -1, -2, 2**40])
def test_a_target_that_is_no_class_raises_on_the_cpu(path, wrong):
    logits, target = make(4, 5, ignored=False)
    target[2] = wrong
    with pytest.raises(IndexError, match=rf"Target {wrong} is out of bounds: expected 0 to 4, .*target\[2\]"):
        cross_entropy(logits, target)


@pytest.mark.parametrize("classes", [5, 200])  # of both pairs of kernels
@pytest.mark.parametrize("wrong", [200, -1, 2**40])
def test_a_target_that_is_no_class_is_nan_in_the_kernel(wrong, classes):
    from fastfeed.kernels.cross_entropy import backward, forward

    logits, target = make(4, classes, ignored=False)
    target[2] = wrong
    for other, lam in ((None, None), (target.roll(1), torch.tensor(0.5, device=DEVICE))):
        loss, state = forward(logits, target, other, lam, None, -100, "none", 0.1, 0.0, torch.float32)
        of_wrong = [i in (2, 3) and (i == 2 or other is not None) for i in range(4)]
        assert loss.isnan().tolist() == of_wrong
        dx = backward(torch.ones_like(loss), logits, target, other, lam, None, state, -100, "none", 0.1, 0.0)
        assert dx.isnan().all(dim=1).tolist() == of_wrong
        assert dx.isnan().any(dim=1).tolist() == of_wrong


@pytest.mark.gpu
def test_gpu_names_a_target_that_is_no_class_where_it_is_asked_to():
    logits, target = make(4, 5, ignored=False)
    target[2] = 7
    assert cross_entropy(logits, target).isnan()
    with torch.autograd.detect_anomaly(), pytest.raises(IndexError, match=r"Target 7 .*target\[2\]"):
        cross_entropy(logits, target)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("mixed", [False, True])
def test_second_derivatives(path, reduction, mixed):
    logits, target = make(4, 5)
    truth = target
    if mixed:
        a = target.clamp(min=0)
        lam = torch.rand(4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        target = MixedTarget(a, a.roll(1), lam)
        truth = target.dense(5, torch.float64)

    def second(function, x, target):
        x = x.clone().requires_grad_()
        loss = function(x, target, reduction=reduction, label_smoothing=0.1)
        (dx,) = torch.autograd.grad(loss.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    torch.testing.assert_close(
        second(cross_entropy, logits, target).double(),
        second(F.cross_entropy, logits.double(), truth),
        rtol=1e-4,
        atol=1e-5,
    )


def test_logits_are_left_as_they_are(path):
    logits, target = make(9, 33)
    before = logits.clone()
    gradients(cross_entropy, logits, target, torch.tensor(1.0, device=DEVICE))
    assert torch.equal(logits, before)


def test_autocast_gives_a_float32_loss_and_no_float32_logits(path):
    logits, target = make(9, 33, torch.bfloat16)
    logits.requires_grad_()
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        loss = cross_entropy(logits, target, label_smoothing=0.1)
        expected = F.cross_entropy(logits, target, label_smoothing=0.1)
    assert loss.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_opcheck(reduction):
    for dtype, classes, mixed in itertools.product([torch.float16], [5, 200], [False, True]):
        logits, target = make(6, classes, dtype)
        logits.requires_grad_()
        other = (target.roll(1), torch.rand(6, device=DEVICE)) if mixed else (None, None)
        weight = torch.rand(classes, device=DEVICE, dtype=dtype)
        options = (*other, weight, -100, reduction, 0.1, 0.0, dtype)
        torch.library.opcheck(torch.ops.fastfeed.cross_entropy.default, (logits, target, *options))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    compiled = torch.compile(
        lambda x, t: cross_entropy(x * 2, t, label_smoothing=0.1), fullgraph=True, dynamic=dynamic, backend="aot_eager"
    )
    for n in (4, 6):
        logits, target = make(n, 5)
        x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
        compiled(x, target).backward()
        cross_entropy(y * 2, target, label_smoothing=0.1).backward()
        torch.testing.assert_close(x.grad, y.grad)


def test_module():
    logits, target = make(6, 5)
    module = nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2, reduction="sum")
    expected = torch.nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=2, reduction="sum")
    target[target == -100] = 2
    torch.testing.assert_close(module(logits, target), expected(logits, target))
    assert repr(module) == repr(expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1024, 1000), (289, 21843), (64, 128256)])
def test_gpu_large_heads(shape, dtype):
    check(*make(*shape, dtype), label_smoothing=0.1)


@pytest.mark.gpu
def test_gpu_more_than_two_to_the_31_logits():
    n, c = 70_000, 32_000
    logits = torch.randn(n, c, device="cuda", dtype=torch.bfloat16)
    target = torch.randint(0, c, (n,), device="cuda")
    loss, dx = gradients(cross_entropy, logits, target, torch.ones((), device="cuda"), reduction="sum")
    last = slice(n - 8, n)
    rows, rows_dx = gradients(cross_entropy, logits[last], target[last], torch.ones((), device="cuda"), reduction="sum")
    assert torch.equal(dx[last], rows_dx)
    assert loss.isfinite()
    assert rows.isfinite()


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["labels", "two labels", "pixels"])
def test_gpu_takes_no_more_memory_than_eager(kind):
    shape = (8, 19, 256, 256) if kind == "pixels" else (1024, 21843)
    logits = torch.randn(shape, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), device="cuda")
    target = MixedTarget(labels, labels.roll(1, 0), torch.rand(shape[0], device="cuda"))

    def peak(loss):
        for _ in range(2):  # the first time kernels are compiled
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            torch.autograd.grad(loss(), logits)
        return torch.cuda.max_memory_allocated() - before

    if kind == "two labels":
        ours = peak(lambda: cross_entropy(logits, target))
        eager = peak(lambda: F.cross_entropy(logits, target.dense(shape[1], torch.bfloat16)))
    else:
        ours, eager = peak(lambda: cross_entropy(logits, labels)), peak(lambda: F.cross_entropy(logits, labels))
    assert ours <= eager
    assert ours <= logits.nbytes + 40 * labels.numel() + 2**20  # the gradient, and some bytes per row


@pytest.mark.gpu
def test_gpu_never_synchronises():
    logits, target = make(64, 1000, torch.bfloat16)
    logits.requires_grad_()
    cross_entropy(logits, target, label_smoothing=0.1).backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        cross_entropy(logits, target, label_smoothing=0.1).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_cuda_graph():
    logits, target = make(64, 1000, torch.bfloat16)
    logits.requires_grad_()

    def step():
        logits.grad = None
        loss = cross_entropy(logits, target, label_smoothing=0.1)
        loss.backward()
        return loss, logits.grad

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, dx = step()
    with torch.no_grad():
        logits.copy_(torch.randn_like(logits))
    graph.replay()
    expected, expected_dx = gradients(cross_entropy, logits, target, torch.ones((), device="cuda"), label_smoothing=0.1)
    assert torch.equal(loss, expected)
    assert torch.equal(dx, expected_dx)


def test_the_cpu_runs_pytorchs_own(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    logits, target = (t.cpu() for t in make(6, 5))
    monkeypatch.setattr(op, "_FORWARD", None)  # not reached
    assert torch.equal(
        cross_entropy(logits, target, label_smoothing=0.1), F.cross_entropy(logits, target, label_smoothing=0.1)
    )


def test_forward_mode_and_function_transforms_are_pytorchs_own():
    logits, target = make(6, 5)
    tangent = torch.randn_like(logits)

    def ours(x):
        return cross_entropy(x, target, label_smoothing=0.1)

    def theirs(x):
        return F.cross_entropy(x, target, label_smoothing=0.1)

    for transform in (
        lambda f: torch.func.jvp(f, (logits,), (tangent,)),
        lambda f: torch.func.grad(f)(logits),
        lambda f: torch.func.hessian(f)(logits),
        lambda f: torch.func.vmap(f)(torch.stack([logits, tangent])),
    ):
        torch.testing.assert_close(transform(ours), transform(theirs))
    targets = torch.stack([target, target.flip(0)])
    over_targets = torch.func.vmap(lambda t: cross_entropy(logits, t))(targets)
    torch.testing.assert_close(over_targets, torch.stack([F.cross_entropy(logits, t) for t in targets]))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(logits, tangent)
        results = [torch.autograd.forward_ad.unpack_dual(f(dual)).tangent for f in (ours, theirs)]
    assert results[0] is not None
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool])
def test_logits_that_are_no_floats_are_refused_as_by_pytorch(dtype):
    logits, target = make(6, 5)
    with pytest.raises(NotImplementedError):
        cross_entropy(logits.to(dtype), target)


@pytest.mark.parametrize(
    "function", [cross_entropy, fastfeed.functional.focal_cross_entropy, fastfeed.functional.ohem_cross_entropy]
)
def test_meta_and_fake_tensors(function):
    def check(device):
        logits = torch.empty(6, 5, device=device, dtype=torch.bfloat16, requires_grad=True)
        labels, lam = torch.empty(6, dtype=torch.int64, device=device), torch.empty(6, device=device)
        for target in (labels, MixedTarget(labels, labels, lam)):
            for reduction in ("mean", "none"):
                loss = function(logits, target, reduction=reduction)
                assert (loss.device.type, loss.dtype) == (device, torch.bfloat16)
                assert loss.shape == (() if reduction == "mean" else (6,))
                (grad,) = torch.autograd.grad(loss.sum(), logits)
                assert (grad.device.type, grad.dtype, grad.shape) == (device, torch.bfloat16, (6, 5))

    check("meta")
    with FakeTensorMode():
        check(DEVICE)
