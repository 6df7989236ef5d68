"""The optimizers' checkpoints as accelerate and PyTorch Lightning write them."""

import pytest
import torch

from fastfeed.optim import AdamW
from tests.optim.training import DEVICE, EXACT, assert_same


def resumed_and_straight(prepare, backward, save, load):
    """Return the optimizers of two runs of four steps: one saves after two, the other begins with what was saved."""
    runs = []
    for resume in (False, True):
        model = torch.nn.Linear(2, 1, bias=False)
        torch.nn.init.ones_(model.weight)
        model, optimizer = prepare(model, AdamW(model.parameters(), lr=0.1, ema_decay=0.9))
        if resume:
            load(model, optimizer)
        for step in range(2 * resume, 4):
            backward(model(torch.ones(1, 2, device=DEVICE)).square().sum())
            optimizer.step()
            optimizer.zero_grad()
            if step == 1:
                save(model, optimizer)
        runs.append(optimizer.optimizer)
    assert runs[0].state_dict()["state"][0]["step"] == 4
    return runs


def test_accelerate(tmp_path):
    accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate, which is not installed")
    accelerator = accelerate.Accelerator(cpu=DEVICE.type == "cpu")

    def prepare(*objects):
        accelerator.free_memory()
        return accelerator.prepare(*objects)

    def save(*_):
        accelerator.save_state(str(tmp_path))

    def load(*_):
        accelerator.load_state(str(tmp_path))

    assert_same(*resumed_and_straight(prepare, accelerator.backward, save, load), **EXACT)


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning.fabric", reason="needs the package lightning, which is not installed")
    fabric = lightning.Fabric(accelerator=DEVICE.type, devices=1)

    def save(model, optimizer):
        fabric.save(tmp_path / "state", {"model": model, "optimizer": optimizer})

    def load(model, optimizer):
        fabric.load(tmp_path / "state", {"model": model, "optimizer": optimizer})

    assert_same(*resumed_and_straight(fabric.setup, fabric.backward, save, load), **EXACT)
