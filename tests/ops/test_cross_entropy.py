"""The public function against torch.nn.functional.cross_entropy in float64, through the kernel and the reference.

On a machine without a GPU the kernel runs in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfeed.ops.cross_entropy as op
from fastfeed import MixedTarget, nn
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
    """Run a test once through the Triton kernels and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr(op, "kernel_takes", lambda *tensors: False)
        monkeypatch.setattr("tests.ops.test_cross_entropy.cross_entropy", through_reference)
    else:
        assert op.kernel_takes(torch.ones(1, device=DEVICE)), (
            "the tests must reach the kernel; is TRITON_INTERPRET set?"
        )
    return request.param


def through_reference(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return op.label_loss(input, target, weight, ignore_index, reduction, label_smoothing)


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
    options = {name: value.double() if name == "weight" else value for name, value in options.items()}
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
@pytest.mark.skipif(DEVICE == "cuda", reason="the table's tensors are on the CPU")
def test_errors_of_two_labels(change, error, message):
    labels = torch.zeros(4, dtype=torch.int64)
    target = {
        "a": labels,
        "b": labels,
        "lam": torch.ones(4),
        **{k: change.pop(k) for k in ("a", "b", "lam") if k in change},
    }
    arguments = {"input": torch.zeros(4, 5), "target": MixedTarget(**target), **change}
    with pytest.raises(error, match=message):
        cross_entropy(**arguments)


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
    if mixed:
        target = MixedTarget(
            target, target.roll(1), torch.rand(4, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        )
    truth = target_of_truth(target, 5) if mixed else target

    def second(function, x, target):
        x = x.clone().requires_grad_()
        loss = function(x, target, reduction=reduction, label_smoothing=0.1)
        (dx,) = torch.autograd.grad(loss.square().sum(), x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    if mixed:
        target = target._replace(a=target.a.clamp(min=0), b=target.b.clamp(min=0))
        truth = target.dense(5, torch.float64)
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
    for dtype, classes, mixed in itertools.product([torch.float32, torch.float16], [5, 200], [False, True]):
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


# --------------------------------------------------------------------------------- weights, pixels, two labels


def draw(shape, classes, dtype=torch.float32, seed=0):
    """Return logits [N, C, ...] for targets of a shape, the targets, some of which are ignored, and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape[0], classes, *shape[1:], generator=generator) * 3).to(dtype)
    target = torch.randint(0, classes, shape, generator=generator)
    if target.numel() > 2:
        target.view(-1)[1] = -100
    weight = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    return logits.to(DEVICE), target.to(DEVICE), weight.to(DEVICE)


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels-last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "of neither": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
}
PIXELS = [((2, 3), 11), ((2, 3, 5), 1), ((3, 4, 1), 19), ((1, 2, 2, 3), 150), ((2, 40, 30), 7), ((1, 1, 1), 200)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "classes"), PIXELS)
def test_pixels(path, shape, classes, layout):
    logits, target, weight = draw(shape, classes)
    logits = LAYOUTS[layout](logits)
    check(logits, target, weight=weight, label_smoothing=0.1)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check(logits, target, grad=grad, reduction="none")


@pytest.mark.parametrize("layout", ["contiguous", "channels-last"])
def test_gradients_lie_as_their_logits(layout):
    logits, target, _ = draw((2, 3, 5), 11)
    logits = LAYOUTS[layout](logits).requires_grad_()
    cross_entropy(logits, target).backward()
    assert logits.grad.stride() == logits.stride()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("classes", [7, 1001])
def test_class_weights(path, classes, dtype, smoothing, reduction):
    logits, target, weight = draw((9,), classes, dtype)
    check(logits, target, weight=weight, label_smoothing=smoothing, reduction=reduction)
    weight[target[0]] = 0
    check(logits, target, weight=weight, label_smoothing=smoothing, reduction=reduction)


def target_of_truth(target, classes):
    """Return the probabilities of two labels in float64; those of an ignored label are missing."""
    n = len(target.a)
    lam = target.lam.double().expand(n) if target.lam.numel() == 1 else target.lam.double()
    lam = lam.reshape(n, *[1] * (target.a.dim() - 1))
    return sum(
        (F.one_hot(y.clamp(min=0), classes) * ((y >= 0) * share)[..., None]).movedim(-1, 1)
        for y, share in ((target.a, lam), (target.b, 1 - lam))
    )


@pytest.mark.parametrize("kind", ["one lam", "a lam for each", "lam of one element"])
@pytest.mark.parametrize(("shape", "classes"), [((9,), 7), ((6,), 1001), ((3, 4, 5), 11), ((2, 3), 300), ((0,), 5)])
def test_two_labels_are_the_dense_target(path, shape, classes, kind):
    logits, a, weight = draw(shape, classes)
    b = draw(shape, classes, seed=1)[1]
    a, b = a.clamp(min=0), b.clamp(min=0)
    lam = torch.rand(shape[0], generator=torch.Generator().manual_seed(2)).to(DEVICE)
    lam = {"one lam": torch.tensor(0.3, device=DEVICE), "lam of one element": lam.new_tensor([0.3])}.get(kind, lam)
    target = MixedTarget(a, b, lam)
    dense = target_of_truth(target, classes)
    for options in ({}, {"weight": weight}, {"label_smoothing": 0.1, "weight": weight}, {"reduction": "none"}):
        x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
        truth = {k: v.double() if k == "weight" else v for k, v in options.items()}
        loss, expected = cross_entropy(x, target, **options), F.cross_entropy(y, dense, **truth)
        torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=2e-6, equal_nan=True)
        loss.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-6, atol=2e-6)


def test_two_labels_of_a_loader_that_mixes_nothing_are_one(path):
    logits, target, _ = draw((20,), 7)
    mixed = MixedTarget(target, target, torch.ones(20, device=DEVICE))
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            cross_entropy(logits, mixed, reduction=reduction), cross_entropy(logits, target, reduction=reduction)
        )


@pytest.mark.parametrize("classes", [7, 300])
def test_an_ignored_label_of_two_counts_for_nothing(path, classes):
    logits, a, _ = draw((6,), classes)
    b = a.roll(1)
    lam = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 1.0], device=DEVICE)
    a[0], b[0], a[3], b[4] = -100, -100, -100, -100
    x = logits.clone().requires_grad_()
    loss = cross_entropy(x, MixedTarget(a, b, lam), label_smoothing=0.1)
    loss.backward()
    share_a, share_b = lam * (a >= 0), (1 - lam) * (b >= 0)
    y = logits.double().requires_grad_()
    per_label = [
        share * F.cross_entropy(y, label, label_smoothing=0.1, reduction="none")
        for label, share in ((a, share_a), (b, share_b))
    ]
    expected = sum(per_label).sum() / (share_a + share_b).sum()
    expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=2e-6, atol=0)
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=2e-6, atol=1e-7)
    assert torch.equal(x.grad[0], torch.zeros_like(x.grad[0]))


def test_a_label_without_weight_may_be_impossible(path):
    logits, _, _ = draw((3,), 7)
    logits[:, 4] = -float("inf")
    labels = torch.tensor([0, 1, 2], device=DEVICE)
    mixed = MixedTarget(labels, torch.full_like(labels, 4), torch.ones(3, device=DEVICE))
    torch.testing.assert_close(cross_entropy(logits, mixed), cross_entropy(logits, labels))


def test_lam_that_needs_a_gradient_has_one():
    logits, a, _ = draw((5,), 7)
    a = a.clamp(min=0)
    lam = torch.rand(5, device=DEVICE, requires_grad=True)
    cross_entropy(logits, MixedTarget(a, a.roll(1), lam)).backward()
    nll = F.cross_entropy(logits, a, reduction="none") - F.cross_entropy(logits, a.roll(1), reduction="none")
    torch.testing.assert_close(lam.grad, nll / 5)


# --------------------------------------------------------------------------------------------- other references


def test_many_rows_are_added_up_in_several_programs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1, 2, 70_000, generator=generator)
    target = torch.randint(0, 2, (1, 70_000), generator=generator)
    logits, target = logits.to(DEVICE), target.to(DEVICE)
    for reduction in ("mean", "sum"):
        loss = cross_entropy(logits, target, reduction=reduction)
        torch.testing.assert_close(
            loss.double(), F.cross_entropy(logits.double(), target, reduction=reduction), rtol=1e-6, atol=0
        )


@pytest.mark.parametrize("name", ["nn.functional.cross_entropy"])
def test_pytorchs_own_samples(name):
    common = pytest.importorskip("torch.testing._internal.common_methods_invocations")
    info = next(info for info in common.op_db if info.name == name)
    taken = 0
    for sample in info.sample_inputs(DEVICE, torch.float32, requires_grad=True):
        leaf = sample.input.detach().clone().requires_grad_()
        ours = cross_entropy(leaf, *sample.args, **sample.kwargs)
        expected = F.cross_entropy(sample.input, *sample.args, **sample.kwargs)
        torch.testing.assert_close(ours, expected, equal_nan=True)
        grad = torch.randn_like(ours)
        ours.backward(grad)
        (expected_grad,) = torch.autograd.grad(expected, sample.input, grad)
        torch.testing.assert_close(leaf.grad, expected_grad, equal_nan=True)
        taken += "_CrossEntropy" in type(ours.grad_fn).__name__
    assert taken >= 20  # else nothing of ours was tested


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize(("scale", "offset"), [(1, 0), (10, 0), (1, 1e4), (100, -1e4)])
@pytest.mark.parametrize("classes", [41, 1000])
def test_errors_are_no_larger_than_eagers(path, classes, scale, offset, smoothing):
    rows = 200 if classes < 100 else 24
    logits, target = make(rows, classes, scale=scale)
    logits += offset
    options = {"label_smoothing": smoothing, "reduction": "none"}
    grad = torch.ones(rows, device=DEVICE)
    true, true_dx = gradients(F.cross_entropy, logits.double(), target, grad.double(), **options)
    errors = []
    for function in (cross_entropy, F.cross_entropy):
        loss, dx = gradients(function, logits, target, grad, **options)
        errors.append([(loss - true).square().mean().sqrt().item(), (dx - true_dx).square().mean().sqrt().item()])
    for ours, theirs in zip(*errors, strict=True):
        # Roots of mean squares. The interpreter's exp is NumPy's: in PyTorch's ops the same formula is within 1.1 of
        # eager's error, and with NumPy's exp within 1.5.
        assert ours <= (2.0 if DEVICE == "cpu" and path == "kernel" else 1.25) * theirs


@given(
    shape=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    classes=st.sampled_from([1, 2, 3, 8, 129, 137, 1001]),
    seed=st.integers(0, 100),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    smoothing=st.sampled_from([0.0, 0.25, 1.0]),
    ignore_index=st.sampled_from([-100, 0, 1]),
    mixed=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_kernel_and_reference_agree(shape, classes, seed, reduction, smoothing, ignore_index, mixed):
    logits, target, weight = draw(tuple(shape), classes, seed=seed)
    target = target.clamp(min=0)
    lam = torch.rand(shape[0], generator=torch.Generator().manual_seed(seed)).to(DEVICE) if mixed else None
    other = target.flip(0) if mixed else None
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    given_target = MixedTarget(target, other, lam) if mixed else target
    loss = cross_entropy(x, given_target, weight, ignore_index, reduction, smoothing)
    expected = op.reference(
        y, target, other, lam, weight.double(), ignore_index, reduction, smoothing, 0.0, torch.float64
    )
    torch.testing.assert_close(loss.double(), expected, rtol=3e-6, atol=3e-6, equal_nan=True)
    loss.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(
        x.grad.double(), y.grad.nan_to_num(0) if expected.isnan().any() else y.grad, rtol=3e-6, atol=3e-6
    )


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("gamma", [0.0, 1.5])
def test_gradcheck_of_the_reference(mixed, gamma):
    logits, target, weight = draw((3, 2), 4, torch.float64)
    lam = torch.tensor([0.3, 0.9, 1.0], device=DEVICE, dtype=torch.float64) if mixed else None
    other = target.flip(0).clamp(min=0) if mixed else None

    def loss(x, weight):
        return op.reference(x, target, other, lam, weight, -100, "none", 0.0 if gamma else 0.1, gamma, torch.float64)

    assert torch.autograd.gradcheck(lambda x: loss(x, weight), logits.requires_grad_())
    assert torch.autograd.gradgradcheck(lambda x: loss(x, weight), logits)


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
