import json
import os
import re
import shlex
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch

from benchmarks.__main__ import main
from benchmarks.case import Case, Options
from benchmarks.cases import all_cases
from benchmarks.cases.optimizers import AdamWCase
from benchmarks.gpu_timing import capture
from benchmarks.harness import measure_pass
from benchmarks.machine import Ceilings
from benchmarks.peers import Absent, need
from benchmarks.results import Row, read_rows
from benchmarks.rows import make_rows
from benchmarks.timing import Band, Unfinished, wall_timer

ROOT = Path(__file__).parents[2]
CPU = Options(torch.device("cpu"))
PARAMETERS = {"shape": (2, 3), "dtype": torch.float32}

CEILINGS = Ceilings(copy_gb_per_s=4e-6, matmul_tflop_per_s=1.0, matmul_dtype="float32", peak_gb_per_s=None)


class Clock:
    """A clock that stands still until a run moves it."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def fake_case(seconds, clock=None, outputs=None):
    """A case whose providers take `seconds[provider]`, in turn, and log when they are run outside of a check."""
    outputs = outputs or {}

    class Fake(Case):
        name = "fake"
        direction = "forward"
        baseline = "slow"
        log: ClassVar = []
        closed = 0

        @classmethod
        def parameters(cls, options):
            return [PARAMETERS, {"shape": "other", "dtype": torch.float32}][: 1 if options.quick else 2]

        def __init__(self, options, shape, dtype):
            self.bytes_per_run = 6000
            self.flops_per_run = 12_000_000
            self.images_per_run = 6
            self.checking = False

        def check(self, provider):
            self.checking = True
            try:
                return super().check(provider)
            finally:
                self.checking = False

        def close(self):
            type(self).closed += 1

        def run(self, provider, times):
            if not self.checking:
                self.log.append(provider)
                if clock is not None:
                    clock.now += next(times)
            output = outputs.get(provider, 1.0)
            if isinstance(output, Exception):
                raise output
            return torch.tensor(output)

    def builder(provider):
        times = iter(seconds[provider])
        return lambda case: lambda: case.run(provider, times)

    Fake.providers = {provider: builder(provider) for provider in seconds}
    return Fake


def measure(case, clock, passes=1):
    """The rows of some passes, by provider."""
    done = []
    for _ in range(passes):
        before = done[0] if done else None
        done.append(measure_pass(case, PARAMETERS, CPU, before, wall_timer(CPU.device, clock)))
    return {row["provider"]: row for row in make_rows(case, PARAMETERS, CPU, CEILINGS, done)}


# A warm-up round, which is far slower, then three that together exceed the budget of a pass, 2 s.
SLOW = [10.0, 0.2, 0.6, 1.4]
FAST = [10.0, 0.1, 0.2, 0.8]
ROUNDS = 3


def test_providers_take_turns():
    clock = Clock()
    case = fake_case({"slow": SLOW, "fast": FAST, "other": SLOW}, clock)
    rows = measure(case, clock)
    rounds = [tuple(case.log[i : i + 3]) for i in range(0, len(case.log), 3)]
    assert len(rounds) == 1 + ROUNDS
    assert all(sorted(providers) == ["fast", "other", "slow"] for providers in rounds)
    assert len(set(rounds)) > 1  # in other orders, so that none always comes after the same one
    assert {row["rounds"] for row in rows.values()} == {ROUNDS}


def test_short_runs_fill_the_budget():
    clock = Clock()
    rows = measure(fake_case({"slow": [0.25] * 100, "fast": [0.25] * 100}, clock), clock)
    assert rows["fast"]["rounds"] == CPU.budget / CPU.passes / 0.5


def test_percentiles():
    assert Band.of([10, 0, 9, 1, 8, 2, 7, 3, 6, 4, 5]) == Band(2, 5, 8)
    assert Band.of([1, 2]) == pytest.approx(Band(1.2, 1.5, 1.8))


def test_row_holds_percentiles_of_the_timed_rounds_and_rates_at_the_median():
    clock = Clock()
    row = measure(fake_case({"slow": SLOW}, clock), clock)["slow"]
    assert (row["p20_us"], row["p50_us"], row["p80_us"]) == pytest.approx((3.6e5, 6e5, 1.08e6))
    assert row["gb_per_s"] == pytest.approx(6000 / 0.6 / 1e9)
    assert row["percent_of_copy"] == pytest.approx(250)
    assert row["percent_of_peak"] is None
    assert row["tflop_per_s"] == pytest.approx(2e-5)
    assert row["img_per_s"] == pytest.approx(10)
    assert row["samples_us"] == pytest.approx([6e5])
    assert row["timing"] == "wall"
    assert row["max_error"] == 0


def test_speedup_is_the_median_of_the_ratios_within_rounds():
    clock = Clock()
    rows = measure(fake_case({"slow": SLOW, "fast": FAST}, clock), clock)
    # Of the ratios 2, 3, 1.75. The ratio of the medians would be 0.6 / 0.2.
    assert rows["fast"]["speedup_p50"] == pytest.approx(2)
    assert rows["fast"]["speedup_p20"] == pytest.approx(1.85)
    assert rows["fast"]["speedup_p80"] == pytest.approx(2.6)
    assert rows["slow"]["speedup_p50"] == 1


def test_speedup_over_the_compiled_baseline_by_rounds():
    clock = Clock()
    rows = measure(fake_case({"slow": SLOW, "torch.compile": FAST, "fast": FAST}, clock), clock)
    assert rows["fast"]["speedup_compiled"] == 1
    assert rows["slow"]["speedup_compiled"] == pytest.approx(0.5)
    assert measure(fake_case({"slow": SLOW}, clock), clock)["slow"]["speedup_compiled"] is None


def test_passes_are_summed_up():
    clock = Clock()
    turns = [100.0, 1.0, 3.0, 100.0, 4.0, 6.0]  # two passes of a warm-up and two rounds
    rows = measure(fake_case({"slow": turns, "fast": [2.0] * 6}, clock), clock, passes=2)
    assert rows["slow"]["samples_us"] == [2e6, 5e6]
    assert rows["fast"]["speedup_samples"] == [1, 2.5]
    assert rows["slow"]["rounds"] == 4
    assert rows["slow"]["p50_us"] == pytest.approx(3.5e6)
    assert rows["fast"]["speedup_p50"] == pytest.approx(1.75)


def test_later_passes_check_nothing_and_time_what_was_right():
    clock = Clock()
    outputs = {"bad": 2.0}
    case = fake_case({"slow": SLOW * 2, "bad": FAST, "good": FAST * 2}, clock, outputs)
    checked = []
    case.check = lambda self, provider, check=case.check: checked.append(provider) or check(self, provider)
    rows = measure(case, clock, passes=2)
    assert checked == ["slow", "bad", "good"]
    assert rows["bad"]["status"] == "wrong"
    assert rows["good"]["rounds"] == 2 * ROUNDS


def test_what_is_wrong_once_is_wrong():
    clock = Clock()
    outputs = {"fickle": 1.0}
    case = fake_case({"slow": SLOW * 3, "fickle": FAST * 2}, clock, outputs)
    passes = []
    for output in (1.0, 2.0, 1.0):
        outputs["fickle"] = output
        passes.append(measure_pass(case, PARAMETERS, CPU, None, wall_timer(CPU.device, clock)))
    rows = {row["provider"]: row for row in make_rows(case, PARAMETERS, CPU, CEILINGS, passes)}
    assert rows["fickle"]["status"] == "wrong"
    assert rows["fickle"]["p50_us"] is None
    assert rows["slow"]["status"] == "ok"


def test_what_a_run_leaves_to_be_finished_is_not_timed():
    clock = Clock()

    def finish():
        clock.now += 3.0

    def run():
        clock.now += 0.5
        return Unfinished("result", finish)

    timer = wall_timer(CPU.device, clock)
    for number in (1, 2):
        assert timer(run).seconds == 0.5
        assert clock.now == number * 3.5  # each was finished, once


def test_who_is_a_peer():
    clock = Clock()
    case = fake_case(dict.fromkeys(("slow", "fastfeed", "bound", "library"), SLOW), clock)
    case.no_peers = frozenset({"bound"})
    peers = {name: row["peer"] for name, row in measure(case, clock).items()}
    assert peers == {"slow": True, "fastfeed": False, "bound": False, "library": True}


def test_absent_provider_is_reported_and_no_failure(capsys):
    outputs = {"missing": Absent("not installed: pip install it"), "bad": 2.0}
    case = fake_case({"slow": [], "missing": [], "other": []}, outputs=outputs)
    assert run_main([case]) == 0
    assert "absent: not installed: pip install it" in capsys.readouterr().out
    clock = Clock()
    row = measure(fake_case({"slow": SLOW, "missing": []}, clock, outputs), clock)["missing"]
    assert (row["status"], row["reason"]) == ("absent", "not installed: pip install it")
    assert row["p50_us"] is row["max_error"] is None


def test_need(tmp_path, monkeypatch):
    assert need("json.decoder").JSONDecoder is json.JSONDecoder
    for module in ("no_such_module", "json.no_such_module"):
        with pytest.raises(Absent, match="not installed: pip install thing"):
            need(module, "pip install thing")
    (tmp_path / "needs_another.py").write_text("import no_such_module")
    (tmp_path / "needs_library.py").write_text("raise OSError('libthing.so: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Absent, match="cannot be imported: No module named 'no_such_module'"):
        need("needs_another")
    with pytest.raises(Absent, match="cannot be imported: libthing.so: cannot open"):
        need("needs_library")


@pytest.mark.parametrize(
    ("output", "status", "reason"),
    [
        (2.0, "wrong", "Expected 1.0 but got 2.0"),
        ([1.0, 1.0], "wrong", "shape"),
        (RuntimeError("no\nluck"), "failed", "no luck"),
    ],
)
def test_provider_that_fails_its_check_is_reported_and_not_timed(output, status, reason):
    clock = Clock()
    case = fake_case({"slow": SLOW, "bad": FAST, "good": FAST}, clock, {"bad": output})
    rows = measure(case, clock)
    assert "bad" not in case.log
    assert rows["bad"]["status"] == status
    assert reason in rows["bad"]["reason"]
    assert rows["bad"]["p50_us"] is rows["bad"]["speedup_p50"] is rows["bad"]["gb_per_s"] is None
    assert rows["good"]["status"] == "ok"
    assert rows["good"]["speedup_p50"] == pytest.approx(2)


def test_without_a_sound_baseline_nothing_is_timed():
    class Unsound(fake_case({"slow": SLOW, "fast": FAST})):
        def check(self, provider):
            if provider == self.baseline:
                raise AssertionError("not itself")

    rows = measure(Unsound, Clock())
    assert Unsound.log == []
    assert (rows["slow"]["status"], rows["slow"]["reason"]) == ("wrong", "not itself")
    assert (rows["fast"]["status"], rows["fast"]["reason"]) == ("failed", "slow, the baseline, is not sound")


def test_error_while_timing_fails_the_rows_and_closes_the_case():
    clock = Clock()
    case = fake_case({"slow": [1.0], "fast": [1.0]}, clock)  # the clock's second round finds nothing
    rows = measure(case, clock)
    assert [row["status"] for row in rows.values()] == ["failed", "failed"]
    assert case.closed == 1


def test_the_worst_pass_tells_what_slowed_it_down():
    clock = Clock()
    case = fake_case({"slow": SLOW * 3}, clock)
    done = measure_pass(case, PARAMETERS, CPU, None, wall_timer(CPU.device, clock))
    shares = ({"power cap": 0.1}, {"power cap": 0.4, "heat": 0.05}, {})
    passes = [done._replace(slowed_by=slowed, clock_mhz=1000.0 + i) for i, slowed in enumerate(shares)]
    (row,) = make_rows(case, PARAMETERS, CPU, CEILINGS, passes)
    assert row["slowed_by"] == "power cap (40%), heat (5%)"
    assert row["clock_mhz"] == 1002


def test_a_provider_that_raises_while_it_is_timed_takes_no_other_with_it():
    clock = Clock()
    outputs = {"missing": Absent("not here")}
    case = fake_case({"slow": SLOW * 2, "flaky": [10.0], "missing": [], "good": SLOW * 2}, clock, outputs)
    rows = measure(case, clock)  # flaky's clock has nothing to say in the first round
    assert {name: row["status"] for name, row in rows.items()} == {
        **{"slow": "ok", "good": "ok", "flaky": "failed", "missing": "absent"}
    }
    assert rows["good"]["speedup_p50"] is not None


def test_failed_rows_make_the_exit_code(capsys):
    assert run_main([fake_case({"slow": [], "bad": []}, outputs={"bad": RuntimeError("no")})]) == 1
    assert "1 rows are wrong or failed" in capsys.readouterr().err


def test_results_of_a_device_are_of_all_rows(capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main([fake_case({"slow": []})], "--filter", "fake", "-o")
    assert "name a DIR" in capsys.readouterr().err


def run_main(cases, *arguments):
    return main(["run", "--quick", "--device", "cpu", *arguments], cases)


def test_exit_code_and_table(capsys):
    good = fake_case({"slow": [], "fast": []})
    assert run_main([good]) == 0
    printed = capsys.readouterr().out
    assert "WRONG" not in printed
    assert re.search(r"^took +\d+ s$", printed, re.MULTILINE)

    bad = fake_case({"slow": [], "bad": []}, outputs={"bad": 2.0})
    assert run_main([good, bad]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "WRONG" in line)
    assert line.split()[:2] == ["bad", "WRONG,"]
    assert " ms" not in line
    assert " µs" not in line


def test_json_rows(tmp_path):
    case = fake_case({"slow": [], "bad": []}, outputs={"bad": 2.0})
    run_main([case], "-o", str(tmp_path / "new"))
    rows = [json.loads(line) for line in (tmp_path / "new/results.jsonl").read_text().splitlines()]
    assert [row["provider"] for row in rows] == ["slow", "bad"]
    assert rows == read_rows(tmp_path / "new")  # which compares the fields with Row's
    on_gpu = {"gpu", "cuda", "driver", "memory_bytes", "peak_gb_per_s", "host_us", "launches", "peak_bytes"}
    may_miss = {"reason", "commit", "dali", "triton", "clock_mhz", "slowed_by", "percent_of_peak"}
    of_steps = {"timeline", "data_wait", "device_wait"}
    needed = Row.__required_keys__ - on_gpu - may_miss - of_steps - {"speedup_compiled"}
    assert [field for field in needed if rows[0][field] is None] == []


@pytest.mark.parametrize("options", [[], ["--quick"], ["--data", "a folder"], ["--threads", "1"]])
def test_command_repeats_its_row(options, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("benchmarks.timing.SETTLE", 0.0)  # runs that take no time would go on for all of their budget
    Path("a folder").mkdir()
    case = fake_case({"slow": [], "fast": []})

    def rows_of(*arguments):
        main([*arguments, "-o", "results"], [case])
        return [json.loads(line) for line in Path("results/results.jsonl").read_text().splitlines()]

    rows = rows_of("run", "--device", "cpu", *options)
    assert len(rows) == 2 if "--quick" in options else 4
    for row in rows:
        python, flag, package, *arguments = shlex.split(row["command"])
        assert (python, flag, package) == ("python", "-m", "benchmarks")
        assert set(options) <= set(arguments)
        again = rows_of(*arguments)
        assert [r["provider"] for r in again] == ["slow", "fast"]
        assert {(r["shape"], r["command"]) for r in again} == {(row["shape"], row["command"])}


def test_list_runs_nothing(capsys):
    case = fake_case({"slow": [], "fast": []})
    assert main(["list", "--device", "cpu", "--filter", "other"], [case]) == 0
    assert capsys.readouterr().out == "fake/other/float32: slow, fast\n"
    assert case.log == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--filter", "nothing"], "no such row"), (["--data", "no/such/folder"], "no such folder: no/such/folder")],
)
def test_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_main([fake_case({"slow": []})], *arguments)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("variable", ["TRITON_INTERPRET", "TORCH_COMPILE_DISABLE"])
def test_what_would_be_timed_instead_is_refused(variable, monkeypatch, capsys):
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SystemExit, match="2"):
        run_main([fake_case({"slow": []})])
    assert f"{variable} is set" in capsys.readouterr().err


def test_a_run_that_no_graph_can_hold_is_blamed_itself(monkeypatch):
    class Graph:  # as torch.cuda.graph, which ends the capture however the block ends, and raises if it is broken
        def __init__(self, graph, stream):
            pass

        def __enter__(self):
            current.append("captured")

        def __exit__(self, *error):
            raise RuntimeError("operation failed due to a previous error during capture")

    def run():
        if current[-1] == "captured":
            raise ValueError("the run's own error")

    current = ["default"]
    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: current.append("default"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", Graph)
    with pytest.raises(ValueError, match="the run's own error"):
        capture([run], torch.device("cuda"))
    assert current[-1] == "default"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_end_to_end(device, tmp_path):
    arguments = ["--quick", "--device", device, "--filter", "adamw/squeezenet", "-o", str(tmp_path)]
    command = [sys.executable, "-m", "benchmarks", "run", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [row["provider"] for row in rows] == list(AdamWCase.providers)
    timed = {row["provider"]: row for row in rows if row["status"] == "ok"}
    assert {"torch", "torch fused", "fastfeed"} <= set(timed)
    assert len({row["rounds"] for row in timed.values()}) == 1
    assert all(row["p20_us"] <= row["p50_us"] <= row["p80_us"] for row in timed.values())
    assert all(row["gb_per_s"] > 0 for row in timed.values())
    assert [line.split()[0] for line in done.stdout.splitlines() if "baseline" in line] == ["torch"]
    assert torch.__version__ in done.stdout


def test_a_folder_that_cannot_be_written_is_an_error_of_the_command_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stopped:
        main(["run", "--filter", "finish", "--device", "cpu", "-o", str(tmp_path / "file" / "results")])
    assert stopped.value.code == 2
    assert "file/results: Not a directory" in capsys.readouterr().err


# All of a quick run but the time that it gives to each row: one timed round, in one pass. And nothing is compiled by
# PyTorch, which takes as long as the rest: what can be has a test of its own.
FEWEST_ROUNDS = """
import sys
from benchmarks import machine, timing
from benchmarks.__main__ import main
from benchmarks.case import Options
from benchmarks.cases import all_cases
from benchmarks.results import COMPILED

if __name__ == "__main__":
    for case in all_cases():
        case.providers = {name: builder for name, builder in case.providers.items() if name != COMPILED}
    timing.MIN_ROUNDS, machine.BUDGET, Options.budget, Options.passes = 1, 0.0, 0.0, 1
    sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_row_of_a_quick_run(tmp_path):
    """And nothing in it is wrong: what is not here is absent."""
    command = [sys.executable, "-c", FEWEST_ROUNDS, "run", "--quick", "--device", "cpu", "--threads", "1"]
    command += ["-o", str(tmp_path)]
    # Threads that wait leave their cores to others: without it this takes twice as long on a busy machine.
    environment = {**os.environ, "OMP_WAIT_POLICY": "passive"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path)
    assert {row["op"] for row in rows} == {case.name for case in all_cases()}
    assert {row["status"] for row in rows} <= {"ok", "absent"}
    assert all(row["status"] == "ok" for row in rows if row["provider"] in ("fastfeed", row["baseline"]))
    assert {row["rounds"] for row in rows if row["status"] == "ok"} == {1}
