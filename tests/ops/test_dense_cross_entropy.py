"""Cross-entropy with probabilities against its formula in float64, and PyTorch's own, through the kernels.

On a machine without a GPU the kernels run in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastfeed.ops.dense_cross_entropy as op
from fastfeed import nn
from fastfeed.functional import cross_entropy
from tests.ops.rows import DEVICE, SHAPES, assert_close, assert_no_worse, derivatives

INF, NAN = float("inf"), float("nan")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def make(n, c, dtype=torch.float32, target_dtype=torch.float32, scale=3.0, sides=()):
    """Return logits, probabilities and class weights; images are channels-last."""
    generator = torch.Generator().manual_seed(n * c)
    logits = torch.randn(n, *sides, c, generator=generator) * scale
    target = torch.rand(n, *sides, c, generator=generator)
    logits, target = (x.movedim(-1, 1).to(DEVICE) for x in (logits, target / target.sum(-1, keepdim=True)))
    return logits.to(dtype), target.to(target_dtype), torch.rand(c, generator=generator).to(DEVICE) + 0.5


def truth(logits, target, weight=None, reduction="mean", label_smoothing=0.0):
    """The definition, in float64."""
    logits, target = logits.double(), target.double()
    c = logits.shape[1]
    q = (1 - label_smoothing) * target + label_smoothing / c
    if weight is not None:
        q = q * weight.double().view(-1, *[1] * (logits.dim() - 2))
    loss = (q * (logits.logsumexp(1, keepdim=True) - logits)).sum(1)
    return {"none": loss, "sum": loss.sum(), "mean": loss.sum() / (logits.numel() / c)}[reduction]


def fused(logits, target, *arguments, **options):
    """The public function, in which the kernels must have computed the loss."""
    loss = cross_entropy(logits, target, *arguments, **options)
    assert loss.grad_fn is None or loss.grad_fn.name() == "_DenseCrossEntropyBackward"
    return loss


def check(logits, target, grad=1.0, function=fused, **options):
    found = derivatives(lambda x, t: function(x, t, **options), (logits, target), grad)
    inputs = logits.detach().double(), target.detach().double()
    # the upstream gradient as the loss's own dtype holds it, so that only our rounding is judged
    grad = torch.as_tensor(grad, device=DEVICE).to(found[0].dtype).double()
    expected = derivatives(lambda x, t: truth(x, t, **options), inputs, grad)
    for actual, true in zip(found, expected, strict=True):
        assert_close(actual, true)
    assert [x.dtype for x in found[1:]] == [logits.dtype, target.dtype]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape):
    logits, target, weight = make(*shape)
    check(logits, target, weight=weight, label_smoothing=0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 7), (37, 41), (3, 1001), (2, 4096)], ids=str)
def test_half_precision(shape, dtype):
    logits, target, _ = make(*shape, dtype, dtype)
    check(logits, target, label_smoothing=0.1)


@pytest.mark.parametrize(("dtype", "target_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_pairs_of_dtypes(dtype, target_dtype):
    logits, target, _ = make(5, 41, dtype, target_dtype)
    check(logits, target)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("weighted", [False, True])
def test_reductions_smoothing_and_weights(reduction, smoothing, weighted):
    logits, target, weight = make(7, 11)
    check(logits, target, weight=weight if weighted else None, reduction=reduction, label_smoothing=smoothing)


def test_targets_need_not_be_distributions():
    logits, target, _ = make(7, 11)
    check(logits, target * 5 - 0.3)
    check(logits, torch.zeros_like(target), reduction="sum")


@pytest.mark.parametrize("sides", [(3,), (4, 5), (1, 1)])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_images_in_channels_last(sides, reduction):
    logits, target, weight = make(2, 5, sides=sides)
    check(logits, target, weight=weight, reduction=reduction, label_smoothing=0.1)
    (_, dx, dt) = derivatives(lambda x, t: fused(x, t), (logits, target))
    assert dx.movedim(1, -1).is_contiguous()
    assert dt.movedim(1, -1).is_contiguous()


def test_one_position_is_a_row_in_any_memory_format():
    logits, target, _ = make(3, 5)
    check(logits[:, :, None, None].contiguous(), target[:, :, None, None].contiguous())


def test_upstream_gradients():
    logits, target, _ = make(37, 11)
    grad = torch.randn(37, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check(logits, target, grad, reduction="none")
    check(logits, target, torch.stack([grad, grad], 1)[:, 0], reduction="none")
    check(logits, target, grad[:1].expand(37), reduction="none")
    check(logits, target, 0.3, reduction="mean")


def test_upstream_gradient_is_applied_before_rounding():
    # A loss scale lifts gradients of fp16 out of the range of few digits; rounding them first would lose what it saves.
    logits, target, _ = make(8, 1000, torch.float16, scale=1.0)
    _, dx = derivatives(lambda x: fused(x, target), (logits,), 4096.0)
    _, true = derivatives(lambda x: truth(x, target), (logits.double(),), 4096.0)
    big = true.abs() > 1e-4
    assert big.float().mean() > 0.5
    torch.testing.assert_close(dx.double()[big], true[big], rtol=1e-3, atol=0)


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_what_wants_a_gradient_gets_one(wanted, monkeypatch):
    logits, target, _ = make(4, 7)
    expected = derivatives(truth, (logits.double(), target.double()))[1:]
    asked = []
    backward = op._BACKWARD
    monkeypatch.setattr(op, "_BACKWARD", lambda *arguments: asked.append(arguments[-1]) or backward(*arguments))
    leaves = [x.clone().requires_grad_(want) for x, want in zip((logits, target), wanted, strict=True)]
    loss = fused(*leaves)
    assert loss.requires_grad == any(wanted)
    if any(wanted):
        loss.backward()
        assert asked == [wanted[1]]
    for leaf, want, true in zip(leaves, wanted, expected, strict=True):
        if want:
            assert_close(leaf.grad, true)
        else:
            assert leaf.grad is None


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_cost_no_precision(shift):
    # The shift leaves the logits' digits and the loss as they are, where a sum of both parts of logsumexp would not.
    logits, target, _ = make(5, 41)
    logits = (logits * 64).round() / 64
    for actual, expected in zip(
        derivatives(fused, (logits + shift, target)),
        derivatives(truth, (logits.double(), target.double())),
        strict=True,
    ):
        assert_close(actual, expected)


def test_large_logits_far_apart():
    logits, target, weight = make(3, 4099)
    logits = torch.where(logits > 0, 1e4, -1e4)
    logits[0, :4096] = -1e4  # the maximum is only met at the end
    check(logits, target, weight=weight, label_smoothing=0.1, reduction="none")


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ([0.0, -INF, 1.0], [0.5, 0.1, 0.4]),  # inf
        ([0.0, -INF, 1.0], [0.5, 0.0, 0.5]),  # 0 * inf: NaN, with a gradient that is none
        ([-INF, -INF, -INF], [0.5, 0.2, 0.3]),
        ([0.0, INF, 1.0], [0.5, 0.0, 0.5]),
        ([0.0, NAN, 1.0], [0.5, 0.0, 0.5]),
        ([0.0, 1.0, 2.0], [0.5, NAN, 0.5]),
        ([0.0, 1.0, 2.0], [0.5, INF, 0.5]),
        ([0.0, 1.0, 2.0], [0.0, 0.0, 0.0]),
    ],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_values_that_are_not_finite_are_as_in_pytorch(logits, target, smoothing):
    inputs = [torch.tensor([values, [0.0, 1.0, 2.0]], device=DEVICE) for values in (logits, target)]
    options = {"label_smoothing": smoothing, "reduction": "none"}
    found = derivatives(lambda x, t: fused(x, t, **options), inputs)
    expected = derivatives(lambda x, t: F.cross_entropy(x, t, **options), inputs)
    for actual, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(actual, theirs, equal_nan=True)
        assert actual[1].isfinite().all()


@pytest.mark.parametrize("target_value", [0.0, 1.0])
def test_a_leading_tile_of_minus_infinity(target_value):
    logits, target, _ = make(2, 4500)
    logits[:, :4096] = -INF
    target[:, :4096] = target_value
    found, expected = (
        derivatives(lambda x, f=function: f(x, target, reduction="none"), (logits,))
        for function in (fused, F.cross_entropy)
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    assert expected[0].isnan().all() or expected[0].isinf().all()
    assert expected[1].isfinite().all()


def test_views():
    logits, target, weight = make(40, 33)
    check(logits[::2], target[1::2])
    check(logits.t().contiguous().t(), target)
    check(logits[:, 1:], target[:, :-1])
    check(logits, target[:1].expand(40, 33))
    check(logits.reshape(-1)[3 : 3 + 30 * 33].view(30, 33), target[:30])  # begins off a multiple of 16 bytes
    check(logits, target, weight=weight.repeat_interleave(2)[::2])


def test_inputs_are_left_as_they_are():
    logits, target, _ = make(9, 33)
    before = logits.clone(), target.clone()
    derivatives(fused, (logits, target))
    assert torch.equal(logits, before[0])
    assert torch.equal(target, before[1])


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (2, 3, 0)])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_empty(shape, reduction):
    x = torch.zeros(shape, device=DEVICE, requires_grad=True)
    found, expected = (f(x, torch.zeros_like(x), reduction=reduction) for f in (cross_entropy, F.cross_entropy))
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_an_empty_matrix_in_the_kernels():
    x = torch.zeros(0, 7, device=DEVICE)
    for reduction, expected in (("mean", NAN), ("sum", 0.0), ("none", [])):
        loss, state = op._FORWARD(x, x, None, reduction, 0.1, torch.float32)
        torch.testing.assert_close(loss.cpu(), torch.tensor(expected), equal_nan=True)
        grads = op._BACKWARD(loss, x, x, None, state, reduction, 0.1, True)
        assert [grad.shape for grad in grads] == [(0, 7), (0, 7)]


# --- Against PyTorch's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("weight_dtype", [None, torch.float32, torch.bfloat16])
def test_dtypes_are_pytorchs(weight_dtype, autocast):
    for dtype, target_dtype in itertools.product((*DTYPES, torch.float64), repeat=2):
        logits, target, weight = make(2, 3, dtype, target_dtype)
        weight = None if weight_dtype is None else weight.to(weight_dtype)
        results = []
        for function in (cross_entropy, F.cross_entropy):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                results.append(function(logits, target, weight))
        torch.testing.assert_close(*results, rtol=0.02, atol=0.02)  # which compares dtypes too


@pytest.mark.parametrize("scale", [1.0, 1000.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_less_accurate_than_pytorchs(dtype, scale):
    logits, target, _ = make(6, 1000, dtype, dtype, scale)
    options = {"label_smoothing": 0.1, "reduction": "none"}
    found, eager = (
        derivatives(lambda x, t, f=function: f(x, t, **options), (logits, target))
        for function in (fused, F.cross_entropy)
    )
    true = derivatives(lambda x, t: truth(x, t, **options), (logits.double(), target.double()))
    for values in zip(found, eager, true, strict=True):
        assert_no_worse(*values)


def test_pytorchs_samples_and_reference():
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db
    from torch.testing._internal.common_nn import cross_entropy_loss_reference

    samples = next(info for info in op_db if info.name == "nn.functional.cross_entropy").sample_inputs(
        DEVICE, torch.float32
    )
    tried = 0
    for sample in samples:
        (target,) = sample.args
        if not target.is_floating_point():
            continue
        for smoothing in (0.0, 0.2):
            options = sample.kwargs | {"label_smoothing": smoothing}
            expected = cross_entropy_loss_reference(sample.input.double(), target.double(), **options)
            torch.testing.assert_close(cross_entropy(sample.input, target, **options), expected.float())
            rows = [x.movedim(1, -1).contiguous().movedim(-1, 1) for x in (sample.input, target)]
            torch.testing.assert_close(fused(*rows, **options), expected.float())
            tried += 1
    assert tried >= 10


@pytest.mark.parametrize(
    ("target", "options"),
    [
        (torch.rand(3, 5), {"ignore_index": 0}),
        (torch.rand(3, 5), {"label_smoothing": 1.5}),
        (torch.rand(3, 5), {"weight": torch.rand(4)}),
        (torch.rand(3, 5), {"weight": torch.rand(5, 1)}),
        (torch.rand(3, 5), {"reduction": "batchmean"}),
        (torch.rand(3, 4), {}),
        (torch.rand(5), {}),
        (torch.rand(3, 5).to(torch.complex64), {}),
    ],
)
def test_errors_are_pytorchs(target, options):
    logits = torch.zeros(3, 5, device=DEVICE)
    options = {name: x.to(DEVICE) if isinstance(x, torch.Tensor) else x for name, x in options.items()}
    raised = []
    for function in (cross_entropy, F.cross_entropy):
        with pytest.raises((ValueError, RuntimeError, NotImplementedError)) as caught:
            function(logits, target.to(DEVICE), **options)
        raised.append((caught.type, str(caught.value)))
    assert raised[0] == raised[1]


def test_devices_must_be_one():
    with pytest.raises(RuntimeError, match="meta"):
        cross_entropy(torch.zeros(3, 5, device=DEVICE), torch.zeros(3, 5, device="meta"))


@pytest.mark.parametrize("what", ["float64", "weight wants a gradient", "contiguous images", "one sample"])
def test_what_the_kernels_do_not_take_is_pytorchs_own(what):
    logits, target, weight = make(2, 5, sides=(3, 4))
    weight.requires_grad_(what == "weight wants a gradient")
    if what == "float64":
        target = target.double()
    if what == "contiguous images":
        target = target.contiguous()
    if what == "one sample":
        logits, target = logits[0, :, 0, 0], target[0, :, 0, 0]
    logits.requires_grad_()
    found, expected = (f(logits, target, weight) for f in (cross_entropy, F.cross_entropy))
    assert found.grad_fn.name() == expected.grad_fn.name()
    assert torch.equal(found, expected)


def test_transforms_are_pytorchs_own():
    logits, target, _ = make(6, 5)
    tangent = torch.randn_like(logits)
    for transform in (
        lambda f: torch.func.jvp(f, (logits, target), (tangent, tangent)),
        lambda f: torch.func.grad(f, argnums=(0, 1))(logits, target),
        lambda f: torch.func.hessian(f)(logits, target),
        lambda f: torch.func.vmap(f)(torch.stack([logits, tangent]), torch.stack([target, tangent])),
    ):
        torch.testing.assert_close(transform(cross_entropy), transform(F.cross_entropy))


def test_forward_mode_is_pytorchs_own():
    logits, target, _ = make(6, 5)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(target, torch.ones_like(target))
        found, expected = (
            torch.autograd.forward_ad.unpack_dual(f(logits, dual)).tangent for f in (cross_entropy, F.cross_entropy)
        )
    assert found is not None
    torch.testing.assert_close(found, expected)


def test_without_the_kernels_it_is_pytorchs_own(monkeypatch):
    monkeypatch.setattr("fastfeed.ops.registration.can_run", lambda device: False)
    logits, target, weight = make(6, 5)
    assert torch.equal(cross_entropy(logits, target, weight), F.cross_entropy(logits, target, weight))


# --- Derivatives, registration, compiling -----------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_derivatives_of_the_reference(reduction):
    logits, target, weight = make(2, 3, torch.float64, torch.float64)
    inputs = logits.requires_grad_(), target.requires_grad_()

    def function(x, t):
        return op.reference(x, t, weight.double(), reduction, 0.1, torch.float64)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_second_derivatives(reduction):
    logits, target, weight = make(4, 5)
    options = {"weight": weight, "reduction": reduction, "label_smoothing": 0.1}

    def twice(function, *inputs):
        leaves = [x.detach().requires_grad_() for x in inputs]
        loss = function(*leaves, **options)
        first = torch.autograd.grad(loss.square().sum(), leaves, create_graph=True)
        return [*first, *torch.autograd.grad(sum(grad.pow(2).sum() for grad in first), leaves)]

    for actual, expected in zip(
        twice(fused, logits, target), twice(truth, logits.double(), target.double()), strict=True
    ):
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_second_derivatives_of_one_input(wanted):
    leaves = [x.requires_grad_(want) for x, want in zip(make(4, 5)[:2], wanted, strict=True)]
    (leaf,) = (x for x in leaves if x.requires_grad)
    (first,) = torch.autograd.grad(fused(*leaves), leaf, create_graph=True)
    _, *expected = derivatives(truth, [x.detach().double() for x in leaves])
    torch.testing.assert_close(first.double(), expected[wanted.index(True)])


@pytest.mark.parametrize(
    ("dtype", "sides", "reduction"), [(torch.bfloat16, (), "mean"), (torch.float32, (2, 3), "none")]
)
def test_opcheck(dtype, sides, reduction):
    logits, target, weight = make(3, 5, dtype, sides=sides)
    arguments = logits.requires_grad_(), target.requires_grad_(), weight, reduction, 0.1, torch.float32
    torch.library.opcheck(op._FORWARD, arguments)
    with torch.no_grad():
        loss, state = op._FORWARD(*arguments)
        for target_grad in (False, True):
            inputs = torch.ones_like(loss), logits.detach(), target.detach(), weight, state, reduction, 0.1, target_grad
            torch.library.opcheck(op._BACKWARD, inputs)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def function(x, t):
        return cross_entropy(x * 2, t, label_smoothing=0.1)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (4, 6):
        logits, target, _ = make(n, 5, torch.bfloat16)
        found, expected = (derivatives(f, (logits, target)) for f in (compiled, function))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_meta_and_fake_tensors():
    meta = torch.empty(6, 5, device="meta", dtype=torch.bfloat16)
    loss = cross_entropy(meta, meta, reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (6,), torch.bfloat16)
    with torch._subclasses.FakeTensorMode():
        for sides in ((), (2, 3)):
            logits = torch.empty(4, *sides, 5, device=DEVICE, dtype=torch.bfloat16).movedim(-1, 1).requires_grad_()
            loss = fused(logits, torch.empty_like(logits, dtype=torch.float32), reduction="none")
            assert (loss.shape, loss.dtype) == ((4, *sides), torch.float32)
            (grad,) = torch.autograd.grad(loss.sum(), logits)
            assert (grad.shape, grad.dtype) == (logits.shape, logits.dtype)
            assert grad.movedim(1, -1).is_contiguous()


def test_module():
    logits, target, weight = make(6, 5)
    options = {"weight": weight, "label_smoothing": 0.1, "reduction": "sum"}
    module, theirs = nn.CrossEntropyLoss(**options), torch.nn.CrossEntropyLoss(**options)
    torch.testing.assert_close(module(logits, target), theirs(logits, target))
    assert module(logits.requires_grad_(), target).grad_fn.name() == "_DenseCrossEntropyBackward"
