# ruff: noqa: RUF001 - the report's own signs
import json

import pytest

from benchmarks import report
from benchmarks.report.standing import Standing, inputs
from benchmarks.report.summary import readme_section, summary, update_readme
from benchmarks.report.text import duration, number, percent, size, speedup
from benchmarks.results import FILE, groups
from benchmarks.timing import Band
from tests.benchmarks.example import a_row
from tests.benchmarks.rows import ROWS, a_group

# Where we stand


@pytest.mark.parametrize(
    ("band", "verdict"),
    [
        (Band(1.01, 1.5, 2), "faster"),
        (Band(1, 1.5, 2), "even"),
        (Band(0.9, 1.5, 2), "even"),
        (Band(0.5, 0.8, 1), "even"),
        (Band(0.5, 0.8, 0.99), "slower"),
        (Band(1, 1, 1), "even"),
    ],
)
def test_verdict(band, verdict):
    assert Standing("x", band).verdict == verdict


def test_the_best_other_is_a_peer():
    times = {"eager": 9.0, "torch.compile": 1.0, "bound": 2.0, "slow": 6.0, "good": 5.0, "fastfeed": 4.0}
    peers = dict.fromkeys(times, True) | {"bound": False, "fastfeed": False}
    (group,) = inputs(a_group("x", "1", "float32", times, peer=peers))
    assert (group.baseline.provider, group.compiled.provider, group.other.provider) == (
        "eager",
        "torch.compile",
        "good",
    )
    assert group.baseline.speedup == pytest.approx((9 / 4 * 0.97, 9 / 4, 9 / 4 * 1.03))
    assert group.compiled.speedup.p50 == pytest.approx(1 / 4)
    assert group.other.speedup.p50 == pytest.approx(5 / 4)
    assert group.other.speedup.p20 <= 5 / 4 <= group.other.speedup.p80


def test_interval_over_others_is_that_of_the_passes():
    rows = a_group("x", "1", "float32", {"eager": 9.0, "other": 4.0, "fastfeed": 4.0})
    rows[1]["samples_us"] = [4.0, 8.0] * 5
    rows[2]["samples_us"] = [4.0] * 10
    (group,) = inputs(rows)
    assert group.other.speedup == pytest.approx((1, 1, 2))
    assert group.other.verdict == "even"


# The summary


def test_summary():
    lines = summary(ROWS, "a/report.html").splitlines()
    assert lines[0].startswith("Made-up GPU &lt;80GB> &amp; co, 80.0 GiB, driver 580.00.01; Made-up CPU &lt;x86>")
    assert "commit 0123456789ab, 2026-01-02" in lines[0]
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("| ")]
    assert len(cells) == 1 + len(groups(ROWS))
    assert cells[1] == [
        *("adamw", "resnet50 float32", "192 µs", "▲ **1.40×** (1.35–1.44) torch", "▲ **1.20×** (1.20–1.21)"),
        *("▼ **0.94×** (0.94–0.94) fused", "93%"),
    ]
    assert cells[-1] == ["odd &lt;op>", r"a\|b float8_e4m3fn", "wrong", *"––––"]
    assert "[The whole report](a/report.html)" in lines[-1]
    assert lines[-1].endswith("`python -m benchmarks run --device cuda --threads 16`")
    assert any(line.startswith("- **wrong**: fastfeed in odd &lt;op>") for line in lines)


def test_summary_of_a_quick_run_says_so():
    row = a_row(command="python -m benchmarks run --filter 'a b' --device cpu --quick")
    assert "`--quick`" in summary([row])
    assert summary([row]).endswith("`python -m benchmarks run --device cpu --quick`\n")
    assert "report" not in summary([row])


def test_summary_links_from_the_readme(tmp_path):
    folder = tmp_path / "benchmarks" / "results" / "a-gpu"
    folder.mkdir(parents=True)
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    expected = summary(ROWS, "benchmarks/results/a-gpu/report.html")
    assert report.summary_for(tmp_path / "README.md", folder) == expected


README = "# Title\n\n<!-- benchmarks: a -->\nold\n<!-- end of benchmarks: a -->\n\nafter\n"


@pytest.fixture
def readme(tmp_path):
    file = tmp_path / "README.md"
    file.write_text(README)
    return file


def test_readme_is_updated_once(readme):
    assert readme_section(readme, "a") == "old\n"
    assert update_readme(readme, "a", "new µ\n\ntext\n")
    expected = README.replace("\nold\n", "\n\nnew µ\n\ntext\n\n")
    assert readme.read_text(encoding="utf-8") == expected
    assert readme_section(readme, "a") == "new µ\n\ntext\n"
    assert not update_readme(readme, "a", "new µ\n\ntext\n")
    assert readme.read_text(encoding="utf-8") == expected


def test_other_sections_of_the_readme_stay(readme):
    other = "<!-- benchmarks: a-b -->\nmine\n<!-- end of benchmarks: a-b -->\n"
    readme.write_text(other + README)
    update_readme(readme, "a", "new")
    assert readme.read_text().startswith(other)
    assert readme_section(readme, "a-b") == "mine\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "<!-- benchmarks: a --> is there 0 times"),
        ("<!-- benchmarks: a -->", "<!-- end of benchmarks: a --> is there 0 times"),
        ("<!-- end of benchmarks: a --> <!-- benchmarks: a -->", "swap them"),
        (README * 2, "<!-- benchmarks: a --> is there 2 times"),
        (README + "<!-- end of benchmarks: a -->", "<!-- end of benchmarks: a --> is there 2 times"),
    ],
)
def test_readme_with_wrong_markers(readme, text, message):
    readme.write_text(text)
    for act in (lambda: readme_section(readme, "a"), lambda: update_readme(readme, "a", "new")):
        with pytest.raises(ValueError, match=f"{readme}.*{message}"):
            act()
    assert readme.read_text() == text


# Numbers as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (number(1234.5), "1,234"),
        (number(123.45), "123"),
        (number(9.996, "GB/s"), "10.0 GB/s"),
        (number(0.0123), "0.0123"),
        (number(0.000123), "1.2e-04"),
        (number(0), "0.00"),
        (duration(0.5), "0.500 µs"),
        (duration(999.4), "999 µs"),
        (duration(999.6), "1.00 ms"),
        (duration(2.5e6), "2.50 s"),
        (size(999), "999 B"),
        (size(48_168_960), "48.2 MB"),
        (size(1_500_000, round_value=True), "1.5 MB"),
        (size(3e15), "3,000 TB"),
        (speedup(2.676), "2.68×"),
        (speedup(0.9984), "0.998×"),
        (speedup(1), "1.00×"),
        (speedup(12.34), "12.3×"),
        (speedup(0.0512), "0.0512×"),
        (percent(147.2), "147%"),
        (percent(9.94), "9.9%"),
        (percent(0.044), "<0.1%"),
        (percent(0), "0%"),
    ],
)
def test_numbers(text, expected):
    assert text == expected
