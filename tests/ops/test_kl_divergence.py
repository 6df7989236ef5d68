"""The distillation loss against its formula in float64, and PyTorch's kl_div, through the kernels and the reference.

On a machine without a GPU the kernels run in Triton's interpreter, on the CPU.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F

import fastfeed.ops.kl_divergence as op
from fastfeed import nn
from fastfeed.functional import kl_divergence
from tests.ops.rows import DEVICE, SHAPES, assert_close, assert_no_worse, derivatives

INF, NAN = float("inf"), float("nan")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
GRAD_FN = "_KLDivergenceBackward"


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    """Run a test once through the Triton kernel and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr("fastfeed.ops.registration.can_run", lambda device: False)
    return request.param


def make(n, c, dtype=torch.float32, teacher_dtype=torch.float32, scale=3.0, sides=()):
    """Return the logits of student and teacher; images are channels-last."""
    generator = torch.Generator().manual_seed(n * c)
    logits = (torch.randn(n, *sides, c, generator=generator) * scale for _ in range(2))
    student, teacher = (x.movedim(-1, 1).to(DEVICE) for x in logits)
    return student.to(dtype), teacher.to(teacher_dtype)


def truth(student, teacher, temperature=1.0, reduction="batchmean"):
    """The definition, in float64."""
    student, teacher = student.double() / temperature, teacher.double() / temperature
    log_q = student - student.logsumexp(1, keepdim=True)
    log_p = teacher - teacher.logsumexp(1, keepdim=True)
    loss = temperature**2 * (log_p.exp() * (log_p - log_q)).sum(1)
    return {"none": loss, "sum": loss.sum(), "batchmean": loss.sum() / len(student)}[reduction]


def eager(student, teacher, temperature=1.0, reduction="batchmean", log_target=False):
    """What people write."""
    p = (F.log_softmax if log_target else F.softmax)(teacher / temperature, 1)
    loss = F.kl_div(F.log_softmax(student / temperature, 1), p, reduction=reduction, log_target=log_target)
    return temperature**2 * (loss.sum(1) if reduction == "none" else loss)


def fused(student, teacher, *arguments, **options):
    """The public function, in which the kernels must have computed the loss."""
    loss = kl_divergence(student, teacher, *arguments, **options)
    assert loss.grad_fn is None or loss.grad_fn.name() == GRAD_FN
    return loss


def check(student, teacher, *arguments, grad=1.0, function=kl_divergence):
    found = derivatives(lambda s: function(s, teacher, *arguments), (student,), grad)
    grad = torch.as_tensor(grad, device=DEVICE).to(found[0].dtype).double()
    expected = derivatives(lambda s: truth(s, teacher, *arguments), (student.detach().double(),), grad)
    for actual, true in zip(found, expected, strict=True):
        assert_close(actual, true)
    assert found[1].dtype == student.dtype


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(path, shape):
    check(*make(*shape), 2.0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(37, 7), (37, 41), (3, 1001), (2, 4096)], ids=str)
def test_half_precision(path, shape, dtype):
    check(*make(*shape, dtype, dtype), 4.0)


@pytest.mark.parametrize(("dtype", "teacher_dtype"), list(itertools.product(DTYPES, DTYPES)))
def test_pairs_of_dtypes(path, dtype, teacher_dtype):
    check(*make(5, 41, dtype, teacher_dtype))


@pytest.mark.parametrize("temperature", [0.5, 1, 3.0])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_reductions_and_temperatures(path, reduction, temperature):
    check(*make(7, 11), temperature, reduction)


@pytest.mark.parametrize("sides", [(3,), (4, 5), (1, 1)])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_images_in_channels_last(sides, reduction):
    student, teacher = make(2, 5, sides=sides)
    check(student, teacher, 2.0, reduction, function=fused)
    _, grad = derivatives(lambda s: fused(s, teacher), (student,))
    assert grad.movedim(1, -1).is_contiguous()


def test_images_of_other_memory_formats_go_to_the_reference():
    student, teacher = (x.contiguous() for x in make(2, 5, sides=(4, 5)))
    check(student, teacher, 2.0)
    assert kl_divergence(student.requires_grad_(), teacher).grad_fn.name() != GRAD_FN


