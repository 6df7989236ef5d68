"""What a case is, and how it becomes rows: its providers are checked first, and only then timed."""

import shlex
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch

from benchmarks.timing import Band, Run, Timer, gpu_timer, measure, wall_timer


@dataclass(frozen=True)
class Options:
    """What the user asked for.

    Attributes:
        device: where to run.
        quick: a subset of the rows, and less time for each.
        data: a folder of class folders with photographs, instead of drawn images.
    """

    device: torch.device
    quick: bool = False
    data: Path | None = None

    @property
    def budget(self) -> float:
        """Seconds of measured work per set of parameters, as `timing.measure` has it."""
        return 1.0 if self.quick else 10.0


class Case:
    """One operation, done by several providers. To add one, add a file with a subclass to benchmarks/cases/.

    An instance holds the inputs for one entry of `parameters`; all its providers work on them.

    Attributes:
        name: of the operation.
        providers: name -> builder. A builder gets the instance and returns a `Run`.
        baseline: the provider that the others are checked against and compared with.
        wall_clock: time on the host's clock even on a GPU, for runs in which the host does much of the work.
        tolerance: keyword arguments of torch.testing.assert_close, for `check`.
        bytes_per_run: the fewest bytes that a run can move, or None. Gives GB/s.
        images_per_run: how many images a run yields, or None. Gives img/s.
    """

    name: ClassVar[str]
    providers: ClassVar[dict[str, Callable[[Any], Run]]]
    baseline: ClassVar[str]
    wall_clock: ClassVar[bool] = False
    tolerance: ClassVar[dict[str, Any]] = {}
    bytes_per_run: int | None = None
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

    def check(self, provider: str) -> None:
        """Raise AssertionError unless `provider` computes what the baseline does."""
        expected = self.providers[self.baseline](self)()
        torch.testing.assert_close(self.providers[provider](self)(), expected, **self.tolerance)

    def close(self) -> None:
        """Give back what outlives the instance, such as files."""


class Failure(NamedTuple):
    """Why a provider is not timed: status, as in a row, and reason."""

    status: str
    reason: str


def label(case: type[Case], parameters: dict[str, Any]) -> str:
    """Return what `--filter` looks into: name/shape/dtype."""
    return "/".join((case.name, _shape(parameters), _dtype(parameters)))


def select(cases: Sequence[type[Case]], options: Options, text: str = "") -> list[tuple[type[Case], dict[str, Any]]]:
    """Return each case with each of its parameters, if `text` is part of their label."""
    table = [(case, parameters) for case in cases for parameters in case.parameters(options)]
    return [(case, parameters) for case, parameters in table if text in label(case, parameters)]


def measure_case(
    case: type[Case], parameters: dict[str, Any], options: Options, timer: Timer | None = None
) -> Iterator[dict[str, Any]]:
    """Check and time all providers of a case on one set of its parameters.

    Yields:
        A row per provider, ready for JSON. `status` is "ok"; "wrong" for one that differs from the baseline; or
        "failed" for one that raises or has no sound baseline. Only "ok" rows are timed.
    """
    failures: dict[str, Failure] = {}
    seconds: dict[str, list[float]] = {}
    instance = None
    try:
        instance = case(options, **parameters)
        failures = _check_all(instance)
        runs = {name: build(instance) for name, build in case.providers.items() if name not in failures}
        if runs:
            seconds = measure(runs, timer or _timer(case, options.device), options.budget)
    except Exception as error:
        failures = dict.fromkeys(case.providers, _failure(error))
    finally:
        if instance is not None:
            instance.close()

    for provider in case.providers:
        status, reason = failures.get(provider, ("ok", None))
        yield {
            "op": case.name,
            "shape": _shape(parameters),
            "dtype": _dtype(parameters),
            "provider": provider,
            "baseline": case.baseline,
            "status": status,
            "reason": reason,
            **_numbers(instance, seconds.get(provider), seconds.get(case.baseline)),
            "command": _command(label(case, parameters), options),
        }


def _timer(case: type[Case], device: torch.device) -> Timer:
    return wall_timer(device) if case.wall_clock or device.type == "cpu" else gpu_timer(device)


def _check_all(case: Case) -> dict[str, Failure]:
    """Return what is the matter with each provider that must not be timed."""
    failures = {}
    for provider in case.providers:
        try:
            case.check(provider)
        except Exception as error:
            failures[provider] = _failure(error)
    if case.baseline in failures:
        unsound = Failure("failed", f"{case.baseline}, the baseline, is not sound")
        failures = dict.fromkeys(case.providers, unsound) | {case.baseline: failures[case.baseline]}
    return failures


def _failure(error: Exception) -> Failure:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, AssertionError):
        return Failure("wrong", reason)
    traceback.print_exception(error)  # to stderr: the row has no room for where it happened
    return Failure("failed", reason)


def _numbers(case: Case | None, seconds: list[float] | None, baseline: list[float] | None) -> dict[str, Any]:
    """The measured part of a row: times in µs, rates at the median time; None for what was not measured."""
    time = Band.of(seconds) if seconds else None
    speedup = Band.of([b / s for b, s in zip(baseline, seconds, strict=True)]) if seconds and baseline else None
    moved, images = (case.bytes_per_run, case.images_per_run) if case is not None else (None, None)
    return {
        "rounds": len(seconds) if seconds else 0,
        **{f"{key}_us": time and getattr(time, key) * 1e6 for key in Band._fields},
        "bytes": moved,
        "gb_per_s": moved / time.p50 / 1e9 if moved and time else None,
        "images": images,
        "img_per_s": images / time.p50 if images and time else None,
        **{f"speedup_{key}": speedup and getattr(speedup, key) for key in Band._fields},
    }


def _command(label: str, options: Options) -> str:
    command = ["python", "-m", "benchmarks", "run", "--filter", label, "--device", options.device.type]
    command += ["--quick"] if options.quick else []
    command += ["--data", str(options.data)] if options.data else []
    return shlex.join(command)


def _shape(parameters: dict[str, Any]) -> str:
    shape = parameters["shape"]
    return shape if isinstance(shape, str) else "x".join(map(str, shape))


def _dtype(parameters: dict[str, Any]) -> str:
    return str(parameters["dtype"]).removeprefix("torch.")
