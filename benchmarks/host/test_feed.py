"""The steps before the pixels, and a whole epoch of the loader."""

import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.environment import cores
from fastfeed import DataLoader, FolderSource, transforms
from fastfeed._extension import extension
from fastfeed.data.finish import Finish, SampleParameters, finish_reference
from fastfeed.data.order import permutation
from fastfeed.data.plan import make_plan
from fastfeed.demo.baseline import IMAGENET_MEAN, IMAGENET_STD, PillowFolder, random_crop_box
from fastfeed.demo.draw import draw_dataset

BATCH = 256


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images") / "drawn"
    draw_dataset(folder, train_per_class=64, val_per_class=1)
    return FolderSource(folder / "train")


def test_order_of_an_epoch(versus):
    versus(
        lambda: permutation(1_281_167, seed=0, epoch=1),
        lambda: torch.randperm(1_281_167).numpy(),  # as RandomSampler does; it makes a list of it too
    )


def test_crops_and_flips_of_a_batch(versus):
    rng = np.random.default_rng(0)
    sizes = rng.integers(200, 800, (BATCH, 2))
    indices = rng.permutation(1_281_167)[:BATCH]
    transform = transforms.train(224)

    def theirs():
        for height, width in sizes.tolist():
            random_crop_box(width, height, (0.08, 1.0), (3 / 4, 4 / 3))
            torch.rand(1).item()

    versus(lambda: make_plan(transform, sizes, indices, seed=0, epoch=1), theirs)


def test_reading_files_and_sizes(versus, source):
    indices = np.asarray(random.Random(0).sample(range(len(source)), BATCH))

    def theirs():
        for index in indices:
            path, _ = source.samples[index]
            Path(path).read_bytes()
            with Image.open(path) as image:
                _ = image.size

    pool = extension().Pool(cores())
    versus(lambda: source.read(indices, pool), theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_last_pass(versus, dtype):
    images = torch.randint(256, (64, 224, 224, 3), dtype=torch.uint8)
    parameters = SampleParameters(64, flip=torch.arange(64) % 2 == 0)
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, dtype, threads=cores())
    versus(
        lambda: finish(images, parameters),
        lambda: finish_reference(images, parameters, IMAGENET_MEAN, IMAGENET_STD, dtype),
    )


def test_an_epoch(versus, source):
    ours = DataLoader(source, 64, shuffle=True, transform=transforms.train(64), device="cpu", num_workers=cores())
    theirs = torch.utils.data.DataLoader(
        PillowFolder(source.samples, 64),
        64,
        shuffle=True,
        num_workers=cores(),
        persistent_workers=True,
        multiprocessing_context="forkserver",
    )
    counts = SimpleNamespace(ours=0, theirs=0)

    def epoch(name, loader):
        setattr(counts, name, sum(len(images) for images, _ in loader))

    versus(lambda: epoch("ours", ours), lambda: epoch("theirs", theirs), rounds=10)
    assert counts.ours == counts.theirs == len(source)
