import math
import time

import pytest
import torch

from fastfeed import FolderSource
from fastfeed.cli import main
from fastfeed.demo import run as demo
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.network import SmallResNet
from tests.images import write_folder


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """Train as a user does: interpreted kernels would take minutes, and have their own tests."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_learns_the_drawn_set(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "COMPARISON_ROUNDS", 1)
    # A quarter of the pixels that the demo has, which take a quarter of the time.
    result = demo.run(drawn=tmp_path, steps=200, size=32)
    # Guessing gives one in eight, this run six in ten, and one of the full size and length more than nine in ten.
    assert result.chance == 0.125
    assert result.accuracy > 0.5
    assert result.last_loss < result.first_loss - 0.3
    assert 0 <= result.waiting < 1
    assert min(result.loader_rate, result.torch_loader_rate, result.train_rate) > 0
    printed = capsys.readouterr().out
    for text in ("2048 training and 384 validation images of 8 classes", "validation accuracy", "waiting for data"):
        assert text in printed


def test_a_folder_of_classes_without_validation_images(tmp_path, capsys):
    write_folder(tmp_path / "data", {"a": 4, "b": 3})
    assert main(["demo", str(tmp_path / "data"), "--steps", "2", "--batch-size", "64", "--size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "7 training and 0 validation images of 2 classes" in printed
    assert "no images to validate on" in printed


@pytest.mark.gpu
@pytest.mark.dali
def test_gpu(tmp_path, capsys):
    result = demo.run(drawn=tmp_path, steps=200, device="cuda")
    assert result.accuracy > 0.5


class Clock:
    """Stands in for the module time: `sleep` takes no time, and `perf_counter` says that it did."""

    def __init__(self, perf_counter=lambda: 0.0):
        self.passed = 0.0
        self.perf_counter = lambda: perf_counter() + self.passed

    def sleep(self, seconds):
        self.passed += seconds


class SlowLoader:
    """Stands in for a loader: four images of two classes, after a wait."""

    device, batch_size = torch.device("cpu"), 4

    def __init__(self, clock, wait):
        self.clock, self.wait = clock, wait

    def __iter__(self):
        self.clock.sleep(self.wait)
        yield torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 1])


@pytest.mark.parametrize(("wait", "step"), [(0.0, 0.5), (0.25, 0.5), (2.0, 0.25)])
def test_waiting_is_the_time_between_asking_and_getting(wait, step, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(demo, "time", clock)
    model = SmallResNet(2, width=4)
    model.register_forward_hook(lambda *_: clock.sleep(step))
    losses, rate, waiting = demo.train_model(model, SlowLoader(clock, wait), steps=6)
    assert len(losses) == 6
    # The first batch is not waited for: with it begins what is timed.
    total = 5 * wait + 6 * step
    assert waiting == 5 * wait / total
    assert rate == 6 * 4 / total


def test_comparison_is_of_the_same_transforms_and_in_the_order_it_says(tmp_path, monkeypatch):
    source = FolderSource(write_folder(tmp_path, {"a": 4}))
    made = []
    clock = Clock(time.perf_counter)
    monkeypatch.setattr(demo, "time", clock)

    def pillow_folder(samples, size, scale):
        made.append((samples, size, scale))
        return PillowFolder(samples, size, scale=scale)

    def ours(source, batch_size, *, transform, **options):
        made.append((source.samples, transform.crop.size, transform.crop.scale))
        return SlowLoader(clock, wait=5.0)  # slower than any machine starts a Pillow loader's second epoch

    monkeypatch.setattr(demo, "PillowFolder", pillow_folder)
    monkeypatch.setattr(demo, "DataLoader", ours)
    monkeypatch.setattr(demo, "COMPARISON_ROUNDS", 1)
    rate, torch_rate = demo.compare_loaders(source, 4, 32, 1, torch.device("cpu"))
    assert rate < 1 < torch_rate
    assert made[0] == made[1]


def test_split_keeps_every_tenth_image_of_a_class(tmp_path):
    write_folder(tmp_path, {"a": 21, "b": 9, "c": 10}, sizes=((8, 8),))
    train, val = demo.split(tmp_path)
    assert len(train) + len(val) == 40
    assert [target for _, target in val.samples] == [0, 0, 2]
    assert not set(train.samples) & set(val.samples)
    assert train.classes == val.classes == ["a", "b", "c"]


def test_split_as_the_folders_say(tmp_path):
    write_folder(tmp_path / "train", {"a": 3, "b": 1})
    write_folder(tmp_path / "val", {"a": 1, "b": 1})
    train, val = demo.split(tmp_path)
    assert (len(train), len(val)) == (4, 2)
    write_folder(tmp_path / "val" / "more", {"c": 1})
    with pytest.raises(ValueError, match="different classes"):
        demo.split(tmp_path)


@pytest.mark.parametrize("steps", [1, 9, 10, 40])
def test_warms_up_over_a_tenth_of_the_steps(steps, monkeypatch):
    lrs = []

    class Recording(demo.AdamW):
        def step(self):
            lrs.append(self.param_groups[0]["lr"] / demo.LEARNING_RATE)

    monkeypatch.setattr(demo, "AdamW", Recording)
    demo.train_model(SmallResNet(2, width=4), SlowLoader(Clock(), 0.0), steps)
    warmup = max(1, steps // 10)
    expected = [(step + 1) / warmup for step in range(warmup)]
    expected += [0.5 + 0.5 * math.cos(math.pi * step / (steps - warmup)) for step in range(steps - warmup)]
    assert lrs == pytest.approx(expected)


def test_comparison_repeats_small_sets_and_thins_large_ones():
    assert demo._spread(3, 7, 10) == [0, 0, 0, 1, 1, 2, 2]
    assert demo._spread(8, 7, 10) == list(range(8))
    assert demo._spread(100, 7, 10) == list(range(0, 100, 10))


def test_evaluate_counts(tmp_path):
    write_folder(tmp_path, {"a": 3, "b": 1})

    class AlwaysFirst(torch.nn.Module):
        def forward(self, images):
            return torch.tensor([1.0, 0.0]).expand(len(images), 2)

    accuracy = demo.evaluate(AlwaysFirst(), FolderSource(tmp_path), 3, 32, 1, torch.device("cpu"))
    assert math.isclose(accuracy, 0.75)
