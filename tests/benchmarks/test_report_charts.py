import math
from itertools import pairwise

import pytest

from benchmarks.report.axes import Axis, rate_axis, size_axis, speedup_axis
from benchmarks.report.looks import looks
from tests.benchmarks.pages import at, chart, parsed, text_of, with_class
from tests.benchmarks.rows import COPY, MATMUL, PEAK, ROWS, a_group


@pytest.fixture(scope="module")
def root():
    return parsed(ROWS)


def rows_of(op, rows=ROWS):
    return [row for row in rows if row["op"] == op]


def bars_of(plot):
    """(rect, whisker's ends or None), by the text in front of the bar and in the order of the chart."""
    found = []
    for group in plot.findall("g"):
        rects = group.findall("rect")
        whisker = group.find("line")
        ends = (at(whisker, "x1"), at(whisker, "x2")) if whisker is not None else None
        found.append((group.find("text").text, rects[0] if rects else None, ends))
    return found


def test_bars_are_as_long_as_speedups(root):
    plot = chart(root, "adamw: Speedup over torch")
    rows = [row for row in rows_of("adamw") if row["status"] == "ok"]
    bars = bars_of(plot)
    assert [name for name, *_ in bars] == [row["provider"] for row in rows]
    (one,) = with_class(plot, "one")
    for (_, rect, ends), row in zip(bars, rows, strict=True):
        assert at(rect, "x") == 0
        assert at(rect, "width") == pytest.approx(row["speedup_p50"] * at(one, "x1"), abs=0.01)
        if row["provider"] == "torch":
            assert ends is None
        else:
            expected = [row["speedup_p20"] * at(one, "x1"), row["speedup_p80"] * at(one, "x1")]
            assert ends == pytest.approx(expected, abs=0.01)
    assert all(0 <= at(rect, "width") <= 100 for _, rect, _ in bars)


def test_bars_on_a_logarithmic_axis_begin_at_one(root):
    plot = chart(root, "Speedup over the baseline")  # from 0.8 to 25.8
    ours = [row for row in ROWS if row["provider"] == "fastfeed" and row["status"] == "ok"]
    bars = bars_of(plot)
    one = at(with_class(plot, "one")[0], "x1")
    assert len(bars) == len(ours)
    scale = at(bars[0][1], "width") / math.log(ours[0]["speedup_p50"])
    for (_, rect, ends), row in zip(bars, ours, strict=True):
        x, width = at(rect, "x"), at(rect, "width")
        expected = one + scale * math.log(row["speedup_p50"])
        assert (x, x + width) == pytest.approx((min(one, expected), max(one, expected)), abs=0.02)
        assert ends == pytest.approx([one + scale * math.log(row[f"speedup_{p}"]) for p in ("p20", "p80")], abs=0.02)
    # A mark for torch.compile and one for liger, where they are.
    (first,) = [g for g in plot.findall("g") if g.find("text").text == "16384x1000"][:1]
    marks = {m.find("path").get("class").split()[-1]: at(m, "x") for m in first.findall("svg")}
    rows = {row["provider"]: row for row in ROWS if row["shape"] == "16384x1000" and row["dtype"] == "bfloat16"}
    colours = looks(ROWS)
    for provider in ("torch.compile", "liger"):
        expected = one + scale * math.log(rows[provider]["speedup_p50"])
        assert marks.pop(colours[provider].colour) == pytest.approx(expected, abs=0.02)
    assert not marks


def test_rows_that_were_not_timed_have_no_bar(root):
    (bar,) = [bar for bar in bars_of(chart(root, "loader: Speedup over pillow")) if bar[0] == "spdl"]
    assert bar[1:] == (None, None)
    assert not [bar for bar in bars_of(chart(root, "loader: Speedup over pillow")) if bar[0] == "ffcv"]


def test_bounds_are_hollow(root):
    kinds = {name: rect.get("class") for name, rect, _ in bars_of(chart(root, "train: Speedup over torch"))}
    assert {name for name, kind in kinds.items() if "hollow" in kind} == {"fastfeed ops", "synthetic"}


