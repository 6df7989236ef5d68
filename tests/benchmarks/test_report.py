# ruff: noqa: RUF001 - the report's own signs
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.report.page import page
from benchmarks.report.summary import summary
from benchmarks.results import FILE, groups
from tests.benchmarks.example import a_row
from tests.benchmarks.pages import Tree, parsed, svgs, text_of, with_class
from tests.benchmarks.rows import LONG_REASON, ROWS, a_group

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def html():
    return page(ROWS)


@pytest.fixture(scope="module")
def root(html):
    return Tree(html).root


# The file


def test_elements_are_closed_and_links_lead_somewhere(root):
    names = [e.get("id") for e in root.iter() if e.get("id")]
    links = [e.get("href") for e in root.iter() if e.get("href") is not None]
    assert len(names) == len(set(names)) == len({row["op"] for row in ROWS})
    assert {f"#{name}" for name in names} == set(links)


def test_pictures_are_xml(html):
    pictures = svgs(html)
    assert len(pictures) > 20
    for picture in pictures:
        ElementTree.fromstring(picture)


def test_nothing_is_loaded(html, root):
    assert not re.search(r"url\(|@import|https?:|src=|javascript:", html)
    assert not {e.tag for e in root.iter()} & {"script", "link", "img", "iframe", "object", "embed", "image", "use"}


def test_text_stays_text(html, root):
    assert "<b>" not in html
    assert "Made-up GPU &lt;80GB&gt; &amp; co" in html
    assert root.find("body/header/h1").text == "fastfeed on Made-up GPU <80GB> & co"
    assert "odd <op>" in [e.text for e in root.iter("a")]
    (row,) = a_group("x", "1", "float32", {"eager": ("failed", "\x1b[31mred\x00 <i>\x1b[0m")})
    assert "red <i>" in text_of(with_class(parsed([row]), "alert")[0])


def test_same_rows_same_bytes(html):
    """Also in another process, where sets have another order."""
    script = (
        "import sys\nfrom benchmarks.report.page import page\nfrom benchmarks.report.summary import summary\n"
        "from tests.benchmarks.rows import ROWS\nsys.stdout.buffer.write((page(ROWS) + summary(ROWS)).encode())"
    )
    environment = os.environ | {"PYTHONHASHSEED": "1"}
    there = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, capture_output=True, check=True)
    assert there.stdout.decode() == html + summary(ROWS)


def test_write_report(tmp_path, html):
    (tmp_path / FILE).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert report.write_report(tmp_path) == tmp_path / "report.html"
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == html
    assert (tmp_path / "summary.md").read_text(encoding="utf-8") == summary(ROWS, "report.html")


def test_write_report_without_results(tmp_path):
    with pytest.raises(ValueError, match=FILE):
        report.write_report(tmp_path)


# What it says about the run


def facts(root):
    return {text_of(entry.find("dt")): text_of(entry.find("dd")) for entry in root.find("body/header/dl")}


def test_header(root):
    found = facts(root)
    assert found["GPU"] == "Made-up GPU <80GB> & co, 80.0 GiB, driver 580.00.01"
    assert found["Processor"] == "Made-up CPU <x86> & co, 16 cores, 16 threads"
    for version in ("PyTorch 2.13.0+cu130", "CUDA 13.0", "Triton 3.7.1", "DALI 2.4.0", "fastfeed 0.1.0"):
        assert version in found["Versions"]
    assert found["Commit"] == "0123456789ab"
    assert found["Copy, measured: bytes read plus written"] == "4,000 GB/s"
    assert found["Peak of the memory, in theory"] == "4,800 GB/s"
    assert found["Matrix product, measured"] == "700 TFLOP/s in bfloat16"
    assert found["Clock after the rows"] == "1,755–1,980 MHz"
    assert "2 of 19 sets of inputs" in found["Slowed down by"]
    assert "power cap cross_entropy/65536x1000/bfloat16" in found["Slowed down by"]
    assert "2026-01-02 03:04:05 UTC" in text_of(root.find("body/header"))
    assert "quick run" not in text_of(root)


def test_header_of_a_quick_run_on_a_cpu():
    root = parsed([a_row(command="python -m benchmarks run --filter a --quick", clock_mhz=None)])
    found = facts(root)
    assert "GPU" not in found
    assert found["Clock after the rows"] == found["Peak of the memory, in theory"] == "unknown"
    assert found["Slowed down by"] == "nothing noticed"
    assert "quick run" in text_of(root.find("body/header"))


