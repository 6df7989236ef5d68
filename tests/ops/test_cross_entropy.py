"""The public function against torch.nn.functional.cross_entropy in float64, through the kernel and the reference.

On a machine without a GPU the kernel runs in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastfeed.ops.cross_entropy as op
from fastfeed import nn
from fastfeed.functional import cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SHAPES = [(0, 7), (1, 1), (1, 2), (37, 7), (289, 41), (5, 1000), (3, 1001), (2, 4096), (2, 4097), (2, 21843)]
# (rtol, atol) against float64 of the same rounded logits: what one rounding of the result and fp32 arithmetic allow
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (8e-3, 1e-5),
}


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    """Run a test once through the Triton kernel and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr(op, "can_run", lambda device: False)
        monkeypatch.setattr(op, "_kernel_takes", lambda input: True)
    else:
        assert op.can_run(torch.device(DEVICE)), "the tests must reach the kernel; is TRITON_INTERPRET set?"
    return request.param


def make(n, c, dtype=torch.float32, scale=3.0, ignored=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=generator) * scale).to(dtype).to(DEVICE)
    target = torch.randint(0, c, (n,), generator=generator)
    if ignored and n > 2:
        target[1] = -100
    return logits, target.to(DEVICE)


def gradients(function, logits, target, grad, **options):
    """Return (loss, gradient of the logits), for upstream gradient `grad` of the loss."""
    x = logits.detach().clone().requires_grad_()
    loss = function(x, target, **options)
    loss.backward(grad.to(loss.dtype).expand(loss.shape))
    return loss.detach(), x.grad


def check(logits, target, grad=1.0, **options):
    grad = torch.as_tensor(grad, device=logits.device)
    loss, dx = gradients(cross_entropy, logits, target, grad, **options)
    # the upstream gradient as the loss's own dtype holds it, so that only our rounding is judged
    true_loss, true_dx = gradients(F.cross_entropy, logits.double(), target, grad.to(loss.dtype).double(), **options)
    rtol, atol = TOLERANCE[logits.dtype]
    assert loss.dtype == dx.dtype == logits.dtype
    torch.testing.assert_close(loss.double(), true_loss, rtol=rtol, atol=atol, equal_nan=True)
    torch.testing.assert_close(dx.double(), true_dx, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes(path, shape, dtype):
    check(*make(*shape, dtype), label_smoothing=0.1)


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


def test_nan_in_an_ignored_row_reaches_neither_loss_nor_gradient(path):
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
    lambda n, c: torch.rand(n, c).softmax(1),
    lambda n, c: torch.randint(0, c, (n,), dtype=torch.uint8),
])  # fmt: skip
def test_what_the_kernel_does_not_take_is_pytorchs_own(target):
    logits, _ = make(6, 5)
    target = target(6, 5).to(DEVICE)
    assert torch.equal(
        cross_entropy(logits, target, label_smoothing=0.1), F.cross_entropy(logits, target, label_smoothing=0.1)
    )
    weight = torch.rand(5, device=DEVICE)
    assert torch.equal(cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight))
    pixels, pixel_target = torch.randn(2, 5, 4, 4, device=DEVICE), torch.randint(0, 5, (2, 4, 4), device=DEVICE)
    assert torch.equal(cross_entropy(pixels, pixel_target), F.cross_entropy(pixels, pixel_target))


def test_errors():
    logits, target = make(4, 5, ignored=False)
    for options, error, message in [
        ({"reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction"),
        ({"label_smoothing": 1.5}, RuntimeError, "label_smoothing is 1.5"),
        ({"label_smoothing": -0.1}, RuntimeError, "label_smoothing is -0.1"),
    ]:
        with pytest.raises(error, match=message):
            cross_entropy(logits, target, **options)
    with pytest.raises(ValueError, match=r"input batch_size \(4\) to match target batch_size \(3\)"):
        cross_entropy(logits, target[:3])
    with pytest.raises(RuntimeError, match="meta"):
        cross_entropy(logits, target.to("meta"))
    with pytest.raises(RuntimeError):
        cross_entropy(logits, target.int())


@pytest.mark.skipif(DEVICE == "cuda", reason="on a GPU this would need a synchronisation; the loss is NaN instead")
@pytest.mark.parametrize("wrong", [5, -1, -2, 2**40])
def test_a_target_that_is_no_class_raises_on_the_cpu(path, wrong):
    logits, target = make(4, 5, ignored=False)
    target[2] = wrong
    with pytest.raises(IndexError, match=f"Target {wrong} is out of bounds: expected 0 to 4"):
        cross_entropy(logits, target)


@pytest.mark.parametrize("wrong", [5, -1, 2**40])
def test_a_target_that_is_no_class_is_nan_in_the_kernel(wrong):
    from fastfeed.kernels.cross_entropy import backward, forward

    logits, target = make(4, 5, ignored=False)
    target[2] = wrong
    loss, *saved = forward(logits, target, -100, 0.1)
    assert loss.isnan().tolist() == [False, False, True, False]
    dx = backward(torch.ones_like(loss), logits, target, *saved, -100, 0.1)
    assert dx.isnan().all(dim=1).tolist() == [False, False, True, False]


def test_second_derivative_is_refused_clearly(path):
    logits, target = make(4, 5)
    logits.requires_grad_()
    (dx,) = torch.autograd.grad(cross_entropy(logits, target), logits, create_graph=True)
    with pytest.raises(RuntimeError, match="cannot be differentiated twice"):
        dx.sum().backward()


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


def test_opcheck(monkeypatch):
    monkeypatch.setattr(op, "can_run", lambda device: False)  # the interpreter cannot trace
    for dtype, smoothing in itertools.product([torch.float32, torch.float64, torch.float16], [0.0, 0.1]):
        logits, target = make(6, 5, dtype)
        logits.requires_grad_()
        torch.library.opcheck(torch.ops.fastfeed.cross_entropy_forward.default, (logits, target, -100, smoothing))


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
    monkeypatch.setattr(op, "_forward", None)  # not reached
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


def test_meta_tensors():
    loss = cross_entropy(torch.empty(6, 5, device="meta"), torch.empty(6, dtype=torch.int64, device="meta"))
    assert loss.device.type == "meta"
    assert loss.shape == ()
