"""Average and maximum pooling against PyTorch's own in float64, through the kernels and the reference.

On a machine without a GPU the kernels run in Triton's interpreter, on the CPU.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import fastfeed.ops.avg_max_pool as op
from fastfeed import nn
from fastfeed.functional import avg_max_pool2d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.contiguous_format, torch.channels_last]
HALVES = [torch.float16, torch.bfloat16]
# (rtol, atol) against float64 of the same rounded input: one rounding of a half, sums in fp32
TOLERANCE = {
    torch.float64: (1e-14, 1e-14),
    torch.float32: (1e-6, 1e-6),
    torch.float16: (1e-3, 1e-6),
    torch.bfloat16: (8e-3, 1e-6),
}

# by Triton's interpreter, of the maximum
pytestmark = pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning")


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    """Run a test once through the Triton kernels and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr(op, "kernel_takes", lambda *tensors: False)
    else:
        assert op.kernel_takes(torch.empty(1, device=DEVICE)), "the tests must reach the kernels"
    return request.param


def pytorchs(x):
    return torch.cat((F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)), dim=-3)


def make(shape, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(DEVICE, dtype).contiguous(memory_format=memory_format)


def derive(function, x, grad):
    """Return (y, gradient of x) for the gradient `grad` of y."""
    x = x.detach().requires_grad_()
    y = function(x)
    return y.detach(), torch.autograd.grad(y, x, grad.to(y.dtype))[0]


def check(x):
    """Compare results and gradients with the truth. Return both."""
    shape = (*x.shape[:-3], 2 * x.shape[-3], 1, 1)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE, x.dtype)
    y, dx = derive(avg_max_pool2d, x, grad)
    true_y, true_dx = derive(pytorchs, x.double(), grad.double())
    assert y.dtype == dx.dtype == x.dtype
    rtol, atol = TOLERANCE[x.dtype]
    torch.testing.assert_close(y.double(), true_y, rtol=rtol, atol=atol, equal_nan=True)
    # PyTorch's two gradients, each rounded, are added and rounded again
    torch.testing.assert_close(dx.double(), true_dx, rtol=rtol, atol=atol + rtol / 4)
    # float16 has no number for the smallest of them
    assert torch.equal(dx != 0, true_dx.to(dx.dtype) != 0)
    if x.numel() and any(x.is_contiguous(memory_format=f) for f in FORMATS[: x.dim() - 2]):
        assert dx.stride() == x.stride()
    return y, dx


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "shape",
    # awkward: no samples; one element; more rows than a program takes; more channels; an odd plane; more than a tile
    [(0, 3, 4, 4), (2, 3, 1, 1), (2, 3, 7, 7), (3, 70, 2, 2), (2, 5, 13, 5), (1, 5, 32, 33)],
)
def test_shapes_and_dtypes(path, shape, memory_format, dtype):
    x = make(shape, dtype, memory_format)
    y, _ = check(x)
    assert y.shape == (shape[0], 2 * shape[1], 1, 1)
    if x.numel() > x.shape[1]:  # else the formats are one
        assert y.stride() == pytorchs(x).stride()


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("plane", [(7, 7), (9, 8), (33, 32)])
def test_ties_infinities_and_nan(path, plane, dtype, memory_format):
    """The gradient goes to the first of equal maxima, and to the last NaN."""
    x = make((1, 7, *plane), dtype, memory_format)
    x[0, 0] = 1.0
    x[0, 1] = x[0, 1].clamp(max=0)
    x[0, 2] = -math.inf
    x[0, 3, 2, 1] = x[0, 3, 5, 3] = math.inf
    x[0, 4, 1, 2] = x[0, 4, 6, 1] = x[0, 4, 4, 4] = math.nan
    x[0, 5] = math.nan
    x[0, 6, 0, 0], x[0, 6, -1, -1] = math.inf, math.nan
    grad = torch.ones(1, 14, 1, 1, device=DEVICE, dtype=dtype)
    y, dx = derive(avg_max_pool2d, x, grad)
    true_y, true_dx = derive(pytorchs, x.double(), grad.double())
    rtol, atol = TOLERANCE[dtype]
    torch.testing.assert_close(y.double(), true_y, rtol=rtol, atol=max(atol, rtol / 8), equal_nan=True)
    torch.testing.assert_close(dx.double(), true_dx, rtol=rtol, atol=atol)
    width = plane[1]
    largest = dx.flatten(2)[0].argmax(dim=1).tolist()
    assert largest[0] == largest[2] == 0
    assert largest[3:6] == [2 * width + 1, 6 * width + 1, plane[0] * width - 1]


