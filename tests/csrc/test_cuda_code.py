"""The CUDA code, checked as far as a compiler can: the command that setup.py gives to nvcc makes machine code for three
generations of GPUs, without spills, that loads and stores whole vectors."""

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100")
BYTES = {"Float32": 4, "Float16": 2, "BFloat16": 2}

pytestmark = pytest.mark.skipif(NVCC is None, reason="needs nvcc: the extension here was built without CUDA")


@pytest.fixture(scope="module")
def shipped_command(tmp_path_factory):
    """Return nvcc's arguments in a build for sm_90, taken down by an nvcc that compiles nothing."""
    pytest.importorskip("setuptools")
    pytest.importorskip("pybind11")
    folder = tmp_path_factory.mktemp("cuda")
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text(
        f'#!/bin/sh\ncase "$1" in --version | --dryrun) exec "{NVCC}" "$@" ;; esac\n'
        f"printf '%s\\n' \"$@\" > '{folder}/arguments'\nexit 1\n"
    )
    nvcc.chmod(0o755)
    subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-temp", folder / "temp", "--build-lib", folder / "lib"],
        cwd=ROOT,
        env={**os.environ, "CUDA_HOME": str(folder), "FASTFEED_CUDA": "1", "FASTFEED_CUDA_ARCH": "sm_90"},
        capture_output=True,
    )
    return (folder / "arguments").read_text().splitlines()


def compile_kernels(shipped_command, architecture, folder):
    """Return what ptxas says about the kernels; their PTX lies in `folder` then."""
    command = [f"-arch={architecture}" if a == "-arch=sm_90" else "-cubin" if a == "-c" else a for a in shipped_command]
    command[command.index("-o") + 1] = folder / "out.cubin"
    command += ["-Xptxas", "-v", "-keep", "-keep-dir", folder]
    result = subprocess.run([NVCC, *command], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def test_multiplications_and_additions_are_not_contracted(shipped_command):
    # One rounding more or less, and results differ from those of the CPU.
    assert "csrc/finish_cuda.cu" in shipped_command
    assert "-fmad=false" in shipped_command
    assert not any("fast" in argument or "ftz" in argument or "prec" in argument for argument in shipped_command)


@pytest.fixture(scope="module")
def compiled(shipped_command, tmp_path_factory):
    """Return, by architecture, a folder and a future of `compile_kernels`; two at a time are being compiled."""
    with ThreadPoolExecutor(2) as pool:
        folders = {architecture: tmp_path_factory.mktemp(architecture) for architecture in ARCHITECTURES}
        yield {name: (to, pool.submit(compile_kernels, shipped_command, name, to)) for name, to in folders.items()}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels(architecture, compiled, capsys):
    folder, output = compiled[architecture]
    output = output.result()
    resources = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", output)
    registers = [int(r) for r in re.findall(r"Used (\d+) registers", output)]
    # three numbers of channels; for each, three output types in two memory formats, and pixel by pixel
    assert len(resources) == len(registers) == 21
    assert set(resources) == {("0", "0", "0")}
    assert max(registers) <= 128
    with capsys.disabled():
        print(f"\nfinish {architecture}: {min(registers)} to {max(registers)} registers, no spills")

    entries = re.findall(r"\.entry (\w+)\((.*?)\n}", (folder / "finish_cuda.ptx").read_text(), re.DOTALL)
    tiles = 0
    for name, body in entries:
        if (kernel := re.search(r"tiles_kernelINS_\d+(\w+?)ELi(\d)ELb(\d)E", name)) is None:
            continue
        tiles += 1
        size, channels, channels_last = BYTES[kernel[1]], int(kernel[2]), kernel[3] == "1"
        count = Counter(re.findall(r"\b((?:ld|st)\.(?:global|shared)(?:\.nc)?(?:\.v\d)?)\.\w\d+\b", body))
        # eight pixels of a sample and of its partner, in loads of 8 bytes
        assert count["ld.global.nc.v2"] == 2 * channels, name
        # their values, in stores of 16; channels-last, all of them through the tile
        pieces = 8 * channels * size // 16
        assert count["st.global.v4"] == pieces, name
        assert count["ld.shared.v4"] == (pieces if channels_last else 0), name
        assert count["st.shared.v4"] >= count["ld.shared.v4"], name  # four floats of an erased pixel are a vector too
        if channels_last:
            assert [op for op in count if op.startswith("st.global")] == ["st.global.v4"], name
    assert tiles == 18