def test_upstream_gradients(path):
    student, teacher = make(37, 11)
    grad = torch.randn(37, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    check(student, teacher, 2.0, "none", grad=grad)
    check(student, teacher, 2.0, "none", grad=torch.stack([grad, grad], 1)[:, 0])
    check(student, teacher, 2.0, "none", grad=grad[:1].expand(37))
    check(student, teacher, 2.0, "batchmean", grad=0.3)


def test_equal_logits_give_exactly_nothing():
    student, _ = make(5, 4099, scale=10.0)
    loss, grad = derivatives(lambda s: fused(s, student, 3.0, "none"), (student,))
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(grad, torch.zeros_like(grad))


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_cost_no_precision(path, shift):
    student, teacher = ((x * 64).round() / 64 for x in make(5, 41))
    found = derivatives(lambda s: kl_divergence(s, teacher - shift, 2.0), (student + shift,))
    expected = derivatives(lambda s: truth(s, teacher, 2.0), (student.double(),))
    for actual, true in zip(found, expected, strict=True):
        assert_close(actual, true)


def test_large_logits_far_apart(path):
    student, teacher = (torch.where(x > 0, 1e4, -1e4) for x in make(3, 4099))
    student[0, :4096] = teacher[1, :4096] = -1e4  # the maximum is only met at the end
    check(student, teacher, 2.0, "none")


@pytest.mark.parametrize(
    ("student", "teacher", "loss"),
    [
        ([0.0, -INF, 1.0], [0.0, 1.0, 2.0], "inf"),
        ([0.0, 1.0, 1.0], [0.0, -INF, 2.0], "finite"),
        ([-INF, 1.0, 1.0], [1.0, -INF, 2.0], "inf"),
        ([0.0, 1.0, 1.0], [-INF, -INF, 2.0], "finite"),
        ([0.0, 1.0, 1.0], [-INF, -INF, -INF], "nan"),
        ([-INF, -INF, -INF], [0.0, 1.0, 1.0], "nan"),
        ([0.0, INF, 1.0], [0.0, 1.0, 2.0], "nan"),
        ([0.0, 1.0, 1.0], [0.0, INF, 2.0], "nan"),
        ([0.0, NAN, 1.0], [0.0, -INF, 2.0], "nan"),
        ([0.0, 1.0, 1.0], [0.0, NAN, 2.0], "nan"),
    ],
)
def test_values_that_are_not_finite_are_as_in_pytorch(path, student, teacher, loss):
    student, teacher = (torch.tensor([values, [0.0, 1.0, 3.0]], device=DEVICE) for values in (student, teacher))
    found, expected = (
        derivatives(lambda s, f=function: f(s, teacher, 2.0, "none"), (student,)) for function in (kl_divergence, eager)
    )
    torch.testing.assert_close(found, expected, equal_nan=True)
    kinds = {"finite": torch.isfinite, "inf": torch.isposinf, "nan": torch.isnan}
    assert kinds[loss](found[0][0])
    assert found[1][1].isfinite().all()


def test_a_class_that_both_rule_out_adds_nothing(path):
    # F.kl_div makes a NaN of 0 * (-inf - -inf); the gradient is finite there too.
    student, teacher = make(4, 7)
    masked = [x.index_fill(1, torch.tensor([2, 5], device=DEVICE), -INF) for x in (student, teacher)]
    kept = [x[:, [0, 1, 3, 4, 6]] for x in (student, teacher)]
    loss, grad = derivatives(lambda s: kl_divergence(s, masked[1], 2.0), (masked[0],))
    true, true_grad = derivatives(lambda s: truth(s, kept[1], 2.0), (kept[0].double(),))
    assert_close(loss, true)
    assert_close(grad[:, [0, 1, 3, 4, 6]], true_grad)
    assert (grad[:, [2, 5]] == 0).all()
    assert eager(*masked).isnan()


@pytest.mark.parametrize(
    ("first", "rest", "expected"),
    [
        ((-INF, -INF), None, "finite"),  # a tile of which nothing counts
        ((None, -INF), None, "finite"),
        ((-INF, None), None, "inf"),
        ((-INF, -1e4), (None, 1e4), "finite"),  # inf * 0 at first: the teacher's probabilities there turn out to be 0
    ],
)
def test_a_leading_tile_that_is_special(path, first, rest, expected):
    student, teacher = make(2, 4500)
    for x, value, after in zip((student, teacher), first, rest or (None, None), strict=True):
        if value is not None:
            x[:, :4096] = value
        if after is not None:
            x[:, 4096:] += after
    loss, grad = derivatives(lambda s: kl_divergence(s, teacher, 1.0, "none"), (student,))
    kinds = {"finite": torch.isfinite, "inf": torch.isposinf}
    assert kinds[expected](loss).all()
    assert_close(grad, F.softmax(student.double(), 1) - F.softmax(teacher.double(), 1))
    if expected == "finite":
        kept = slice(4096, None) if first[1] is not None else slice(None)
        log_q = F.log_softmax(student.double(), 1)[:, kept]
        log_p = F.log_softmax(teacher.double(), 1)[:, kept]
        assert_close(loss, (log_p.exp() * (log_p - log_q)).sum(1))


def test_views(path):
    student, teacher = make(40, 33)
    check(student[::2], teacher[1::2])
    check(student.t().contiguous().t(), teacher)
    check(student[:, 1:], teacher[:, :-1])
    check(student, teacher[:1].expand(40, 33))
    check(student.reshape(-1)[3 : 3 + 30 * 33].view(30, 33), teacher[:30])  # begins off a multiple of 16 bytes


def test_inputs_are_left_as_they_are():
    student, teacher = make(9, 33)
    before = student.clone(), teacher.clone()
    derivatives(lambda s: fused(s, teacher), (student,))
    assert torch.equal(student, before[0])
    assert torch.equal(teacher, before[1])


@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (2, 3, 0)])
@pytest.mark.parametrize("reduction", ["batchmean", "sum", "none"])
def test_empty(shape, reduction):
    x = torch.zeros(shape, device=DEVICE)
    torch.testing.assert_close(
        kl_divergence(x, x, reduction=reduction), eager(x, x, reduction=reduction), equal_nan=True
    )


