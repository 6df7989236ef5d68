"""The page, from its head to its foot."""

import re
from collections.abc import Sequence
from statistics import median

from benchmarks.report import facts, tables
from benchmarks.report.figures import bandwidth_figures, overview_figure, speedup_figure, timeline_figures
from benchmarks.report.looks import Look, looks
from benchmarks.report.markup import Child, Element, element, html
from benchmarks.report.method import method
from benchmarks.report.standing import OURS, SYMBOLS, Inputs, Standing, Tally, inputs
from benchmarks.report.style import STYLE
from benchmarks.report.text import percent, speedup
from benchmarks.results import COMPILED, Row


def page(rows: Sequence[Row]) -> str:
    """Return the report on the rows of a run: one file of HTML, which loads nothing."""
    groups = inputs(rows)
    title = f"{OURS} on {facts.device_name(rows)}"
    operations: dict[str, list[Row]] = {}
    for row in rows:
        operations.setdefault(row["op"], []).append(row)
    anchors = {op: _anchor(number, op) for number, op in enumerate(operations)}
    looked = looks(rows)
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", f"{title}: benchmarks"),
        element("style", STYLE),
    )
    main = element(
        "main",
        _alert(rows),
        _standings(groups, anchors, looked),
        *(_operation(op, anchors[op], own, looked) for op, own in operations.items()),
        _absent(rows),
        method(rows),
    )
    return html(element("html", head, element("body", _header(title, rows), main), lang="en"))


