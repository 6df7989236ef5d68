"""The same accuracy: CIFAR-10 trained with our loader, loss and optimizer, and with PyTorch's and torchvision's.

Both train the same network from the same weights, by one recipe, several times; what differs besides the parts that are
compared is the order of the images and their crops. So accuracies scatter, and are compared by how much they do.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, SequentialLR

import fastfeed
import fastfeed.functional
import fastfeed.optim
from benchmarks.resnet9 import ResNet9
from benchmarks.torchvision_ops import import_torchvision
from fastfeed.data.presets import CIFAR10_MEAN, CIFAR10_STD

SMOOTHING = 0.1
WARMUP = 0.2  # share of the steps in which the learning rate rises
SGD_OPTIONS: dict[str, Any] = {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4}
SPLITS = ("train", "test")
LEAST_STEPS = 10
# Student's t at 97.5% by degrees of freedom; 20 stands for more, where it changes little.
T_975 = {2: 4.303, 4: 2.776, 6: 2.447, 8: 2.306, 10: 2.228, 12: 2.179, 14: 2.145, 16: 2.120, 18: 2.101, 20: 2.086}


@dataclass(frozen=True)
class Settings:
    """What a training depends on, besides its seed.

    Attributes:
        data: a folder with train/ and test/, and class folders of images of 32 x 32 pixels in each.
        epochs: how often every image is seen.
        width: of the network, see :class:`ResNet9`.
        batch_size: images per step.
        lr: the highest learning rate.
        device: where to train.
        workers: threads of our loader, processes of PyTorch's; 1 or more.
    """

    data: Path
    epochs: int
    width: int
    batch_size: int
    lr: float
    device: torch.device
    workers: int

    def check(self) -> None:
        """Raise ValueError where such a training could not be done, or would say nothing."""
        train, test = (fastfeed.FolderSource(self.data / split) for split in SPLITS)
        if different := set(train.classes) ^ set(test.classes):
            raise ValueError(f"{', '.join(sorted(different))}: in only one of {train.root} and {test.root}")
        if self.epochs * (len(train) // self.batch_size) < LEAST_STEPS:
            raise ValueError(
                f"{self.epochs} epochs of {len(train)} images are less than {LEAST_STEPS} batches of "
                f"{self.batch_size}: choose a smaller --batch-size or more --epochs"
            )

    @property
    def autocast(self) -> torch.dtype | None:
        """bf16 on a GPU, where it is fast; None for fp32."""
        return torch.bfloat16 if self.device.type == "cuda" else None


class Outcome(NamedTuple):
    """What came of a training: share of the test images classified rightly, the last epoch's loss, and its seconds."""

    accuracy: float
    loss: float
    seconds: float


class Parts(NamedTuple):
    """What is compared, ready for use."""

    train: Iterable[Any]
    test: Iterable[Any]
    cross_entropy: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    schedule: LRScheduler


def fastfeed_parts(settings: Settings, network: nn.Module, seed: int) -> Parts:
    """Ours."""
    train, test = (
        fastfeed.DataLoader(
            settings.data / split,
            settings.batch_size,
            shuffle=split == "train",
            drop_last=split == "train",
            transform=fastfeed.transforms.cifar_train() if split == "train" else fastfeed.transforms.cifar_eval(),
            num_workers=settings.workers,
            device=settings.device,
            seed=seed,
        )
        for split in SPLITS
    )
    optimizer = fastfeed.optim.SGD(network.parameters(), settings.lr, **SGD_OPTIONS)
    steps = settings.epochs * len(train)
    schedule = fastfeed.optim.warmup_cosine(optimizer, round(WARMUP * steps), steps)
    return Parts(train, test, fastfeed.functional.cross_entropy, optimizer, schedule)


def torch_parts(settings: Settings, network: nn.Module, seed: int) -> Parts:
    """What people use today: torchvision's datasets and transforms, and PyTorch."""
    folder = import_torchvision("torchvision.datasets").ImageFolder
    t = import_torchvision("torchvision.transforms")
    convert = [t.ToTensor(), t.Normalize(CIFAR10_MEAN, CIFAR10_STD)]
    augment = [t.RandomCrop(32, padding=4), t.RandomHorizontalFlip()]
    train, test = (
        torch.utils.data.DataLoader(
            folder(str(settings.data / split), t.Compose([*augment, *convert] if split == "train" else convert)),
            settings.batch_size,
            shuffle=split == "train",
            drop_last=split == "train",
            num_workers=settings.workers,
            multiprocessing_context="fork",  # as by default: but this process has been spawned, and would spawn
            persistent_workers=True,
            pin_memory=settings.device.type == "cuda",
        )
        for split in SPLITS
    )
    optimizer = torch.optim.SGD(network.parameters(), settings.lr, **SGD_OPTIONS)
    steps = settings.epochs * len(train)
    warmup = round(WARMUP * steps)
    rise = torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup - 1)
    schedule = SequentialLR(optimizer, [rise, CosineAnnealingLR(optimizer, steps - warmup)], [warmup])
    return Parts(train, test, F.cross_entropy, optimizer, schedule)


CONTENDERS = {"PyTorch": torch_parts, "fastfeed": fastfeed_parts}


def train(contender: str, settings: Settings, seed: int) -> Outcome:
    """Train from the weights of a seed, and test."""
    torch.set_num_threads(settings.workers)
    torch.manual_seed(seed)
    classes = sum(entry.is_dir() for entry in (settings.data / "train").iterdir())
    network = ResNet9(classes, settings.width).to(settings.device, memory_format=torch.channels_last)
    parts = CONTENDERS[contender](settings, network, seed)
    start = time.perf_counter()
    losses: list[Tensor] = []
    for _ in range(settings.epochs):
        losses = [_step(parts, network, settings, *batch) for batch in parts.train]
    loss = torch.stack(losses).mean().item()  # waits for a GPU
    seconds = time.perf_counter() - start
    return Outcome(_test(parts, network, settings), loss, seconds)


