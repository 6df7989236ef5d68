import json
import math

import numpy as np
import pytest

from benchmarks import compare as module
from benchmarks.__main__ import main
from benchmarks.compare import MARGIN, Change, change, compare
from tests.benchmarks.example import a_row

SPREAD = (0.96, 1.05, 0.99, 1.02, 1.00, 0.98, 1.03, 0.97, 1.01, 0.995)


def times(factor, spread=SPREAD):
    return [factor * value for value in spread]


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        (times(1), times(1.5), "faster"),
        (times(1), times(1 / 1.5), "slower"),
        (times(1), times(1.2, (0.9, 1.1)), "undecided"),  # two measurements say little
        (times(1), times(1.01, [1.0] * 10), "undecided"),  # 1.01 +- 3 %: may be nothing, may be more than MARGIN
        (times(1, [1.0] * 10), times(1.02, [1.0] * 10), "same"),  # a difference that is certain, and nothing to anyone
        (times(1, [1.0] * 10), times(1.04, [1.0] * 10), "faster"),
        ([1.0], [3.0], "undecided"),  # one measurement says nothing
    ],
)
def test_verdicts(old, new, verdict):
    assert change(old, new).verdict == verdict


def test_ratio_is_that_of_the_rates():
    assert change(times(2), times(3)).ratio == pytest.approx(1.5)
    backwards, forwards = change(times(3), times(2)), change(times(2), times(3))
    assert (backwards.low, backwards.high) == pytest.approx((1 / forwards.high, 1 / forwards.low))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1 / MARGIN, MARGIN, "same"),
        (1.001, MARGIN, "same"),
        (1.001, MARGIN + 0.001, "faster"),
        (0.5, 0.999, "slower"),
        (0.5, 1.0, "undecided"),
        (1.0, 2.0, "undecided"),
    ],
)
def test_verdict_by_the_interval(low, high, verdict):
    assert Change(1.0, low, high).verdict == verdict


@pytest.mark.parametrize("freedom", range(1, len(module._T99) + 1))
def test_quantiles_of_students_t(freedom):
    # The density, integrated: 99 % of it lies within the quantile on either side.
    t = np.linspace(0, module._T99[freedom - 1], 200_001)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    inside = 2 * np.trapezoid(scale * (1 + t * t / freedom) ** (-(freedom + 1) / 2), t)
    assert inside == pytest.approx(0.99, abs=2e-5)


def test_interval_covers_the_truth_99_times_of_100():
    rng = np.random.default_rng(0)
    runs = 4000
    covered = 0
    for _ in range(runs):
        result = change(np.exp(rng.normal(0, 0.02, 10)), 1.3 * np.exp(rng.normal(0, 0.05, 8)))
        covered += result.low <= 1.3 <= result.high
    assert covered / runs == pytest.approx(0.99, abs=0.006)


def row(provider, speed=1.0, **fields):
    return a_row(
        provider=provider,
        baseline="eager",
        samples_us=[100 / value for value in times(speed)],
        p50_us=100 / speed,
        speedup_samples=times(speed),
        speedup_p50=speed,
        **fields,
    )


def verdicts(table):
    return {line.split()[3]: line.split()[-1] for line in table.splitlines() if line.startswith("cross_entropy ")}


def test_rows_are_matched_and_judged():
    old = [row("eager"), row("a"), row("b"), row("gone"), row("fastfeed", 2.0)]
    new = [row("fastfeed", 2.0), row("eager", 1.4), row("b", 1.4), row("a", 0.5), row("new")]
    table, worse = compare(old, new)
    expected = {"eager": "faster", "a": "slower", "b": "faster", "gone": "compared", "new": "compared"}
    assert verdicts(table) == expected | {"fastfeed": "undecided"}
    assert "\n2 faster, 1 slower, 1 undecided, 2 not compared\n" in table
    assert not worse


def test_a_faster_baseline_alone_does_not_change_the_others():
    # Twice as fast, as everything is: the machine was less busy. Their speedups are as before.
    old = [row("eager"), row("fastfeed", 2.0, gb_per_s=1.0)]
    new = [row("eager", 2.0), row("fastfeed", 2.0, gb_per_s=2.0)]
    table, _ = compare(old, new)
    assert verdicts(table) == {"eager": "faster", "fastfeed": "undecided"}
    assert "2.00x" in table


@pytest.mark.parametrize("changed", [{"images": 64}, {"bytes": 1}, {"flops": 1}, {"baseline": "another"}])
def test_other_work_is_not_compared(changed):
    table, worse = compare([row("eager"), row("fastfeed", 2.0)], [row("eager"), row("fastfeed", 1.0) | changed])
    assert verdicts(table)["fastfeed"] == "compared"
    assert "other work" in table
    assert not worse


def test_columns_agree_with_the_ratio():
    skewed = row("fastfeed") | {"speedup_samples": [1.0, 1.0, 4.0], "speedup_p50": 1.0}
    table, _ = compare([row("eager"), skewed], [row("eager"), row("fastfeed", 2.0)])
    cells = next(line for line in table.splitlines() if "fastfeed" in line).split()
    before, after, ratio = (float(cell.removesuffix("x")) for cell in cells[4:7])
    assert ratio == pytest.approx(after / before, abs=0.02)


@pytest.mark.parametrize(
    ("after", "worse"),
    [
        ({"speed": 0.5}, True),
        ({"speed": 2.0}, False),
        ({"status": "wrong", "reason": "other numbers"}, True),
        ({"status": "failed", "bytes": None}, True),  # as it is where not even the inputs could be made
        ({"status": "absent"}, False),
    ],
)
def test_worse_is_what_ours_became(after, worse):
    assert compare([row("eager"), row("fastfeed")], [row("eager"), row("fastfeed", **after)])[1] is worse


def test_differences_of_the_environment_are_named():
    table, _ = compare([row("eager", torch="2.11", commit="a")], [row("eager", torch="2.13", commit="b")])
    assert table.splitlines()[:3] == ["torch    2.11 -> 2.13", "commit   a -> b", ""]


def test_command_line(tmp_path, capsys):
    for name, speed in (("old", 2.0), ("new", 1.0)):
        (tmp_path / name).mkdir()
        rows = [row("eager"), row("fastfeed", speed)]
        (tmp_path / name / "results.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    assert main(["compare", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    assert verdicts(capsys.readouterr().out)["fastfeed"] == "slower"
    assert main(["compare", str(tmp_path / "new"), str(tmp_path / "old")]) == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "No such file or directory"),
        ("", "holds no rows"),
        ("{}\n", "line 1: missing or unknown fields, baseline, bytes"),
        ("[]\n", "line 1: "),
        ("{\n", "line 1: not a JSON object"),
    ],
)
def test_folders_without_results(text, message, tmp_path, capsys):
    if text is not None:
        (tmp_path / "results.jsonl").write_text(text)
    with pytest.raises(SystemExit, match="2"):
        main(["compare", str(tmp_path), str(tmp_path)])
    assert message in capsys.readouterr().err
