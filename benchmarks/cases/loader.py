"""Whole epochs of training batches from JPEG files."""

import gc
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image
from torch import Tensor

import fastfeed
from benchmarks.case import Case, Options
from benchmarks.loaders import dali, decode, ffcv, pillow, spdl, timm, torchvision_pil, torchvision_uint8
from benchmarks.loaders import fastfeed as ours
from benchmarks.loaders.recipe import MEAN, STD, STD_255, Batches, Recipe
from benchmarks.peers import version
from benchmarks.timing import Run
from fastfeed.data.mix import draw_mix
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.draw import CLASSES, draw_dataset, draw_image

DALI = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
EVALUATED_SIZE = 56  # of the centre crops that `check` compares: the short side before the crop is 64
MIXED = "fastfeed, mixed bf16"
DECODED = "decode alone"


def epochs(name: str, case: "LoaderCase") -> Run:
    """Return a run of one training epoch, every batch brought to the case's device.

    It returns the targets, and what kinds of images there were: (shape, dtype).
    """
    loader = case.loaders[name](case.recipe(train=True))

    def run() -> tuple[Tensor, set[tuple[torch.Size, torch.dtype]]]:
        targets, kinds = [], set()
        for images, target in loader:
            images = images.to(case.device, non_blocking=True)  # nothing to do for batches that are there already
            kinds.add((images.shape, images.dtype))
            if isinstance(target, fastfeed.MixedTarget):
                target = target.a
            # A copy, for the next batch may lie in the same memory.
            targets.append(target.to(case.device, non_blocking=True, copy=True))
        return torch.cat(targets), kinds

    return run


def decoding(case: "LoaderCase") -> Run:
    """Return a run that decodes the windows of one training epoch, and does no more. It returns the targets."""
    batches = decode.loader(case.recipe(train=True))
    return lambda: torch.cat([batch.targets for _, batch in batches])