def points_of(plot, colour):
    """The places of the marks of a colour."""
    marks = [m for m in plot.findall("svg") if m.find("path") is not None]
    return [(at(m, "x"), at(m, "y")) for m in marks if colour in m.find("path").get("class").split()]


def test_points_are_at_their_bytes_and_rates(root):
    plot = chart(root, "cross_entropy: Bandwidth in bfloat16")
    height = at(plot, "height")
    colours = looks(ROWS)
    pixels = (height - at(with_class(plot, "copy")[0], "y1")) / COPY  # per GB/s: the axis begins at 0
    assert height - at(with_class(plot, "peak")[0], "y1") == pytest.approx(PEAK * pixels, abs=0.02)
    for provider in ("eager", "torch.compile", "fastfeed", "liger"):
        rows = [r for r in rows_of("cross_entropy") if r["provider"] == provider and r["dtype"] == "bfloat16"]
        points = points_of(plot, colours[provider].colour)
        assert [height - y for _, y in points] == pytest.approx([r["gb_per_s"] * pixels for r in rows], abs=0.02)
        steps = [b - a for (a, _), (b, _) in pairwise(points)]
        assert steps == pytest.approx([steps[0]] * 4, abs=0.01)  # each size is four times the one before
        (band,) = [e for e in with_class(plot, "band") if colours[provider].colour in e.get("class").split()]
        corners = [tuple(map(float, pair.split(","))) for pair in band.get("points").split()]
        low = [r["bytes"] / r["p80_us"] / 1e3 for r in rows]
        high = [r["bytes"] / r["p20_us"] / 1e3 for r in rows]
        assert [height - y for _, y in corners] == pytest.approx([pixels * v for v in low + high[::-1]], abs=0.02)
        assert [x for x, _ in corners[:5]] == pytest.approx([x for x, _ in points], abs=0.01)


def test_roofline_where_operations_bound(root):
    plot = chart(root, "attention: Bandwidth in bfloat16")  # logarithmic: far from the copy
    copy, peak = (at(with_class(plot, name)[0], "y1") for name in ("copy", "peak"))
    scale = (copy - peak) / math.log(PEAK / COPY)
    (roof,) = with_class(plot, "roof")
    found = [float(pair.split(",")[1]) for pair in roof.get("points").split()]
    work = {row["bytes"]: row["flops"] for row in rows_of("attention")}
    rates = [MATMUL * 1e3 * count / flops for count, flops in work.items()]
    assert rates == pytest.approx([350, 56])
    # Of the two lines, which are close, places are known to a hundredth of a pixel, and the roof is far off.
    assert found == pytest.approx([copy + scale * math.log(COPY / rate) for rate in rates], abs=0.2)
    assert not with_class(chart(root, "finish: Bandwidth in float32"), "roof")


def test_bandwidth_needs_two_sizes(root):
    titles = [plot.find("title").text for plot in with_class(root, "plot", "svg")]
    assert not [title for title in titles if title.startswith(("adamw: Bandwidth", "loader: Bandwidth"))]


def test_timelines_share_a_scale_and_tell_the_wait(root):
    figure = next(f for f in root.iter("figure") if text_of(f.find("h3")).startswith("A training step"))
    words = [text_of(p) for p in figure.findall("p")]
    assert words[0] == "torch: waits for data 92% of the host's step (23.0 ms of 25.0 ms), " \
        "62% of the device's step (15.5 ms of 25.0 ms)"  # fmt: skip
    assert "2.7% of the device's step (250 µs of 9.35 ms)" in words[1]
    rows = [row for row in rows_of("train") if row["timeline"]]
    plots = with_class(figure, "plot", "svg")
    longest = max(span["end_us"] for row in rows for span in row["timeline"])
    for plot, row in zip(plots, rows, strict=True):
        rects = plot.findall("rect")
        assert len({at(rect, "y") for rect in rects}) == 2
        for rect, span in zip(rects, row["timeline"], strict=True):
            assert at(rect, "x") == pytest.approx(100 * span["start_us"] / longest, abs=0.01)
            expected = 100 * (span["end_us"] - span["start_us"]) / longest
            assert at(rect, "width") == pytest.approx(expected, abs=0.01)
            assert ("wait" in rect.get("class").split()) == (span["name"] == "data wait")
            assert rect.find("title").text.startswith(span["name"])
    legend = [text_of(key) for key in with_class(with_class(figure, "legend")[0], "key")]
    assert sorted(legend) == ["backward", "data wait", "forward", "optimizer"]


