"""Everything a GPU machine is asked for, in nine minutes and without a network: ``make gpu``.

Builds the extension in place, runs the tests that need a GPU, has compute-sanitizer look over the extension, runs the
benchmarks, and writes results and a report under benchmarks/results/. It uses the Python it is run with, where PyTorch,
NumPy, Pillow, pybind11 and pytest must be, and installs fastfeed there, from this checkout, without its
dependencies; what else is missing is said and left out.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.results import FILE, device_folder, read_rows
from benchmarks.table import short

ROOT = Path(__file__).parents[1]
LOGS = ROOT / "build" / "gpu"
MINUTES = 9
NOT_FOUND = "not found"  # how a step ended whose program is not here
RESERVE = 25  # seconds at the end, for the report and the table
GRACE = 5  # seconds in which a step that was too long may say what it has found


class Step(NamedTuple):
    """A command, and how many seconds it may take; what runs longer is interrupted, and the rest goes on."""

    name: str
    command: Sequence[str]
    limit: float
    environment: Mapping[str, str] = {}
    needed: bool = False  # without it, the rest is not worth running


class Outcome(NamedTuple):
    """What came of a step: how it ended, the last line it wrote, and the seconds it took."""

    name: str
    ended: str
    last_line: str
    seconds: float


def steps(python: str, results: Path) -> list[Step]:
    """Return what `make gpu` does before the report; `results` is where rows go.

    The benchmarks come last and take what time is left: a first pass over as many as that allows.
    """
    module = [python, "-m"]
    install = [*module, "pip", "install", "-q", "-e", ".", "--no-build-isolation", "--no-deps", "--no-index"]
    pytest = [*module, "pytest", "-q", "-m", "gpu", "--no-header", "-p", "no:cacheprovider"]
    # No other files: they may import what this machine does not have. Those of the benchmarks, which compile and start
    # processes, come last: what is too late for the time are not the kernels.
    files = [file for file in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in file.read_text()]
    files.sort(key=lambda file: "benchmarks" in file.parts)
    # The extension's CUDA code is all in the last pass, of which these tests run every kernel, and the ring's buffers.
    # Triton's kernels are tested, not swept: under a checker they take minutes.
    kernels = [*pytest, "-x", "tests/data/test_finish.py::test_sizes"]
    ring = "tests/data/test_prefetch_gpu.py::test_batches"
    sanitizer = [shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer", "--error-exitcode", "9"]
    # Accesses alone: calls that fail and are asked for, as PyTorch asks for functions that a driver may lack, are no
    # errors, and ours raise.
    memcheck = ["--tool", "memcheck", "--report-api-errors", "no"]
    exact = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # else an access past the end lands in PyTorch's own pool
    # The machine's own code and no other: a tenth of the time that all architectures take.
    build = {"FASTFEED_CUDA_ARCH": "native"}
    return [
        Step("build", install, 120, build, needed=True),
        Step("tests", [*pytest, "--durations=15", *map(str, files)], 170),
        Step("memcheck", [*sanitizer, *memcheck, *kernels, ring], 50, exact),
        Step("racecheck", [*sanitizer, "--tool", "racecheck", *kernels], 40, exact),
        Step("benchmarks", [*module, "benchmarks", "run", "--quick", "--device", "cuda", "-o", str(results)], 300),
    ]


def run(plan: Sequence[Step], logs: Path, seconds: float) -> list[Outcome]:
    """Run the steps one after the other, each within its limit and all within `seconds`.

    Each writes to `logs`/<name>.log. A step that is too long is interrupted, as by Ctrl-C, on which pytest says what
    has failed so far, and after GRACE seconds stopped with everything it started. A step that fails does not keep the
    next ones from running, unless it is needed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for step in plan:
        left = min(step.limit, end - time.monotonic())
        if left <= 0:
            outcomes.append(Outcome(step.name, "no time left", "", 0.0))
            continue
        outcome = _run(step, logs / f"{step.name}.log", left)
        outcomes.append(outcome)
        print(_line(outcome), flush=True)
        if step.needed and outcome.ended != "ok":
            break
    return outcomes


def _run(step: Step, log: Path, limit: float) -> Outcome:
    start = time.monotonic()
    with open(log, "w") as file:
        try:
            process = subprocess.Popen(
                step.command,
                cwd=ROOT,
                env=os.environ | step.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a group of its own, so that it can be stopped with its children
            )
        except OSError as error:
            return Outcome(step.name, NOT_FOUND, f"{step.command[0]}: {error.strerror}", 0.0)
        try:
            code = process.wait(limit)
            ended = "ok" if code == 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            ended = f"stopped after {limit:.0f} s"
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        finally:
            _stop(process)
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return Outcome(step.name, ended, lines[-1] if lines else "", time.monotonic() - start)


def _stop(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):  # all of them have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _line(outcome: Outcome) -> str:
    return f"{outcome.name:11} {outcome.seconds:4.0f} s  {outcome.ended:20} {outcome.last_line[:110]}"


def main() -> int:
    """Do it all, and print a short table last.

    Returns:
        0; 1 if a step did not end well; 2 if there is no GPU, or no PyTorch to use it.
    """
    begun, end = time.time(), time.monotonic() + MINUTES * 60 - RESERVE
    try:
        import torch
    except ImportError as error:
        print(f"make gpu: {error}. PYTHON=... names another Python, {sys.executable} was asked", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(
            f"make gpu: PyTorch {torch.__version__} sees no NVIDIA GPU (torch.cuda.is_available() is False)",
            file=sys.stderr,
        )
        return 2
    results = device_folder({"gpu": torch.cuda.get_device_name()})
    outcomes = run(steps(sys.executable, results), LOGS, end - time.monotonic())
    if outcomes[-1].name == "benchmarks":
        report = [sys.executable, "-m", "benchmarks", "report", str(results)]
        outcomes += run([Step("report", report, RESERVE / 2)], LOGS, RESERVE / 2)
    print(f"\nlogs     {LOGS}\nresults  {results}", flush=True)
    # A checker that is not here is said, and no failure.
    failed = [outcome.name for outcome in outcomes if outcome.ended not in ("ok", NOT_FOUND)]
    if (results / FILE).is_file() and (results / FILE).stat().st_mtime >= begun:  # not those of an earlier run
        print(short(read_rows(results)))
    else:
        print("nothing was measured")
    if failed:
        print(f"\nDid not end well: {', '.join(failed)}. The logs say why")
    return 1 if failed else 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # the step is stopped too
    sys.exit(main())
