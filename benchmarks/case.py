"""What a case is: one operation, its inputs, its providers, its model of the work, and its check."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from benchmarks.environment import cores
from benchmarks.steps import Steps
from benchmarks.timing import Run


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        device: where to run.
        quick: a subset of the rows, and less time for each: within five minutes on two cores. A run says how long it
            took.
        data: a folder of class folders with photographs, instead of drawn images.
        threads: that PyTorch and ours may use for an operation on the CPU; loaders have as many workers.
    """

    device: torch.device
    quick: bool = False
    data: Path | None = None
    threads: int = field(default_factory=cores)

    @property
    def budget(self) -> float:
        """Seconds of measured work per set of parameters, in all passes together."""
        return 1.0 if self.quick else 10.0

    @property
    def passes(self) -> int:
        """How often to go through all that is measured.

        A machine's speed drifts for seconds and minutes, with its neighbours and its temperature, and memory lies
        elsewhere each time: rounds that follow each other cannot tell how far the next run will be from this one.
        """
        return 3 if self.quick else 5


class Case:
    """One operation, done by several providers. To add one, add a file with a subclass to benchmarks/cases/.

    An instance holds the inputs for one entry of `parameters`; all its providers work on them. There may be
    several instances at a time.

    Attributes:
        name: of the operation.
        direction: what a run does: "forward", "forward+backward", "step", "epoch", "first batch" or "call".
        providers: name -> builder. A builder gets the instance and returns a `Run`; it raises `peers.Absent` if what
            it needs is not here.
        packages: provider -> the package it measures, where that is neither PyTorch nor ours.
        no_peers: providers that nobody could use instead of ours: parts of ours, or bounds on what is possible.
        baseline: the provider that the others are checked against and compared with.
        uncapturable: providers whose run no CUDA graph can hold, because the host waits, copies or counts in it. Where
            one of them is timed, all are timed without graphs, so that ratios are fair.
        wall_clock: time on the host's clock even on a GPU, for runs in which the host does much of the work.
        tolerance: keyword arguments of torch.testing.assert_close, for `check`.
        bytes_per_run: the fewest bytes that a run can move, or None. Gives GB/s.
        flops_per_run: the fewest floating-point operations that a run can do, or None. Gives TFLOP/s.
        images_per_run: how many images a run yields, or None. Gives img/s.
    """

    name: ClassVar[str]
    direction: ClassVar[str]
    providers: ClassVar[dict[str, Callable[[Any], Run]]]
    packages: ClassVar[dict[str, str]] = {}
    no_peers: ClassVar[frozenset[str]] = frozenset()
    baseline: ClassVar[str]
    wall_clock: ClassVar[bool] = False
    uncapturable: ClassVar[frozenset[str]] = frozenset()
    tolerance: ClassVar[dict[str, Any]] = {}
    bytes_per_run: int | None = None
    flops_per_run: int | None = None
    images_per_run: int | None = None

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Return the table of what to measure: the other arguments of `__init__`, one dict per set of rows.

        Each has a `shape`, a tuple of ints or a name, and a torch `dtype`, which together are unique. With
        `options.quick` it is a subset.
        """
        raise NotImplementedError

    def __init__(self, options: Options, shape: Any, dtype: torch.dtype) -> None:
        raise NotImplementedError

    def check(self, provider: str) -> float | None:
        """Raise AssertionError unless `provider` computes what the baseline does.

        Returns:
            The largest absolute difference, if it is a number worth knowing.
        """
        expected = self.providers[self.baseline](self)()
        actual = self.providers[provider](self)()
        torch.testing.assert_close(actual, expected, **self.tolerance)
        return largest_error(actual, expected)

    def record(self, provider: str) -> Steps | None:
        """Return what the training steps of a run by `provider` are made of, if that is what it does."""
        return None

    def close(self) -> None:
        """Give back what outlives the instance, such as files."""


def largest_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest absolute difference, computed in fp64."""
    return (actual.double() - expected.double()).abs().max().item()


def label(case: type[Case], parameters: dict[str, Any]) -> str:
    """Return what `--filter` looks into: name/shape/dtype."""
    return "/".join((case.name, shape_name(parameters), dtype_name(parameters)))


def select(cases: Sequence[type[Case]], options: Options, text: str = "") -> list[tuple[type[Case], dict[str, Any]]]:
    """Return each case with each of its parameters, if `text` is part of their label."""
    table = [(case, parameters) for case in cases for parameters in case.parameters(options)]
    return [(case, parameters) for case, parameters in table if text in label(case, parameters)]


def shape_name(parameters: dict[str, Any]) -> str:
    """Return a row's shape, such as "64x224x224x3"."""
    shape = parameters["shape"]
    return shape if isinstance(shape, str) else "x".join(map(str, shape))


def dtype_name(parameters: dict[str, Any]) -> str:
    """Return a row's dtype, such as "bfloat16"."""
    return str(parameters["dtype"]).removeprefix("torch.")