def test_a_provider_looks_the_same_everywhere(root):
    found = {}
    for key in with_class(root, "key", "span"):
        mark = key.find("svg/path")
        if mark is not None:
            found.setdefault(text_of(key), set()).add((mark.get("class"), mark.get("d")))
    assert set(found) == {row["provider"] for row in ROWS}
    assert all(len(looked) == 1 for looked in found.values())
    ours = [provider for provider, looked in found.items() if looked & found["fastfeed"]]
    assert ours == ["fastfeed"]


def test_what_is_coloured_has_its_colour(root):
    style = root.find("head/style").text
    coloured = [e for name in ("bar", "span", "mark", "line", "band") for e in with_class(root, name)]
    names = {name for e in coloured for name in e.get("class").split()}
    names -= {"bar", "span", "mark", "line", "band", "hollow"}
    assert {"ours", "baseline", "compiled", "other-0", "wait", "span-0"} <= names
    for name in names:
        assert f".{name}{{color:var(--{name})}}" in style
        assert style.count(f"--{name}:#") == 2  # light and dark


def test_looks_of_many_providers_differ():
    names = [f"p{i}" for i in range(20)]
    rows = a_group(
        "x", "1", "float32", {"eager": 2.0, "fastfeed": 1.0, "torch.compile": 1.5} | dict.fromkeys(names, 1.0)
    )
    assert len(set(looks(rows).values())) == len(rows)


def test_a_baseline_that_is_beside_another_baseline_is_not_grey():
    rows = [*a_group("a", "1", "float32", {"x": 2.0, "y": 1.0}, baseline="x")]
    rows += a_group("b", "1", "float32", {"y": 2.0, "fastfeed": 1.0}, baseline="y")
    found = {provider: look.colour for provider, look in looks(rows).items()}
    assert found["x"] == "baseline"
    assert found["y"].startswith("other")


@pytest.mark.parametrize(
    ("axis", "ticks"),
    [
        (Axis(0, 3.3), [0, 1, 2, 3]),
        (Axis(0, 1.02), [0, 0.5, 1]),
        (Axis(0.5, 30, log=True), [1, 3, 10, 30]),
        (Axis(1, 1e4, log=True), [1, 10, 100, 1000, 1e4]),
        (Axis(4.0, 4.4, log=True), [4.0, 4.1, 4.2, 4.3, 4.4]),
    ],
)
def test_ticks(axis, ticks):
    assert axis.ticks(count=4) == pytest.approx(ticks)


@pytest.mark.parametrize(("low", "high"), [(1, 1.0001), (0.3, 7), (1e-3, 1e12), (5e5, 6e5), (99, 1001)])
@pytest.mark.parametrize("log", [False, True])
def test_ticks_are_few_and_on_the_axis(low, high, log):
    axis = Axis(low, high, log)
    for count in (4, 6):
        ticks = axis.ticks(count)
        assert 2 <= len(ticks) <= 2 * count
        assert all(-1e-6 <= axis.place(tick) <= 100 + 1e-6 for tick in ticks)


def test_axes_hold_their_values():
    assert speedup_axis([0.5, 3.0]).low == 0
    for axis, values in (
        (speedup_axis([0.9, 2.0]), (1, 0.9, 2.0)),
        (speedup_axis([0.1, 2.0]), (1, 0.1, 2.0)),
        (speedup_axis([30.0]), (1, 30.0)),
        (rate_axis([10.0, 400.0]), (10.0, 400.0)),
        (rate_axis([1.0, 400.0]), (1.0, 400.0)),
        (size_axis([1e3, 1e6]), (1e3, 1e6)),
    ):
        assert all(0 <= axis.place(value) <= 100 for value in values)
    assert speedup_axis([0.1, 2.0]).log
    assert rate_axis([1.0, 400.0]).log
