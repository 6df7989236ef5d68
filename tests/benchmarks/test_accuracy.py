"""The comparison of accuracies: what both contenders share, what is made of what they reach, and all of it, small."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from benchmarks import accuracy, cifar10
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


def test_cifar10_as_files(tmp_path, monkeypatch, capsys):
    class Downloaded(list):
        classes = ("cat", "dog")

        def __init__(self, root, train, download):
            assert download
            pixels = np.full((32, 32, 3), 200 if train else 100, np.uint8)
            super().__init__([(Image.fromarray(pixels), target) for target in ([1, 0, 1] if train else [0, 1])])

    monkeypatch.setattr(cifar10, "import_torchvision", lambda module: SimpleNamespace(CIFAR10=Downloaded))
    assert cifar10.main([str(tmp_path)]) == 0
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.png"))
    assert files == [
        *("test/cat/00000.png", "test/dog/00001.png"),
        *("train/cat/00001.png", "train/dog/00000.png", "train/dog/00002.png"),
    ]
    assert (np.asarray(Image.open(tmp_path / files[2])) == 200).all()
    assert cifar10.main([]) == 2
    assert "usage" in capsys.readouterr().err


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
    assert found.margin == pytest.approx(2.776 * (2.5 * 2 / 3) ** 0.5)
    assert found.same
    # A standard deviation of 1, so 2.27 points.
    for points, same in ((2.2, True), (2.3, False), (-2.2, True), (-2.3, False)):
        theirs = [0.90, 0.91, 0.92]
        assert comparison(outcomes(theirs, [a + points / 100 for a in theirs])).same == same


def test_one_comparison_in_twenty_is_wrong():
    rng = np.random.default_rng(0)
    for count in (2, 3, 5, 15):
        found = [comparison(outcomes(*rng.normal(0.9, 0.01, (2, count)).tolist())).same for _ in range(2000)]
        assert 0.035 < 1 - np.mean(found) < 0.065


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
def test_command(ours, code, folder, tmp_path, monkeypatch, capsys):
    asked = []

    def instead(settings, seeds, say):
        asked.append((settings, list(seeds)))
        return outcomes((0.915, 0.925), ours)

    monkeypatch.setattr(accuracy, "compare", instead)
    options = "--epochs 2 --width 8 --batch-size 16 --lr 0.1 --seeds 2 --device cpu --threads 1"
    file = tmp_path / "table.md"
    assert main(["accuracy", str(folder), *options.split(), "-o", str(file)]) == code
    assert asked == [(settings(folder, epochs=2, width=8, batch_size=16, lr=0.1), [0, 1])]
    text = file.read_text()
    assert f"python -m benchmarks accuracy {folder} {options}" in text
    assert "| PyTorch | 91.50% | 92.50% | 92.00% | 0.71 |\n" in text
    assert ("**not the same**" in text) == (code == 1)
    assert text in capsys.readouterr().out


def test_table_of_a_gpu_has_the_seconds(folder):
    machine = {"gpu": "A GPU", "torch": "2", "dali": "2", "commit": "0123", "date": "2026-01-02T03:04:05"}
    on_gpu = settings(folder, device=torch.device("cuda"))
    text = accuracy.table(on_gpu, [0, 1], outcomes((0.915, 0.925), (0.91, 0.93)), machine, "a command")
    assert "| fastfeed | 91.00% | 93.00% | 92.00% | 1.41 | 1.0 s |\n" in text
    assert "bfloat16, batches of 8" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seeds", "1"], "2 or more"),
        (["--epochs", "0"], "1 or more"),
        (["--lr", "nan"], "above 0"),
        (["--batch-size", "64"], "5 epochs of 80 images are less than 10 batches of 64"),
        (["-o", "/nowhere/table.md"], "/nowhere/table.md: No such file"),
    ],
)
def test_wrong_command(arguments, message, folder, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["accuracy", str(folder), "--device", "cpu", "--batch-size", "8", *arguments])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_folders(folder, tmp_path, capsys):
    for missing in ("train", "test"):
        with pytest.raises(SystemExit):
            main(["accuracy", str(tmp_path), "--device", "cpu"])
        assert f"no such folder: {tmp_path / missing}" in capsys.readouterr().err
        shutil.copytree(folder / missing, tmp_path / missing)
    (tmp_path / "test" / "dark").rename(tmp_path / "test" / "gloomy")
    with pytest.raises(SystemExit):
        main(["accuracy", str(tmp_path), "--device", "cpu"])
    assert "dark, gloomy: in only one of" in capsys.readouterr().err
