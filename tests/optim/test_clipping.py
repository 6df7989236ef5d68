"""max_grad_norm against torch.nn.utils.clip_grad_norm_, with and without a loss scale."""

import math

import pytest
import torch

from fastfeed.optim import SGD, AdamW
from tests.optim.peers import OPTIMIZERS, Peers
from tests.optim.test_optimizers import grouped, set_gradients_of, worst
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same, parameters, set_gradients


def scale_gradients(optimizer, scale, dtypes=(torch.float32,)):
    """As a scaled loss would leave them, in several dtypes."""
    if scale is not None:
        optimizer.grad_scale = torch.tensor(scale, device=DEVICE)
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for i, p in enumerate(params):
        if p.grad is not None:
            grad = (p.grad * (scale or 1)).to(dtypes[i % len(dtypes)])
            p.grad_dtype = None  # any
            p.grad = grad
    return params


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(("limit", "scale"), [(0.7, None), (0.7, 1000.0), (None, 1000.0)])
def test_matches_torchs_clipping(path, cls, limit, scale, exact_bf16):
    """Over all groups and gradients of all dtypes; the norm is of what is unscaled and not clipped yet."""
    ours = grouped(cls, parameters(sizes=[0, 131]), max_grad_norm=limit)
    assert ours.grad_norm is None
    exact, single = Peers(ours), Peers(ours, torch.float32)
    for step in range(2):
        set_gradients_of(ours, step)
        params = scale_gradients(ours, scale, [torch.float32, torch.float16, torch.bfloat16])
        grads = [None if p.grad is None else p.grad.clone() for p in params]
        copies = [torch.zeros_like(p, dtype=torch.float64) for p in params]
        for copy, grad in zip(copies, grads, strict=True):
            copy.grad = None if grad is None else grad.double() / (scale or 1)
        norm = torch.nn.utils.clip_grad_norm_(copies, limit or math.inf).item()
        ours.step()
        assert limit is None or ours.grad_norm.item() == pytest.approx(norm, rel=1e-6)
        for p, grad in zip(params, grads, strict=True):
            assert grad is None or torch.equal(p.grad, grad)
        factor = min(1.0, (limit or math.inf) / (norm + 1e-6)) / (scale or 1)
        exact.step(factor), single.step(factor)
    for (label, own, truth), (_, _, usual) in zip(exact.pairs(), single.pairs(), strict=True):
        # The norm's error, which all elements have in common, comes on top of the usual.
        assert worst(own, truth) <= 2 * worst(usual, truth) + 4 * 2**-24 * worst(truth, torch.zeros(())), label


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("scale", [None, 1000.0])
def test_a_norm_below_the_limit_changes_nothing(path, cls, scale):
    def run(max_grad_norm):
        dtypes = (torch.float32, torch.bfloat16, torch.float16)
        tensors = [p for dtype in dtypes for p in parameters(dtype, sizes=[0, 131])[1:5:3]]
        optimizer = grouped(cls, tensors, max_grad_norm=max_grad_norm)
        for step in range(3, 5):
            set_gradients_of(optimizer, step)
            scale_gradients(optimizer, scale, [torch.float32, torch.bfloat16])
            optimizer.step()
        return optimizer

    unclipped, clipped = run(None), run(1e3)
    assert unclipped.grad_norm is None
    assert 0 < clipped.grad_norm < 1e3
    assert_same(clipped, unclipped, **EXACT)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize(
    "values",
    [[math.nan, 1.0, 2.0], [math.inf, 1.0, 2.0], [-math.inf, math.nan, 0.0], [1e20, -1e20, 3.0], [1e-30, 0.0, 0.0]],
    ids=str,
)
@pytest.mark.parametrize("scale", [None, 2.0])
def test_norms_that_are_not_finite(path, values, scale):
    """Also of finite gradients whose squares are too large for fp32, or too small."""
    params, expected = ([torch.nn.Parameter(torch.ones(3, device=DEVICE)) for _ in range(2)] for _ in range(2))
    for p in (*params, *expected):
        p.grad = torch.tensor(values, device=DEVICE)
    ours, theirs = SGD(params, lr=0.1, max_grad_norm=1.0), torch.optim.SGD(expected, lr=0.1)
    scale_gradients(ours, scale)
    ours.step()
    norm = torch.nn.utils.clip_grad_norm_(expected, 1.0)
    theirs.step()
    torch.testing.assert_close(ours.grad_norm, norm, equal_nan=True)
    for p, q in zip(params, expected, strict=True):
        torch.testing.assert_close(p, q, equal_nan=True)


def test_fp64_beside_other_dtypes(path, exact_bf16):
    params = [p for dtype in (torch.float64, torch.float32, torch.bfloat16) for p in parameters(dtype)[4:6]]
    ours = SGD(params, lr=0.1, max_grad_norm=0.5)
    expected = [torch.nn.Parameter(p.detach().clone()) for p in params]
    set_gradients(params, 1), set_gradients(expected, 1)
    ours.step()
    total = sum(p.grad.double().square().sum() for p in params if p.grad is not None).sqrt()
    assert ours.grad_norm.item() == pytest.approx(total.item(), rel=1e-6)
    for p, q in zip(params, expected, strict=True):
        if q.grad is not None:
            change = -0.1 * q.grad.double() * 0.5 / (total + 1e-6)
            tolerance = EXACT if p.dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 0}
            torch.testing.assert_close(p.detach(), (q + change).to(q.dtype), **tolerance)


def test_many_chunks_for_each_program(monkeypatch):
    """As in a model of more chunks than there are programs: each adds up several, of several tensors."""
    monkeypatch.setattr(pytest.importorskip("fastfeed.kernels.gradient_norm"), "PROGRAMS", 4)
    params = parameters(sizes=[0, 3, 0, 0, 9001, 128])[:-1]
    ours = AdamW(params, max_grad_norm=1.0)
    for step in range(2):
        set_gradients(params, step)
        ours.step()
        squares = [p.grad.double().square().sum() for p in params if p.grad is not None]
        assert ours.grad_norm.item() == pytest.approx(torch.stack(squares).sum().sqrt().item(), rel=1e-6)


def test_limit_can_change(path):
    p = torch.nn.Parameter(torch.zeros(4, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = SGD([p], lr=1.0, max_grad_norm=1.0)
    for limit, expected in ((1.0, -0.5), (None, -1.5), (0.5, -1.75)):
        optimizer.max_grad_norm = limit
        optimizer.step()
        torch.testing.assert_close(p.detach(), torch.full_like(p, expected), **CLOSE)


def test_each_step_has_its_own_norm(path):
    params = [torch.nn.Parameter(torch.zeros(8, device=DEVICE)) for _ in range(2)]
    optimizer = SGD(params, lr=0.1, max_grad_norm=1.0)
    for value in (1.0, 2.0, 0.5):
        for p in params:
            p.grad = torch.full_like(p, value)
        optimizer.step()
        assert optimizer.grad_norm.item() == 4 * value
