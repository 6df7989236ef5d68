"""The comparison of accuracies: what both contenders share, what is made of what they reach, and all of it, small."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import accuracy
from benchmarks.__main__ import main
from benchmarks.accuracy import CONTENDERS, Outcome, Settings, compare, comparison, fastfeed_parts, torch_parts
from benchmarks.cases.train import training_flops
from benchmarks.resnet9 import ResNet9
from tests.torchvision_ops import torchvision_or_skip

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of noise that brightness tells apart."""
    root = tmp_path_factory.mktemp("accuracy") / "data"
    rng = np.random.default_rng(0)
    for split, count in (("train", 40), ("test", 10)):
        for name, level in (("bright", 150), ("dark", 60)):
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.normal(level, 30, (32, 32, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / split / name / f"{i}.jpg")
    return root


def settings(folder, **changes):
    return Settings(**{
        **{"data": folder, "epochs": 3, "width": 4, "batch_size": 8, "lr": 0.2, "device": CPU, "workers": 1},
        **changes,
    })  # fmt: skip


def outcomes(theirs, ours):
    return {name: [Outcome(a, 0.0, 1.0) for a in found] for name, found in (("PyTorch", theirs), ("fastfeed", ours))}


def test_network():
    network = ResNet9(10, width=64)
    assert sum(parameter.numel() for parameter in network.parameters()) == pytest.approx(6.57e6, rel=0.001)
    # Twice a multiply-add, forward and two products backward, but for the gradient of the images.
    first = 2 * 3 * 64 * 9 * 32 * 32
    assert (training_flops(network, (1, 3, 32, 32)) + first) / 6 == pytest.approx(379e6, rel=0.001)


@pytest.mark.dali
def test_both_have_one_recipe(folder):
    torchvision_or_skip("torchvision")
    parts = [make(settings(folder), nn.Linear(2, 2), 0) for make in (torch_parts, fastfeed_parts)]
    theirs, ours = parts
    assert len(theirs.train) == len(ours.train) == 10  # batches that are whole
    assert len(theirs.test) == len(ours.test) == 3
    rates = [[], []]
    for _ in range(3 * 10):
        for part, seen in zip(parts, rates, strict=True):
            seen.append(part.optimizer.param_groups[0]["lr"])
            part.optimizer.step()
            part.schedule.step()
    assert rates[0] == pytest.approx(rates[1], rel=1e-6, abs=1e-12)
    assert max(rates[0]) == 0.2
    for option in ("momentum", "nesterov", "weight_decay", "dampening"):
        assert theirs.optimizer.param_groups[0][option] == ours.optimizer.param_groups[0][option]
    # Without a crop or a flip the very same images, in the same order.
    for (a, target_a), (b, target_b) in zip(theirs.test, ours.test, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
        assert torch.equal(target_a, target_b)


def test_comparison():
    # Variances of 1 and 4 points, means of 91 and 92.
    found = comparison(outcomes([0.90, 0.91, 0.92], [0.90, 0.92, 0.94]))
    assert found.difference == pytest.approx(1)
    assert found.spread == pytest.approx(2.5**0.5)
    assert found.error == pytest.approx((2.5 * 2 / 3) ** 0.5)
    assert found.same
    assert not comparison(outcomes([0.90, 0.91, 0.92], [0.93, 0.94, 0.95])).same
    assert not comparison(outcomes([0.93, 0.94, 0.95], [0.90, 0.91, 0.92])).same


@pytest.mark.dali
@pytest.mark.slow
def test_training(folder):
    torchvision_or_skip("torchvision")
    said = []
    found = compare(settings(folder), [0], said.append)
    assert [line.split()[2] for line in said] == list(CONTENDERS)
    for (outcome,) in found.values():
        assert outcome.accuracy >= 0.9
        assert 0 < outcome.loss < 0.6


@pytest.mark.parametrize(("ours", "code"), [((0.91, 0.92), 0), ((0.81, 0.82), 1)])
def test_command(ours, code, folder, tmp_path, monkeypatch):
    asked = []

    def instead(settings, seeds, say):
        asked.append((settings, list(seeds)))
        return outcomes((0.915, 0.925), ours)

    monkeypatch.setattr(accuracy, "compare", instead)
    options = "--epochs 2 --width 8 --batch-size 32 --lr 0.1 --seeds 2 --device cpu --threads 1"
    file = tmp_path / "table.md"
    assert main(["accuracy", str(folder), *options.split(), "-o", str(file)]) == code
    assert asked == [(settings(folder, epochs=2, width=8, batch_size=32, lr=0.1), [0, 1])]
    text = file.read_text()
    assert f"python -m benchmarks accuracy {folder} {options}" in text
    assert "| PyTorch | 91.50% | 92.50% | 92.00% | 0.71 |\n" in text
    assert ("**beyond**" in text) == (code == 1)


def test_table_of_a_gpu_has_the_seconds(folder):
    machine = {"gpu": "A GPU", "torch": "2", "dali": "2", "commit": "0123", "date": "2026-01-02T03:04:05"}
    on_gpu = settings(folder, device=torch.device("cuda"))
    text = accuracy.table(on_gpu, [0, 1], outcomes((0.915, 0.925), (0.91, 0.93)), machine, "a command")
    assert "| fastfeed | 91.00% | 93.00% | 92.00% | 1.41 | 1.0 s |\n" in text
    assert "bfloat16, batches of 8" in text


@pytest.mark.dali
@pytest.mark.parametrize("arguments", [["--seeds", "1"], ["--epochs", "0"], []])
def test_wrong_command(arguments, tmp_path, capsys):
    torchvision_or_skip("torchvision")
    with pytest.raises(SystemExit) as stopped:
        main(["accuracy", str(tmp_path), "--device", "cpu", *arguments])
    assert stopped.value.code == 2
    assert {"--seeds": "2 or more", "--epochs": "1 or more"}.get(
        arguments[0] if arguments else "", str(Path(tmp_path, "train"))
    ) in capsys.readouterr().err