class LoaderCase(Case):
    """`fastfeed.DataLoader` against others: random resized crop, flip, normalise, fp32.

    All have as many workers or threads, which live on from epoch to epoch; PyTorch's workers have a thread each, and
    pinned memory where there is a GPU. The check reads every file, so that all find them in the page cache. An epoch
    gives every worker several batches, so that its start and its end count little, and holds full batches only; a
    file may come more than once in it.

    "fastfeed, mixed bf16" also does mixup and cutmix and writes bf16, and is timed beside those that do neither.
    "decode alone" is what bounds every loader on a CPU that decodes with DALI: the same files, read and planned by
    ours, and the same windows, decoded and neither resized nor normalised.
    """

    name = "loader"
    direction = "epoch"
    baseline = "pillow"
    wall_clock = True
    loaders: ClassVar[dict[str, Callable[[Recipe], Batches]]] = {
        "pillow": pillow.loader,
        "torchvision": torchvision_pil.loader,
        "torchvision uint8": torchvision_uint8.loader,
        "timm": timm.loader,
        "dali": dali.loader,
        "ffcv": ffcv.loader,
        "spdl": spdl.loader,
        "fastfeed": ours.loader,
        MIXED: ours.mixed,
    }
    providers: ClassVar = {**{name: partial(epochs, name) for name in loaders}, DECODED: decoding}
    no_peers = frozenset({MIXED, DECODED})
    packages: ClassVar = {
        "pillow": "pillow",
        "torchvision": "torchvision",
        "torchvision uint8": "torchvision",
        "timm": "timm",
        "dali": next(filter(version, DALI), DALI[0]),
        "ffcv": "ffcv",
        "spdl": "spdl",
        MIXED: "fastfeed",
        DECODED: next(filter(version, DALI), DALI[0]),
    }

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of the size that goes with the images."""
        size = 224 if options.data else 64
        return [{"shape": (64, 3, size, size), "dtype": torch.float32}]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        self.batch_size, _, self.size, _ = self._shape = torch.Size(shape)
        self.dtype = dtype
        self.device = options.device
        self.threads = options.threads
        self._scratch = tempfile.TemporaryDirectory()
        folder = options.data
        if folder is None:
            drawn = Path(self._scratch.name, "drawn")
            draw_dataset(drawn, train_per_class=16 if options.quick else 64, val_per_class=1)
            folder = drawn / "train"
        self.images_per_run = self.batch_size * self.batches(options)
        source = fastfeed.FolderSource(folder)
        self.source = source.subset([i * len(source) // self.images_per_run for i in range(self.images_per_run)])

    @classmethod
    def batches(cls, options: Options) -> int:
        """Return how many there are in an epoch."""
        return options.threads * (8 if options.quick else 32)

    def close(self) -> None:
        """Remove the drawn images, and what loaders have written."""
        self._scratch.cleanup()

    def recipe(self, *, train: bool) -> Recipe:
        """Return what the loaders are asked for: to train, or to evaluate the images that `check` compares."""
        scratch = Path(self._scratch.name)
        source, batch_size, size = self.source, self.batch_size, self.size
        if not train:
            # Eight batches, of which ours mixes some by mixup and others by cutmix.
            source, batch_size, size = self._evaluated, len(self._evaluated) // 8, EVALUATED_SIZE
        return Recipe(source, batch_size, size, self.device, self.threads, scratch, train)

    def check(self, provider: str) -> float:
        """Compare the pixels of centre crops, which are the same for all, and the targets of a training epoch.

        Of decoding alone it compares the windows that are decoded.

        Returns:
            The largest difference from the baseline that the normalised pixels of an image have on average.
        """
        if provider == DECODED:
            error = self._largest_error_of_windows()
            targets = decoding(self)()
        else:
            error = self._largest_error(provider)
            targets, kinds = epochs(provider, self)()
            dtype = torch.bfloat16 if provider == MIXED else self.dtype
            assert kinds == {(self._shape, dtype)}, f"the training batches are {kinds}"
        # What a circle of references keeps alive, as in some loaders, must not compete with those that are timed.
        gc.collect()
        expected = torch.tensor([target for _, target in self.source.samples])
        torch.testing.assert_close(targets.cpu().sort().values, expected.sort().values)
        # Decoders and resamplers round differently; a level of 255 is about 0.02 here.
        assert error < 0.05, f"an image's pixels are {error:.3f} off on average"
        return error

    def _largest_error(self, provider: str) -> float:
        recipe = self.recipe(train=False)
        classes = len(recipe.source.classes)
        batches = []
        for images, target in self.loaders[provider](recipe):
            if isinstance(target, fastfeed.MixedTarget):
                target = target.dense(classes)
            batches.append((images.to("cpu", copy=True), target.to("cpu", copy=True)))
        images, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        expected, labels = self._centre_crops, torch.tensor([target for _, target in recipe.source.samples])
        if provider == MIXED:
            expected, labels = mix_batches(expected, F.one_hot(labels, classes).float(), recipe.batch_size)
            assert images.is_contiguous(memory_format=torch.channels_last), "the images are not channels-last"
        assert targets.shape == labels.shape, f"the targets are {list(targets.shape)}, not {list(labels.shape)}"
        torch.testing.assert_close(targets, labels, msg=lambda text: f"images have others' targets: {text}")
        assert images.dtype == expected.dtype, f"the images are {images.dtype}"
        assert images.shape == expected.shape, f"the images are {list(images.shape)}, not {list(expected.shape)}"
        return (images.float() - expected.float()).abs().mean(dim=(1, 2, 3)).max().item()

    def _largest_error_of_windows(self) -> float:
        """Compare the windows of a training epoch over the evaluated images with those that Pillow decodes."""
        source = self._evaluated
        recipe = replace(self.recipe(train=False), train=True)
        errors = []
        for windows, batch in decode.loader(recipe):
            plan = batch.entry.plan
            for i, ((top, left), (h, w)) in enumerate(zip(plan.start.tolist(), plan.shape.tolist(), strict=True)):
                with Image.open(batch.names[i]) as image:
                    expected = np.asarray(image.convert("RGB").crop((left, top, left + w, top + h)), np.float32)
                window = np.asarray(windows[i])
                assert window.shape == expected.shape, f"a window is {window.shape}, not {expected.shape}"
                errors.append(np.abs(window - expected).mean() / min(STD_255))
        assert len(errors) == len(source), f"{len(errors)} windows were decoded, not {len(source)}"
        return float(max(errors))

    @cached_property
    def _evaluated(self) -> fastfeed.FolderSource:
        folder = Path(self._scratch.name, "evaluated")
        draw_evaluated(folder, round(EVALUATED_SIZE * 256 / 224))
        source = fastfeed.FolderSource(folder)
        # Class by class in turn, so that a batch has targets to mistake for each other.
        return source.subset(np.arange(len(source)).reshape(len(CLASSES), -1).T.flatten())

    @cached_property
    def _centre_crops(self) -> Tensor:
        """What the baseline makes of the evaluated images, without its workers."""
        recipe = self.recipe(train=False)
        dataset = PillowFolder(recipe.source.samples, recipe.size, mean=MEAN, std=STD, train=False)
        return torch.stack([image for image, _ in dataset])


def mix_batches(images: Tensor, targets: Tensor, batch_size: int) -> tuple[Tensor, Tensor]:
    """Mix batch by batch, step by step in PyTorch, as our loader draws it for its first epoch; images become bf16.

    Args:
        images: [N, 3, H, W] fp32.
        targets: [N, C] probabilities.
        batch_size: of the batches that are mixed.
    """
    mixed_images, mixed_targets = [], []
    for start in range(0, len(images), batch_size):
        own, target = images[start : start + batch_size], targets[start : start + batch_size]
        plan = draw_mix(ours.MIX, len(own), *own.shape[2:], seed=0, epoch=0, batch=start)
        partner = torch.from_numpy(plan.partner)
        weight, lam = (torch.from_numpy(values)[:, None] for values in (plan.weight, plan.lam))
        mixed = own * weight[..., None, None] + own[partner] * (1 - weight[..., None, None])
        for image, other, (top, left, h, w) in zip(mixed, own[partner], plan.box.tolist(), strict=True):
            image[:, top : top + h, left : left + w] = other[:, top : top + h, left : left + w]
        mixed_images.append(mixed.bfloat16())
        mixed_targets.append(target * lam + target[partner] * (1 - lam))
    return torch.cat(mixed_images), torch.cat(mixed_targets)


def draw_evaluated(root: Path, resize: int) -> None:
    """Draw JPEG files of every kind, of sizes at which a centre crop has nothing to round.

    Where there is half a pixel, one loader rounds it up and another down, and a crop that is off by one differs more
    than anything that this is to find. The grain is there to tell an antialiased resize from others, and is grey,
    because decoders differ in how they enlarge subsampled colours.

    Args:
        root: where to make a folder for each class.
        resize: what the short side will be resized to, pixels; a third of the image's.
    """
    rng = np.random.default_rng(0)
    short, long = 3 * resize, 3 * resize * 3 // 2
    for i in range(4 * len(CLASSES)):
        shape = CLASSES[i % len(CLASSES)]
        image = draw_image(shape, rng).resize((short, long) if i % 2 else (long, short))
        grain = rng.normal(scale=10, size=(image.height, image.width, 1))
        image = Image.fromarray(np.clip(np.asarray(image) + grain, 0, 255).astype(np.uint8))
        if i % 7 == 0:
            image = image.convert("L")
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = 1 + i % 8
        (root / shape).mkdir(parents=True, exist_ok=True)
        image.save(root / shape / f"{i:02}.jpg", quality=90, subsampling=i % 3, progressive=i % 5 == 0, exif=exif)