def test_wrong_and_failed_rows_come_first(root):
    first, second = root.findall("body/main/section")[:2]
    assert first.get("class") == "alert"
    assert text_of(first).startswith("2 rows are wrong or failed, and not timed")
    assert "spdl failed in loader/256x3x224x224/bfloat16: RuntimeError: a <b>stream</b> ended" in text_of(first)
    assert "fastfeed is wrong in odd <op>/a|b/float8_e4m3fn: off by 3.0 at (0, 1)" in text_of(first)
    assert text_of(second).startswith("What you gain")


def test_absent_providers_have_reasons(root):
    (table,) = with_class(root, "absent-providers", "table")
    lines = [[text_of(cell) for cell in line] for line in table.find("tbody")]
    assert [line[0] for line in lines] == ["apex", "ffcv"]
    assert lines[0][1].endswith(" ".join(LONG_REASON.split()))
    assert table.find(".//details") is not None  # it is long
    assert lines[1][1:] == ["not installed: python -m pip install ffcv # needs <OpenCV> & friends", "loader"]


def test_method_names_what_was_used(root):
    assert re.findall(r"Timing: (\w+)", text_of(root)) == ["graph", "events", "wall"]
    assert re.findall(r"Timing: (\w+)", text_of(parsed([a_row()]))) == ["wall"]


# The tables


def lines_of(root, name):
    (table,) = with_class(root, name, "table")
    return [[text_of(cell) for cell in line] for line in table.find("tbody")]


def value(text):
    """The first number of a cell, and a time in µs."""
    found, unit = re.search(r"([\d.,]+(?:e-\d+)?) ?(\S*)", text).groups()
    return float(found.replace(",", "")) * {"ms": 1e3, "s": 1e6}.get(unit, 1)


def test_standings_are_those_of_the_rows(root):
    lines = lines_of(root, "standings")
    timed = 0
    for group, line in zip(groups(ROWS).values(), lines, strict=True):
        by_name = {row["provider"]: row for row in group}
        ours = by_name["fastfeed"]
        assert line[:2] == [ours["op"], f"{ours['shape']} {ours['dtype']}"]
        if ours["status"] != "ok":
            assert line[2:] == [ours["status"], "–", "–", "–", "–"]
            continue
        timed += 1
        assert value(line[2]) == pytest.approx(ours["p50_us"], rel=5e-3)
        assert value(line[3]) == pytest.approx(ours["speedup_p50"], rel=5e-3)
        low, high = re.search(r"× ([\d.]+)–([\d.]+)", line[3]).groups()
        assert (float(low), float(high)) == pytest.approx((ours["speedup_p20"], ours["speedup_p80"]), rel=1e-2)
        assert line[3].endswith(ours["baseline"])
        if ours["speedup_compiled"] is None:
            assert line[4] == "–"
        else:
            assert value(line[4]) == pytest.approx(ours["speedup_compiled"], rel=2e-2)
        others = [row for row in group if row["peer"] and row["p50_us"] is not None]
        others = [row for row in others if row["provider"] not in ("torch.compile", row["baseline"])]
        if others:
            best = min(others, key=lambda row: row["p50_us"])
            assert value(line[5]) == pytest.approx(best["p50_us"] / ours["p50_us"], rel=5e-3)
            assert line[5].endswith(best["provider"])
        else:
            assert line[5] == "–"
        if ours["percent_of_copy"] is None:
            assert line[6] == "–"
        else:
            assert value(line[6]) == pytest.approx(max(ours["percent_of_copy"], 0.1), rel=6e-2)
    assert timed == len(lines) - 1


def test_losses_look_like_losses(root):
    (table,) = with_class(root, "standings", "table")
    found = {text_of(line[1]): [cell.get("class") for cell in line[3:6]] for line in table.find("tbody")}
    assert found["resnet50 float32"] == ["faster", "faster", "slower"]
    assert found["1x32x32x3 float32"] == ["slower", "slower", "absent"]
    assert found["8x32x32x3 float32"] == ["even", "faster", "absent"]
    symbols = {cell.get("class"): text_of(cell)[0] for line in table.find("tbody") for cell in line[3:6]}
    assert symbols == {"faster": "▲", "slower": "▼", "even": "≈", "absent": "–"}


def test_tiles_count(root):
    baseline, compiled, other, copy = [text_of(tile) for tile in with_class(root, "tile")]
    assert baseline.startswith("Over the baseline: torch, eager, pillow")
    assert "▲ 16 faster ▼ 1 slower ≈ 1 even" in baseline
    assert "from 0.80× to 25.8×" in baseline
    assert "▲ 12 faster ▼ 1 slower" in compiled
    assert "even" not in compiled
    assert "▲ 11 faster ▼ 1 slower" in other
    assert "16 sets of inputs" in copy