def test_views(path):
    x = make((4, 6, 10, 9))
    for view in (
        x[::2],
        x[:, :, 1:, 2:],
        x.transpose(2, 3),
        x[:1, :, :1].expand(4, 6, 10, 9),
        x.reshape(-1)[3 : 3 + 2 * 6 * 49].view(2, 6, 7, 7),  # not aligned to 16 bytes
        x[0],  # no batch dimension
        x.contiguous(memory_format=torch.channels_last)[2],
    ):
        check(view)


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_summed_in_float32(path, dtype):
    x = torch.full((1, 2, 64, 64), 30.0, dtype=dtype, device=DEVICE)  # float16 holds neither the sum nor 2048 + 1
    assert (avg_max_pool2d(x) == 30).all()


def test_backward_needs_no_input(path):
    x = make((2, 3, 4, 4)).requires_grad_()
    y = avg_max_pool2d(x)
    saved = {tuple(tensor.shape) for tensor in y.grad_fn.saved_tensors} if path == "kernel" else set()
    assert tuple(x.shape) not in saved
    if path == "kernel":
        assert saved == {(2, 3)}


def test_gradient_of_an_expanded_gradient(path):
    x = make((2, 3, 4, 4), memory_format=torch.channels_last)
    grad = torch.full((1, 1, 1, 1), 2.0, device=DEVICE).expand(2, 6, 1, 1)
    torch.testing.assert_close(derive(avg_max_pool2d, x, grad), derive(avg_max_pool2d, x, grad.contiguous()))


@pytest.mark.parametrize("memory_format", FORMATS)
def test_second_derivatives(path, memory_format):
    def penalty(function, x):
        x = x.detach().requires_grad_()
        (first,) = torch.autograd.grad((function(x) ** 3).sum(), x, create_graph=True)
        second = torch.autograd.grad(first.square().sum(), x)
        assert first.stride() == x.stride()
        return first.detach(), *second

    x = make((2, 3, 3, 4), memory_format=memory_format)
    for actual, true in zip(penalty(avg_max_pool2d, x), penalty(pytorchs, x.double()), strict=True):
        torch.testing.assert_close(actual.double(), true, rtol=1e-5, atol=1e-6)


def test_reference_gradients():
    x = torch.randperm(16, generator=torch.Generator().manual_seed(0)).double().view(2, 2, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(op.avg_max_pool2d_reference, x)
    assert torch.autograd.gradgradcheck(op.avg_max_pool2d_reference, x)


def test_function_transforms_and_forward_mode():
    x = make((2, 3, 4, 4))
    for transform in (
        lambda f: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
        lambda f: torch.func.grad(lambda x: f(x).square().sum())(x),
        lambda f: torch.func.vmap(f)(torch.stack([x, -x])),
    ):
        torch.testing.assert_close(transform(avg_max_pool2d), transform(pytorchs))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        tangent = torch.autograd.forward_ad.unpack_dual(avg_max_pool2d(dual)).tangent
    torch.testing.assert_close(tangent, torch.ones_like(tangent))


def test_autocast_gives_pytorchs_dtype(path):
    for dtype in (torch.bfloat16, torch.float32):
        x = make((2, 3, 4, 4), dtype)
        with torch.autocast(DEVICE, dtype=torch.bfloat16):
            assert avg_max_pool2d(x).dtype == pytorchs(x).dtype == dtype


def test_opcheck():
    x = make((2, 4, 3, 3), torch.float16, torch.channels_last)
    torch.library.opcheck(torch.ops.fastfeed.avg_max_pool2d.default, (x.detach().requires_grad_(),))
    y, argmax = torch.ops.fastfeed.avg_max_pool2d(x)
    inputs = (torch.ones_like(y), argmax, 3, 3, True)
    torch.library.opcheck(torch.ops.fastfeed.avg_max_pool2d_backward.default, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    function = lambda x: avg_max_pool2d(x * 2)  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 4, 3, 3), (3, 4, 5, 4)):
        x = make(shape, memory_format=torch.channels_last)
        grad = torch.ones(shape[0], 8, 1, 1, device=DEVICE)
        torch.testing.assert_close(derive(compiled, x, grad), derive(function, x, grad))
    torch.compiler.reset()


