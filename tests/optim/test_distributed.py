"""DDP, FSDP2, DTensors and parameters divided by hand: two processes with gloo run the checks of two_ranks.py."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastfeed.optim import AdamW
from tests.optim.training import DEVICE


def test_two_ranks(tmp_path):
    # Not in the test's own process, where what these import would change what other tests test.
    pytest.importorskip("triton")
    command = [sys.executable, "-m", "tests.optim.two_ranks"]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "TRITON_INTERPRET": "1"}
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            cwd=Path(__file__).parents[2],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        errors = [rank.communicate(timeout=240)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(errors)


def test_steps_where_other_loaders_leave_them(calls):
    """ZeroRedundancyOptimizer.load_state_dict puts them on the CPU."""
    p = torch.nn.Parameter(torch.ones(4, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p])
    for _ in range(2):
        optimizer.step()
        optimizer.state[p]["step"] = optimizer.state[p]["step"].cpu().double()
    optimizer.step()
    assert calls == ["__init__", "step"] * 3
    assert optimizer.state[p]["step"] == 3
