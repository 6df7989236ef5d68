"""The losses over the rows of two matrices on a GPU: large, without a synchronisation, in CUDA graphs."""

import pytest
import torch

from tests.ops import test_dense_cross_entropy as dense
from tests.ops import test_kl_divergence as kl
from tests.ops.rows import derivatives

pytestmark = pytest.mark.gpu

# of logits, and of probabilities or the teacher's logits
LOSSES = {
    "dense_cross_entropy": lambda x, y, reduction="sum": dense.fused(x, y, reduction=reduction, label_smoothing=0.1),
    "kl_divergence": lambda x, y, reduction="sum": kl.fused(x, y, 2.0, reduction),
}


@pytest.fixture(params=LOSSES)
def loss(request):
    return LOSSES[request.param]


@pytest.mark.parametrize("dtype", dense.DTYPES)
@pytest.mark.parametrize("shape", [(1024, 1000), (289, 21843), (64, 128256), (100_000, 19)], ids=str)
def test_large_heads(shape, dtype):
    logits, target, weight = dense.make(*shape, dtype)
    dense.check(logits, target, weight=weight, label_smoothing=0.1)
    kl.check(*kl.make(*shape, dtype, dtype), 2.0, function=kl.fused)


def test_more_than_two_to_the_31_logits(loss):
    x = torch.randn(70_000, 32_000, device="cuda", dtype=torch.bfloat16)
    y = torch.rand_like(x)
    losses, grad = derivatives(lambda x: loss(x, y, "none"), (x,))
    last = slice(-8, None)
    expected, expected_grad = derivatives(lambda x: loss(x, y[last], "none"), (x[last],))
    assert torch.equal(losses[last], expected)
    assert torch.equal(grad[last], expected_grad)


def test_never_synchronises(loss):
    x, y = torch.rand(2, 64, 1000, device="cuda", dtype=torch.bfloat16)
    derivatives(lambda x: loss(x, y), (x,))  # compiled
    torch.cuda.set_sync_debug_mode("error")
    try:
        derivatives(lambda x: loss(x, y), (x,))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_three_launches(loss):
    x, y = torch.rand(2, 64, 1000, device="cuda", dtype=torch.bfloat16)
    x.requires_grad_()
    grad = torch.ones((), device="cuda", dtype=torch.bfloat16)
    torch.autograd.grad(loss(x, y), x, grad)  # compiled
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        torch.autograd.grad(loss(x, y), x, grad)
        torch.cuda.synchronize()
    kernels = [event.name for event in profile.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(kernels) == 3, kernels


def test_cuda_graph(loss):
    x, y = torch.rand(2, 64, 1000, device="cuda", dtype=torch.bfloat16)

    def step():
        return derivatives(lambda x: loss(x, y), (x,))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    x.copy_(torch.rand_like(x))
    graph.replay()
    for actual, expected in zip(captured, step(), strict=True):
        assert torch.equal(actual, expected)
