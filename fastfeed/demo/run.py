"""The demo: from JPEG files to a trained network, through every part of fastfeed, with a table of what it took."""

import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from fastfeed import transforms
from fastfeed.data.arguments import choose_device
from fastfeed.data.loader import DataLoader
from fastfeed.data.sources import FolderSource
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.draw import FORMAT, draw_dataset
from fastfeed.demo.network import SmallResNet
from fastfeed.functional import cross_entropy
from fastfeed.optim import AdamW, warmup_cosine

LABEL_SMOOTHING = 0.1
SCALE = (0.35, 1.0)  # share of the image that a training crop covers
LEARNING_RATE = 4e-3
WEIGHT_DECAY = 0.05
MIN_COMPARED_IMAGES, MAX_COMPARED_IMAGES = 400, 2000  # per epoch of the loader comparison
COMPARISON_ROUNDS = 3


@dataclass(frozen=True)
class Result:
    """What a run of the demo measured.

    Attributes:
        loader_rate: images per second of fastfeed.DataLoader alone, median of the rounds.
        torch_loader_rate: the same of torch.utils.data.DataLoader with Pillow, measured in turn with it.
        train_rate: images per second of the whole training loop, its first batch left out.
        waiting: share, 0 to 1, of the training loop's time spent waiting for the next batch.
        first_loss: mean training loss of the first tenth of the steps.
        last_loss: the same of the last tenth.
        accuracy: share, 0 to 1, of the validation images classified rightly; None without validation images.
        chance: what guessing the commonest class of the validation images would give.
    """

    loader_rate: float
    torch_loader_rate: float
    train_rate: float
    waiting: float
    first_loss: float
    last_loss: float
    accuracy: float | None
    chance: float


