"""The charts. Across, places are in percent of the plot; down, in pixels; labels stand in the margins around it."""

from collections.abc import Sequence
from typing import NamedTuple

from benchmarks.report.axes import Axis, rate_axis, size_axis, speedup_axis
from benchmarks.report.looks import Look
from benchmarks.report.markup import Element, element
from benchmarks.report.text import TIMES, number, size
from benchmarks.results import Span
from benchmarks.timing import Band

_CHARACTER = 7.2  # pixels, about, of the charts' text
_LABEL = 24  # characters that the margin has room for; longer labels have a line of their own

_HEADING, _ROW, _BAR, _LINE = 28, 22, 13, 15  # pixels
_HEIGHT = 260  # of a plot of lines
_LANE = 24

WAIT = "data wait"  # the name of the spans in which a training step stands still


class Mark(NamedTuple):
    """A single value beside a bar."""

    look: Look
    value: float
    tooltip: str


class Bar(NamedTuple):
    """A provider's speedup; without one, `text` says why.

    Attributes:
        label: in front of the bar.
        look: of the provider.
        speedup: the bar's length, and its whiskers.
        text: behind the bar.
        tooltip: while the pointer is on it.
        filled: it is hollow otherwise.
        marks: what others reach.
    """

    label: str
    look: Look
    speedup: Band | None
    text: str
    tooltip: str
    filled: bool = True
    marks: Sequence[Mark] = ()


class Point(NamedTuple):
    """A rate in GB/s, and how many bytes were moved at that rate."""

    bytes: int
    rate: Band
    tooltip: str


class Line(NamedTuple):
    """The points of a provider, from few bytes to many."""

    look: Look
    points: Sequence[Point]


def speedups(groups: Sequence[tuple[str, Sequence[Bar]]], title: str, in_column: bool = False) -> Element:
    """Draw bars for speedups over a baseline, with whiskers from the 20th to the 80th percentile.

    Args:
        groups: headings and the bars below them.
        title: what the chart shows, for those who cannot see it.
        in_column: the bars' texts stand below each other at the right, out of the marks' way, not where bars end.
    """
    bars = [bar for _, group in groups for bar in group]
    axis = speedup_axis([v for bar in bars for v in (*(bar.speedup or ()), *(mark.value for mark in bar.marks))])
    ticks = _tick_places(axis)
    one = _percent(axis.place(1))
    left = 14 + _CHARACTER * max([len(bar.label) for bar in bars if len(bar.label) <= _LABEL], default=0)
    right = 14 + _CHARACTER * max(len(bar.text) for bar in bars)
    drawn = []
    y = 0.0
    for heading, group in groups:
        drawn.append(_text(heading, y + 19, "0", "heading", dx=-left))
        y += _HEADING
        below = y + sum(_height(bar) for bar in group)
        drawn += [element("line", x1=x, x2=x, y1=y, y2=below, class_="grid") for x in ticks.values()]
        drawn.append(element("line", x1=one, x2=one, y1=y - 2, y2=below + 2, class_="one"))
        for bar in group:
            y += _height(bar)
            drawn.append(_bar(bar, axis, y - _ROW / 2, left, in_column))
    drawn += [_text(f"{tick:g}{TIMES}", y + 18, x, "tick", anchor="middle") for tick, x in ticks.items()]
    return _plot(title, drawn, y, left, right)


def _height(bar: Bar) -> int:
    return _ROW if len(bar.label) <= _LABEL else _ROW + _LINE


def _bar(bar: Bar, axis: Axis, y: float, left: float, in_column: bool) -> Element:
    if len(bar.label) <= _LABEL:
        label = _text(bar.label, y + 4, "0", "label", dx=-8, anchor="end")
    else:
        label = _text(bar.label, y - _ROW / 2 - 1, "0", "label", dx=14 - left)
    if bar.speedup is None:
        missing = _text(bar.text, y + 4, _percent(axis.place(1)), "missing", dx=8)
        return element("g", element("title", bar.tooltip), label, missing)
    origin = axis.place(1 if axis.log else 0)
    low, end, high = (axis.place(value) for value in bar.speedup)
    kind = f"bar {bar.look.colour}" if bar.filled else f"bar hollow {bar.look.colour}"
    start, width = _percent(min(origin, end)), _percent(abs(end - origin))
    drawn = [element("rect", x=start, y=y - _BAR / 2, width=width, height=_BAR, class_=kind)]
    if low < high:
        drawn.append(element("line", x1=_percent(low), x2=_percent(high), y1=y, y2=y, class_="whisker"))
        for x in (low, high):
            drawn.append(element("line", x1=_percent(x), x2=_percent(x), y1=y - 4, y2=y + 4, class_="whisker"))
    for mark in bar.marks:
        drawn.append(_at(axis.place(mark.value), y, element("title", mark.tooltip), mark.look.mark()))
    place = 100 if in_column else max(end, high, axis.place(1))  # and not across the line at 1
    return element(
        "g", element("title", bar.tooltip), label, *drawn, _text(bar.text, y + 4, _percent(place), "value", dx=8)
    )


