"""The charts with what belongs to them: which rows they show, their legend, and what they mean."""

from collections.abc import Sequence

from benchmarks.report import charts
from benchmarks.report.looks import Look
from benchmarks.report.markup import Element, element
from benchmarks.report.standing import OURS, Inputs, inputs
from benchmarks.report.style import SPAN_COLOURS
from benchmarks.report.text import duration, interval, number, percent, shortened, size, speedup
from benchmarks.results import COMPILED, Row
from benchmarks.timing import Band

Looks = dict[str, Look]


def _figure(title: str, caption: str, *children: Element | None) -> Element:
    caption_ = element("figcaption", caption)
    return element("figure", element("h3", title), *children, caption_, class_="card")


def _legend(providers: Sequence[str], looks: Looks) -> Element:
    return element("div", *(looks[provider].key(provider) for provider in providers), class_="legend")


def overview_figure(groups: Sequence[Inputs], looks: Looks) -> Element | None:
    """Draw our speedup over the baseline for all sets of inputs, and those of torch.compile and the best other."""
    operations: dict[str, list[charts.Bar]] = {}
    shown: dict[str, None] = {}
    for group in groups:
        if group.baseline is None:
            continue
        rivals = {standing.provider for standing in (group.compiled, group.other) if standing is not None}
        marks = [
            charts.Mark(looks[row["provider"]], row["speedup_p50"], _tooltip(row))
            for row in group.rows
            if row["provider"] in rivals
        ]
        shown |= dict.fromkeys([OURS, *(row["provider"] for row in group.rows if row["provider"] in rivals)])
        bar = _bar(group.ours, looks)._replace(label=group.shape, text=speedup(group.baseline.speedup.p50), marks=marks)
        operations.setdefault(f"{group.op} {group.dtype}, over {group.baseline.provider}", []).append(bar)
    if not operations:
        return None
    title = "Speedup over the baseline"
    return _figure(
        title,
        f"Bars: {OURS}, with whiskers from the 20th to the 80th percentile. Marks: {COMPILED} and the best other "
        "provider on the same inputs. The line is the baseline: what ends left of it is slower.",
        _legend(list(shown), looks),
        charts.speedups(list(operations.items()), title, in_column=True),
    )


def speedup_figure(rows: Sequence[Row], looks: Looks) -> Element | None:
    """Draw the speedups of all providers of an operation."""
    groups = []
    for group in inputs(rows):
        bars = [_bar(row, looks) for row in group.rows if row["status"] != "absent"]
        if any(bar.speedup is not None for bar in bars):
            groups.append((f"{group.shape} {group.dtype}", bars))
    if not groups:
        return None
    baseline = rows[0]["baseline"]
    title = f"Speedup over {baseline}"
    caption = (
        "Bars: median of the rounds; whiskers: 20th to 80th percentile; behind them the median time. The line is "
        f"{baseline}: what ends left of it is slower."
    )
    if any(row["provider"] != OURS and not row["peer"] for row in rows):
        caption += f" Hollow bars are no alternatives to {OURS}: parts of it, or bounds on what is possible."
    return _figure(title, caption, charts.speedups(groups, f"{rows[0]['op']}: {title}"))


def _bar(row: Row, looks: Looks) -> charts.Bar:
    look = looks[row["provider"]]
    if row["p50_us"] is None:
        return charts.Bar(row["provider"], look, None, f"{row['status']}, not timed", _tooltip(row))
    band = Band(row["speedup_p20"], row["speedup_p50"], row["speedup_p80"])
    text = f"{speedup(band.p50)}, {duration(row['p50_us'])}"
    if row["provider"] == row["baseline"]:
        text = duration(row["p50_us"])
    return charts.Bar(row["provider"], look, band, text, _tooltip(row), row["peer"] or row["provider"] == OURS)


def _tooltip(row: Row) -> str:
    name = f"{row['provider']}, {row['shape']} {row['dtype']}"
    if row["p50_us"] is None:
        return f"{name}: {row['status']}, {shortened(row['reason'] or 'no reason given', 200)}"
    band = Band(row["speedup_p20"], row["speedup_p50"], row["speedup_p80"])
    times = f"{duration(row['p50_us'])} ({duration(row['p20_us'])} to {duration(row['p80_us'])})"
    return f"{name}: {times}, {speedup(band.p50)} ({interval(band)}) over {row['baseline']}"


def bandwidth_figures(rows: Sequence[Row], looks: Looks) -> list[Element]:
    """Draw the bandwidth against the size, for each dtype with at least two sizes."""
    found = []
    for dtype in dict.fromkeys(row["dtype"] for row in rows):
        timed = [row for row in rows if row["dtype"] == dtype and row["bytes"] and row["p50_us"] is not None]
        if len({row["bytes"] for row in timed}) >= 2:
            found.append(_bandwidth_figure(dtype, sorted(timed, key=lambda row: row["bytes"]), looks))
    return found


