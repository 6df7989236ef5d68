"""The losses and pools in PyTorch's deterministic mode, and under DistributedDataParallel."""

import os
import subprocess
import sys

import pytest
import torch

from fastfeed import MixedTarget
from fastfeed.functional import (
    avg_max_pool2d,
    cross_entropy,
    focal_cross_entropy,
    gem_pool2d,
    kl_divergence,
    ohem_cross_entropy,
)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def labels(*shape):
    return torch.arange(torch.Size(shape).numel(), device=DEVICE).reshape(shape) % 5


CALLS = {
    "cross_entropy": ((6, 5), lambda x: cross_entropy(x, labels(6))),
    "cross_entropy, wide": ((3, 201), lambda x: cross_entropy(x, labels(3), label_smoothing=0.1, reduction="sum")),
    "cross_entropy, each": ((3, 201), lambda x: cross_entropy(x, labels(3), reduction="none").sum()),
    "cross_entropy, pixels": ((2, 5, 3, 3), lambda x: cross_entropy(x, labels(2, 3, 3))),
    "two labels": (
        (6, 5),
        lambda x: cross_entropy(x, MixedTarget(labels(6), labels(6).flip(0), torch.full((6,), 0.3, device=DEVICE))),
    ),
    "probabilities": ((6, 201), lambda x: cross_entropy(x, torch.full((6, 201), 1 / 201, device=DEVICE))),
    "focal": ((6, 5), lambda x: focal_cross_entropy(x, labels(6))),
    "ohem": ((6, 5), lambda x: ohem_cross_entropy(x, labels(6), k=3)),
    "kl_divergence": ((6, 201), lambda x: kl_divergence(x, torch.zeros(6, 201, device=DEVICE))),
    "gem": ((2, 8, 7, 7), lambda x: gem_pool2d(x, torch.tensor([3.0], device=DEVICE, requires_grad=True)).sum()),
    "gem, long rows": ((2, 8, 9, 9), lambda x: gem_pool2d(x, 3.0).sum()),
    "avg_max": ((2, 8, 7, 7), lambda x: avg_max_pool2d(x).sum()),
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", CALLS)
def test_deterministic_mode(name, memory_format):
    """In which PyTorch fills new memory with NaN: what a kernel does not write would show."""
    shape, function = CALLS[name]
    if len(shape) == 2 and memory_format is torch.channels_last:
        memory_format = torch.contiguous_format
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(DEVICE).contiguous(memory_format=memory_format)
    results = []
    for deterministic in (False, True):
        torch.use_deterministic_algorithms(deterministic)
        try:
            y = x.clone().requires_grad_()
            loss = function(y)
            loss.backward()
        finally:
            torch.use_deterministic_algorithms(False)
        results.append((loss.detach(), y.grad))
    assert results[1][0].isfinite()
    assert results[1][1].isfinite().all()
    for plain, deterministic in zip(*results, strict=True):
        assert torch.equal(plain, deterministic)


RANK = """
import os, sys, torch
import torch.distributed as dist
from fastfeed import MixedTarget, nn

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)

def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), nn.GeMPool2d(), torch.nn.Flatten(), torch.nn.Linear(8, 5))

alone, shared = network(), torch.nn.parallel.DistributedDataParallel(network())
x, labels, lam = torch.randn(8, 3, 9, 9), torch.arange(8) % 5, torch.rand(8)
loss = nn.CrossEntropyLoss(label_smoothing=0.1)
for target in (lambda part: labels[part], lambda part: MixedTarget(labels[part], labels.flip(0)[part], lam[part])):
    alone.zero_grad()
    shared.zero_grad()
    part = slice(4 * rank, 4 * rank + 4)
    loss(alone(x), target(slice(None))).backward()
    loss(shared(x[part]), target(part)).backward()
    for a, b in zip(alone.parameters(), shared.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6)
dist.destroy_process_group()
"""


def test_ranks_have_the_gradients_of_one_process(tmp_path):
    command = [sys.executable, "-c", RANK]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank), str(tmp_path / "store")], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=120)[1].decode() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], errors
