import re

import pytest

from fastfeed import info
from fastfeed.cli import main
from tests.images import write_folder


def test_info_names_everything(capsys):
    assert main(["info"]) == 0
    text = capsys.readouterr().out
    for name in (
        "fastfeed",
        "python",
        "torch",
        "triton",
        "nvidia-dali",
        "device",
        "extension",
        "extension's SIMD",
        "torchvision",
    ):
        assert re.search(rf"^{name}\b.* \S", text, re.MULTILINE), name


def test_info_says_what_to_do(monkeypatch, capsys):
    def missing(name):
        def fail():
            raise ImportError(f"{name} is missing, do this")

        return fail

    monkeypatch.setattr(info, "extension", missing("extension"))
    monkeypatch.setattr(info, "import_dali", missing("dali"))
    assert main(["info"]) == 1
    text = capsys.readouterr().out
    assert "- extension is missing, do this" in text
    assert "- dali is missing, do this" in text
    assert re.search(r"^extension +not built", text, re.MULTILINE)


def test_info_of_a_torchvision_that_cannot_be_imported(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator is missing')")
    (tmp_path / "torchvision-1.2.dist-info").mkdir()
    (tmp_path / "torchvision-1.2.dist-info/METADATA").write_text("Name: torchvision\nVersion: 1.2\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = info.collect()
    assert ("torchvision", "1.2, cannot be imported: RuntimeError: operator is missing") in found.rows
    assert any(line.startswith("torchvision cannot be imported, as where") for line in found.advice)
    assert found.usable


@pytest.mark.parametrize(("arguments", "message"), [
    (["absent"], "fastfeed demo: no such folder: absent"),
    (["{empty}"], "fastfeed demo: no class folders in "),
    (["{folder}", "--device", "gpu"], "fastfeed demo: "),
    (["{folder}", "--steps", "0"], "fastfeed demo: steps is 0"),
    (["{folder}", "--size", "1"], "fastfeed demo: size is 1; expected 32 or more"),
    (["{single}"], "fastfeed demo: {single} has one class, a"),
])  # fmt: skip
def test_demo_errors_are_one_line(tmp_path, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    folder = write_folder(tmp_path / "folder", {"a": 2, "b": 2})
    single = write_folder(tmp_path / "single", {"a": 2})
    names = {"empty": tmp_path / "empty", "folder": folder, "single": single}
    assert main(["demo", *(a.format(**names) for a in arguments)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(message.format(**names))
    assert len(error.splitlines()) == 1
    assert "Traceback" not in error
