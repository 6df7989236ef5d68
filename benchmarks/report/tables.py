"""The tables of the report."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.report.looks import Look
from benchmarks.report.markup import Element, element
from benchmarks.report.standing import OURS, SYMBOLS, Inputs, Standing, inputs
from benchmarks.report.text import NONE, duration, interval, number, percent, shortened, size, speedup
from benchmarks.results import COMPILED, Row
from benchmarks.timing import Band


def standings(groups: Sequence[Inputs], anchors: dict[str, str]) -> Element:
    """Return a line per set of inputs: our time, and how many times faster we are than the others.

    Args:
        groups: the sets of inputs.
        anchors: an operation's name -> where it is on the page.
    """
    names = ("Operation", "Input")
    numbers = (OURS, "over the baseline", f"over {COMPILED}", "over the best other", "of the measured copy")
    head = [element("th", name, class_="name") for name in names] + [element("th", name) for name in numbers]
    lines = [_line(group, anchors[group.op]) for group in groups]
    table = element("table", element("thead", element("tr", *head)), element("tbody", *lines), class_="standings")
    return element("div", table, class_="scroll")


def _line(group: Inputs, anchor: str) -> Element:
    name = element("td", element("a", group.op, href=f"#{anchor}"), class_="name")
    shape = element("td", group.shape, " ", element("small", group.dtype), class_="name")
    row = group.ours
    if row is None or row["p50_us"] is None:
        status = row["status"] if row is not None else NONE
        return element("tr", name, shape, element("td", status, class_=status), *(_nothing() for _ in range(4)))
    compared = [
        _standing(group.baseline, group.baseline and group.baseline.provider),
        _standing(group.compiled, None),
        _standing(group.other, group.other and group.other.provider),
    ]
    ours = element("td", duration(row["p50_us"]), " ", element("small", _rate(row)), class_="own")
    return element("tr", name, shape, ours, *compared, _share(row["percent_of_copy"]))


def _standing(standing: Standing | None, name: str | None) -> Element:
    if standing is None:
        return _nothing()
    around = interval(standing.speedup)
    return element(
        "td",
        f"{SYMBOLS[standing.verdict]} {speedup(standing.speedup.p50)} ",
        element("small", f"{around} {shortened(name, 24)}" if name else around),
        class_=standing.verdict,
    )


def _share(share: float | None) -> Element:
    if share is None:
        return _nothing()
    return element("td", percent(share), class_="share", style=f"--part:{min(share, 100):.0f}%")


def _nothing() -> Element:
    return element("td", NONE, class_="absent")


def _rate(row: Row) -> str:
    if row["img_per_s"] is not None:
        return number(row["img_per_s"], "img/s")
    return number(row["gb_per_s"], "GB/s") if row["gb_per_s"] is not None else ""


class _Column(NamedTuple):
    title: str
    field: str  # the column is left out if it is None in all rows
    form: Callable[[Any], str]


def _count(value: int) -> str:
    return f"{value:,}"


_COLUMNS = (
    _Column("rounds", "rounds", _count),
    _Column("20%", "p20_us", duration),
    _Column("median", "p50_us", duration),
    _Column("80%", "p80_us", duration),
    _Column("over baseline", "speedup_p50", speedup),
    _Column(f"over {COMPILED}", "speedup_compiled", speedup),
    _Column("GB/s", "gb_per_s", number),
    _Column("of copy", "percent_of_copy", percent),
    _Column("of peak", "percent_of_peak", percent),
    _Column("TFLOP/s", "tflop_per_s", number),
    _Column("img/s", "img_per_s", number),
    _Column("host time", "host_us", duration),
    _Column("launches", "launches", _count),
    _Column("waits for data", "data_wait", lambda share: percent(100 * share)),
    _Column("device waits", "device_wait", lambda share: percent(100 * share)),
    _Column("cores used", "cores_used", number),
    _Column("peak memory", "peak_bytes", size),
    _Column("largest error", "max_error", lambda value: f"{value:.1e}" if value else "0"),
    _Column("timing", "timing", str),
    _Column("clock, MHz", "clock_mhz", lambda value: f"{value:,.0f}"),
    _Column("slowed by", "slowed_by", str),
)


def measured(rows: Sequence[Row], looks: dict[str, Look]) -> Element:
    """Return all rows of an operation with all that was measured."""
    columns = [column for column in _COLUMNS if any(row[column.field] is not None for row in rows)]
    words = [element("th", name, class_="name") for name in ("provider", "version", "status")]
    head = element("tr", *words, *(element("th", column.title) for column in columns))
    lines = []
    for group in inputs(rows):
        lines.append(element("tr", _heading(group, len(words) + len(columns)), class_="inputs"))
        lines += [_row(row, columns, looks[row["provider"]]) for row in group.rows]
    table = element("table", element("thead", head), element("tbody", *lines), class_="measured")
    return element("div", table, class_="scroll")


def _heading(group: Inputs, columns: int) -> Element:
    row = group.rows[0]
    work = [
        form(row[field])
        for field, form in (
            ("bytes", lambda count: f"{size(count)} moved"),
            ("flops", lambda count: f"{number(count / 1e9)} GFLOP"),
            ("images", lambda count: f"{count:,} images"),
        )
        if row[field] is not None
    ]
    text = f"{group.shape} {group.dtype}" + (f": {', '.join(work)} per run" if work else "")
    return element("th", text, element("br"), element("code", row["command"]), colspan=columns)


def _row(row: Row, columns: Sequence[_Column], look: Look) -> Element:
    kind = "own" if row["provider"] == OURS else None
    remark = None
    if row["provider"] == row["baseline"]:
        remark = element("small", "the baseline")
    elif kind is None and not row["peer"]:
        remark = element("small", "a part or a bound, no alternative")
    words = [
        element("td", look.key(row["provider"]), " ", remark, class_="name"),
        element("td", row["version"] or NONE, class_="name"),
        element("td", row["status"], class_=f"name {row['status']}"),
    ]
    return element("tr", *words, *(_cell(row, column) for column in columns), class_=kind)


def _cell(row: Row, column: _Column) -> Element:
    value = row[column.field]
    if value is None or row["p50_us"] is None:
        return element("td", NONE, class_="absent")
    cell = element("td", column.form(value))
    if column.field == "speedup_p50" and row["provider"] != row["baseline"]:
        band = Band(row["speedup_p20"], row["speedup_p50"], row["speedup_p80"])
        cell = element("td", column.form(value), " ", element("small", interval(band)))
    return cell


def absent(rows: Sequence[Row]) -> Element:
    """Return what could not be compared with, why, and where it would have been."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        found.setdefault((row["provider"], row["reason"] or NONE), {})[row["op"]] = None
    head = element("tr", *(element("th", name, class_="name") for name in ("provider", "why", "operations")))
    lines = [
        element(
            "tr",
            element("td", provider, class_="name"),
            element("td", reason_text(reason), class_="words"),
            element("td", ", ".join(operations), class_="words"),
        )
        for (provider, reason), operations in found.items()
    ]
    table = element("table", element("thead", head), element("tbody", *lines), class_="absent-providers")
    return element("div", table, class_="scroll")


def reason_text(reason: str, limit: int = 200) -> Element:
    """Return a reason, folded up after its beginning if it is long."""
    if len(reason) <= limit:
        return element("span", reason, class_="reason")
    beginning = element("summary", shortened(reason, limit))
    return element("details", beginning, element("div", reason, class_="reason"), class_="reason")
