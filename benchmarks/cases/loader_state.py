"""What it costs to ask a loader over ImageNet how long it is and where it is, and to make it go on from there."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from typing import Any, ClassVar

import numpy as np
import torch
from torch.utils.data import DataLoader

import fastfeed
from benchmarks.case import Case, Options
from benchmarks.peers import need
from benchmarks.timing import Run
from fastfeed.data.dali import dali_install_line
from fastfeed.data.sources import EncodedBatch, Source

SAMPLES = 1_281_167  # in ImageNet's training set
BATCH_SIZE = 64


class NeverRead(Source):
    """Samples that nobody reads.

    Args:
        size: how many there are.
    """

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        """How many there are."""
        return self._size

    def name(self, index: int) -> str:
        """Return a name."""
        return f"sample {index}"

    def read(self, indices: Any, pool: Any) -> EncodedBatch:
        """Refuse."""
        raise RuntimeError("what is timed should read no samples")

    def subset(self, indices: Any) -> "NeverRead":
        """Return so many samples."""
        return NeverRead(len(indices))


class ByHand:
    """PyTorch's loader, and what people write around it: an epoch is skipped through, to where it was left.

    Args:
        samples: in the dataset.
        done: batches of the epoch that are done.
    """

    def __init__(self, samples: int, done: int, threads: int) -> None:
        self._generator = torch.Generator().manual_seed(0)
        self._loader = DataLoader(range(samples), BATCH_SIZE, shuffle=True, generator=self._generator)
        self._begin = self._generator.get_state()
        self._done = done

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self) -> Iterator[list[int]]:
        """Go through the batches of a whole epoch."""
        self._generator.set_state(self._begin)
        return iter(self._loader.batch_sampler)

    def state(self) -> dict[str, Any]:
        """Return where the loader is."""
        return {"generator": self._begin, "done": self._done}

    def resume(self, state: dict[str, Any]) -> list[int]:
        """Return the indices of the first batch after `state`."""
        self._generator.set_state(state["generator"])
        return next(islice(self._loader.batch_sampler, state["done"], None))


class TorchData:
    """torchdata's loader, without workers and over a dataset that returns the index. Arguments as for `ByHand`."""

    def __init__(self, samples: int, done: int, threads: int) -> None:
        self._new = partial(self._loader_over, samples)
        self._loader = self._new()
        self._batches = iter(self._loader)
        for _ in islice(self._batches, done):
            pass

    @staticmethod
    def _loader_over(samples: int) -> Any:
        generator = torch.Generator().manual_seed(0)
        loader = need("torchdata.stateful_dataloader").StatefulDataLoader
        return loader(range(samples), BATCH_SIZE, shuffle=True, generator=generator, collate_fn=list)

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self) -> Iterator[list[int]]:
        """Go through the batches of a whole epoch."""
        return iter(self._new())

    def state(self) -> dict[str, Any]:
        """Return where the loader is."""
        return self._loader.state_dict()

    def resume(self, state: dict[str, Any]) -> list[int]:
        """Return the indices of the first batch after `state`."""
        self._loader.load_state_dict(state)
        return next(iter(self._loader))


class Ours:
    """fastfeed's loader. Arguments as for `ByHand`."""

    def __init__(self, samples: int, done: int, threads: int) -> None:
        need("nvidia.dali", dali_install_line())
        self._loader = fastfeed.DataLoader(
            NeverRead(samples), BATCH_SIZE, shuffle=True, num_workers=threads, device="cpu"
        )
        self._begin = self._loader.state_dict()
        self._loader.load_state_dict(self._begin | {"consumed": done * BATCH_SIZE, "step": done})

    def __len__(self) -> int:
        return len(self._loader)

    def epoch(self) -> Iterator[list[int]]:
        """Go through the batches of a whole epoch."""
        return (picks.index.tolist() for picks in self._loader._epochs().steps(self._begin))

    def state(self) -> dict[str, Any]:
        """Return where the loader is."""
        return self._loader.state_dict()

    def resume(self, state: dict[str, Any]) -> list[int]:
        """Return the indices of the first batch after `state`."""
        self._loader.load_state_dict(state)
        # What iterating begins with; its next step would be to read the samples.
        return next(self._loader._epochs().steps(self._loader.state_dict())).index.tolist()


Bookkeeping = ByHand | TorchData | Ours
OPERATIONS: dict[str, Callable[[Bookkeeping], Run]] = {
    "len": lambda loader: loader.__len__,
    "state_dict": lambda loader: loader.state,
    "load_state_dict": lambda loader: partial(loader.resume, loader.state()),
}


def operation(loader: type[Bookkeeping], case: "LoaderStateCase") -> Run:
    """Return a run of the case's operation by a loader."""
    return OPERATIONS[case.operation](case.loader(loader))


class LoaderStateCase(Case):
    """`len`, `state_dict`, and `load_state_dict` until the next batch's samples are known, in the middle of an epoch.

    No sample is read. PyTorch's loader has no state: against ours stands what people keep and do themselves, the state
    of the generator and the number of batches, and go through the order to where they were. torchdata's loader runs
    without workers, whose states it would have to fetch.
    """

    name = "loader_state"
    direction = "call"
    baseline = "torch"
    wall_clock = True
    loaders: ClassVar[dict[str, type[Bookkeeping]]] = {"torch": ByHand, "torchdata": TorchData, "fastfeed": Ours}
    providers: ClassVar = {name: partial(operation, loader) for name, loader in loaders.items()}
    packages: ClassVar = {"torchdata": "torchdata"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Each operation, over as many samples as ImageNet has; in a quick run the one that takes time."""
        operations = ("load_state_dict",) if options.quick else OPERATIONS
        return [{"shape": f"{name}-{SAMPLES}", "dtype": torch.int64} for name in operations]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        self.operation, samples = shape.split("-")
        self.samples = int(samples)
        self.threads = options.threads
        self.done = self.samples // BATCH_SIZE // 2

    def loader(self, kind: type[Bookkeeping]) -> Bookkeeping:
        """Return a loader in the middle of its first epoch."""
        return kind(self.samples, self.done, self.threads)

    def check(self, provider: str) -> None:
        """See that the length is right, and that a state leads to the batch that comes next in an epoch."""
        loader = self.loader(self.loaders[provider])
        run = OPERATIONS[self.operation](loader)
        if self.operation == "len":
            length, expected = run(), -(-self.samples // BATCH_SIZE)
            assert length == expected, f"the length is {length}, not {expected}"
            return
        epoch = list(loader.epoch())
        order = np.concatenate(epoch)
        assert (np.sort(order) == np.arange(self.samples)).all(), "an epoch is no permutation of the samples"
        assert (order[1:] < order[:-1]).any(), "an epoch is not shuffled"
        batches = [loader.resume(run())] if self.operation == "state_dict" else [run(), run()]  # as it is timed
        for batch in batches:
            assert batch == epoch[self.done], f"batch {self.done} is {batch[:3]}..., not {epoch[self.done][:3]}..."
