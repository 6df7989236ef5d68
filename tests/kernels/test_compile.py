"""Every kernel compiles for every GPU generation, without spills and with loads as wide as they should be."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kernels import aot

pytest.importorskip("triton")


@pytest.fixture(scope="module")
def compiled():
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run([sys.executable, aot.__file__], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    results = json.loads(run.stdout)
    return {
        (str(case), arch): result
        for case, row in zip(aot.CASES, results, strict=True)
        for arch, result in zip(aot.architectures(case), row, strict=True)
    }


def test_report(compiled, capsys):
    with capsys.disabled():
        print(f"\n{'kernel':60} {'sm':>4} {'registers':>9} {'shared':>7}  loads (bits x count)")
        for (case, arch), result in compiled.items():
            if "error" in result:
                continue
            loads = " ".join(f"{bits}x{n}" for bits, n in sorted(result["loads"].items(), key=lambda x: -int(x[0])))
            print(f"{case:60} {arch:4} {result['registers']:9} {result['shared']:7}  {loads}")


@pytest.mark.parametrize(
    ("case", "architecture"), [(case, arch) for case in aot.CASES for arch in aot.architectures(case)], ids=str
)
def test_no_spills_and_wide_loads(compiled, case, architecture):
    result = compiled[str(case), architecture]
    assert "error" not in result, result["error"]
    assert result["stack"] == result["local"] == 0
    assert result["loads"].get("128", 0) >= case.loads_128bit
    assert result["shared"] <= case.shared


def test_no_kernel_is_forgotten():
    """Each function that is launched, which by custom ends in _kernel, has an entry in the table."""
    folder = Path(importlib.util.find_spec("fastfeed.kernels").origin).parent
    launched = {
        (path.stem, node.name)
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
        and node.name.endswith("_kernel")
        and any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list)
    }
    assert launched, f"no kernels found in {folder}"
    assert launched == {(case.module, case.kernel) for case in aot.CASES}
