"""The CUDA code, checked as far as a compiler can: machine code for three generations, without spills."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CSRC = Path(__file__).parents[2] / "csrc"
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


@pytest.mark.skipif(NVCC is None, reason="needs nvcc: the extension here was built without CUDA")
@pytest.mark.parametrize("architecture", ["sm_80", "sm_90", "sm_100"])
def test_kernels_compile_without_spills(architecture, tmp_path, capsys):
    command = [
        NVCC,
        "-cubin",
        CSRC / "finish_cuda.cu",
        "-o",
        tmp_path / "out.cubin",
        "-std=c++17",
        "-O3",
        "-fmad=false",
    ]
    command += [f"-arch={architecture}", "-Xptxas", "-v,-warn-spills", "-DFASTFEED_CUDA"]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    resources = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", result.stderr)
    registers = [int(r) for r in re.findall(r"Used (\d+) registers", result.stderr)]
    # three numbers of channels; for each, three output types in two memory formats, and pixel by pixel
    assert len(resources) == len(registers) == 21
    assert set(resources) == {("0", "0", "0")}
    with capsys.disabled():
        print(f"\nfinish {architecture}: {min(registers)} to {max(registers)} registers, no spills")
