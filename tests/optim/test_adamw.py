"""What all optimizers have from one base, by the example of AdamW; its updates are held against torch's elsewhere."""

import math
import weakref

import pytest
import torch

from fastfeed.optim import AdamW
from tests.optim.training import CLOSE, DEVICE, assert_same, parameters, set_gradients, train


@pytest.mark.parametrize("beta2", [0.9, 0.999, 0.9999])
@pytest.mark.parametrize("step", [0, 1, 10, 300, 7000, 10**6])
def test_bias_correction(path, beta2, step):
    """From a parameter of 0 the update is all there is to see, so its relative error shows."""
    grad, first, second = torch.rand(3, 200, dtype=torch.float64, device=DEVICE).add(0.1)
    betas = (0.95, beta2)
    p = torch.nn.Parameter(torch.zeros(200, device=DEVICE))
    optimizer = AdamW([p], betas=betas)
    p.grad = grad.float()
    optimizer.state[p] = {
        "step": torch.tensor(float(step), device=DEVICE),
        "exp_avg": first.float(),
        "exp_avg_sq": second.float(),
    }
    optimizer.step()
    first = 0.95 * first + 0.05 * grad
    second = beta2 * second + (1 - beta2) * grad**2
    step += 1
    denominator = (second / -math.expm1(step * math.log(beta2))).sqrt() + 1e-8
    update = 1e-3 * first / -math.expm1(step * math.log(0.95)) / denominator
    torch.testing.assert_close(p.detach().double(), -update, rtol=1e-6, atol=0)


def test_without_momentum_the_past_leaves_no_trace(path):
    p = torch.nn.Parameter(torch.zeros(4, device=DEVICE))
    optimizer = AdamW([p], betas=(0.0, 0.0))
    for value in (1e6, 1e-6):
        p.grad = torch.full_like(p, value)
        optimizer.step()
    assert torch.equal(optimizer.state[p]["exp_avg"], p.grad)
    assert torch.equal(optimizer.state[p]["exp_avg_sq"], p.grad * p.grad)


def test_table_is_made_again_when_a_parameter_moved(calls):
    params = parameters()[:4]
    optimizer, theirs = AdamW(params), torch.optim.AdamW(parameters()[:4])
    kept = []  # keeps the allocator from giving the old addresses to the new gradients
    for step in range(3):
        set_gradients(params, 0)
        set_gradients(theirs.param_groups[0]["params"], 0)
        kept += [p.grad for p in params]
        if step == 2:
            params[3].data = params[3].data.clone()
        for _ in range(2):
            optimizer.step()
            theirs.step()
    table, steps = ["__init__"], ["step", "step"]
    assert calls == [*table, *steps, *steps, *table, *steps]  # where gradients lie is no part of it
    assert_same(optimizer, theirs, **CLOSE)


def test_gradients_can_be_freed(path):
    # The optimizer remembers addresses between steps, not tensors.
    optimizer = AdamW(parameters()[2:3])
    (p,) = train(optimizer, range(1, 2))
    grad = weakref.ref(p.grad)
    optimizer.zero_grad()
    assert grad() is None


def test_holes_that_gradient_and_states_share(path):
    p, grad, first, second = (torch.full((8, 6), 2.0, device=DEVICE) for _ in range(4))
    parameter = torch.nn.Parameter(p[:, ::2])
    parameter.grad = grad[:, ::2]
    optimizer = AdamW([parameter])
    optimizer.state[parameter] = {
        "step": torch.tensor(3.0, device=DEVICE),
        "exp_avg": first[:, ::2],
        "exp_avg_sq": second[:, ::2],
    }
    optimizer.step()
    for t in (p, first, second):
        assert (t[:, 1::2] == 2).all()
    assert (p[:, ::2] != 2).all()


def test_overlapping_elements_are_refused(path):
    p = torch.nn.Parameter(torch.zeros(3, device=DEVICE).expand(5, 3))
    p.grad = torch.ones(5, 3, device=DEVICE)
    with pytest.raises(RuntimeError, match="single memory location"):
        AdamW([p]).step()


