"""The machine that rows were measured on: its limits, its clocks, its names."""

import multiprocessing
import subprocess
import threading
import time

import pytest
import torch

from benchmarks import environment, machine, watch
from benchmarks.machine import Ceilings
from benchmarks.results import COMMITTED, device_folder
from benchmarks.timing import Sample, wall_timer

CPU = torch.device("cpu")


def _spin(seconds):
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def _spin_in_the_middle(barrier):
    barrier.wait()
    _spin(0.3)
    barrier.wait()
    barrier.wait()


def test_processor_time_is_that_of_threads_and_workers_too():
    context = multiprocessing.get_context("forkserver")
    barrier = context.Barrier(2)
    worker = context.Process(target=_spin_in_the_middle, args=(barrier,))
    worker.start()

    def run():
        threads = [threading.Thread(target=_spin, args=(0.2,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        barrier.wait()

    barrier.wait()  # it has started, which takes processor time as well
    sample = wall_timer(CPU)(run)
    barrier.wait()
    worker.join()
    # 0.2 s in the threads together, whose clock is the process's; 0.3 in the worker, counted in ticks of 10 ms.
    assert 0.45 < sample.processor < 1.0
    assert wall_timer(CPU)(lambda: time.sleep(0.2)).processor < 0.1


def test_ceilings_are_those_of_a_copy_and_a_product():
    done = []

    def timer(run):
        done.append(run())
        return Sample(0.5 if done[-1].dtype == torch.uint8 else 0.25)

    found = machine.ceilings(CPU, timer)
    # Bytes read plus bytes written; a multiplication and an addition.
    assert found == Ceilings((4 << 20) / 0.5 / 1e9, 2 * 256**3 / 0.25 / 1e12, "float32", None)
    copied, product = sorted(done[-2:], key=lambda output: output.dtype != torch.uint8)
    assert copied.numel() * 2 == 4 << 20
    assert product.shape == (256, 256)
    assert (product != 0).all()


def test_what_slows_the_machine_down_is_noticed(monkeypatch):
    times = iter([[0] * 8, [50, 0, 0, 48, 0, 0, 0, 2]])
    throttled, seconds = iter([1.5, 4.0]), iter([10.0, 20.0])
    monkeypatch.setattr(watch, "_processor_times", lambda: next(times))
    monkeypatch.setattr(watch, "_throttled_seconds", lambda: next(throttled))
    monkeypatch.setattr(watch.time, "monotonic", lambda: next(seconds))
    _, slowed = watch.Watch(CPU).state()
    assert slowed == {"processors taken by the host": 0.02, "the control group's limit": 0.25}


def test_what_a_gpu_says_of_its_clock():
    # Idle; at work; held back by its power; by its power and its heat; nothing known.
    answers = "345, 0x0000000000000001\n1980, 0x0000000000000000\n1500, 0x0000000000000004\n1300, 0x0000000000000044\n"
    clock, slowed = watch.read_answers(answers + "[N/A], [N/A]\n")
    assert clock == 1500
    assert slowed == {"power cap": pytest.approx(2 / 3), "hardware thermal slowdown": pytest.approx(1 / 3)}
    assert watch.read_answers("") == (None, {})


@pytest.mark.parametrize(("change", "dirty"), [("", False), ("code.py", True), ("benchmarks/results/a.jsonl", False)])
def test_commit_says_whether_the_code_was_changed(change, dirty, tmp_path, monkeypatch):
    files = ("code.py", "benchmarks/results/a.jsonl", "benchmarks/environment.py")
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("")
    for command in ("init -q", "add .", "-c user.name=a -c user.email=a@b.c commit -qm a"):
        subprocess.run(["git", *command.split()], cwd=tmp_path, check=True)
    if change:
        (tmp_path / change).write_text("changed")
    monkeypatch.setattr(environment, "__file__", str(tmp_path / "benchmarks/environment.py"))
    commit = environment._commit()
    assert commit.endswith("-dirty") is dirty
    assert len(commit.removesuffix("-dirty")) == 12


def test_where_results_of_a_device_lie():
    gpu = {"gpu": "NVIDIA H200", "cpu": "any", "cores": 16}
    assert device_folder(gpu) == COMMITTED / "nvidia-h200"
    cpu = {"gpu": None, "cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 2}
    assert device_folder(cpu).name == "amd-epyc-7b13-64-core-processor-2-cores"
