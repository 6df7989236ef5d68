"""What a call costs on the host before any work is done: on small inputs there is nothing else."""

import pytest
import torch
import torch.nn.functional as F

import fastfeed.functional
import fastfeed.optim

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
def test_cross_entropy_forward_and_backward(versus, device):
    logits = torch.randn(8, 10, device=device, requires_grad=True)
    target = torch.randint(10, (8,), device=device)

    def step(cross_entropy):
        torch.autograd.grad(cross_entropy(logits, target, label_smoothing=0.1), logits)

    versus(lambda: step(fastfeed.functional.cross_entropy), lambda: step(F.cross_entropy), repeat=100)


@pytest.mark.parametrize("device", DEVICES)
def test_gem_pool_forward_and_backward(versus, device):
    x = torch.randn(2, 8, 7, 7, device=device, requires_grad=True)
    p = torch.full((1,), 3.0, device=device, requires_grad=True)

    def textbook(x, p):
        return F.adaptive_avg_pool2d(x.clamp(min=1e-6).pow(p), 1).pow(1.0 / p)

    def step(pool):
        torch.autograd.grad(pool(x, p).sum(), (x, p))

    versus(lambda: step(fastfeed.functional.gem_pool2d), lambda: step(textbook), repeat=100)


@pytest.mark.parametrize("device", DEVICES)
def test_avg_max_pool_forward_and_backward(versus, device):
    x = torch.randn(2, 8, 7, 7, device=device, requires_grad=True)

    def two_pools(x):
        return torch.cat((F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1)), dim=1)

    def step(pool):
        torch.autograd.grad(pool(x).sum(), x)

    versus(lambda: step(fastfeed.functional.avg_max_pool2d), lambda: step(two_pools), repeat=100)


@pytest.mark.parametrize("device", DEVICES)
def test_adamw_step(versus, device):
    def stepper(optimizer):
        params = [torch.randn(8, device=device, requires_grad=True) for _ in range(100)]
        for param in params:
            param.grad = torch.randn_like(param)
        return optimizer(params).step

    versus(stepper(fastfeed.optim.AdamW), stepper(torch.optim.AdamW), repeat=10)