def test_gradient_in_another_memory_order(path):
    def build(cls):
        p = torch.nn.Parameter(parameters()[-4].detach())
        assert not p.is_contiguous()
        p.grad = torch.linspace(-1, 1, p.numel(), device=DEVICE).view(p.shape)
        optimizer = cls([p], lr=0.1)
        optimizer.step()
        p.grad = torch.empty_like(p).copy_(p.grad)
        optimizer.step()
        return optimizer

    assert_same(build(AdamW), build(torch.optim.AdamW), **CLOSE)


def test_closure_and_scheduler(path):
    p = torch.nn.Parameter(torch.ones(8, device=DEVICE))
    optimizer = AdamW([p], lr=0.1)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum()
        loss.backward()
        return loss

    losses = []
    for _ in range(4):
        losses.append(optimizer.step(closure).item())
        scheduler.step()
    assert losses == sorted(losses, reverse=True)
    assert losses[0] == 8
    assert optimizer.param_groups[0]["lr"] == 0.1 / 16


def test_compiled_step(path):
    ours, theirs = AdamW(parameters(), lr=0.01), torch.optim.AdamW(parameters(), lr=0.01)
    step = torch.compile(lambda: ours.step(), backend="eager")
    for i in range(3):
        for optimizer in (ours, theirs):
            set_gradients(optimizer.param_groups[0]["params"], i)
        step()
        theirs.step()
    assert_same(ours, theirs, **CLOSE)


def test_grad_scaler_skips_overflow():
    p = torch.nn.Parameter(torch.ones(8, device=DEVICE))
    optimizer = AdamW([p], lr=0.1)
    scaler = torch.amp.GradScaler(DEVICE.type, init_scale=4.0)
    for factor, changed in ((math.inf, False), (1.0, True)):
        scaler.scale((p * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert bool((p != 1).all()) == changed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -0.1}, "Invalid learning rate: -0.1"),
        ({"lr": math.nan}, "Invalid learning rate: nan"),
        ({"eps": -1.0}, "Invalid epsilon value: -1.0"),
        ({"betas": (1.0, 0.9)}, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -2}, "Invalid weight_decay value: -2"),
        ({"lr": torch.tensor([0.1, 0.1])}, "Tensor lr must be 1-element"),
    ],
    ids=str,
)
def test_invalid_arguments(options, message):
    p = torch.nn.Parameter(torch.zeros(1))
    with pytest.raises(ValueError, match=message):
        AdamW([p], **options)
    with pytest.raises(ValueError, match=message):
        AdamW([{"params": [p], **options}])
    optimizer = AdamW([p])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], **options})
    assert len(optimizer.param_groups) == 1


def test_unsupported_parameters_and_gradients():
    with pytest.raises(ValueError, match="empty parameter list"):
        AdamW([])
    with pytest.raises(ValueError, match="complex"):
        AdamW([torch.nn.Parameter(torch.zeros(1, dtype=torch.complex64))])
    p = torch.nn.Parameter(torch.zeros(3))
    optimizer = AdamW([p])
    p.grad = torch.ones(3).to_sparse()
    with pytest.raises(RuntimeError, match="sparse gradients"):
        optimizer.step()


@pytest.mark.gpu
def test_never_waits_for_the_device():
    params = parameters() + parameters(torch.bfloat16)
    optimizer = AdamW(params)
    train(optimizer, range(2))  # compiles the kernel, creates the states
    set_gradients(params, 2)
    gradients = [None if p.grad is None else p.grad.clone() for p in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
        for p, g in zip(params, gradients, strict=True):
            p.grad = g  # moved: the table is rebuilt
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_graph_capture_is_refused():
    optimizer = AdamW(parameters())
    train(optimizer, range(1))
    with pytest.raises(RuntimeError, match="CUDA graph"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        optimizer.step()


@pytest.mark.gpu
def test_parameters_on_cpu_and_gpu():
    def build(cls):
        return cls([*parameters(), *parameters(device="cpu")], lr=0.01)

    ours, theirs = build(AdamW), build(torch.optim.AdamW)
    train(ours), train(theirs)
    assert_same(ours, theirs, **CLOSE)