def _step(parts: Parts, network: nn.Module, settings: Settings, images: Tensor, target: Tensor) -> Tensor:
    images = images.to(settings.device, non_blocking=True, memory_format=torch.channels_last)
    target = target.to(settings.device, non_blocking=True)
    with torch.autocast(settings.device.type, settings.autocast, enabled=settings.autocast is not None):
        logits = network(images)
    loss = parts.cross_entropy(logits, target, label_smoothing=SMOOTHING)
    parts.optimizer.zero_grad()
    loss.backward()
    parts.optimizer.step()
    parts.schedule.step()
    return loss.detach()


@torch.inference_mode()
def _test(parts: Parts, network: nn.Module, settings: Settings) -> float:
    network.eval()
    right, count = torch.zeros((), dtype=torch.int64, device=settings.device), 0
    for images, target in parts.test:
        images = images.to(settings.device, memory_format=torch.channels_last)
        with torch.autocast(settings.device.type, settings.autocast, enabled=settings.autocast is not None):
            right += (network(images).argmax(1) == target.to(settings.device)).sum()
        count += len(target)
    return right.item() / count


def compare(settings: Settings, seeds: Sequence[int], say: Callable[[str], object]) -> dict[str, list[Outcome]]:
    """Train every contender with every seed, in turn: contender -> an outcome for each seed.

    Each training has a process of its own: PyTorch's workers are forked, as they are by default, and a process in which
    DALI has threads must not be.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in CONTENDERS}
    for seed in seeds:
        for name, found in outcomes.items():
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                found.append(process.submit(train, name, settings, seed).result())
            last = found[-1]
            say(f"seed {seed}, {name:9} {last.accuracy:7.2%}  loss {last.loss:.4f}  {last.seconds:6.1f} s")
    return outcomes


class Comparison(NamedTuple):
    """How far our mean accuracy is from theirs, and how far it may be by chance, in percentage points.

    Attributes:
        difference: ours less theirs.
        spread: standard deviation of the accuracies of one contender, pooled.
        margin: half of the 95% confidence interval of the difference, by Student's t.
    """

    difference: float
    spread: float
    margin: float

    @property
    def same(self) -> bool:
        """Whether the interval holds 0. Where there is no difference it does not for 5% of all comparisons."""
        return abs(self.difference) <= self.margin


def comparison(outcomes: dict[str, list[Outcome]]) -> Comparison:
    """Compare the two contenders, of which each has at least two outcomes, as many as the other."""
    theirs, ours = ([100 * outcome.accuracy for outcome in found] for found in outcomes.values())
    spread = math.sqrt((statistics.variance(theirs) + statistics.variance(ours)) / 2)
    difference = statistics.fmean(ours) - statistics.fmean(theirs)
    t = T_975[min(2 * len(ours) - 2, max(T_975))]
    return Comparison(difference, spread, t * spread * math.sqrt(2 / len(ours)))


def table(
    settings: Settings,
    seeds: Sequence[int],
    outcomes: dict[str, list[Outcome]],
    machine: dict[str, Any],
    command: str,
) -> str:
    """Return all that was found as Markdown; `machine` is the `environment` of when it began.

    Without the seconds where there is no GPU: trainings take minutes then, and whatever else the machine does counts.
    """
    found = comparison(outcomes)
    timed = settings.device.type == "cuda"
    dtype = "float32" if settings.autocast is None else str(settings.autocast).removeprefix("torch.")
    name = machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores"
    lines = [
        f"# Accuracy: {settings.data.name}, a ResNet-9 of width {settings.width}, {settings.epochs} epochs",
        "",
        "Our loader, loss and optimizer against torchvision's `ImageFolder` and transforms in PyTorch's loader,",
        "`F.cross_entropy` and `torch.optim.SGD`: the same recipe, the same first weights for each seed.",
        "",
        f"| | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | standard deviation |"
        + (" training, median |" if timed else ""),
        f"|---|{'---:|' * (len(seeds) + 2 + timed)}",
    ]
    for contender, results in outcomes.items():
        accuracies = [100 * result.accuracy for result in results]
        cells = [f"{accuracy:.2f}%" for accuracy in [*accuracies, statistics.fmean(accuracies)]]
        seconds = statistics.median(result.seconds for result in results)
        last = f" {seconds:.1f} s |" if timed else ""
        lines.append(f"| {contender} | {' | '.join(cells)} | {statistics.stdev(accuracies):.2f} |{last}")
    low, high = found.difference - found.margin, found.difference + found.margin
    verdict = "the same, as far as these seeds tell" if found.same else "**not the same**"
    lines += [
        "",
        f"Ours less PyTorch's: {found.difference:+.2f} percentage points, where seeds alone make trainings differ by a",
        f"standard deviation of {found.spread:.2f}. The 95% interval of the difference is {low:+.2f} to {high:+.2f}: "
        f"{verdict}.",
        "",
        f"{dtype}, batches of {settings.batch_size}, learning rate up to {settings.lr}, label smoothing {SMOOTHING}; "
        f"{settings.workers} workers.",
        f"{name}; torch {machine['torch']}, DALI {machine['dali']}, fastfeed at {machine['commit']}, "
        f"{machine['date'][:10]}.",
        "",
        "```sh",
        command,
        "```",
        "",
    ]
    return "\n".join(lines)
