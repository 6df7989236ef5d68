"""The order of one epoch."""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils.data import RandomSampler, WeightedRandomSampler

from benchmarks.case import Case, Options
from benchmarks.cases.loader_state import SAMPLES
from benchmarks.timing import Run
from fastfeed.data.samplers import Sampler, Shuffled, WeightedSampler

SHUFFLED, WEIGHTED = "shuffled", "weighted"
WEIGHTS = (0.0, 1.0, 2.0, 4.0)  # of samples in turn


class EpochOrderCase(Case):
    """Which samples an epoch visits, all of it at once: each once, shuffled; or drawn with weights, with replacement.

    "torch" is the function that PyTorch's samplers call, torch.randperm and torch.multinomial; "torch sampler" the
    sampler itself, which makes a Python integer of every index. Ours also counts, where samples come more than once,
    which copy each one is.
    """

    name = "epoch_order"
    direction = "call"
    baseline = "torch"
    wall_clock = True

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Each kind of order, over as many samples as ImageNet has; in a quick run the shuffled one."""
        kinds = (SHUFFLED,) if options.quick else (SHUFFLED, WEIGHTED)
        return [{"shape": f"{kind}-{SAMPLES}", "dtype": torch.int64} for kind in kinds]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        self.kind, samples = shape.split("-")
        self.samples = int(samples)
        self.weights = torch.tensor(WEIGHTS, dtype=torch.float64).repeat(-(-self.samples // 4))[: self.samples]
        # Writes each index once; with weights, reads each of them once.
        self.bytes_per_run = self.samples * (8 if self.kind == SHUFFLED else 16)

    def check(self, provider: str) -> None:
        """See that two epochs are permutations, and no two alike; or drawn as often as the weights say."""
        run = self.providers[provider](self)
        first, second = (torch.as_tensor(run()).clone() for _ in range(2))
        assert first.shape == (self.samples,), f"an epoch has the shape {list(first.shape)}, not {self.samples}"
        assert not torch.equal(first, second), "two epochs have the same order"
        for order in (first, second):
            if self.kind == SHUFFLED:
                assert torch.equal(order.sort().values, torch.arange(self.samples)), "it is no permutation"
                # Of a random order half of the neighbours are in order, give or take sqrt(n / 12).
                share = (order[1:] > order[:-1]).double().mean().item()
                assert abs(share - 0.5) < 5 * (12 * self.samples) ** -0.5, f"{share:.1%} of the neighbours are in order"
            else:
                expected = self.weights / self.weights.sum() * self.samples
                drawn = order.bincount(minlength=self.samples)
                for i, weight in enumerate(WEIGHTS):
                    count, mean = drawn[i::4].sum().item(), expected[i::4].sum().item()
                    assert abs(count - mean) <= 5 * mean**0.5, f"weight {weight}: {count} draws; {mean:.0f} expected"

    def _torch(self) -> Run:
        generator = torch.Generator().manual_seed(0)
        if self.kind == SHUFFLED:
            return lambda: torch.randperm(self.samples, generator=generator)
        return lambda: torch.multinomial(self.weights, self.samples, replacement=True, generator=generator)

    def _torch_sampler(self) -> Run:
        generator = torch.Generator().manual_seed(0)
        if self.kind == SHUFFLED:
            return partial(list, RandomSampler(range(self.samples), generator=generator))
        return partial(list, WeightedRandomSampler(self.weights, self.samples, generator=generator))

    def _fastfeed(self) -> Run:
        sampler: Sampler = Shuffled() if self.kind == SHUFFLED else WeightedSampler(self.weights)
        epoch = -1

        def run() -> Tensor:
            nonlocal epoch
            epoch += 1
            return torch.from_numpy(sampler.picks(self.samples, None, seed=0, epoch=epoch).index)

        return run

    providers: ClassVar[dict[str, Callable[[Any], Run]]] = {
        "torch": _torch,
        "torch sampler": _torch_sampler,
        "fastfeed": _fastfeed,
    }