def test_meta_and_fake_tensors():
    assert avg_max_pool2d(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 6, 1, 1)
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 4, device=DEVICE, dtype=torch.float16, requires_grad=True)
        y = avg_max_pool2d(x)
        y.sum().backward()
    assert (y.shape, y.dtype, x.grad.shape) == ((2, 6, 1, 1), torch.float16, x.shape)


@pytest.mark.parametrize(
    "x",
    [
        torch.ones(3, 4),
        torch.ones(2, 3, 4, 4, 4),
        torch.ones(2, 3, 0, 4),
        torch.ones(2, 0, 4, 4),
        torch.ones(3, 4, 0),
        torch.ones(2, 3, 4, 4, dtype=torch.int64),
    ],
    ids=lambda x: f"{tuple(x.shape)}-{x.dtype}",
)
def test_errors_are_pytorchs(path, x):
    with pytest.raises((RuntimeError, NotImplementedError)) as theirs:
        F.adaptive_max_pool2d(x, 1)
    with pytest.raises(theirs.type) as ours:
        avg_max_pool2d(x)
    if x.is_floating_point():
        assert str(ours.value) == str(theirs.value).replace("adaptive_max_pool2d", "avg_max_pool2d")
    else:
        assert "avg_max_pool2d() is not implemented for torch.int64" in str(ours.value)


def test_module():
    x = make((2, 3, 7, 7)).cpu()
    torch.testing.assert_close(nn.AvgMaxPool2d()(x), pytorchs(x), rtol=1e-6, atol=1e-6)
    assert repr(nn.AvgMaxPool2d()) == "AvgMaxPool2d()"


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(64, 2048, 7, 7), (8, 512, 32, 32), (3, 37, 56, 55), (2, 200, 1, 1)])
def test_gpu_large(shape, memory_format, dtype):
    check(make(shape, dtype, memory_format))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("plane", [7, 32])
def test_gpu_more_than_two_to_the_31_elements(plane, memory_format):
    samples = 2**31 // (2048 * plane * plane) + 8
    x = torch.rand(samples, 2048, plane, plane, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=memory_format)
    grad = torch.rand(samples, 4096, 1, 1, device="cuda")
    y, dx = derive(avg_max_pool2d, x, grad)
    last_y, last_dx = derive(avg_max_pool2d, x[-4:].clone(), grad[-4:])
    assert torch.equal(y[-4:], last_y)
    assert torch.equal(dx[-4:], last_dx)


@pytest.mark.gpu
def test_gpu_never_synchronises():
    x = make((8, 64, 7, 7), torch.bfloat16).requires_grad_()
    avg_max_pool2d(x).sum().backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        avg_max_pool2d(x).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_cuda_graph():
    x, grad = make((8, 64, 7, 7), memory_format=torch.channels_last), torch.ones(8, 128, 1, 1, device="cuda")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        derive(avg_max_pool2d, x, grad)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = derive(avg_max_pool2d, x, grad)
    x.copy_(torch.randn_like(x))
    graph.replay()
    for result, expected in zip(results, derive(avg_max_pool2d, x, grad), strict=True):
        assert torch.equal(result, expected)
