import logging
import pickle

import pytest

from fastfeed.data.errors import BadSample, Report, SampleError


def reasons(*indices):
    return {i: (f"{i}.jpg", "empty") for i in indices}


def test_raise():
    report = Report("raise", None)
    report.add({}, 0, 0, 10)
    with pytest.raises(SampleError, match=r"cannot use 3.jpg: empty \(and 1 more in this batch\)") as raised:
        report.add(reasons(3, 5), 0, 2, 10)
    assert raised.value.samples == [BadSample(3, "3.jpg", "empty", 0), BadSample(5, "5.jpg", "empty", 0)]
    copy = pickle.loads(pickle.dumps(raised.value))
    assert (str(copy), copy.samples) == (str(raised.value), raised.value.samples)
    with pytest.raises(SampleError, match=r"cannot use 3.jpg: empty. Replace"):
        report.add(reasons(3), 0, 1, 10)


@pytest.mark.parametrize(("mode", "verb"), [("replace", "replacing"), ("drop", "dropping")])
def test_report_and_log_each_sample_once(caplog, mode, verb):
    report = Report(mode, None)
    with caplog.at_level(logging.WARNING, "fastfeed"):
        report.add(reasons(3), 0, 1, 10)
        report.add(reasons(4, 3), 1, 2, 10)
    assert report.samples == [BadSample(3, "3.jpg", "empty", 0), BadSample(4, "4.jpg", "empty", 1)]
    assert [record.message for record in caplog.records] == [
        f"{verb} sample 3, 3.jpg: empty",
        f"{verb} sample 4, 4.jpg: empty",
    ]


def test_the_newest_reason_of_a_sample(caplog):
    report = Report("drop", None)
    with caplog.at_level(logging.WARNING, "fastfeed"):
        for epoch, reason in enumerate(["corrupt", "corrupt", "empty", "empty", "no such file"]):
            report.add({3: ("3.jpg", reason)}, epoch, 1, 10)
            report.add({4: ("4.jpg", "empty")}, epoch, 2, 10)
    assert report.samples == [BadSample(3, "3.jpg", "no such file", 4), BadSample(4, "4.jpg", "empty", 0)]
    assert [record.message for record in caplog.records] == [
        "dropping sample 3, 3.jpg: corrupt",
        "dropping sample 4, 4.jpg: empty",
        "dropping sample 3, 3.jpg: empty",
        "dropping sample 3, 3.jpg: no such file",
    ]


@pytest.mark.parametrize(("budget", "allowed"), [(0, 0), (2, 2), (0.0, 0), (0.25, 2), (1.0, 10)])
def test_budget_of_an_epoch(budget, allowed):
    report = Report("drop", budget)
    report.add(reasons(3), 0, allowed, 10)
    with pytest.raises(SampleError, match=f"{allowed + 1} of the epoch's 10 samples are bad, and max_errors={budget}"):
        report.add(reasons(3), 0, allowed + 1, 10)  # which is known: positions count, not samples
    report.add(reasons(3), 1, allowed, 10)  # and nothing is kept of an epoch


def test_a_share_is_not_cut_by_rounding():
    report = Report("drop", 0.29)  # times 100 is 28.999999999999996
    report.add(reasons(*range(29)), 0, 29, 100)
    with pytest.raises(SampleError, match=r"31 of .* max_errors=0.29 allows 29: the last is 50.jpg: empty"):
        report.add(reasons(40, 50), 0, 31, 100)


@pytest.mark.parametrize(("mode", "n", "bad", "taken"), [
    ("replace", 4, [1], [0, 2, 2, 3]),
    ("replace", 4, [3], [0, 1, 2, 0]),
    ("replace", 4, [0, 1, 3], [2, 2, 2, 2]),
    ("replace", 2, [0, 1], [0, 1]),
    ("drop", 4, [1, 3], [0, 2]),
    ("drop", 2, [0, 1], []),
])  # fmt: skip
def test_who_stands_in(mode, n, bad, taken):
    assert Report(mode, None).select(n, bad) == taken


@pytest.mark.parametrize(("mode", "budget", "message"), [
    ("skip", None, "on_error is 'skip'"),
    ("drop", -1, "max_errors is -1"),
    ("drop", 1.5, "max_errors is 1.5"),
    ("drop", True, "max_errors is True"),
    ("drop", "1", "max_errors is '1'"),
    ("raise", 0, "max_errors is 0, and on_error='raise' allows no bad sample: take on_error='replace'"),
    ("raise", 0.1, "max_errors is 0.1, and on_error='raise' allows no bad sample"),
])  # fmt: skip
def test_bad_arguments(mode, budget, message):
    with pytest.raises(ValueError, match=message):
        Report(mode, budget)