# --- Against PyTorch's own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("autocast", [False, True])
def test_dtypes_are_pytorchs(path, autocast):
    for dtype, teacher_dtype in itertools.product((*DTYPES, torch.float64), repeat=2):
        student, teacher = make(2, 3, dtype, teacher_dtype)
        results = []
        for function in (kl_divergence, eager):
            with torch.autocast(DEVICE, torch.bfloat16, enabled=autocast):
                results.append(derivatives(lambda s, f=function, t=teacher: f(s, t, 2.0), (student,)))
        torch.testing.assert_close(*results, rtol=0.02, atol=0.02)  # which compares dtypes too


@pytest.mark.parametrize(
    ("dtype", "scale", "temperature"),
    [*itertools.product(DTYPES, [1.0, 1000.0], [2.0]), (torch.float32, 3.0, 4.0), (torch.float32, 3.0, 20.0)],
)
@pytest.mark.parametrize(
    ("path", "log_target"),  # the reference takes the logarithm of the teacher's probabilities as log_target=True does
    [("kernel", True), ("kernel", False), ("reference", True)],
    indirect=["path"],
)
def test_no_less_accurate_than_pytorchs(path, dtype, scale, temperature, log_target):
    student, teacher = make(8, 1000, dtype, dtype, scale)
    found = derivatives(lambda s: kl_divergence(s, teacher, temperature, "none"), (student,))
    theirs = derivatives(lambda s: eager(s, teacher, temperature, "none", log_target), (student,))
    true = derivatives(lambda s: truth(s, teacher, temperature, "none"), (student.double(),))
    for values in zip(found, theirs, true, strict=True):
        assert_no_worse(*values)


def test_no_less_accurate_where_both_are_nearly_equal(path):
    student, noise = make(16, 1000)
    teacher = student + noise / 300
    values = [function(student, teacher, 1.0, "none") for function in (kl_divergence, eager, truth)]
    assert values[2].max() < 1e-4
    assert_no_worse(*values)


def test_pytorchs_samples(path):
    pytest.importorskip("expecttest")
    from torch.testing._internal.common_methods_invocations import op_db

    info = next(info for info in op_db if info.name == "nn.functional.kl_div")
    tried = 0
    for sample in info.sample_inputs(DEVICE, torch.float32):
        (teacher,) = sample.args
        log_target, reduction = sample.kwargs["log_target"], sample.kwargs["reduction"]
        if sample.input.dim() < 2 or reduction == "mean":
            continue
        expected = eager(sample.input, teacher, 1.0, reduction, log_target)
        torch.testing.assert_close(kl_divergence(sample.input, teacher, reduction=reduction), expected)
        tried += 1
    assert tried == 6


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"reduction": "mean"}, ValueError, r"'mean', which F.kl_div divides by N \* C; 'batchmean' is the mean over"),
        ({"reduction": "avg"}, ValueError, "'avg' is not a valid value for reduction; expected 'batchmean', 'sum'"),
        ({"temperature": 0}, ValueError, "temperature is 0; expected a number above 0"),
        ({"temperature": -1.0}, ValueError, "temperature is -1.0"),
        ({"temperature": NAN}, ValueError, "temperature is nan"),
        ({"temperature": INF}, ValueError, "temperature is inf"),
        ({"teacher": torch.zeros(3, 4)}, ValueError, r"teacher is \[3, 4\], student \[3, 5\]; expected one shape"),
        ({"teacher": torch.zeros(5)}, ValueError, r"teacher is \[5\]"),
        ({"student": torch.zeros(5)}, ValueError, r"student is \[5\]; expected \[N, C\] or"),
        ({"student": torch.zeros(3, 5).long()}, NotImplementedError, "student is torch.int64; expected floating-point"),
        ({"teacher": torch.zeros(3, 5).bool()}, NotImplementedError, "teacher is torch.bool; expected floating-point"),
        ({"teacher": torch.zeros(3, 5, device="meta")}, RuntimeError, "teacher on meta; expected one device"),
    ],
)
def test_errors(path, changed, error, message):
    arguments = {"student": torch.zeros(3, 5, device=DEVICE), "teacher": torch.zeros(3, 5, device=DEVICE)} | changed
    with pytest.raises(error, match=message):
        kl_divergence(**arguments)


