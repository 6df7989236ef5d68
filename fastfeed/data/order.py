"""Which sample comes when: a function of the seed and the epoch, and of nothing else."""

import numpy as np
import numpy.typing as npt

from fastfeed.data.philox import philox

# Domains keep the counters of the order apart from those of the plan, which share the seed as key.
_ORDER_DOMAIN = 0x6F726472

Indices = npt.NDArray[np.int64]


def epoch_order(size: int, *, shuffle: bool, seed: int, epoch: int) -> Indices:
    """Return the order in which an epoch visits `size` samples: [size] int64, a permutation of range(size)."""
    if not shuffle:
        return np.arange(size, dtype=np.int64)
    # Sorting by independent 64-bit keys is a uniform permutation; a tie (one chance in 2**64 a pair) is
    # broken by the index, because the sort is stable.
    pairs = (size + 1) // 2
    counter = np.empty((pairs, 4), np.uint32)
    counter[:, 0] = np.arange(pairs, dtype=np.uint64) & 0xFFFFFFFF
    counter[:, 1] = np.arange(pairs, dtype=np.uint64) >> np.uint64(32)
    counter[:, 2] = epoch & 0xFFFFFFFF
    counter[:, 3] = _ORDER_DOMAIN
    keys = philox(seed, counter).view(np.uint64).reshape(-1)[:size]
    return np.argsort(keys, kind="stable")


def batches(order: Indices, batch_size: int, *, drop_last: bool) -> list[Indices]:
    """Cut an epoch into batches; a last one that is not full is kept unless `drop_last`."""
    end = len(order) // batch_size * batch_size if drop_last else len(order)
    return [order[i : i + batch_size] for i in range(0, end, batch_size)]
