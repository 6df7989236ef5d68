"""GeM pooling against the textbook formula in float64, through the kernels and the reference.

On a machine without a GPU the kernels run in Triton's interpreter, on the CPU.
"""

import math

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import fastfeed.ops.gem_pool as op
from fastfeed import nn
from fastfeed.functional import gem_pool2d

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FORMATS = [torch.contiguous_format, torch.channels_last]
HALVES = [torch.float16, torch.bfloat16]
# One rounding of the result, or a few of fp32's with logarithms within 2^-22
TOLERANCE = {torch.float64: 1e-13, torch.float32: 4e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}

# by Triton's interpreter, of rows past the last one, which are not stored, and of nothing but NaN
pytestmark = [
    pytest.mark.filterwarnings("ignore:divide by zero encountered in log2:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    """Run a test once through the Triton kernels and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr(op, "kernel_takes", lambda *tensors: False)
    else:
        assert op.kernel_takes(torch.empty(1, device=DEVICE)), "the tests must reach the kernels"
    return request.param


def textbook(x, p=3.0, eps=1e-6):
    """As it is written everywhere. `p` of [C] is one for each channel."""
    if isinstance(p, torch.Tensor) and p.dim() == 1:
        p = p.view(-1, 1, 1)
    return x.clamp(min=eps).pow(p).mean((-2, -1), keepdim=True).pow(1 / p)


def make(shape, dtype=torch.float32, memory_format=torch.contiguous_format, seed=0):
    """Activations of both signs, of some units."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 2 + 1
    return x.to(DEVICE, dtype).contiguous(memory_format=memory_format)


def make_p(form, channels, dtype=torch.float32):
    if form == "number":
        return 2.7
    p = torch.linspace(0.5, 6.0, channels) if form == "channels" else torch.tensor(3.3 if form == "scalar" else [3.3])
    return p.to(DEVICE, dtype)


def derive(function, x, p, grad=None, **options):
    """Return [y, gradient of x, gradient of p if that is a tensor] for the gradient `grad` of y."""
    inputs = [tensor.detach().requires_grad_() for tensor in (x, p) if isinstance(tensor, torch.Tensor)]
    y = function(inputs[0], inputs[1] if len(inputs) > 1 else p, **options)
    grad = torch.ones_like(y) if grad is None else grad.to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, inputs, grad)]


def check(x, p, **options):
    """Compare results and gradients with the truth. Return the results."""
    grad = torch.randn((*x.shape[:-2], 1, 1), generator=torch.Generator().manual_seed(1)).to(DEVICE)
    actual = derive(gem_pool2d, x, p, grad, **options)
    # the upstream gradient as the result's own dtype holds it, so that only our rounding is judged
    true_p = p.double() if isinstance(p, torch.Tensor) else p
    expected = derive(textbook, x.double(), true_p, grad.to(actual[0].dtype).double(), **options)
    largest = [tensor.abs().max().item() if tensor.numel() else 0.0 for tensor in expected]
    # Small elements have large logarithms, but small gradients; that of p cancels from the results' size.
    scales = [0.0, largest[1], largest[0]]
    for computed, true, scale in zip(actual, expected, scales, strict=False):
        atol = 1e-12 if x.dtype == torch.float64 else 4e-6 * scale + torch.finfo(computed.dtype).smallest_normal / 1024
        torch.testing.assert_close(computed.double(), true, rtol=TOLERANCE[computed.dtype], atol=atol)
    assert actual[1].dtype == x.dtype
    if x.numel() and any(x.is_contiguous(memory_format=f) for f in FORMATS[: x.dim() - 2]):
        assert actual[1].stride() == x.stride()
    return actual[0]


@pytest.mark.parametrize("form", ["number", "scalar", "one", "channels"])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize(
    "shape",
    # awkward: no samples; one element; more rows than a program takes; more channels; an odd plane; more than a tile
    [(0, 3, 4, 4), (2, 3, 1, 1), (2, 3, 7, 7), (3, 70, 2, 2), (2, 5, 13, 5), (1, 9, 32, 33)],
)
def test_shapes_and_exponents(path, shape, memory_format, form):
    check(make(shape, memory_format=memory_format), make_p(form, shape[1]))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_dtypes(path, dtype, memory_format):
    x = make((2, 9, 7, 7), dtype, memory_format)
    for p in (2.7, make_p("one", 9, dtype), make_p("channels", 9)):
        y = check(x, p)
        assert y.dtype == textbook(x, p).dtype
        if path == "kernel" and dtype != torch.float64:  # so that a convolution after it stays channels-last
            assert y.stride() == torch.nn.functional.adaptive_avg_pool2d(x, 1).stride()


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
        check(view, 3.0)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_no_less_exact_than_the_textbook(path, dtype):
    x = make((4, 16, 7, 7), dtype)
    p = torch.tensor([3.0], device=DEVICE, dtype=dtype)
    true = derive(textbook, x.double(), p.double())
    # In fp32 both make a few roundings, one more or less; and Triton's interpreter truncates to bfloat16.
    interpreted = path == "kernel" and DEVICE == "cpu"
    allowed = 2.0 if dtype == torch.float32 or (interpreted and dtype == torch.bfloat16) else 1.0
    for ours, theirs, exact in zip(derive(gem_pool2d, x, p), derive(textbook, x, p), true, strict=True):
        errors = [(computed.double() - exact).square().mean().sqrt().item() for computed in (ours, theirs)]
        assert errors[0] <= allowed * errors[1]


# --- Where the textbook formula fails ---------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", HALVES)
def test_half_precision_neither_overflows_nor_underflows(path, dtype, memory_format):
    # float16 holds 65504: one power is 3.9e13, and the sum of 49 maxima does not fit either
    for value, p in ((50.0, 8.0), (60000.0, 3.0), (0.002, 8.0)):
        x = torch.full((2, 8, 7, 7), value, dtype=dtype, device=DEVICE).contiguous(memory_format=memory_format)
        y, dx, dp = derive(gem_pool2d, x, torch.tensor([p], dtype=dtype, device=DEVICE))
        assert torch.equal(y, x[:, :, :1, :1])
        torch.testing.assert_close(dx, torch.full_like(dx, 1 / 49), rtol=TOLERANCE[dtype], atol=0)
        assert dp.item() == pytest.approx(0, abs=1e-5 * value)
    assert not textbook(torch.full((1, 1, 7, 7), 50.0, dtype=torch.float16), 8.0).isfinite().any()


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_dead_channel(path, dtype):
    x = make((2, 3, 7, 7), dtype)
    x[:, 1] = -x[:, 1].abs()
    y, dx, dp = derive(gem_pool2d, x, torch.tensor([8.0], device=DEVICE))
    assert y[:, 1].flatten().tolist() == pytest.approx([1e-6, 1e-6])
    assert (dx[:, 1] == 0).all()
    assert dp.isfinite().all()
    _, _, dp = derive(gem_pool2d, -x.abs(), torch.full((3,), 8.0, device=DEVICE))
    assert dp.abs().max() < 1e-12


def test_gradient_is_scaled_before_it_is_rounded(path):
    # 1 / 1024 of this is below the least float16, but not its product with r^(p - 1)
    x = make((1, 1, 32, 32), torch.float16)
    x[..., 0, 0] = 100.0
    grad = torch.full((1, 1, 1, 1), 2.0**-15, device=DEVICE)
    _, dx = derive(gem_pool2d, x, 8.0, grad)
    _, true = derive(textbook, x.double(), 8.0, grad.double())
    torch.testing.assert_close(dx.double(), true, rtol=1e-3, atol=2.0**-24)
    assert dx[..., 0, 0] > 0


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("times", [1, 5])
def test_an_element_equal_to_eps_gets_a_gradient(path, times, memory_format):
    x = torch.tensor([0.25, 0.5, 0.75, -1.0], device=DEVICE).view(1, 1, 2, 2)
    x = x.repeat(1, 2, times, times).contiguous(memory_format=memory_format)
    y, dx = derive(gem_pool2d, x, 3.0, eps=0.5)
    above = torch.where(x == 0.5, x.double() + 1e-12, x.double())  # whether clamp gives it one depends on the version
    true_y, true = derive(textbook, above, 3.0, eps=0.5)
    torch.testing.assert_close(y.double(), true_y, rtol=1e-6, atol=0)
    torch.testing.assert_close(dx.double(), true, rtol=4e-6, atol=0)
    assert torch.equal(dx == 0, x < 0.5)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("plane", [(3, 3), (9, 9)])
def test_nan_reaches_what_it_does_in_the_textbook(path, plane, memory_format):
    x = make((2, 3, *plane), memory_format=memory_format)
    x[0, 1, 0, 2] = math.nan
    x[1, 2] = math.nan
    p = make_p("channels", 3)
    for actual, expected in zip(derive(gem_pool2d, x, p), derive(textbook, x, p), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert gem_pool2d(x).isnan().flatten().tolist() == [False, True, False, False, False, True]


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("plane", [(3, 3), (9, 9)])
def test_infinity_and_the_largest_numbers(path, plane, memory_format):
    x = make((1, 3, *plane), memory_format=memory_format)
    x[0, 0, 0, 0], x[0, 1, 1, 1], x[0, 2] = math.inf, -math.inf, 3e38
    y = gem_pool2d(x).flatten()
    assert y[0] == math.inf
    assert y[1].isfinite()
    assert y[2].item() == pytest.approx(3e38, rel=1e-6)


# --- Gradients --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("plane", [(3, 3), (9, 9)])
@pytest.mark.parametrize("wanted", ["x", "p"])
def test_only_the_gradients_asked_for_are_computed(monkeypatch, wanted, plane, memory_format):
    import fastfeed.kernels.gem_pool as kernels

    backward, masks, results = kernels.backward, [], []

    def spy(*arguments):
        masks.append(list(arguments[-1]))
        results.append(backward(*arguments))
        return results[-1]

    monkeypatch.setattr(kernels, "backward", spy)
    x, p = make((2, 3, *plane), memory_format=memory_format), make_p("channels", 3)
    both = derive(gem_pool2d, x, p)[1:]
    masks.clear()
    results.clear()
    x.requires_grad_(wanted == "x")
    p.requires_grad_(wanted == "p")
    gem_pool2d(x, p).sum().backward()
    assert masks == [[wanted == "x", wanted == "p"]]
    assert [result is not None for result in results[0]] == masks[0]
    for tensor, expected in zip((x, p), both, strict=True):
        assert tensor.grad is None or torch.equal(tensor.grad, expected)
    assert (x.grad is None, p.grad is None) == (wanted == "p", wanted == "x")


def test_gradient_of_an_expanded_gradient(path):
    x = make((2, 3, 4, 4), memory_format=torch.channels_last)
    grad = torch.full((1, 1, 1, 1), 2.0, device=DEVICE).expand(2, 3, 1, 1)
    torch.testing.assert_close(derive(gem_pool2d, x, 3.0, grad), derive(gem_pool2d, x, 3.0, grad.contiguous()))


@pytest.mark.parametrize("form", ["number", "scalar", "one", "channels"])
def test_reference_gradients(form):
    x = make((2, 3, 2, 3), torch.float64).requires_grad_()
    p = make_p(form, 3, torch.float64)
    if isinstance(p, torch.Tensor):
        inputs = (x, p.requires_grad_())
    else:
        inputs = (x,)
    function = lambda x, p=p: op.gem_pool2d_reference(x, p, 0.1, torch.float64)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("form", ["number", "channels"])
def test_second_derivatives(path, form, memory_format):
    def penalty(function, x, p):
        inputs = [tensor.detach().requires_grad_() for tensor in (x, p) if isinstance(tensor, torch.Tensor)]
        y = function(inputs[0], inputs[1] if len(inputs) > 1 else p)
        first = torch.autograd.grad((y * y).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(grad.square().sum() for grad in first), inputs)

    x, p = make((2, 3, 3, 3), memory_format=memory_format), make_p(form, 3)
    expected = penalty(textbook, x.double(), p.double() if form == "channels" else p)
    for actual, true in zip(penalty(gem_pool2d, x, p), expected, strict=True):
        torch.testing.assert_close(actual.double(), true, rtol=1e-4, atol=1e-5 * true.abs().max().item())


def test_function_transforms_and_forward_mode():
    x, p = make((2, 3, 4, 4)), make_p("one", 3)
    tangents = torch.ones_like(x), torch.ones_like(p)
    for transform in (
        lambda f: torch.func.jvp(f, (x, p), tangents)[1],
        lambda f: torch.func.grad(lambda x, p: f(x, p).sum(), argnums=(0, 1))(x, p),
        lambda f: torch.func.vmap(f, in_dims=(0, None))(x[None], p),
        lambda f: torch.func.vmap(f, in_dims=(None, 0))(x, torch.stack([p, p + 1])),
    ):
        torch.testing.assert_close(transform(gem_pool2d), transform(textbook), rtol=1e-5, atol=1e-5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(p, tangents[1])
        tangent = torch.autograd.forward_ad.unpack_dual(gem_pool2d(x, dual)).tangent
    torch.testing.assert_close(tangent, torch.func.jvp(lambda p: textbook(x, p), (p,), tangents[1:])[1])


# --- PyTorch ----------------------------------------------------------------------------------------------------


def test_autocast_gives_the_textbooks_dtype(path):
    for dtype in (torch.bfloat16, torch.float32):
        x, p = make((2, 3, 4, 4), dtype), make_p("one", 3)
        for exponent in (3.0, p, p[0], p.to(dtype)):
            with torch.autocast(DEVICE, dtype=torch.bfloat16):
                assert gem_pool2d(x, exponent).dtype == textbook(x, exponent).dtype


def test_opcheck():
    x, p = make((2, 4, 3, 3), torch.float16, torch.channels_last), make_p("channels", 4)
    for exponents in (p, None):
        inputs = (x.detach().requires_grad_(), exponents, 3.0, 1e-6, torch.float32)
        torch.library.opcheck(torch.ops.fastfeed.gem_pool2d.default, inputs)
    y, mean = torch.ops.fastfeed.gem_pool2d(x, p, 1.0, 1e-6, torch.float32)
    for mask in ((True, True), (False, True)):
        inputs = (torch.ones_like(y), x, p, mean, 1.0, 1e-6, mask)
        torch.library.opcheck(torch.ops.fastfeed.gem_pool2d_backward.default, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    function = lambda x, p: gem_pool2d(x * 2, p) + gem_pool2d(x, 2.5)  # noqa: E731
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for shape in ((2, 4, 3, 3), (3, 4, 5, 4)):
        x, p = make(shape, memory_format=torch.channels_last), make_p("one", 4)
        torch.testing.assert_close(derive(compiled, x, p), derive(function, x, p))
    torch.compiler.reset()


def test_meta_and_fake_tensors():
    assert gem_pool2d(torch.empty(2, 3, 4, 4, device="meta")).shape == (2, 3, 1, 1)
    with FakeTensorMode():
        x = torch.empty(2, 3, 4, 4, device=DEVICE, dtype=torch.float16, requires_grad=True)
        p = torch.empty(3, device=DEVICE, requires_grad=True)
        y = gem_pool2d(x, p)
        y.sum().backward()
    assert (y.shape, y.dtype) == ((2, 3, 1, 1), torch.float32)
    assert (x.grad.shape, p.grad.shape) == (x.shape, p.shape)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": torch.ones(3, 4)}, RuntimeError, r"gem_pool2d\(\): Expected 3D or 4D tensor, but got: \[3, 4\]"),
        ({"x": torch.ones(2, 3, 4, 4, 4)}, RuntimeError, r"Expected 3D or 4D tensor, but got: \[2, 3, 4, 4, 4\]"),
        ({"x": torch.ones(2, 3, 0, 4)}, RuntimeError, r"sizes \[2, 3, 0, 4\] with dimension 2 being empty"),
        ({"x": torch.ones(2, 0, 4, 4)}, RuntimeError, r"sizes \[2, 0, 4, 4\] with dimension 1 being empty"),
        ({"x": torch.ones(2, 3, 4, 4, dtype=torch.int64)}, RuntimeError, "not implemented for torch.int64"),
        ({"p": 0.0}, ValueError, "p is 0.0; expected a finite number above 0"),
        ({"p": -3}, ValueError, "p is -3; expected"),
        ({"p": math.nan}, ValueError, "p is nan; expected"),
        ({"p": math.inf}, ValueError, "p is inf; expected"),
        ({"p": "3"}, TypeError, "p is '3'; expected a number"),
        ({"p": None}, TypeError, "p is None; expected a number"),
        ({"p": torch.tensor([3])}, TypeError, "p is a tensor of torch.int64; expected floating point"),
        ({"p": torch.ones(2)}, RuntimeError, r"p has shape \[2\]; expected one element, or \[3\]"),
        ({"p": torch.ones(3, 1)}, RuntimeError, r"p has shape \[3, 1\]; expected one element, or \[3\]"),
        ({"p": torch.ones(0)}, RuntimeError, r"p has shape \[0\]; expected one element, or \[3\]"),
        ({"p": torch.ones(3, device="meta")}, RuntimeError, "x is on cpu, p on meta; expected one device"),
        ({"eps": 0.0}, ValueError, "eps is 0.0; expected a finite number, at least 1.18e-38"),
        ({"eps": -1e-6}, ValueError, "eps is -1e-06; expected"),
        ({"eps": math.nan}, ValueError, "eps is nan; expected"),
    ],
)
def test_errors(arguments, error, message):
    with pytest.raises(error, match=message):
        gem_pool2d(**{"x": torch.ones(2, 3, 4, 4)} | arguments)


# --- The module -------------------------------------------------------------------------------------------------


def test_module_loads_the_state_of_the_usual_gem():
    class GeM(torch.nn.Module):
        def __init__(self, p=3, eps=1e-6):
            super().__init__()
            self.p = torch.nn.Parameter(torch.ones(1) * p)
            self.eps = eps

        def forward(self, x):
            return textbook(x, self.p, self.eps)

    theirs, ours = GeM(p=4.5), nn.GeMPool2d()
    ours.load_state_dict(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    x = make((2, 3, 7, 7)).cpu()
    torch.testing.assert_close(ours(x), theirs(x), rtol=4e-6, atol=0)
    for module in (ours, theirs):
        module(x).sum().backward()
    torch.testing.assert_close(ours.p.grad, theirs.p.grad, rtol=1e-4, atol=0)


@pytest.mark.parametrize("module", [nn.GeMPool2d(), nn.AvgMaxPool2d()], ids=lambda module: type(module).__name__)
def test_modules_can_be_traced(module):
    traced = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.ReLU(), module))
    x = torch.randn(2, 3, 4, 5, device=DEVICE)
    assert torch.equal(traced.to(DEVICE)(x), module.to(DEVICE)(x.relu()))


def test_module_options():
    assert repr(nn.GeMPool2d()) == "GeMPool2d(p=3, eps=1e-06, learnable=True)"
    assert repr(nn.GeMPool2d(2.5, 1e-4, learnable=False)) == "GeMPool2d(p=2.5, eps=0.0001, learnable=False)"
    assert repr(nn.GeMPool2d(channels=8)) == "GeMPool2d(eps=1e-06, learnable=True, channels=8)"
    assert repr(nn.GeMPool2d().to("meta")) == "GeMPool2d(eps=1e-06, learnable=True)"
    module = nn.GeMPool2d(2.0, channels=3)
    assert module.p.tolist() == [2.0] * 3
    x = make((2, 3, 4, 4)).cpu()
    torch.testing.assert_close(module(x), textbook(x, 2.0), rtol=4e-6, atol=0)
    assert module.half()(x.half()).dtype == torch.float16
    assert not nn.GeMPool2d(learnable=False).p.requires_grad
    torch.testing.assert_close(nn.GeMPool2d(eps=0.5)(x), textbook(x, eps=0.5), rtol=4e-6, atol=0)
    for options, message in [
        ({"p": 0}, "p is 0; expected"),
        ({"p": math.nan}, "p is nan; expected"),
        ({"eps": 0}, "eps is 0; expected"),
        ({"channels": 0}, "channels is 0; expected 1 or more"),
    ]:
        with pytest.raises(ValueError, match=message):
            nn.GeMPool2d(**options)


# --- GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("shape", [(64, 2048, 7, 7), (8, 512, 32, 32), (3, 37, 56, 55), (2, 200, 1, 1)])
def test_gpu_large(shape, memory_format, dtype):
    check(make(shape, dtype, memory_format), make_p("one", shape[1]))
    check(make(shape, dtype, memory_format), make_p("channels", shape[1]))


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("plane", [7, 32])
def test_gpu_more_than_two_to_the_31_elements(plane, memory_format):
    samples = 2**31 // (2048 * plane * plane) + 8
    x = torch.rand(samples, 2048, plane, plane, device="cuda", dtype=torch.bfloat16)
    x = x.contiguous(memory_format=memory_format)
    y, dx = derive(gem_pool2d, x, 3.0)
    last_y, last_dx = derive(gem_pool2d, x[-4:].clone(), 3.0)
    assert torch.equal(y[-4:], last_y)
    assert torch.equal(dx[-4:], last_dx)


@pytest.mark.gpu
def test_gpu_gradient_of_p_is_deterministic():
    x, p = make((64, 256, 14, 14), torch.bfloat16, torch.channels_last), make_p("one", 256)
    assert len({derive(gem_pool2d, x, p)[2].item() for _ in range(5)}) == 1


@pytest.mark.gpu
def test_gpu_never_synchronises():
    x, p = make((8, 64, 7, 7), torch.bfloat16).requires_grad_(), make_p("one", 64).requires_grad_()
    gem_pool2d(x, p).sum().backward()  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        gem_pool2d(x, p).sum().backward()
        gem_pool2d(x, 3.0).sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_gpu_cuda_graph():
    x, p = make((8, 64, 7, 7), memory_format=torch.channels_last), make_p("one", 64)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        derive(gem_pool2d, x, p)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = derive(gem_pool2d, x, p)
    x.copy_(torch.randn_like(x))
    graph.replay()
    for result, expected in zip(results, derive(gem_pool2d, x, p), strict=True):
        assert torch.equal(result, expected)