def _bandwidth_figure(dtype: str, rows: Sequence[Row], looks: Looks) -> Element:
    providers = list(dict.fromkeys(row["provider"] for row in rows))
    # Ours last: it is drawn over the others.
    lines = [
        charts.Line(looks[name], [_point(row) for row in rows if row["provider"] == name])
        for name in sorted(providers, key=lambda name: name == OURS)
    ]
    copy, peak = rows[0]["copy_gb_per_s"], rows[0]["peak_gb_per_s"]
    roof = _roof(rows)
    caption = (
        "Fewest bytes that a run can move, over its time: median, and a band from the 20th to the 80th percentile. "
        "The dashed line is a large copy, measured in the same run."
    )
    if rows[0]["device"] == "cpu":
        caption += " What fits into the processor's caches can be above it, and so can updates in place: "
        caption += "a copy also reads what it overwrites, which is not counted."
    else:
        caption += " Inputs that the L2 cache holds in spite of all can be above it."
    if roof:
        caption += (
            " The dotted line is the roofline where it is lower: floating-point operations at the measured rate of "
            f"matrix products in {rows[0]['matmul_dtype']}."
        )
    title = f"Bandwidth in {dtype}"
    chart = charts.bandwidth(lines, copy, peak, roof, f"{rows[0]['op']}: {title}")
    return _figure(title, caption, _legend(providers, looks), chart)


def _point(row: Row) -> charts.Point:
    # The fastest times make the highest rates.
    rate = Band(*(row["bytes"] / row[field] / 1e3 for field in ("p80_us", "p50_us", "p20_us")))
    share = f", {percent(row['percent_of_copy'])} of copy" if row["percent_of_copy"] is not None else ""
    moved = f"{size(row['bytes'])} in {duration(row['p50_us'])}"
    text = f"{row['provider']}, {row['shape']}: {number(rate.p50, 'GB/s')}{share}; {moved}"
    return charts.Point(row["bytes"], rate, text)


def _roof(rows: Sequence[Row]) -> list[tuple[int, float]]:
    """The roofline, (bytes, GB/s), or nothing if it is no lower than the copy: floating-point operations bound none."""
    work = {row["bytes"]: row["flops"] for row in rows if row["flops"]}
    copy = rows[0]["copy_gb_per_s"]
    # TFLOP/s over FLOP per byte are TB/s.
    roof = [(count, min(copy, 1e3 * rows[0]["matmul_tflop_per_s"] * count / flops)) for count, flops in work.items()]
    return roof if any(rate < copy for _, rate in roof) else []


def timeline_figures(rows: Sequence[Row], looks: Looks) -> list[Element]:
    """Draw a training step of each provider that has one, on the same scale for those on the same inputs."""
    figures = []
    names = dict.fromkeys(span["name"] for row in rows for span in row["timeline"] or ())
    names.pop(charts.WAIT, None)
    colours = {name: f"span-{index % SPAN_COLOURS}" for index, name in enumerate(names)} | {charts.WAIT: "wait"}
    for group in inputs(rows):
        timed = [row for row in group.rows if row["timeline"]]
        if timed:
            figures.append(_timeline_figure(group, timed, colours, looks))
    return figures


def _timeline_figure(group: Inputs, rows: Sequence[Row], colours: dict[str, str], looks: Looks) -> Element:
    longest = max(span["end_us"] for row in rows for span in row["timeline"])  # all begin at 0
    drawn: list[Element] = []
    used = {span["name"] for row in rows for span in row["timeline"]}
    caption = (
        "A step of each provider, that whose length is nearest to its mean, all on the same scale, from when the host "
        "begins it."
    )
    if any(span["lane"] == "device" for row in rows for span in row["timeline"]):
        caption += (
            " The device runs behind the host by what is in its queue; while it waits for data it is idle, but for "
            "copies of the batch."
        )
    keys = [_span_key(name, colour) for name, colour in colours.items() if name in used]
    for row in rows:
        words = _wait_in_words(row)
        drawn.append(element("p", looks[row["provider"]].key(row["provider"]), ": ", words))
        drawn.append(charts.timeline(row["timeline"], longest, colours, f"{row['provider']}: {words}"))
    return _figure(
        f"A training step, {group.shape} {group.dtype}",
        caption,
        element("div", *keys, class_="legend"),
        *drawn,
    )


def _span_key(name: str, colour: str) -> Element:
    sample = element("rect", width=14, height=12, class_=f"span {colour}")
    return element("span", element("svg", sample, width=14, height=12, aria_hidden="true"), " ", name, class_="key")


def _wait_in_words(row: Row) -> str:
    words = []
    for lane in dict.fromkeys(span["lane"] for span in row["timeline"]):
        spans = [span for span in row["timeline"] if span["lane"] == lane]
        step = max(span["end_us"] for span in spans) - min(span["start_us"] for span in spans)
        wait = sum(span["end_us"] - span["start_us"] for span in spans if span["name"] == charts.WAIT)
        words.append(f"{percent(100 * wait / step)} of the {lane}'s step ({duration(wait)} of {duration(step)})")
    return f"waits for data {', '.join(words)}"
