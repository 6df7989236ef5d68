"""The results that are committed, and what README.md shows of them."""

import re
import shutil
from pathlib import Path

import pytest

from benchmarks.__main__ import main
from benchmarks.report import summary_for
from benchmarks.report.summary import readme_section
from benchmarks.results import COMMITTED, FILE, device_folder, read_rows

README = Path(__file__).parents[2] / "README.md"
SECTIONS = re.findall(r"^<!-- benchmarks: (\S+) -->$", README.read_text(), re.MULTILINE)
FOLDERS = sorted(file.parent for file in COMMITTED.glob(f"*/{FILE}"))


def test_there_are_results():
    assert FOLDERS
    assert set(SECTIONS) <= {folder.name for folder in FOLDERS}


@pytest.mark.parametrize("name", SECTIONS)
def test_readme_shows_the_committed_results(name):
    expected = summary_for(README, COMMITTED / name).strip("\n") + "\n"
    command = f"python -m benchmarks report {(COMMITTED / name).relative_to(README.parent)} --readme README.md"
    assert readme_section(README, name) == expected, f"README.md is stale; `{command}` updates it"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_reports_are_those_of_the_committed_results(folder, tmp_path):
    shutil.copy(folder / FILE, tmp_path / FILE)
    assert main(["report", str(tmp_path)]) == 0
    for name in ("report.html", "summary.md"):
        stale = f"{folder.name}/{name} is stale; `python -m benchmarks report` writes it"
        assert (folder / name).read_text() == (tmp_path / name).read_text(), stale


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_results_are_of_a_commit_and_lie_in_their_device_s_folder(folder):
    for row in read_rows(folder):
        assert device_folder(row) == folder
        assert row["commit"] is not None
        assert not row["commit"].endswith("-dirty"), "measured with changes that nobody else can see"