# --- Derivatives, registration, compiling -----------------------------------------------------------------------


def test_a_teacher_that_wants_a_gradient_gets_it():
    student, teacher = make(5, 7)
    found = derivatives(lambda s, t: kl_divergence(s, t, 2.0), (student, teacher))
    expected = derivatives(lambda s, t: truth(s, t, 2.0), (student.double(), teacher.double()))
    for actual, true in zip(found, expected, strict=True):
        assert_close(actual, true)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_derivatives_of_the_reference(reduction):
    inputs = [x.requires_grad_() for x in make(2, 3, torch.float64, torch.float64)]

    def function(s, t):
        return op.reference(s, t, 2.0, reduction, torch.float64)

    assert torch.autograd.gradcheck(function, inputs)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("reduction", ["batchmean", "none"])
def test_second_derivatives(path, reduction):
    student, teacher = make(4, 5)

    def twice(function, s, t):
        leaf = s.detach().requires_grad_()
        (first,) = torch.autograd.grad(function(leaf, t, 2.0, reduction).square().sum(), leaf, create_graph=True)
        return [first, *torch.autograd.grad(first.square().sum(), leaf)]

    for actual, expected in zip(
        twice(kl_divergence, student, teacher), twice(truth, student.double(), teacher.double()), strict=True
    ):
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_transforms_and_forward_mode():
    student, teacher = make(6, 5)
    tangent = torch.randn_like(student)
    functions = [lambda s, t, f=f: f(s, t, 2.0, "none") for f in (kl_divergence, eager)]
    for transform in (
        lambda f: torch.func.jvp(f, (student, teacher), (tangent, tangent)),
        lambda f: torch.func.jacrev(f, argnums=(0, 1))(student, teacher),
        lambda f: torch.func.vmap(f)(torch.stack([student, tangent]), torch.stack([teacher, tangent])),
    ):
        torch.testing.assert_close(*map(transform, functions))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(student, tangent)
        found, expected = (torch.autograd.forward_ad.unpack_dual(f(dual, teacher)).tangent for f in functions)
    assert found is not None
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("dtype", "sides", "reduction"), [(torch.bfloat16, (), "batchmean"), (torch.float32, (2, 3), "none")]
)
def test_opcheck(dtype, sides, reduction):
    student, teacher = make(3, 5, dtype, sides=sides)
    arguments = student.requires_grad_(), teacher, 2.0, reduction, torch.float32
    torch.library.opcheck(op._FORWARD, arguments)
    with torch.no_grad():
        loss, state = op._FORWARD(*arguments)
        torch.library.opcheck(op._BACKWARD, (torch.ones_like(loss), student.detach(), teacher, state, 2.0, reduction))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    def function(s, t):
        return kl_divergence(s * 2, t, 2.0)

    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for n in (4, 6):
        student, teacher = make(n, 5, torch.bfloat16)
        found, expected = (derivatives(lambda s, f=f, t=teacher: f(s, t), (student,)) for f in (compiled, function))
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_meta_and_fake_tensors():
    meta = torch.empty(6, 5, device="meta", dtype=torch.bfloat16)
    loss = kl_divergence(meta, meta, reduction="none")
    assert (loss.device.type, loss.shape, loss.dtype) == ("meta", (6,), torch.bfloat16)
    with torch._subclasses.FakeTensorMode():
        for sides in ((), (2, 3)):
            student = torch.empty(4, *sides, 5, device=DEVICE, dtype=torch.bfloat16).movedim(-1, 1).requires_grad_()
            loss = fused(student, torch.empty_like(student, dtype=torch.float32, requires_grad=False), 2.0, "none")
            assert (loss.shape, loss.dtype) == ((4, *sides), torch.float32)
            (grad,) = torch.autograd.grad(loss.sum(), student)
            assert (grad.shape, grad.dtype) == (student.shape, student.dtype)
            assert grad.movedim(1, -1).is_contiguous()


def test_module():
    student, teacher = make(6, 5)
    module = nn.KLDivergence(temperature=4.0, reduction="sum")
    torch.testing.assert_close(module(student, teacher), eager(student, teacher, 4.0, "sum"))
    torch.testing.assert_close(nn.KLDivergence()(student, teacher), eager(student, teacher))
    assert repr(module) == "KLDivergence(temperature=4.0, reduction='sum')"
    assert module.state_dict() == {}
