"""Datasets of torchvision's with any images, and batches of theirs to be compared with those of PyTorch's loader."""

import inspect

import numpy as np
import torch

from fastfeed.data import workers
from fastfeed.data.reading import LeftBatch
from tests.torch_loaders import PYTORCHS, DataLoader, assert_same, generator, outcomes
from tests.torchvision_ops import torchvision_or_skip

datasets = torchvision_or_skip("torchvision.datasets")
v1 = torchvision_or_skip("torchvision.transforms")
v2 = torchvision_or_skip("torchvision.transforms.v2")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N1, N2 = v1.Normalize(MEAN, STD), v2.Normalize(MEAN, STD)
HALF = v1.Normalize((0.5,), (0.5,))
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
PLAIN = v1.Compose([v1.ToTensor(), N1])
FLOAT32 = v1.ConvertImageDtype(torch.float32)

CIFAR = v1.Compose([v1.RandomCrop(8, 2), v1.RandomHorizontalFlip(), v1.ToTensor(), N1])
V2 = v2.Compose([v2.ToImage(), v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), TO_FLOAT, N2])
TENSORS = v1.Compose([v1.PILToTensor(), v1.RandomHorizontalFlip(), FLOAT32])
GREY = v1.Compose([v1.Grayscale(1), v1.ToTensor(), HALF])
EVERY_SECOND = v1.Compose([lambda image: image.convert("L" if image.getpixel((0, 0))[0] % 2 else "P"), v1.ToTensor()])


def images(count=10, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (9, 11, 3))), np.uint8)


def cifar(transform, data=None, cls=datasets.CIFAR10, **attributes):
    """A CIFAR10 of any images, which is not read from a file."""
    dataset = cls.__new__(cls)
    data = images() if data is None else data
    dataset.__dict__.update(
        data=data, targets=[i % 3 for i in range(len(data))], transform=transform, target_transform=None, **attributes
    )
    return dataset


def epoch(loader):
    torch.manual_seed(4)
    return outcomes(loader)


def assert_pytorchs(dataset, batch_size=4, **options):
    """Assert that two epochs are those of PyTorch's loader; errors too, but for the text of a traceback.

    The dataset may be a function that makes it, for each loader its own, where it changes as it is read.
    """
    ours, theirs = (
        cls(dataset() if inspect.isfunction(dataset) else dataset, batch_size, generator=generator(), **options)
        for cls in (DataLoader, PYTORCHS)
    )
    for _ in range(2):
        got, expected = epoch(ours), epoch(theirs)
        assert [type(batch) for batch in got] == [type(batch) for batch in expected]
        for batch, other in zip(got, expected, strict=True):
            if isinstance(batch, tuple):
                assert batch[1].splitlines()[-1:] == other[1].splitlines()[-1:]
                continue
            assert_same(batch, other)
            image, its = (b[0] if isinstance(b, list) else b for b in (batch, other))
            assert image.stride() == its.stride()
    ours.close()
    return got


def spy_on_workers(monkeypatch):
    """Return a list of what comes from the workers, batch by batch."""
    seen = []
    original = workers._next_result

    def spy(batches):
        result = original(batches)
        if result is not workers._END:
            seen.append(result)
        return result

    monkeypatch.setattr(workers, "_next_result", spy)
    return seen


def are_bytes(batches):
    """Return of each batch whether its images are bytes."""
    return [isinstance(batch, LeftBatch) for batch in batches]
