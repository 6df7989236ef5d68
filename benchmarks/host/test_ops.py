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
def test_adamw_step(versus, device):
    def stepper(optimizer):
        params = [torch.randn(8, device=device, requires_grad=True) for _ in range(100)]
        for param in params:
            param.grad = torch.randn_like(param)
        return optimizer(params).step

    versus(stepper(fastfeed.optim.AdamW), stepper(torch.optim.AdamW), repeat=10)