def test_all_rows_are_there(root):
    tables = with_class(root, "measured", "table")
    assert sum(len(table.findall("tbody/tr")) for table in tables) == len(ROWS) + len(groups(ROWS))
    (loader,) = [table for table in tables if "--filter loader/" in text_of(table)]
    head = [text_of(cell) for cell in loader.find("thead/tr")]
    lines = {text_of(line[0]): line for line in loader.findall("tbody/tr")[1:]}
    ours = dict(zip(head, [text_of(cell) for cell in lines["fastfeed"]], strict=True))
    assert ours["version"] == "0.1.0"
    assert ours["median"] == "93.0 ms"
    assert ours["20%"] == "91.1 ms"
    assert value(ours["80%"]) == pytest.approx(97_650, rel=1e-3)
    assert ours["over baseline"] == "25.8× 25.0–26.6"
    assert ours["cores used"] == "6.10"
    assert ours["img/s"] == "88,086"
    assert ours["timing"] == "wall"
    assert ours["rounds"] == "500"
    assert not {"GB/s", "launches", "host time", "largest error"} & set(head)  # nothing was measured
    assert "pillow the baseline" in lines
    assert "cached a part or a bound, no alternative" in lines
    absent = dict(zip(head, [text_of(cell) for cell in lines["ffcv"]], strict=True))
    assert absent["status"] == "absent"
    assert set(absent.values()) == {"ffcv", "2.13.0+cu130", "absent", "–"}
    assert "python -m benchmarks run --filter loader/256x3x224x224/bfloat16 --device cuda" in text_of(loader)


# Unusual rows

TIMES = {"eager": 9.0, "torch.compile": 5.0, "fastfeed": 4.0}
ABSENT, WRONG, FAILED = ("absent", "not installed"), ("wrong", "off by 1"), ("failed", LONG_REASON * 5)


@pytest.mark.parametrize(
    "rows",
    [
        a_group("x", "1", "float32", {"fastfeed": 4.0}, baseline="fastfeed"),
        a_group("x", "1", "float32", {"eager": 4.0}),
        a_group("x", "1", "float32", {"eager": 4.0, "bound": 1.0}, peer=False),
        a_group("x", "1", "float32", dict.fromkeys(TIMES, FAILED)),
        a_group("x", "1", "float32", dict.fromkeys(TIMES, ABSENT)),
        a_group("x", "1", "float32", TIMES | {"fastfeed": WRONG}),
        a_group("x", "1", "float32", TIMES | {"torch.compile": FAILED}),
        a_group("x", "1", "float32", TIMES | {"eager": ("wrong", None)}, baseline="torch.compile"),
        a_group("x", "1", "float32", TIMES, images=0, bytes=0, flops=0),
        a_group("x", "1", "float32", TIMES, bytes=100, spread=0.999),
        a_group("x", "1", "float32", TIMES, timeline={"fastfeed": [], "eager": None}),
        a_group("x", "1", "a", TIMES, bytes=7) + a_group("x", "2", "a", TIMES, bytes=7),
        a_group("x", "1", "a", TIMES, bytes=7) + a_group("x", "2", "a", TIMES, bytes=8, flops=10**15),
        a_group("", "", "", TIMES),
        a_group("?", "1", "a", {"p" * 300: 9.0, "fastfeed": 1e9}, baseline="p" * 300),
        [a_row(cores_used=None, max_error=None, bytes=None, gb_per_s=None, percent_of_copy=None, version=None)],
        [a_row(triton=None, dali=None, commit=None, clock_mhz=None, slowed_by="<x>" * 999)],
        [row | {"gpu": name} for name in ("A", "B") for row in a_group(name, "1", "a", TIMES)],
    ],
)
def test_unusual_rows(rows):
    html = page(rows)
    root = Tree(html).root
    for picture in svgs(html):
        ElementTree.fromstring(picture)
    measured = sum(len(table.findall("tbody/tr")) for table in with_class(root, "measured"))
    assert measured == len(rows) + len(groups(rows))
    assert len(lines_of(root, "standings")) == len(groups(rows))
    assert len(re.findall(r"^\| (?!Operation)", summary(rows), re.MULTILINE)) == len(groups(rows))
    assert "nan" not in html
    assert "None" not in html + summary(rows)


def test_nothing_is_claimed_without_rows_that_say_so():
    root = parsed(a_group("x", "1", "float32", dict.fromkeys(TIMES, ABSENT)))
    assert all("not measured" in text_of(tile) for tile in with_class(root, "tile"))
    assert not with_class(root, "plot")
