"""Averaged weights: against torch's own averaging, and their exchange with the parameters."""

import pytest
import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fastfeed.optim import SGD, AdamW
from tests.optim.peers import OPTIMIZERS
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same, parameters, set_gradients, train


def of_all_dtypes():
    dtypes = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
    return [p for dtype in dtypes for p in parameters(dtype, sizes=[0, 131])[::3]]


@pytest.mark.parametrize(
    ("cls", "decay", "options"),
    [
        *((cls, 0.9, {"master_weights": True}) for cls in OPTIMIZERS),
        *((SGD, decay, {}) for decay in (0.0, 0.3, 1.0)),
        (SGD, 0.3, {"state_dtype": torch.bfloat16, "momentum": 0.9}),
    ],
    ids=str,
)
def test_matches_torchs_averaging(path, cls, decay, options, exact_bf16):
    """In fp32 or fp64, of the masters where there are some; where a step brings no gradient nothing changes."""
    params = of_all_dtypes()
    ours = cls(params, lr=0.1, ema_decay=decay, **options)
    average = get_ema_multi_avg_fn(decay)
    expected = [p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=True) for p in params]
    for step in range(2):
        set_gradients(params, step)
        ours.step()
        for p, mean in zip(params, expected, strict=True):
            if p.grad is not None:
                average([mean], [ours.state[p].get("master", p).detach().to(mean.dtype)], step)
    for p, mean in zip(params, expected, strict=True):
        ema = ours.state[p]["ema"]
        assert ema.dtype == mean.dtype
        tolerance = {"rtol": 1e-14, "atol": 1e-15} if ema.dtype == torch.float64 else CLOSE
        torch.testing.assert_close(ema, mean, **(EXACT if decay in (0, 1) else tolerance))


def test_average_of_what_was_rounded_stochastically(path):
    params = parameters(torch.bfloat16, sizes=[131])
    ours = AdamW(params, lr=0.1, ema_decay=0.0, stochastic_rounding=True)
    train(ours, range(1, 2))
    for p in params:
        if p in ours.state:
            torch.testing.assert_close(ours.state[p]["ema"].to(p.dtype), p.detach(), **EXACT)


@pytest.mark.parametrize("options", [{}, {"master_weights": True}], ids=["plain", "masters"])
def test_swap(path, options):
    """There and back: the training goes on as if there had been nothing."""

    def build():
        return AdamW(of_all_dtypes(), lr=0.1, ema_decay=0.5, **options)

    straight, ours = build(), build()
    late = 1  # has its first gradient after the exchange
    for optimizer in (straight, ours):
        params = optimizer.param_groups[0]["params"]
        set_gradients(params, 1)
        params[late].grad = None
        optimizer.step()
    before = [p.detach().clone() for p in params]
    for _ in range(2):
        ours.swap_ema()
        for i, (p, kept) in enumerate(zip(params, before, strict=True)):
            if i == late or p not in ours.state:
                assert torch.equal(p, kept)
            else:
                assert torch.equal(p, ours.state[p]["ema"].to(p.dtype))
                assert p.numel() == 0 or not torch.equal(p, kept)
        with pytest.raises(RuntimeError, match="swap_ema"):
            ours.step()
        ours.swap_ema()
        for p, kept in zip(params, before, strict=True):
            assert torch.equal(p, kept)
    train(straight, range(3, 4)), train(ours, range(3, 4))
    assert_same(ours, straight, **EXACT)


def test_weights_come_back_after_an_exception():
    p = torch.nn.Parameter(torch.tensor([1.0, -0.0, torch.nan], device=DEVICE))
    optimizer = SGD([p], lr=0.1, ema_decay=0.5)
    p.grad = torch.zeros_like(p)
    optimizer.step()
    optimizer.state[p]["ema"].fill_(5)
    with pytest.raises(KeyError), optimizer.ema_weights():
        assert p.tolist() == [5, 5, 5]
        raise KeyError
    assert str(p.tolist()) == "[1.0, -0.0, nan]"
    with optimizer.ema_weights():
        assert p.tolist() == [5, 5, 5]
    assert str(p.tolist()) == "[1.0, -0.0, nan]"


def test_averages_are_not_swapped_in_twice():
    p = torch.nn.Parameter(torch.zeros(3, device=DEVICE))
    optimizer = SGD([p], lr=0.1, ema_decay=0.5)
    p.grad = torch.ones_like(p)
    optimizer.step()
    optimizer.state[p]["ema"].fill_(5)
    with optimizer.ema_weights():
        with pytest.raises(RuntimeError, match="already"), optimizer.ema_weights():
            pass
        assert p.tolist() == [5, 5, 5]


def test_without_averages():
    with pytest.raises(RuntimeError, match="pass ema_decay"):
        SGD(parameters()).swap_ema()
