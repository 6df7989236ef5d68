"""`make gpu`: that it ends in time, whatever its steps do."""

import os
import subprocess
import sys
import time

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu import Step, run


def python(name, script, limit=20.0, **fields):
    return Step(name, [sys.executable, "-c", script], limit, **fields)


def test_steps_run_in_order_and_a_failure_does_not_stop_the_rest(tmp_path, capsys):
    plan = [
        python("first", "print('noise'); print('12 passed'); print()"),
        python("second", "import os, sys; print(os.environ['SETTING']); sys.exit(3)", environment={"SETTING": "here"}),
        Step("third", ["no-such-command"], 1),
        python("fourth", ""),
    ]
    outcomes = run(plan, tmp_path / "logs", 60)
    assert [(o.name, o.ended, o.last_line) for o in outcomes] == [
        ("first", "ok", "12 passed"),
        ("second", "exit code 3", "here"),
        ("third", "not found", "no-such-command: No such file or directory"),
        ("fourth", "ok", ""),
    ]
    assert (tmp_path / "logs/first.log").read_text() == "noise\n12 passed\n\n"
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["first", "second", "third", "fourth"]


def test_without_a_needed_step_the_rest_is_left_out(tmp_path):
    plan = [python("build", "raise SystemExit(1)", needed=True), python("tests", "")]
    assert [o.name for o in run(plan, tmp_path, 60)] == ["build"]


def test_what_takes_too_long_is_stopped_with_its_children(tmp_path):
    # Children of children outlive a plain kill, keep the GPU, and hold the log open.
    alive = tmp_path / "alive"
    child = f"import time; time.sleep(2); open({str(alive)!r}, 'w')"
    script = (
        "import subprocess, sys, time\n"
        "print('begun', flush=True)\n"
        f"subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        "time.sleep(60)\n"
    )
    start = time.monotonic()
    (outcome,) = run([python("slow", script, limit=1.0)], tmp_path, 60)
    assert time.monotonic() - start < 10
    assert (outcome.ended, outcome.last_line) == ("stopped after 1 s", "KeyboardInterrupt")
    time.sleep(2.5)
    assert not alive.exists()


def test_what_takes_too_long_may_say_what_it_has_found(tmp_path):
    tests = tmp_path / "test_slow.py"
    tests.write_text("import time\ndef test_wrong(): assert 1 == 2\ndef test_slow(): time.sleep(60)\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    (outcome,) = run([Step("tests", command, 5.0)], tmp_path, 60)
    assert outcome.ended == "stopped after 5 s"
    assert "1 failed" in outcome.last_line
    assert "assert 1 == 2" in (tmp_path / "tests.log").read_text()


def test_what_does_not_listen_is_stopped_nevertheless(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "GRACE", 0.5)
    script = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    start = time.monotonic()
    (outcome,) = run([python("deaf", script, limit=1.0, environment={"PYTHONUNBUFFERED": "1"})], tmp_path, 60)
    assert time.monotonic() - start < 10
    assert (outcome.ended, outcome.last_line) == ("stopped after 1 s", "deaf")


def test_all_steps_together_keep_to_the_time(tmp_path):
    plan = [python(name, "import time; time.sleep(60)") for name in ("a", "b", "c")]
    start = time.monotonic()
    outcomes = run(plan, tmp_path, 1.9)
    assert time.monotonic() - start < 10
    assert [o.ended for o in outcomes] == ["stopped after 2 s", "no time left", "no time left"]


def test_the_tests_are_found_without_what_a_gpu_machine_lacks(tmp_path):
    # One file that can't be imported keeps pytest from running any.
    tests = next(step for step in gpu.steps(sys.executable, tmp_path) if step.name == "tests")
    command = list(tests.command[tests.command.index("pytest") + 1 :])
    lacks = "hypothesis expecttest accelerate lightning matplotlib timm torchdata torchvision nvidia pytest_timeout"
    script = (
        "import sys\n"
        f"for name in {lacks.split()}:\n"
        "    sys.modules[name] = None\n"
        f"import pytest\nsys.exit(pytest.main({[*command, '--collect-only']}))\n"
    )
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    ended = subprocess.run(
        [sys.executable, "-c", script], cwd=gpu.ROOT, env=environment, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-1000:]


def test_time_is_left_for_the_benchmarks(tmp_path):
    *others, benchmarks = gpu.steps(sys.executable, tmp_path)
    assert benchmarks.name == "benchmarks"
    assert gpu.MINUTES * 60 - gpu.RESERVE - sum(step.limit + gpu.GRACE for step in others) >= 110


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing where there is no GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main() == 2
    assert "sees no NVIDIA GPU" in capsys.readouterr().err
