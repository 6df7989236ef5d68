"""torch.amp.GradScaler and ours with the optimizers, against the former with torch.optim's, which it unscales for."""

import copy
import math

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, GradScaler, Lion
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same

OPTIMIZERS = [SGD, Adam, AdamW, LAMB, LARS, Lion]
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)


@pytest.fixture
def quick(monkeypatch):
    """Without the interpreter."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr("fastfeed.optim.plan.can_run", lambda device: False)


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(torch.linspace(-1, 1, n, device=DEVICE).to(dtype)) for n in (3, 5)]


both_scalers = pytest.mark.parametrize("scaler_class", [torch.amp.GradScaler, GradScaler], ids=["torch", "ours"])


def scaler_of(scaler_class=torch.amp.GradScaler, **options):
    return scaler_class(DEVICE.type, **{"init_scale": 4.0, "growth_interval": 2, **options})


def backward(scaler, params, step, overflow=False):
    """Gradients of a parabola, of which one element is infinite after an overflow."""
    loss = sum((p.float() - step).square().sum() for p in params)
    scaler.scale(loss).backward()
    if overflow:
        params[-1].grad[1] = math.inf


def snapshot(optimizer):
    return copy.deepcopy([optimizer.param_groups[0]["params"], optimizer.state_dict()["state"]])


@pytest.mark.parametrize("overflows", [(0,), (2,), (0, 1, 3)], ids=str)
@every_optimizer
@both_scalers
def test_overflows_leave_everything_as_it_is(quick, scaler_class, cls, overflows):
    options = {"lr": 0.1, "master_weights": True, "ema_decay": 0.9, "max_grad_norm": 2.0}
    ours, plain = (cls(parameters(torch.bfloat16), **options) for _ in range(2))
    scaler, scales = scaler_of(scaler_class, growth_interval=100), []
    for step in range(5):
        overflow = step in overflows
        backward(scaler, ours.param_groups[0]["params"], step, overflow)
        before = snapshot(ours)
        scaler.step(ours)
        assert not {"grad_scale", "found_inf"} & ours.__dict__.keys()
        scaler.update()
        ours.zero_grad()
        scales.append(scaler.get_scale())
        if overflow:
            for p, value in zip(ours.param_groups[0]["params"], before[0], strict=True):
                assert torch.equal(p, value)
            for index, state in ours.state_dict()["state"].items():
                for name, value in state.items():
                    assert torch.equal(value, before[1].get(index, {}).get(name, value)), name
        else:  # what is left is the training without a scaler
            backward(scaler_of(enabled=False), plain.param_groups[0]["params"], step)
            plain.step(), plain.zero_grad()
    assert_same(ours, plain, **EXACT)  # scales are powers of two
    assert scales[-1] == 4.0 * 0.5 ** len(overflows)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize(
    ("unscale", "clip"), [(False, None), (True, None), (True, "user"), (False, "optimizer"), (True, "optimizer")]
)
@pytest.mark.parametrize(("cls", "theirs"), [(SGD, torch.optim.SGD), (AdamW, torch.optim.AdamW)])
@both_scalers
def test_matches_torch(path, scaler_class, cls, theirs, unscale, clip):
    """Overflow in the middle; growth; gradients unscaled by the user, who may clip them, or by the optimizer."""
    runs = []
    for build in (cls, theirs):
        options = {"max_grad_norm": 0.5} if clip == "optimizer" and build is cls else {}
        optimizer = build(parameters(), lr=0.1, **options)
        scaler = scaler_of(scaler_class if build is cls else torch.amp.GradScaler)
        params = optimizer.param_groups[0]["params"]
        for step in range(4):
            backward(scaler, params, step, overflow=step == 1)
            if unscale or build is theirs:
                scaler.unscale_(optimizer)
                if clip == "user" or (clip and build is theirs):
                    torch.nn.utils.clip_grad_norm_(params, 0.5)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        runs.append((params, scaler.state_dict()))
    (ours, state), (reference, reference_state) = runs
    torch.testing.assert_close(ours, reference, **CLOSE)
    assert state == reference_state
    assert state["scale"] == 4.0  # halved once, doubled once


@pytest.mark.parametrize(
    ("dtype", "cast"), [(torch.bfloat16, False), (torch.float16, False), (torch.float16, True)], ids=str
)
@every_optimizer
def test_autocast(quick, cls, dtype, cast):
    """Parameters of autocast's network are fp32; those of one cast to half precision have masters."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)).to(DEVICE)
    model = model.to(dtype) if cast else model
    x = torch.randn(8, 3, device=DEVICE)
    optimizer = cls(model.parameters(), lr=0.02, master_weights=True, max_grad_norm=1.0)
    scaler, losses = scaler_of(init_scale=2.0**18, growth_interval=100), []  # the first steps overflow in fp16
    for _ in range(10):
        with torch.autocast(DEVICE.type, dtype):
            loss = (model(x.to(dtype) if cast else x) - 1).square().mean()
        scaler.scale(loss.float()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        losses.append(loss.item())
    (skipped,) = {10 - int(state["step"]) for state in optimizer.state.values()}
    assert (skipped > 0) == (dtype == torch.float16)
    assert scaler.get_scale() == 2.0 ** (18 - skipped)
    assert losses[-1] < losses[0]


@both_scalers
def test_several_optimizers_with_one_scaler(quick, scaler_class):
    """Each looks at its own gradients, and the scale is that of all."""
    first, second = SGD(parameters(), lr=0.1), AdamW(parameters(), lr=0.1, max_grad_norm=1.0)
    theirs = torch.optim.Adagrad(parameters(), lr=0.1)
    scaler = scaler_of(scaler_class)
    for step in range(3):
        for optimizer in (first, second, theirs):
            backward(scaler, optimizer.param_groups[0]["params"], step, overflow=step == 1 and optimizer is second)
            optimizer.state_before = copy.deepcopy(optimizer.param_groups[0]["params"])
        for optimizer in (first, second, theirs):
            scaler.step(optimizer)
            stepped = not torch.equal(optimizer.state_before[0], optimizer.param_groups[0]["params"][0])
            assert stepped == (step != 1 or optimizer is not second)
            optimizer.zero_grad()
        scaler.update()
    assert scaler.get_scale() == 2.0


@both_scalers
def test_scale_that_the_user_has_set(path, scaler_class):
    """It is multiplied with the scaler's, as for gradients that were averaged over more than the loss."""
    ours, plain = (AdamW(parameters(), lr=0.1, max_grad_norm=0.5) for _ in range(2))
    scaler = scaler_of(scaler_class)
    backward(scaler, ours.param_groups[0]["params"], 2)
    backward(scaler_of(enabled=False), plain.param_groups[0]["params"], 2)
    for p in ours.param_groups[0]["params"]:
        p.grad *= 8
    ours.grad_scale = torch.tensor(8.0, device=DEVICE)
    scaler.step(ours)
    plain.step()
    assert_same(ours, plain, **EXACT)
    assert ours.grad_norm == plain.grad_norm


def test_disabled_scaler_passes_a_closure_on(quick):
    optimizer = AdamW(parameters())
    assert scaler_of(enabled=False).step(optimizer, lambda: 3.0) == 3.0
    assert scaler_of(enabled=False).step(optimizer, closure=lambda: 4.0) == 4.0


@both_scalers
def test_step_without_gradients(quick, scaler_class):
    """The scaler's attributes go even then."""
    optimizer = AdamW(parameters())
    scaler = scaler_of(scaler_class)
    scaler.scale(torch.ones((), device=DEVICE))
    scaler.step(optimizer)
    assert not {"grad_scale", "found_inf"} & optimizer.__dict__.keys()
    assert not optimizer.state
    with pytest.raises(RuntimeError, match="already been called"):
        scaler.step(optimizer)


def test_what_was_found_is_not_kept_for_other_gradients(path):
    """Where the step for which it was found raised an error, or a closure has evaluated the gradients anew."""
    ours, plain = (AdamW(parameters(), lr=0.1, max_grad_norm=0.5, ema_decay=0.9) for _ in range(2))
    params = ours.param_groups[0]["params"]
    for optimizer in (ours, plain):
        backward(scaler_of(enabled=False), optimizer.param_groups[0]["params"], 1)
        optimizer.step()
    scaler = scaler_of(GradScaler)
    scaler.scale(torch.ones((), device=DEVICE))
    ours.swap_ema()
    with pytest.raises(RuntimeError, match="swapped in"):
        scaler.step(ours)
    del ours.grad_scale, ours.found_inf  # torch's scaler leaves them behind
    ours.swap_ema()
    for p, q in zip(params, plain.param_groups[0]["params"], strict=True):
        p.grad = q.grad = torch.full_like(p, 5.0)
    ours.step(), plain.step()
    assert_same(ours, plain, **EXACT)
    assert ours.grad_norm == plain.grad_norm

    def closure():
        for p, q in zip(params, plain.param_groups[0]["params"], strict=True):
            p.grad = q.grad = torch.full_like(p, -3.0)

    ours.find_inf(torch.ones((), device=DEVICE))
    ours.step(closure), plain.step()
    assert_same(ours, plain, **EXACT)


def test_a_hook_may_change_gradients_before_the_step():
    """What was found before the hook is then of other gradients."""
    p = torch.nn.Parameter(torch.zeros(4))
    optimizer = AdamW([p], max_grad_norm=1.0)

    def hook(*_):
        p.grad.mul_(100)

    optimizer.register_step_pre_hook(hook)
    scaler = GradScaler("cpu", init_scale=2.0)
    scaler.scale(p.sum()).backward()
    scaler.step(optimizer)
    assert optimizer.grad_norm == 200.0
