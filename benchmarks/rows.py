"""From what the passes over a case measured to the rows of results."""

import shlex
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from benchmarks.case import Case, Options, dtype_name, label, shape_name
from benchmarks.harness import Pass, Verdict
from benchmarks.machine import Ceilings
from benchmarks.peers import version
from benchmarks.results import COMPILED
from benchmarks.timing import Band, Sample


def make_rows(
    case: type[Case], parameters: dict[str, Any], options: Options, ceilings: Ceilings, passes: Sequence[Pass]
) -> list[dict[str, Any]]:
    """Return the part of a `results.Row`, per provider, that does not describe the machine.

    Args:
        case: the case.
        parameters: the ones that `passes` were made with.
        options: likewise.
        ceilings: of this machine.
        passes: one or more.
    """
    verdicts = {provider: _verdict(provider, passes) for provider in case.providers}
    timed = [provider for provider, verdict in verdicts.items() if verdict.status == "ok"]
    work = passes[0].work
    slowed: dict[str, float] = {}
    for done in passes:
        slowed |= {reason: max(share, slowed.get(reason, 0)) for reason, share in done.slowed_by.items()}
    rows = []
    for provider in case.providers:
        numbers = _numbers(provider, case.baseline, COMPILED in timed, passes) if provider in timed else _NOTHING
        rows.append(
            {
                "op": case.name,
                "direction": case.direction,
                "shape": shape_name(parameters),
                "dtype": dtype_name(parameters),
                "provider": provider,
                "version": version(case.packages.get(provider, "fastfeed" if provider == "fastfeed" else "torch")),
                "peer": provider != "fastfeed" and provider not in case.no_peers,
                "baseline": case.baseline,
                **verdicts[provider]._asdict(),
                **numbers,
                **work,
                **_rates(numbers, work, ceilings),
                "command": _command(label(case, parameters), options),
                "clock_mhz": passes[-1].clock_mhz,
                "slowed_by": ", ".join(f"{reason} ({share:.0%})" for reason, share in slowed.items()) or None,
            }
        )
    return rows


def _verdict(provider: str, passes: Sequence[Pass]) -> Verdict:
    """The first that is not "ok", if there is one: what is wrong once is wrong."""
    verdicts = [done.verdicts[provider] for done in passes]
    return next((verdict for verdict in verdicts if verdict.status != "ok"), verdicts[0])


_PERCENTILES = ("p20", "p50", "p80")

# The measured fields of a row that was not timed.
_NOTHING: dict[str, Any] = {
    "timing": None,
    "rounds": 0,
    **dict.fromkeys([f"{percentile}_us" for percentile in _PERCENTILES]),
    **dict.fromkeys([f"speedup_{percentile}" for percentile in _PERCENTILES]),
    **dict.fromkeys(("samples_us", "speedup_samples", "speedup_compiled")),
    **dict.fromkeys(("host_us", "launches", "cores_used", "peak_bytes", "timeline", "data_wait", "device_wait")),
}


def _numbers(provider: str, baseline: str, compiled: bool, passes: Sequence[Pass]) -> dict[str, Any]:
    """The measured fields of a row."""
    seconds = [[sample.seconds for sample in done.samples[provider]] for done in passes]
    speedups = [_ratios(done.samples, baseline, provider) for done in passes]
    first = passes[0]
    record = first.records[provider]
    wall = first.timing == "wall"
    processor = sum(sample.processor for done in passes for sample in done.samples[provider])
    over_compiled = [_ratios(done.samples, COMPILED, provider) for done in passes] if compiled else None
    return _NOTHING | {
        "timing": first.timing,
        "rounds": sum(map(len, seconds)),
        **{f"{name}_us": value * 1e6 for name, value in Band.of(_all(seconds))._asdict().items()},
        "samples_us": [value * 1e6 for value in _samples(seconds)],
        "cores_used": processor / sum(map(sum, seconds)) if wall else None,
        **{f"speedup_{name}": value for name, value in Band.of(_all(speedups))._asdict().items()},
        "speedup_samples": _samples(speedups),
        "speedup_compiled": Band.of(_all(over_compiled)).p50 if over_compiled else None,
        **(record._asdict() if record is not None else {}),
        **first.apart[provider],
    }


def _ratios(samples: dict[str, list[Sample]], slower: str, faster: str) -> list[float]:
    return [a.seconds / b.seconds for a, b in zip(samples[slower], samples[faster], strict=True)]


def _all(passes: Sequence[Sequence[float]]) -> list[float]:
    return list(chain.from_iterable(passes))


def _samples(passes: Sequence[Sequence[float]]) -> list[float]:
    return [float(np.median(values)) for values in passes]


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