def bandwidth(
    lines: Sequence[Line], copy: float, peak: float | None, roof: Sequence[tuple[int, float]], title: str
) -> Element:
    """Draw achieved GB/s against the bytes that are moved.

    Args:
        lines: of the providers.
        copy: measured GB/s of a copy, drawn as a line across.
        peak: likewise, what the memory could do in theory.
        roof: (bytes, GB/s) where the rate of matrix products keeps the bandwidth below that of a copy.
        title: what the chart shows, for those who cannot see it.
    """
    points = [point for line in lines for point in line.points]
    across = size_axis([point.bytes for point in points])
    rates = [rate for point in points for rate in point.rate] + [rate for _, rate in roof]
    up = rate_axis([copy, peak or copy, *rates])

    def y(rate: float) -> float:
        return _HEIGHT * (1 - up.place(rate) / 100)

    drawn = []
    for tick in up.ticks(count=6):
        drawn.append(element("line", x1="0", x2="100%", y1=y(tick), y2=y(tick), class_="grid"))
        drawn.append(_text(f"{tick:,g}", y(tick) + 4, "0", "tick", dx=-8, anchor="end"))
    for tick, x in _tick_places(across).items():
        drawn.append(element("line", x1=x, x2=x, y1=_HEIGHT, y2=_HEIGHT + 5, class_="grid"))
        drawn.append(_text(size(tick, round_value=True), _HEIGHT + 18, x, "tick", anchor="middle"))
    drawn.append(_text("GB/s", -8, "0", "tick", dx=-8, anchor="end"))
    drawn.append(_text("bytes moved per run", _HEIGHT + 36, "50%", "tick", anchor="middle"))

    # Shapes of several points cannot have places in percent: they are drawn in a box that is stretched.
    stretched = element("svg", width="100%", height=_HEIGHT, viewBox=f"0 0 100 {_HEIGHT}", preserveAspectRatio="none")
    for line in lines:
        at = [(across.place(point.bytes), point.rate) for point in line.points]
        band = [(x, y(rate.p20)) for x, rate in at] + [(x, y(rate.p80)) for x, rate in reversed(at)]
        stretched.append(element("polygon", points=_points(band), class_=f"band {line.look.colour}"))
    for line in lines:
        path = [(across.place(point.bytes), y(point.rate.p50)) for point in line.points]
        stretched.append(element("polyline", points=_points(path), class_=f"line {line.look.colour}"))
    if roof:
        path = [(across.place(count), y(rate)) for count, rate in roof]
        stretched.append(element("polyline", points=_points(path), class_="roof"))
    drawn.append(stretched)
    # Its name is above the upper line and below the lower one, for they are often close.
    drawn += _ceiling(f"copy, measured: {number(copy, 'GB/s')}", "copy", y(copy), 15 if peak and peak > copy else -6)
    if peak is not None:
        name = f"peak of the memory: {number(peak, 'GB/s')}"
        drawn += _ceiling(name, "peak", y(peak), -6 if peak > copy else 15)
    for line in lines:
        for point in line.points:
            mark = line.look.mark()
            drawn.append(_at(across.place(point.bytes), y(point.rate.p50), element("title", point.tooltip), mark))
    return _plot(title, drawn, _HEIGHT, 20 + _CHARACTER * len(f"{up.high:,.0f}"), 16, top=24, bottom=46)


def _ceiling(name: str, kind: str, y: float, offset: float) -> list[Element]:
    line = element("line", element("title", name), x1="0", x2="100%", y1=y, y2=y, class_=kind)
    return [line, _text(name, y + offset, "0", "ceiling", dx=6)]


def timeline(spans: Sequence[Span], us: float, colours: dict[str, str], title: str) -> Element:
    """Draw the spans of a training step, a lane below the other.

    Args:
        spans: of the step.
        us: how long the axis is.
        colours: a span's name -> the class that colours it.
        title: what the chart shows, for those who cannot see it.
    """
    axis = Axis(0, us)
    unit, factor = ("ms", 1e-3) if us >= 1000 else ("µs", 1.0)
    lanes = list(dict.fromkeys(span["lane"] for span in spans))
    height = _LANE * len(lanes)
    drawn = []
    for tick, x in _tick_places(axis).items():
        drawn.append(element("line", x1=x, x2=x, y1=0, y2=height, class_="grid"))
        drawn.append(_text(f"{tick * factor:g} {unit}", height + 16, x, "tick", anchor="middle"))
    for index, lane in enumerate(lanes):
        drawn.append(_text(lane, _LANE * index + 16, "0", "label", dx=-8, anchor="end"))
    for span in spans:
        start, end = span["start_us"], span["end_us"]
        tooltip = f"{span['name']}: {number((end - start) * factor, unit)}, from {number(start * factor, unit)}"
        drawn.append(
            element(
                "rect",
                element("title", tooltip),
                x=_percent(axis.place(start)),
                y=_LANE * lanes.index(span["lane"]) + 3,
                width=_percent(axis.place(end) - axis.place(start)),
                height=_LANE - 6,
                class_=f"span {colours[span['name']]}",
            )
        )
    return _plot(title, drawn, height, 12 + _CHARACTER * max(len(lane) for lane in lanes), 24)


def _tick_places(axis: Axis) -> dict[float, str]:
    return {tick: _percent(axis.place(tick)) for tick in axis.ticks(count=4)}


def _plot(
    title: str, drawn: Sequence[Element], height: float, left: float, right: float, top: float = 4, bottom: float = 24
) -> Element:
    """The plot is the element itself, and what stands around it is drawn in its margins."""
    style = f"--left:{left:.0f}px;--right:{right:.0f}px;--top:{top:.0f}px;--bottom:{bottom:.0f}px"
    plot = element("svg", element("title", title), *drawn, class_="plot", height=height, style=style, role="img")
    return element("div", plot, class_="scroll")


def _at(x: float, y: float, *children: Element) -> Element:
    """Children drawn around (0, 0), at a place in percent and in pixels."""
    return element("svg", *children, x=_percent(x), y=y, class_="at")


def _text(text: str, y: float, x: str, kind: str, dx: float | None = None, anchor: str | None = None) -> Element:
    return element("text", text, x=x, y=y, dx=dx, text_anchor=anchor, class_=kind)


def _percent(place: float) -> str:
    return f"{place:.3f}%"


def _points(path: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.3f},{y:.2f}" for x, y in path)
