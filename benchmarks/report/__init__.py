"""Reports of results: HTML to read and to show, and Markdown for a README."""

import os
from pathlib import Path

from benchmarks.report.page import page
from benchmarks.report.summary import summary
from benchmarks.results import read_rows

HTML, MARKDOWN = "report.html", "summary.md"


def write_report(folder: Path) -> Path:
    """Write ``report.html`` and ``summary.md`` beside a run's results, and return the path of the former.

    Raises:
        ValueError: there are no results to read, as `results.read_rows` has it.
    """
    rows = read_rows(folder)
    report = folder / HTML
    report.write_text(page(rows), encoding="utf-8")
    (folder / MARKDOWN).write_text(summary(rows, HTML), encoding="utf-8")
    return report


def summary_for(readme: Path, folder: Path) -> str:
    """Return the summary of a folder's results with a link that works in `readme`.

    Raises:
        ValueError: as for `write_report`.
    """
    link = os.path.relpath(folder / HTML, readme.parent)
    return summary(read_rows(folder), Path(link).as_posix())
