"""How one pass over a case is measured: its providers are checked first, and only then timed, in turn."""

import traceback
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks import gpu_timing
from benchmarks.case import Case, Options
from benchmarks.peers import Absent
from benchmarks.steps import Steps
from benchmarks.timing import Run, Sample, Timer, measure, wall_timer
from benchmarks.watch import Watch


class Verdict(NamedTuple):
    """What came of a provider's check, with the names of a row's fields."""

    status: str
    reason: str | None = None
    max_error: float | None = None


class ProviderError(Exception):
    """Carries the name of the provider whose run raised, while others were timed with it."""


class Pass(NamedTuple):
    """What one pass found out about one set of a case's parameters.

    Attributes:
        verdicts: by provider.
        timing: as in a row.
        samples: provider -> a sample a round, for those that are "ok".
        apart: provider -> fields of a row that are measured outside of the rounds.
        records: provider -> what was recorded of training steps; empty in later passes.
        work: the model of the work: bytes, flops and images, as in a row.
        clock_mhz: as in a row.
        slowed_by: what slowed the machine down -> share of the time.
    """

    verdicts: dict[str, Verdict]
    timing: str | None
    samples: dict[str, list[Sample]]
    apart: dict[str, dict[str, Any]]
    records: dict[str, Steps | None]
    work: dict[str, int | None]
    clock_mhz: float | None
    slowed_by: dict[str, float]


def measure_pass(
    case: type[Case],
    parameters: dict[str, Any],
    options: Options,
    before: Pass | None = None,
    timer: Timer | None = None,
) -> Pass:
    """Check and time all providers of a case on one set of its parameters.

    Args:
        case: the case.
        parameters: one of `case.parameters(options)`.
        options: what the user asked for.
        before: an earlier pass, whose verdicts stand: what it has checked is only timed again.
        timer: the one that goes with the case and the device, by default.
    """
    watch = Watch(options.device)
    timing, samples, apart, records = None, {}, {}, {}
    verdicts = dict.fromkeys(case.providers, Verdict("ok"))
    work: dict[str, int | None] = dict.fromkeys(("bytes", "flops", "images"))
    with ExitStack() as stack:
        try:
            instance = case(options, **parameters)
            stack.callback(instance.close)
            work = {"bytes": instance.bytes_per_run, "flops": instance.flops_per_run, "images": instance.images_per_run}
            verdicts = _check_all(instance) if before is None else before.verdicts
            while sound := [name for name, verdict in verdicts.items() if verdict.status == "ok"]:
                try:
                    timing, apart, samples = _time(instance, parameters, options, sound, timer, stack, before is None)
                    break
                except ProviderError as error:  # the others once more, without it
                    verdicts = _sound(case.baseline, verdicts | {str(error): _failure(error.__cause__)})
            if before is None:
                records = {name: instance.record(name) for name in sound}
        except Exception as error:
            failure = _failure(error)
            verdicts = {name: failure if v.status == "ok" else v for name, v in verdicts.items()}
        return Pass(verdicts, timing, samples, apart, records, work, *watch.state())


def _check_all(case: Case) -> dict[str, Verdict]:
    verdicts = {}
    for provider in case.providers:
        try:
            verdicts[provider] = Verdict("ok", max_error=case.check(provider))
        except Exception as error:
            verdicts[provider] = _failure(error)
    return _sound(case.baseline, verdicts)


def _sound(baseline: str, verdicts: dict[str, Verdict]) -> dict[str, Verdict]:
    """Without a baseline there is nothing to compare with, and what was right may not be."""
    if verdicts[baseline].status == "ok":
        return verdicts
    unsound = Verdict("failed", f"{baseline}, the baseline, is not sound")
    return {name: unsound if verdict.status == "ok" else verdict for name, verdict in verdicts.items()}


def _failure(error: Exception) -> Verdict:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Absent):
        return Verdict("absent", reason)
    if isinstance(error, AssertionError):
        return Verdict("wrong", reason)
    traceback.print_exception(error)  # to stderr: the row has no room for where it happened
    return Verdict("failed", reason)


def _time(
    instance: Case,
    parameters: dict[str, Any],
    options: Options,
    providers: list[str],
    timer: Timer | None,
    stack: ExitStack,
    first: bool,
) -> tuple[str, dict[str, dict[str, Any]], dict[str, list[Sample]]]:
    """Return how it was timed, what was measured apart, and the samples. Instances made here are closed by `stack`."""
    on_gpu = options.device.type == "cuda" and not instance.wall_clock
    runs = {name: _blaming(name, lambda name=name: instance.providers[name](instance))() for name in providers}
    runs = {name: _blaming(name, run) for name, run in runs.items()}
    apart = {name: _apart(run, options, first) if on_gpu else {} for name, run in runs.items()}
    if not on_gpu:
        timing, timed = "wall", runs
        timer = timer or wall_timer(options.device)
    else:
        timing, timed, timer = _gpu_runs(instance, parameters, options, runs, apart, stack)
    return timing, apart, measure(timed, timer, options.budget / options.passes)


def _blaming(provider: str, work: Run) -> Run:
    """Return work that, if it raises, says whose it is."""

    def blaming() -> Any:
        try:
            return work()
        except Exception as error:
            raise ProviderError(provider) from error

    return blaming


def _apart(run: Run, options: Options, everything: bool) -> dict[str, Any]:
    """What is measured on a GPU apart from the device's time, one provider after the other."""
    run()
    host_us = {"host_us": gpu_timing.host_seconds(run, options.device) * 1e6}
    if not everything:
        return host_us
    return host_us | {
        "launches": gpu_timing.launches(run, options.device),
        "peak_bytes": gpu_timing.peak_bytes(run, options.device),
    }


def _gpu_runs(
    instance: Case,
    parameters: dict[str, Any],
    options: Options,
    runs: dict[str, Run],
    apart: dict[str, dict[str, Any]],
    stack: ExitStack,
) -> tuple[str, dict[str, Run], Timer]:
    """Return how to time on a GPU, what, and with which timer: all providers alike, so that ratios are fair."""
    device = options.device
    if not instance.uncapturable & runs.keys():
        copies = gpu_timing.copies_to_fill_l2(instance.bytes_per_run, device)
        others = []
        for _ in range(copies - 1):
            others.append(type(instance)(options, **parameters))
            stack.callback(others[-1].close)
        builders = instance.providers
        graphs = {
            name: gpu_timing.capture([run, *(builders[name](other) for other in others)], device)
            for name, run in runs.items()
        }
        return "graph", graphs, gpu_timing.graph_timer(device, copies)
    slowest = max(numbers["host_us"] for numbers in apart.values()) / 1e6
    return "events", runs, gpu_timing.event_timer(device, slowest)
