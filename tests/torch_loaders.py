"""PyTorch's loader and ours, to be compared over datasets that DALI does not decode, and such datasets."""

from collections import UserDict
from types import MappingProxyType

import numpy as np
import torch
import torch.utils.data
from torch.utils.data import Dataset, IterableDataset

import fastfeed

PYTORCHS = torch.utils.data.DataLoader


class DataLoader(fastfeed.DataLoader):
    """On the CPU, for these tests compare with PyTorch's, which moves nothing; and of one seed."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **{"device": "cpu", "seed": 0, **options})


class Mapped(Dataset):
    """`n` samples, each function(index)."""

    def __init__(self, n, function):
        self.n, self.function = n, function

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.function(i)


class Unsized(Dataset):
    def __getitem__(self, key):
        return f"value of {key}"


class NoLength(Unsized):
    def __len__(self):
        raise NotImplementedError


class Stream(IterableDataset):
    def __init__(self, n):
        self.n = n

    def __iter__(self):
        return iter(range(self.n))


def generator(seed=3):
    return torch.Generator().manual_seed(seed)


def assert_same(got, expected):
    """Assert that two batches are equal, in values and in the types of what they are made of."""
    assert type(got) is type(expected)
    if isinstance(got, torch.Tensor):
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    elif isinstance(got, dict | UserDict | MappingProxyType):
        assert list(got) == list(expected)
        assert_same([*got.values()], [*expected.values()])
    elif isinstance(got, list | tuple):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_same(one, other)
    elif isinstance(got, np.ndarray):
        assert np.array_equal(got, expected)
    else:
        assert got == expected


class Faulty(Mapped):
    def __getitem__(self, i):
        if i in (2, 5):
            raise KeyError(f"no {i}")
        return i


def outcomes(loader):
    """Return what an iterator gives, and raises, to its end."""
    results, iterator = [], iter(loader)
    while True:
        try:
            results.append(next(iterator))
        except StopIteration:
            return results
        except Exception as error:
            results.append((type(error), str(error)))
