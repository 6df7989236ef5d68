"""Hugging Face Accelerate with our loader, which `prepare` passes through: its shares and its device are its own."""

import re
from pathlib import Path

import pytest
import torch

from fastfeed import DataLoader, transforms
from tests.images import write_folder

accelerate = pytest.importorskip("accelerate", reason="needs the package accelerate, which is not installed")

ROWS = torch.arange(20.0).reshape(10, 2)


def counted():
    """Return the README's class, which tells Accelerate where an epoch ends."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    (snippet,) = re.findall(r"```python\n([^`]*class Counted.*?)\n\n\nloader = ", readme, re.DOTALL)
    names = {}
    exec(compile(snippet, "README.md", "exec"), names)
    return names["Counted"]


Counted = counted()


@pytest.fixture
def accelerator():
    yield lambda **options: accelerate.Accelerator(cpu=True, **options)
    accelerate.state.AcceleratorState._reset_state(True)
    accelerate.state.GradientState._reset_state()


def model_and_optimizer(features=2):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(features, 2))
    return model, torch.optim.SGD(model.parameters(), lr=1e-3)


def test_prepare_passes_the_loader_through(accelerator):
    data = DataLoader(ROWS, 3, shuffle=True, device="cpu")
    for options in ({}, {"dataloader_config": accelerate.DataLoaderConfiguration(split_batches=True)}):
        _, optimizer, prepared = accelerator(**options).prepare(*model_and_optimizer(), data)
        assert prepared is data
        assert type(optimizer) is accelerate.optimizer.AcceleratedOptimizer


@pytest.mark.dali
def test_a_folder_is_trained_on_and_counted(accelerator, tmp_path):
    folder = write_folder(tmp_path / "data", {"cat": 5, "dog": 4})
    data = DataLoader(folder, 4, transform=transforms.eval(8), device="cpu", info=True)
    accelerator = accelerator()
    model, optimizer, data = accelerator.prepare(*model_and_optimizer(3 * 8 * 8), data)
    seen = []
    for images, target, info in data:
        accelerator.backward(torch.nn.functional.cross_entropy(model(images), target))
        optimizer.step()
        optimizer.zero_grad()
        gathered, valid = accelerator.gather_for_metrics((target, info.valid))
        seen += gathered[valid].tolist()
    assert seen == [0] * 5 + [1] * 4


def steps_taken(accelerator, data, epochs=2):
    """Return after which batches of the epochs the weights change."""
    model, optimizer, data = accelerator.prepare(*model_and_optimizer(), data)
    taken = []
    for epoch in range(epochs):
        for i, rows in enumerate(data):
            before = model[1].weight.clone()
            with accelerator.accumulate(model):
                accelerator.backward(model(rows).sum())
                optimizer.step()
                optimizer.zero_grad()
            if not torch.equal(before, model[1].weight):
                taken.append((epoch, i))
    return taken


AT_THE_END = [(0, 2), (0, 3), (1, 2), (1, 3)]  # of 4 batches, accumulated over 3
ACROSS = [(0, 2), (1, 1)]


@pytest.mark.parametrize(
    ("loader", "expected"), [(torch.utils.data.DataLoader, AT_THE_END), (DataLoader, ACROSS), (Counted, AT_THE_END)]
)
def test_gradients_that_are_left_at_the_end_of_an_epoch(accelerator, loader, expected):
    options = {} if loader is torch.utils.data.DataLoader else {"device": "cpu"}
    assert steps_taken(accelerator(gradient_accumulation_steps=3), loader(ROWS, 3, **options)) == expected


def test_a_counted_loader_is_still_ours(accelerator):
    accelerator = accelerator()
    data = Counted(ROWS, 3, shuffle=True, device="cpu")
    for _ in data:  # left early
        break
    assert not accelerator.gradient_state.in_dataloader
    iterator = iter(data)
    next(iterator)
    resumed = DataLoader(ROWS, 3, shuffle=True, device="cpu")
    resumed.load_state_dict(data.state_dict())
    assert torch.equal(torch.cat(list(resumed)), torch.cat(list(iterator)))


def test_a_checkpoint_holds_the_loaders_place(accelerator, tmp_path):
    accelerator = accelerator()
    data = DataLoader(ROWS, 3, shuffle=True, device="cpu")
    accelerator.register_for_checkpointing(data)
    iterator = iter(data)
    next(iterator)
    accelerator.save_state(tmp_path / "state")
    rest = list(iterator)
    list(data)
    accelerator.load_state(tmp_path / "state")
    assert torch.equal(torch.cat(list(data)), torch.cat(rest))
