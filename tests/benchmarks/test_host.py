"""`make bench`: that everything in it runs, and that what it prints is right for times that are known."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SLEEPS = """
import time

def test_sleep(versus):
    versus(lambda: time.sleep({ours}), lambda: time.sleep(0.012), rounds=10)
"""


def run_pytest(*arguments, cwd=ROOT):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), environment.get("PYTHONPATH")]))
    command = [sys.executable, "-m", "pytest", "-q", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_everything_in_it_runs():
    done = run_pytest("benchmarks/host", "--benchmark-disable")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^\d+ passed", done.stdout.splitlines()[-1]), done.stdout


@pytest.fixture
def ratio_line(tmp_path):
    def measure(ours):
        (tmp_path / "test_sleeps.py").write_text(SLEEPS.format(ours=ours))
        options = ["--benchmark-autosave", "--benchmark-compare", "--benchmark-storage", f"file://{tmp_path}/saved"]
        done = run_pytest("test_sleeps.py", "-p", "benchmarks.host.conftest", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stdout
        (line,) = (line for line in done.stdout.splitlines() if line.startswith("test_sleeps.py::test_sleep "))
        return line

    return measure


def test_ratios_and_what_became_of_them(ratio_line):
    first, second = ratio_line(0.004), ratio_line(0.012)
    ratio = r"([\d.]+)x  \([\d.]+-[\d.]+\)"
    measured, longer = re.search(rf"{ratio}  ([+-][\d.]+) µs$", first).groups()
    assert 2.0 < float(measured) < 3.2  # a sleep lasts a little longer
    assert -9e3 < float(longer) < -7e3
    again, saved = re.search(rf"{ratio}  was +{ratio}  [+-][\d.]+ µs$", second).groups()
    assert 0.8 < float(again) < 1.2
    assert saved == measured
