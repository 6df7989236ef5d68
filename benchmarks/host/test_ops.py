"""What a call costs on the host before any work is done: on small inputs there is nothing else."""

import pytest
import torch
import torch.nn.functional as F

import fastfeed.functional
import fastfeed.optim
from benchmarks.case import Options
from benchmarks.cases.optimizers_full_step import FullStepCase
from benchmarks.networks import NETWORKS
from fastfeed import MixedTarget

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
def test_cross_entropy_of_two_labels(versus, device):
    logits = torch.randn(8, 10, device=device, requires_grad=True)
    a, b = torch.randint(10, (2, 8), device=device)
    target = MixedTarget(a, b, torch.rand(8, device=device))

    def ours():
        torch.autograd.grad(fastfeed.functional.cross_entropy(logits, target), logits)

    def theirs():
        torch.autograd.grad(F.cross_entropy(logits, target.dense(10)), logits)

    versus(ours, theirs, repeat=100)


@pytest.mark.parametrize("device", DEVICES)
def test_ohem(versus, device):
    logits = torch.randn(8, 10, device=device, requires_grad=True)
    target = torch.randint(10, (8,), device=device)

    def theirs():
        loss = F.cross_entropy(logits, target, reduction="none").topk(5).values.mean()
        torch.autograd.grad(loss, logits)

    def ours():
        torch.autograd.grad(fastfeed.functional.ohem_cross_entropy(logits, target, k=5), logits)

    versus(ours, theirs, repeat=100)


def adamw_step(optimizer, shapes, device, **options):
    """A step of AdamW, of parameters with gradients."""
    params = [torch.randn(shape, device=device, requires_grad=True) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return optimizer(params, **options).step


@pytest.mark.parametrize("device", DEVICES)
def test_adamw_step(versus, device):
    shapes = 100 * [(8,)]
    ours, theirs = (adamw_step(cls, shapes, device) for cls in (fastfeed.optim.AdamW, torch.optim.AdamW))
    versus(ours, theirs, repeat=10)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "shapes", [pytest.param(1000 * [(8,)], id="1000x8"), pytest.param(NETWORKS["resnet50"], id="resnet50")]
)
def test_adamw_step_over_the_fused_one(versus, shapes, device):
    ours = adamw_step(fastfeed.optim.AdamW, shapes, device)
    versus(ours, adamw_step(torch.optim.AdamW, shapes, device, fused=True))


@pytest.mark.parametrize("device", DEVICES)
def test_adamw_with_unscaling_clipping_and_averages(versus, device):
    case = FullStepCase(Options(torch.device(device)), "1000x1000", torch.float32)
    versus(case.providers["fastfeed"](case), case.providers[case.baseline](case))
