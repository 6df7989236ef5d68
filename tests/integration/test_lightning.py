"""PyTorch Lightning's Trainer with our loader: training and validation, checkpoints, and several processes."""

import json
import logging
import subprocess
import sys
import warnings

import pytest
import torch

from fastfeed import DataLoader, transforms
from tests.images import write_folder
from tests.integration.processes import environment
from tests.torch_loaders import Stream

lightning = pytest.importorskip("lightning", reason="needs the package lightning, which is not installed")

ROWS = torch.arange(10.0).reshape(10, 1)


class Module(lightning.LightningModule):
    """Notes the epoch, the index and what is in each batch."""

    def __init__(self, features=1):
        super().__init__()
        self.model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(features, 2))
        self.trained, self.validated = [], []

    def training_step(self, batch, index):
        rows, target = batch if isinstance(batch, tuple | list) else (batch, None)
        self.trained.append((self.current_epoch, index, (rows if target is None else target).flatten().tolist()))
        return self.model(rows.float()).logsumexp(1).mean()

    def validation_step(self, batch, index):
        rows, target, info = batch
        self.validated += info.index[info.valid].tolist()
        self.log("loss", torch.nn.functional.cross_entropy(self.model(rows), target), batch_size=len(target))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.setattr(logging.getLogger("lightning.pytorch"), "disabled", True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning|torch")
        warnings.filterwarnings("ignore", "The `.*dataloader` does not have many workers|.*LeafSpec")
        yield


def trainer(tmp_path, **options):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return lightning.Trainer(
        accelerator="cpu", devices=1, default_root_dir=tmp_path, **quiet, **{"enable_checkpointing": False, **options}
    )


def make(shuffle=True, workers=0):
    return DataLoader(ROWS, 3, shuffle=shuffle, num_workers=workers, device="cpu", seed=0)


def steps(epochs, loader):
    """Return what a Trainer is to give its module."""
    return [(epoch, i, batch.flatten().tolist()) for epoch in epochs for i, batch in enumerate(loader)]


@pytest.mark.dali
def test_a_folder_is_trained_and_validated_on(tmp_path):
    folder = write_folder(tmp_path / "data", {"cat": 5, "dog": 4})
    train = DataLoader(folder, 4, shuffle=True, transform=transforms.train(8), device="cpu")
    val = DataLoader(folder, 4, transform=transforms.eval(8), device="cpu", info=True)
    module, expected = (
        Module(3 * 8 * 8),
        DataLoader(folder, 4, shuffle=True, transform=transforms.train(8), device="cpu"),
    )
    fit = trainer(tmp_path, max_epochs=2, num_sanity_val_steps=2)
    fit.fit(module, train, val)
    targets = [(epoch, i, t.tolist()) for epoch in range(2) for i, (_, t) in enumerate(expected)]
    assert module.trained == targets
    assert module.validated == [*range(8), *range(9), *range(9)]  # after two batches to see that it works
    assert fit.num_training_batches == 3
    assert fit.callback_metrics["loss"].isfinite()
    module.validated.clear()
    fit.validate(module, val, verbose=False)
    assert module.validated == [*range(9)]


@pytest.mark.parametrize("workers", [0, 1])
def test_rows_are_trained_on(tmp_path, workers):
    module = Module()
    trainer(tmp_path, max_epochs=2).fit(module, make(workers=workers))
    assert module.trained == steps(range(2), make())


def test_a_stream_is_trained_on(tmp_path):
    module = Module()
    stream = DataLoader(Stream(4), 3, device="cpu", collate_fn=lambda rows: torch.tensor(rows)[:, None])
    trainer(tmp_path, max_epochs=2).fit(module, stream)
    assert module.trained == [(epoch, *batch) for epoch in range(2) for batch in ((0, [0, 1, 2]), (1, [3]))]


@pytest.mark.parametrize("at", [1, 2, 4, 6])
def test_a_checkpoint_goes_on_where_it_was(tmp_path, at):
    whole = Module()
    trainer(tmp_path, max_epochs=3).fit(whole, make())
    first, second = Module(), Module()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=at, save_top_k=-1)
    stopped = trainer(tmp_path, max_epochs=3, max_steps=at, callbacks=[saving], enable_checkpointing=True)
    stopped.fit(first, make())
    (checkpoint,) = tmp_path.glob("*.ckpt")
    trainer(tmp_path, max_epochs=3).fit(second, make(), ckpt_path=checkpoint)
    assert first.trained + second.trained == whole.trained
    assert len(second.trained) == 12 - at


def test_a_checkpoint_of_an_epochs_end(tmp_path):
    whole = Module()
    trainer(tmp_path, max_epochs=3).fit(whole, make())
    first, second = Module(), Module()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(tmp_path)
    trainer(tmp_path, max_epochs=1, callbacks=[saving], enable_checkpointing=True).fit(first, make())
    (checkpoint,) = tmp_path.glob("*.ckpt")
    trainer(tmp_path, max_epochs=3).fit(second, make(), ckpt_path=checkpoint)
    assert first.trained + second.trained == whole.trained


SCRIPT = """
import json, sys, warnings
from pathlib import Path

warnings.simplefilter("ignore")

from fastfeed import DataLoader
import tests.integration.conftest  # for torchvision, which lightning imports
from tests.integration.test_lightning import Module, ROWS, lightning

loader = DataLoader(ROWS, 2, shuffle=True, device="cpu")  # before there is a process group

class Writing(Module):
    def on_train_end(self):
        Path(sys.argv[1], f"{loader.rank}.json").write_text(json.dumps([self.trained, loader.world_size]))

lightning.Trainer(
    accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, enable_checkpointing=False,
    enable_progress_bar=False, enable_model_summary=False, default_root_dir=sys.argv[1],
).fit(Writing(), loader)
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_each_process_has_its_share(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    expected = [DataLoader(ROWS, 2, shuffle=True, device="cpu", rank=rank, world_size=2) for rank in range(2)]
    for rank, loader in enumerate(expected):
        got, world_size = json.loads((tmp_path / f"{rank}.json").read_text())
        assert world_size == 2
        assert list(map(tuple, got)) == steps(range(2), loader)