def _anchor(number: int, op: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", op.lower()).strip("-") + f"-{number}"


def _header(title: str, rows: Sequence[Row]) -> Element:
    named = [
        ("GPU", facts.gpu(rows)),
        ("Processor", facts.processor(rows)),
        ("Versions", facts.versions(rows)),
        ("Commit", facts.joined(rows, "commit")),
        ("Copy, measured: bytes read plus written", facts.joined(rows, "copy_gb_per_s", "GB/s")),
        ("Peak of the memory, in theory", facts.joined(rows, "peak_gb_per_s", "GB/s")),
        ("Matrix product, measured", facts.matmul(rows)),
        ("Clock after the rows", facts.clocks(rows)),
    ]
    cells = [element("div", element("dt", name), element("dd", text)) for name, text in named if text is not None]
    cells.append(element("div", element("dt", "Slowed down by"), element("dd", *_slowed_by(rows)), class_="wide"))
    quick = element("span", "quick run: fewer rows, and less time for each", class_="badge")
    date = ", ".join(text.replace("T", " ").replace("+00:00", " UTC") for text in facts.distinct(rows, "date"))
    return element(
        "header",
        element("h1", title),
        element("p", f"Benchmarks of {date} ", quick if facts.quick(rows) else None, class_="lead"),
        element("dl", *cells),
    )


def _slowed_by(rows: Sequence[Row]) -> list[Child]:
    found = facts.slowed_by(rows)
    if not found:
        return ["nothing noticed"]
    lines = [element("li", reason, " ", element("small", ", ".join(labels))) for reason, labels in found.items()]
    slowed = {label for labels in found.values() for label in labels}
    text = f"something in {len(slowed)} of {len(inputs(rows))} sets of inputs"
    return [element("details", element("summary", text), element("ul", *lines), open="" if len(lines) < 4 else None)]


def _alert(rows: Sequence[Row]) -> Element | None:
    lines = [
        element(
            "li",
            element(
                "strong", f"{row['provider']} is wrong" if row["status"] == "wrong" else f"{row['provider']} failed"
            ),
            f" in {row['op']}/{row['shape']}/{row['dtype']}: ",
            tables.reason_text(row["reason"] or "no reason given"),
        )
        for row in rows
        if row["status"] in ("wrong", "failed")
    ]
    if not lines:
        return None
    count = "1 row is" if len(lines) == 1 else f"{len(lines)} rows are"
    return element(
        "section", element("h2", f"{count} wrong or failed, and not timed"), element("ul", *lines), class_="alert"
    )


def _standings(groups: Sequence[Inputs], anchors: dict[str, str], looked: dict[str, Look]) -> Element:
    names = ", ".join(dict.fromkeys(group.rows[0]["baseline"] for group in groups))
    tiles = [
        _tile(f"Over the baseline: {names}", [group.baseline for group in groups]),
        _tile(f"Over {COMPILED}", [group.compiled for group in groups]),
        _tile("Over the best other provider", [group.other for group in groups]),
        _copy_tile(groups),
    ]
    legend = element(
        "p",
        *_tags({verdict: verdict for verdict in SYMBOLS}),
        "How many times faster or slower, as a median over rounds in which all ran in turn, and its 20th and 80th "
        "percentile. Faster or slower is said only if that whole interval is on one side of 1, and the median more "
        "than 3% away from it. Over the baseline it is that of single rounds; over the others, that of the passes.",
        class_="note",
    )
    return element(
        "section",
        element("h2", "What you gain"),
        element("div", *tiles, class_="tiles"),
        overview_figure(groups, looked),
        element("div", tables.standings(groups, anchors), legend, class_="card"),
        element("nav", "Operations: ", *(element("a", op, href=f"#{anchor}") for op, anchor in anchors.items())),
    )


def _tile(title: str, standings: Sequence[Standing | None]) -> Element:
    tally = Tally.of(standings)
    if tally is None:
        return _empty_tile(title)
    counts = _tags({verdict: f"{count} {verdict}" for verdict, count in tally.counts.items() if count})
    spread = f"from {speedup(tally.lowest)} to {speedup(tally.highest)}"
    return element(
        "div",
        element("h3", title),
        element("strong", speedup(tally.median)),
        element("p", f"median of {_sets(sum(tally.counts.values()))}, {spread}"),
        element("p", *counts),
        class_="tile",
    )


def _tags(texts: dict[str, str]) -> list[Child]:
    tags = (element("span", f"{SYMBOLS[kind]} {text}", class_=f"tag {kind}") for kind, text in texts.items())
    return [child for tag in tags for child in (tag, " ")]


def _copy_tile(groups: Sequence[Inputs]) -> Element:
    title = "Of the measured copy bandwidth"
    shares = [group.ours["percent_of_copy"] for group in groups if group.ours is not None]
    shares = [share for share in shares if share is not None]
    if not shares:
        return _empty_tile(title)
    return element(
        "div",
        element("h3", title),
        element("strong", percent(median(shares))),
        element("p", f"median of {_sets(len(shares))}, from {percent(min(shares))} to {percent(max(shares))}"),
        element("p", "Operations that only move memory can reach 100%; on a processor, updates in place more"),
        class_="tile",
    )


def _empty_tile(title: str) -> Element:
    return element(
        "div", element("h3", title), element("strong", "\N{EN DASH}"), element("p", "not measured"), class_="tile"
    )


def _sets(count: int) -> str:
    return "1 set of inputs" if count == 1 else f"{count} sets of inputs"


def _operation(op: str, anchor: str, rows: Sequence[Row], looked: dict[str, Look]) -> Element:
    bars, bandwidths = speedup_figure(rows, looked), bandwidth_figures(rows, looked)
    table = element("details", element("summary", "All that was measured"), tables.measured(rows, looked))
    table.set("class", "details")
    directions = ", ".join(dict.fromkeys(row["direction"] for row in rows))
    return element(
        "section",
        element("h2", op, " ", element("small", directions)),
        element("div", bars, element("div", *bandwidths) if bandwidths else None, class_="charts"),
        *timeline_figures(rows, looked),
        table,
        id=anchor,
    )


def _absent(rows: Sequence[Row]) -> Element | None:
    missing = [row for row in rows if row["status"] == "absent"]
    if not missing:
        return None
    return element(
        "section",
        element("h2", "Not compared with"),
        element("p", "These providers could not run here, and how to get them. They say nothing about speed."),
        tables.absent(missing),
    )
