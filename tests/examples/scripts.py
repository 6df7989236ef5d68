"""How these tests run the scripts of examples/, and what they train them on."""

import runpy
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from tests.integration.processes import ROOT, environment

EXAMPLES = ROOT / "examples"
LAUNCHER = ROOT / "tests" / "examples" / "run_script.py"


def start(name, *arguments, ranks=1, **variables):
    """Start an example in processes of its own, under torchrun where there are several ranks."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    command = [sys.executable, *torchrun, LAUNCHER, EXAMPLES / name, *arguments]
    variables = {key: str(value) for key, value in {**environment(), **variables}.items()}
    variables.pop("TRITON_INTERPRET", None)  # as a user runs it
    return subprocess.Popen(
        list(map(str, command)), env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, *, status=0):
    """Wait for an example; return the lines that it printed."""
    try:
        printed, errors = process.communicate(timeout=200)
    finally:
        process.kill()
    assert process.returncode == status, errors
    return printed.splitlines()


def run(name, *arguments):
    """Run an example in this process; return its status, or what it says is wrong, or None."""
    script = str(EXAMPLES / name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.delenv("TRITON_INTERPRET", raising=False)
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as stopped:
            return stopped.code


def functions(name):
    """Return what an example defines."""
    return runpy.run_path(str(EXAMPLES / name), run_name="example")


COLOURS = {"blue": (40, 60, 190), "green": (50, 170, 60), "red": (200, 50, 40), "yellow": (200, 190, 50)}


def write_colours(root, count, names=("blue", "green", "red")):
    """Write `count` noisy pictures of each colour, which a network tells apart after a few steps."""
    rng = np.random.default_rng(count)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = np.array(COLOURS[name]) + rng.normal(0, 20, 3) + rng.normal(0, 25, (40, 48, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name / f"{i:02}.jpg")
    return root
