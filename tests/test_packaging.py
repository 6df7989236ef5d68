"""The build and the metadata."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

import fastfeed

ROOT = Path(__file__).parents[1]


def pins():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_pre_commit_uses_the_pinned_ruff():
    rev = re.search(r"rev: v(\S+)", (ROOT / ".pre-commit-config.yaml").read_text())[1]
    assert rev == pins()["ruff"]


def test_every_package_is_listed():
    listed = re.search(r"^packages = \[(.*?)\]$", (ROOT / "pyproject.toml").read_text(), re.M | re.S)[1]
    found = {".".join(p.parent.relative_to(ROOT).parts) for p in (ROOT / "fastfeed").rglob("__init__.py")}
    assert set(re.findall(r'"(.+?)"', listed)) == found | {"fastfeed.kernels"}


@pytest.mark.skipif(not (ROOT / ".git").exists() or shutil.which("git") is None, reason="needs git and a checkout")
def test_a_source_distribution_has_every_file(tmp_path):
    """One without a header cannot be built, or not be tested."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    tracked = {name for name in listed if (ROOT / name).is_file()}  # not those that are being removed
    # In a copy, for setuptools writes beside setup.py, and packs again what it lists in an egg-info of before.
    for name in tracked:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    command = [sys.executable, "setup.py", "-q", "sdist", "--formats=gztar"]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "FASTFEED_CUDA": "0"}, check=True, capture_output=True)
    with tarfile.open(tmp_path / "dist" / f"fastfeed-{fastfeed.__version__}.tar.gz") as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    assert packed >= {"PKG-INFO", "csrc/finish_cuda.cu", "kernels/__init__.py", "fastfeed/py.typed"}
    assert {name for name in tracked - packed if not name.startswith((".ci/", ".git"))} == set()


def test_importing_fastfeed_imports_neither_torch_nor_dali():
    script = "import sys, fastfeed; print([m for m in ('torch', 'nvidia.dali', 'triton', 'PIL') if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", script], text=True).strip() == "[]"


def test_public_names_resolve():
    for name in fastfeed.__all__:
        assert getattr(fastfeed, name) is not None
    assert set(fastfeed.__all__) <= set(dir(fastfeed))
    with pytest.raises(AttributeError, match="no attribute 'Dataloader'"):
        fastfeed.Dataloader  # noqa: B018


@pytest.fixture
def setup(monkeypatch):
    """The functions of setup.py, without its calling setup()."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda **_: None)
    return lambda: runpy.run_path(str(ROOT / "setup.py"))


@pytest.mark.parametrize(("mode", "nvcc", "expected"), [
    ("auto", ("/nvcc", "13.0"), ("/nvcc", "13.0")),
    ("auto", None, None),
    ("0", ("/nvcc", "13.0"), None),
    ("1", ("/nvcc", "13.0"), ("/nvcc", "13.0")),
    ("1", None, "FASTFEED_CUDA=1, but nvcc was not found.*FASTFEED_CUDA=0"),
    ("yes", None, "FASTFEED_CUDA=yes: expected auto, 0 or 1"),
])  # fmt: skip
def test_fastfeed_cuda(setup, monkeypatch, mode, nvcc, expected):
    monkeypatch.setenv("FASTFEED_CUDA", "0")
    functions = setup()
    monkeypatch.setenv("FASTFEED_CUDA", mode)
    monkeypatch.setitem(functions["cuda_toolkit"].__globals__, "find_nvcc", lambda: nvcc)
    if isinstance(expected, str):
        with pytest.raises(SystemExit, match=expected):
            functions["cuda_toolkit"]()
    else:
        assert functions["cuda_toolkit"]() == expected


@pytest.mark.parametrize(("local", "command", "expected"), [
    ("", "bdist_wheel", ""), ("1", "bdist_wheel", "+cpu"), ("1", "sdist", ""),
])  # fmt: skip
def test_the_version_names_the_build_on_request(monkeypatch, local, command, expected):
    versions = []
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("setuptools.setup", lambda version, **_: versions.append(version))
    monkeypatch.setattr(sys, "argv", ["setup.py", command])
    monkeypatch.setenv("FASTFEED_CUDA", "0")
    monkeypatch.setenv("FASTFEED_LOCAL_VERSION", local)
    runpy.run_path(str(ROOT / "setup.py"))
    assert versions == [fastfeed.__version__ + expected]


def test_build_without_cuda(tmp_path):
    """An extension of C++ alone works on the CPU and says that it has no CUDA."""
    # --debug: not optimized, which takes half the time.
    folders = ["--build-lib", tmp_path, "--build-temp", tmp_path / "temp"]
    command = [sys.executable, "setup.py", "-q", "build_ext", "--debug", *folders]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "FASTFEED_CUDA": "0"}, check=True, capture_output=True)
    (built,) = (tmp_path / "fastfeed").glob("_C.*.so")
    script = f"""
import importlib.util, json, sys
spec = importlib.util.spec_from_file_location("fastfeed._C", {str(built)!r})
sys.modules["fastfeed._C"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["fastfeed._C"])
import torch
from fastfeed._extension import extension
from fastfeed.data.finish import Finish, finish_reference, require_cuda
images = torch.arange(48, dtype=torch.uint8).reshape(1, 4, 4, 3)
same = torch.equal(Finish((0, 0, 0), (1, 1, 1))(images), finish_reference(images, None, (0, 0, 0), (1, 1, 1)))
try:
    require_cuda()
except RuntimeError as error:
    print(json.dumps([extension().build_info(), same, hasattr(extension(), "finish_cuda"), str(error)]))
"""
    info, same, has_cuda, error = json.loads(subprocess.check_output([sys.executable, "-c", script], text=True))
    assert info["cuda"] is None
    assert info["version"] == fastfeed.__version__
    assert same
    assert not has_cuda
    assert "built without CUDA" in error
    # portable: nothing links to PyTorch or to a CUDA library
    linked = subprocess.check_output(["ldd", built], text=True)
    assert "torch" not in linked
    assert "cuda" not in linked


def test_extension_missing_says_how_to_build_it():
    script = "import sys; sys.modules['fastfeed._C'] = None; import fastfeed._extension as e; e.extension()"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stderr.strip().splitlines()[-1].startswith("ImportError: fastfeed's C++ extension")
    assert "pip install -e ." in result.stderr
