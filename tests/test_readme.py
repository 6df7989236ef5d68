"""The README's snippets run as they stand."""

import re
from pathlib import Path

import pytest

from fastfeed.cli import main
from tests.images import write_folder
from tests.torchvision_ops import torchvision_or_skip

README = (Path(__file__).parents[1] / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_there_are_snippets():
    assert len(SNIPPETS) >= 2


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.split("\n", 3)[-1][:30].strip())
def test_snippet_runs(snippet, tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # as a reader runs it, who waits for no interpreter
    for name in re.findall(r"^from (accelerate)", snippet, re.MULTILINE):
        pytest.importorskip(name, reason=f"needs the package {name}, which is not installed")
    if ".plot(" in snippet:
        pytest.importorskip("matplotlib", reason="needs the package matplotlib, which is not installed")
    if "from torchvision" in snippet:
        torchvision_or_skip("torchvision")
    write_folder(tmp_path / "imagenet" / "train", {"cat": 3, "dog": 2})
    monkeypatch.chdir(tmp_path)
    exec(compile(snippet, "README.md", "exec"), {})


def test_named_make_targets_exist():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text()
    for target in set(re.findall(r"^make (\w+)|`make (\w+)`", README, re.MULTILINE)):
        name = "".join(target)
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


def test_named_commands_exist(capsys):
    for command in set(re.findall(r"fastfeed (\w+)", README)) & {"info", "demo", "train", "preview", "scan"}:
        with pytest.raises(SystemExit) as stopped:
            main([command, "--help"])
        assert stopped.value.code == 0
