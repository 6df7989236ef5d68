"""How a case becomes rows: its providers are checked first, and only then timed, in turn."""

import shlex
import sys
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

from benchmarks import gpu_timing
from benchmarks.case import Case, Options, dtype_name, label, shape_name
from benchmarks.machine import Ceilings, Watch
from benchmarks.peers import Absent, version
from benchmarks.results import COMPILED
from benchmarks.timing import Band, Run, Sample, Timer, measure, stretches, wall_timer


class Verdict(NamedTuple):
    """What came of a provider's check, with the names of a row's fields."""

    status: str
    reason: str | None = None
    max_error: float | None = None


def measure_case(
    case: type[Case],
    parameters: dict[str, Any],
    options: Options,
    ceilings: Ceilings,
    timer: Timer | None = None,
) -> Iterator[dict[str, Any]]:
    """Check and time all providers of a case on one set of its parameters.

    Args:
        case: the case.
        parameters: one of `case.parameters(options)`.
        options: what the user asked for.
        ceilings: of this machine.
        timer: the one that goes with the case and the device, by default.

    Yields:
        The part of a `results.Row`, per provider, that does not describe the machine.
    """
    watch = Watch(options.device)
    verdicts: dict[str, Verdict] = {}
    measured: dict[str, dict[str, Any]] = {}
    work: dict[str, int | None] = dict.fromkeys(("bytes", "flops", "images"))
    with ExitStack() as stack:
        try:
            instance = case(options, **parameters)
            stack.callback(instance.close)
            work = {"bytes": instance.bytes_per_run, "flops": instance.flops_per_run, "images": instance.images_per_run}
            verdicts = _check_all(instance)
            sound = [name for name, verdict in verdicts.items() if verdict.status == "ok"]
            if sound:
                measured = _time(instance, parameters, options, sound, timer, stack)
                for name in sound:
                    measured[name]["timeline"] = instance.timeline(name)
        except Exception as error:
            verdicts, measured = dict.fromkeys(case.providers, _failure(error)), {}
        state = watch.state()

    for provider in case.providers:
        numbers = measured.get(provider, _NOTHING)
        yield {
            "op": case.name,
            "direction": case.direction,
            "shape": shape_name(parameters),
            "dtype": dtype_name(parameters),
            "provider": provider,
            "version": version(case.packages.get(provider, "fastfeed" if provider == "fastfeed" else "torch")),
            "peer": provider != "fastfeed" and provider not in case.no_peers,
            "baseline": case.baseline,
            **verdicts[provider]._asdict(),
            **_NOTHING,
            **numbers,
            **work,
            **_rates(numbers, work, ceilings),
            "command": _command(label(case, parameters), options),
            **state,
        }


def _check_all(case: Case) -> dict[str, Verdict]:
    verdicts = {}
    for provider in case.providers:
        try:
            verdicts[provider] = Verdict("ok", max_error=case.check(provider))
        except Exception as error:
            verdicts[provider] = _failure(error)
    if verdicts[case.baseline].status != "ok":
        unsound = Verdict("failed", f"{case.baseline}, the baseline, is not sound")
        verdicts = {name: verdict if name == case.baseline else unsound for name, verdict in verdicts.items()}
    return verdicts


def _failure(error: Exception) -> Verdict:
    reason = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, Absent):
        return Verdict("absent", reason)
    if isinstance(error, AssertionError):
        return Verdict("wrong", reason)
    traceback.print_exception(error)  # to stderr: the row has no room for where it happened
    return Verdict("failed", reason)


# A row's measured fields, for a provider that was not timed.
_NOTHING: dict[str, Any] = {
    "timing": None,
    "rounds": 0,
    **dict.fromkeys(("p20_us", "p50_us", "p80_us", "samples_us", "host_us", "launches", "cores_used", "peak_bytes")),
    **dict.fromkeys(("speedup_p20", "speedup_p50", "speedup_p80", "speedup_samples", "speedup_compiled", "timeline")),
}