def run(
    data: Path | None = None,
    *,
    drawn: Path,
    steps: int = 600,
    batch_size: int = 64,
    size: int = 64,
    workers: int = 0,
    device: str | None = None,
    seed: int = 0,
) -> Result:
    """Run the demo and print its progress and its table.

    Args:
        data: a folder of class folders, or one of train/ and val/ with class folders in each; None draws one.
        drawn: where to draw it, or find it from an earlier run.
        steps: training steps.
        batch_size: images per step.
        size: height and width of the network's input, pixels.
        workers: CPU threads of our loader and worker processes of PyTorch's; 0 is one per core.
        device: "cpu", "cuda", or None for the best there is.
        seed: of the weights, the order and the crops.

    Raises:
        ValueError, FileNotFoundError, RuntimeError, ImportError: as `fastfeed.DataLoader`.
    """
    for name, value, low in (("steps", steps, 1), ("batch_size", batch_size, 1), ("size", size, 32)):
        if value < low:
            raise ValueError(f"{name} is {value}; expected {low} or more")
    where = choose_device(device)
    workers = workers or len(os.sched_getaffinity(0))
    if data is None:
        data = drawn / f"shapes-{FORMAT}"
        print(f"A labelled set of JPEG files, drawn on the first run: {data}", flush=True)
        try:
            draw_dataset(data)
        except PermissionError as error:
            raise PermissionError(
                f"cannot draw into {data}: {error.strerror}. Name another folder with --drawn"
            ) from None
    train, val = split(data)
    if len(train.classes) < 2:
        raise ValueError(f"{data} has one class, {train.classes[0]}; expected two or more class folders to tell apart")
    held_out = len(val) if val else 0
    print(f"{len(train)} training and {held_out} validation images of {len(train.classes)} classes, on {where}")

    torch.manual_seed(seed)
    compared = train.subset(_spread(len(train), MIN_COMPARED_IMAGES, MAX_COMPARED_IMAGES))
    ours, theirs = compare_loaders(compared, batch_size, size, workers, where)
    model = SmallResNet(len(train.classes)).to(where, memory_format=torch.channels_last)  # type: ignore[call-overload]
    transform = transforms.train(size, scale=SCALE)
    loader = DataLoader(
        train,
        min(batch_size, len(train)),
        shuffle=True,
        drop_last=True,
        transform=transform,
        device=where,
        num_workers=workers,
        seed=seed,
    )
    losses, rate, waiting = train_model(model, loader, steps)
    accuracy = evaluate(model, val, batch_size, size, workers, where) if val else None
    tenth = max(1, steps // 10)
    result = Result(
        loader_rate=ours,
        torch_loader_rate=theirs,
        train_rate=rate,
        waiting=waiting,
        first_loss=statistics.fmean(losses[:tenth]),
        last_loss=statistics.fmean(losses[-tenth:]),
        accuracy=accuracy,
        chance=_commonest_share(val) if val else 0.0,
    )
    print(table(result, workers))
    return result


def split(root: Path) -> tuple[FolderSource, FolderSource | None]:
    """Return training and validation images.

    A root with train/ and one of val/, valid/, validation/ or test/ in it is taken as it says. Otherwise every tenth
    image of each class is kept for validation, and there is none (None) where classes have fewer than ten.
    """
    for name in ("val", "valid", "validation", "test"):
        if (root / "train").is_dir() and (root / name).is_dir():
            train, val = FolderSource(root / "train"), FolderSource(root / name)
            if train.classes != val.classes:
                raise ValueError(
                    f"{root}/train and {root}/{name} have different classes: {train.classes} and {val.classes}"
                )
            return train, val
    source = FolderSource(root)
    seen: dict[int, int] = {}
    held_out = []
    for i, (_, target) in enumerate(source.samples):
        seen[target] = seen.get(target, 0) + 1
        if seen[target] % 10 == 0:
            held_out.append(i)
    kept = set(held_out)
    rest = [i for i in range(len(source)) if i not in kept]
    return source.subset(rest), source.subset(held_out) if held_out else None


def compare_loaders(
    source: FolderSource, batch_size: int, size: int, workers: int, device: torch.device
) -> tuple[float, float]:
    """Return images per second of our loader and of PyTorch's, on the same files and transforms, in turn."""
    transform = transforms.train(size, scale=SCALE)
    loaders: list[Iterable[tuple[Tensor, Tensor]]] = [
        DataLoader(source, batch_size, shuffle=True, transform=transform, device=device, num_workers=workers),
        torch.utils.data.DataLoader(
            PillowFolder(source.samples, size, scale=SCALE),
            batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=True,
            pin_memory=device.type == "cuda",
            # A fork would copy this process in the middle of whatever its threads do.
            multiprocessing_context="forkserver",
        ),
    ]
    rates: list[list[float]] = [[], []]
    with _progress(2 * (COMPARISON_ROUNDS + 1), "Comparing loaders", "epoch") as progress:
        for i in range(COMPARISON_ROUNDS + 1):
            for loader, measured in zip(loaders, rates, strict=True):
                start = time.perf_counter()
                count = 0
                for images, _ in loader:
                    count += len(images.to(device, non_blocking=True))
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                if i > 0:  # the first epoch starts workers and fills the page cache
                    measured.append(count / (time.perf_counter() - start))
                progress.update()
    return statistics.median(rates[0]), statistics.median(rates[1])


def train_model(model: nn.Module, loader: DataLoader, steps: int) -> tuple[list[float], float, float]:
    """Train; return the loss of each step, images per second, and the share of time spent waiting for batches."""
    device = loader.device
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = warmup_cosine(optimizer, max(1, steps // 10), steps)
    losses: list[Tensor] = []
    waited, trained = 0.0, 0
    start = 0.0
    batches = _forever(loader)
    model.train()
    with _progress(steps, "Training", "step") as progress:
        for step in range(steps):
            asked = time.perf_counter()
            images, target = next(batches)
            now = time.perf_counter()
            if step == 0:
                start = now
            else:
                waited += now - asked
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = cross_entropy(model(images), target, label_smoothing=LABEL_SMOOTHING)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            trained += len(images)
            progress.update()
            if step % 10 == 0 or step == steps - 1:
                progress.set_postfix({"loss": f"{float(losses[-1]):.3f}"}, refresh=False)
    total = time.perf_counter() - start
    return torch.stack(losses).tolist(), trained / total, waited / total


@torch.inference_mode()
def evaluate(
    model: nn.Module, source: FolderSource, batch_size: int, size: int, workers: int, device: torch.device
) -> float:
    """Return the share of the images that the model classifies rightly."""
    loader = DataLoader(source, batch_size, transform=transforms.eval(size), device=device, num_workers=workers)
    model.eval()
    right = sum((model(images).argmax(dim=1) == target).sum() for images, target in loader)
    return float(right) / len(source)


def table(result: Result, workers: int) -> str:
    """Format a result."""
    ratio = result.loader_rate / result.torch_loader_rate
    rows = [
        ("fastfeed.DataLoader", f"{result.loader_rate:,.0f} img/s   {ratio:.2f} x PyTorch's"),
        (f"torch.utils.data.DataLoader, Pillow, {workers} workers", f"{result.torch_loader_rate:,.0f} img/s"),
        ("training", f"{result.train_rate:,.0f} img/s"),
        ("waiting for data while training", f"{result.waiting:.1%} of the time"),
        ("training loss, first and last tenth", f"{result.first_loss:.3f} -> {result.last_loss:.3f}"),
        (
            "validation accuracy",
            "no images to validate on (fewer than ten per class)"
            if result.accuracy is None
            else f"{result.accuracy:.1%}   (guessing: {result.chance:.1%})",
        ),
    ]
    width = max(len(name) for name, _ in rows)
    line = "-" * (width + 34)
    return "\n".join([line, *(f"{name:<{width}}   {value}" for name, value in rows), line])


def _progress(total: int, what: str, unit: str) -> "tqdm[None]":
    # A log keeps every line that a terminal overwrites: there a few are enough.
    return tqdm(total=total, desc=what, unit=unit, mininterval=0.2 if sys.stderr.isatty() else 15)


def _forever(loader: DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
    while True:
        yield from loader


def _spread(count: int, low: int, high: int) -> list[int]:
    """Return `low` to `high` indices spread evenly over range(count), repeating where there are fewer than `low`."""
    wanted = max(low, min(count, high))
    return [i * count // wanted for i in range(wanted)]


def _commonest_share(source: FolderSource) -> float:
    targets = [target for _, target in source.samples]
    return max(targets.count(t) for t in set(targets)) / len(targets)
