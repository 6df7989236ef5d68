"""The short form, in Markdown, and its place in a README."""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.report import facts
from benchmarks.report.standing import OURS, SYMBOLS, Inputs, Standing, inputs
from benchmarks.report.text import NONE, duration, interval, percent, shortened, speedup
from benchmarks.results import COMPILED, Row

_COLUMNS = ("Operation", "Input", OURS, "over the baseline", f"over {COMPILED}", "over the best other", "of copy")


def summary(rows: Sequence[Row], report: str | None = None) -> str:
    """Return a table with a line for each set of inputs, below a line on the device.

    Args:
        rows: of a run.
        report: path or address of the report in HTML, for a link to it.
    """
    lines = [f"| {' | '.join(_COLUMNS)} |", "|---|---|--:|--:|--:|--:|--:|"]
    lines += [f"| {' | '.join(_cells(group))} |" for group in inputs(rows)]
    unsound = [
        f"- **{row['status']}**: {_escaped(row['provider'])} in {_escaped(row['op'])}, {_escaped(row['shape'])} "
        f"{row['dtype']}: {_escaped(shortened(row['reason'] or 'no reason given', 200))}"
        for row in rows
        if row["status"] in ("wrong", "failed")
    ]
    commands = ", ".join(f"`{command}`" for command in facts.commands(rows))
    link = [f"[The whole report]({report})."] if report is not None else []
    parts = [
        _device(rows),
        "\n".join(lines),
        f"How many times faster {OURS} is, with the 20th and the 80th percentile: {SYMBOLS['faster']} faster, "
        f"{SYMBOLS['slower']} slower, {SYMBOLS['even']} within 3% or the interval holds 1. Copy: the bandwidth of a "
        "copy, measured.",
        *(["Not timed:\n\n" + "\n".join(unsound)] if unsound else []),
        " ".join([*link, f"To repeat it: {commands}"]),
    ]
    return "\n\n".join(parts) + "\n"


def _device(rows: Sequence[Row]) -> str:
    where = [facts.gpu(rows), facts.processor(rows), facts.versions(rows)]
    dates = ", ".join(dict.fromkeys(date[:10] for date in facts.distinct(rows, "date")))
    ceilings = f"copy {facts.joined(rows, 'copy_gb_per_s', 'GB/s')}, matrix product {facts.matmul(rows)}"
    quick = " A `--quick` run: fewer rows, and less time for each." if facts.quick(rows) else ""
    text = "; ".join(_escaped(part) for part in where if part is not None)
    return f"{text}; commit {_escaped(facts.joined(rows, 'commit'))}, {dates}. Measured: {ceilings}.{quick}"


def _cells(group: Inputs) -> list[str]:
    names = [_escaped(group.op), f"{_escaped(group.shape)} {_escaped(group.dtype)}"]
    if group.ours is None or group.ours["p50_us"] is None:
        return [*names, group.ours["status"] if group.ours else NONE, *[NONE] * 4]
    share = group.ours["percent_of_copy"]
    return [
        *names,
        duration(group.ours["p50_us"]),
        *(_standing(standing) for standing in (group.baseline, group.compiled, group.other)),
        percent(share) if share is not None else NONE,
    ]


def _standing(standing: Standing | None) -> str:
    if standing is None:
        return NONE
    name = "" if standing.provider == COMPILED else f" {_escaped(standing.provider)}"
    value, around = speedup(standing.speedup.p50), interval(standing.speedup)
    return f"{SYMBOLS[standing.verdict]} **{value}** ({around}){name}"


def _escaped(text: str) -> str:
    """Text that stays text in a cell of a table."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|\[\]])", r"\\\1", text)


def readme_section(readme: Path, name: str) -> str:
    """Return what stands in a README between ``<!-- benchmarks: NAME -->`` and ``<!-- end of benchmarks: NAME -->``.

    Raises:
        ValueError: one of the two is not there, or not once, or they are the wrong way round.
    """
    text = readme.read_text(encoding="utf-8")
    start, end = _section(readme, text, name)
    return text[start:end].strip("\n") + "\n"


def update_readme(readme: Path, name: str, markdown: str) -> bool:
    """Put `markdown` where `readme_section` looks, and return whether that changed the file.

    Args:
        readme: the file.
        name: of the section: that of the results' folder, such as "nvidia-h200".
        markdown: what shall stand there.

    Raises:
        ValueError: as for `readme_section`; the file stays as it is.
    """
    text = readme.read_text(encoding="utf-8")
    start, end = _section(readme, text, name)
    stripped = markdown.strip("\n")
    updated = f"{text[:start]}\n\n{stripped}\n\n{text[end:]}"
    if updated != text:
        readme.write_text(updated, encoding="utf-8")
    return updated != text


def _section(readme: Path, text: str, name: str) -> tuple[int, int]:
    """Where the section begins and ends in `text`."""
    first, last = f"<!-- benchmarks: {name} -->", f"<!-- end of benchmarks: {name} -->"
    for marker in (first, last):
        count = text.count(marker)
        if count != 1:
            raise ValueError(
                f"{readme}: {marker} is there {count} times, expected once. "
                f"The section is what stands between {first} and {last}"
            )
    start, end = text.index(first) + len(first), text.index(last)
    if end < start:
        raise ValueError(f"{readme}: {last} stands before {first}; swap them")
    return start, end