def _time(
    instance: Case,
    parameters: dict[str, Any],
    options: Options,
    providers: list[str],
    timer: Timer | None,
    stack: ExitStack,
) -> dict[str, dict[str, Any]]:
    """Return the measured fields of each provider. Instances made here are closed by `stack`."""
    on_gpu = options.device.type == "cuda" and not instance.wall_clock
    runs = {name: instance.providers[name](instance) for name in providers}
    apart = {name: _apart(run, options) if on_gpu else {} for name, run in runs.items()}
    if not on_gpu:
        timing, timed = "wall", runs
        timer = timer or wall_timer(options.device)
    else:
        timing, timed, timer = _gpu_runs(instance, parameters, options, runs, apart, stack)
    samples = measure(timed, timer, options.budget)

    def fields(name: str) -> dict[str, Any]:
        seconds = [sample.seconds for sample in samples[name]]
        speedups = _ratios(samples, instance.baseline, name)
        return {
            "timing": timing,
            "rounds": len(seconds),
            **{f"{percentile}_us": value * 1e6 for percentile, value in Band.of(seconds)._asdict().items()},
            "samples_us": [value * 1e6 for value in stretches(seconds)],
            "cores_used": sum(s.processor for s in samples[name]) / sum(seconds) if timing == "wall" else None,
            **{f"speedup_{percentile}": value for percentile, value in Band.of(speedups)._asdict().items()},
            "speedup_samples": stretches(speedups),
            "speedup_compiled": Band.of(_ratios(samples, COMPILED, name)).p50 if COMPILED in samples else None,
            **apart[name],
        }

    return {name: fields(name) for name in providers}


def _ratios(samples: dict[str, list[Sample]], slower: str, faster: str) -> list[float]:
    return [a.seconds / b.seconds for a, b in zip(samples[slower], samples[faster], strict=True)]


def _apart(run: Run, options: Options) -> dict[str, Any]:
    """What is measured on a GPU apart from the device's time, one provider after the other."""
    run()
    return {
        "host_us": gpu_timing.host_seconds(run, options.device) * 1e6,
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
        try:
            builders = instance.providers
            graphs = {
                name: gpu_timing.capture([run, *(builders[name](other) for other in others)], device)
                for name, run in runs.items()
            }
            return "graph", graphs, gpu_timing.graph_timer(device, copies)
        except RuntimeError as error:
            print(f"{label(type(instance), parameters)}: not captured in a CUDA graph: {error}", file=sys.stderr)
    slowest = max(numbers["host_us"] for numbers in apart.values()) / 1e6
    return "events", runs, gpu_timing.event_timer(device, slowest)


def _rates(numbers: dict[str, Any], work: dict[str, int | None], ceilings: Ceilings) -> dict[str, float | None]:
    """Return the work over the median time, and in percent of what the machine can do."""
    us = numbers["p50_us"]

    def per_second(amount: int | None, unit: float) -> float | None:
        return amount / us * 1e6 / unit if amount is not None and us is not None else None

    gb_per_s = per_second(work["bytes"], 1e9)

    def percent(ceiling: float | None) -> float | None:
        return 100 * gb_per_s / ceiling if gb_per_s is not None and ceiling is not None else None

    return {
        "gb_per_s": gb_per_s,
        "percent_of_copy": percent(ceilings.copy_gb_per_s),
        "percent_of_peak": percent(ceilings.peak_gb_per_s),
        "tflop_per_s": per_second(work["flops"], 1e12),
        "img_per_s": per_second(work["images"], 1),
    }


def _command(label: str, options: Options) -> str:
    command = ["python", "-m", "benchmarks", "run", "--filter", label, "--device", options.device.type]
    command += ["--quick"] if options.quick else []
    command += ["--data", str(options.data)] if options.data else []
    command += ["--threads", str(options.threads)]
    return shlex.join(command)
