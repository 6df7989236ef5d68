"""What is timed of the first batch, that it is checked, and that nothing of a run stays behind."""

import multiprocessing
import os

import pytest
import torch

from benchmarks.case import Options, label
from benchmarks.cases.loader_latency import FRESH, WARM, LoaderLatencyCase
from fastfeed.demo.baseline import PillowFolder

STATES = [FRESH, WARM]
PROVIDERS = [
    name if name == "pillow" else pytest.param(name, marks=pytest.mark.dali) for name in LoaderLatencyCase.loaders
]


def make_case(state, device="cpu"):
    options = Options(torch.device(device), quick=True, threads=1)
    return LoaderLatencyCase(options, f"{state}-8x3x32x32", torch.float32)


@pytest.fixture(scope="module", params=STATES)
def case(request):
    case = make_case(request.param)
    yield case
    case.close()


@pytest.mark.parametrize("provider", PROVIDERS)
def test_check(case, provider):
    error = case.check(provider)
    assert error == 0 if provider == "pillow" else 0 <= error < 0.05
    assert multiprocessing.active_children() == []


@pytest.mark.dali
@pytest.mark.parametrize("provider", ["dali", "fastfeed"])
def test_threads_end_with_a_check(case, provider):
    def threads_after_a_check():
        case.check(provider)
        return len(os.listdir("/proc/self/task"))

    threads_after_a_check()  # which may leave those of the process
    assert threads_after_a_check() == threads_after_a_check()


@pytest.mark.gpu
@pytest.mark.parametrize("provider", PROVIDERS)
@pytest.mark.parametrize("state", STATES)
def test_check_on_a_gpu(state, provider):
    case = make_case(state, "cuda")
    try:
        case.check(provider)
    finally:
        case.close()


class Recorded:
    """A right loader that writes down what is asked of it."""

    def __init__(self, recipe, events):
        dataset = PillowFolder(recipe.source.samples, recipe.size, train=recipe.train)
        self.loader = torch.utils.data.DataLoader(dataset, recipe.batch_size, shuffle=recipe.train)
        self.events = events
        events.append("build")

    def __iter__(self):
        self.events.append("begin")
        try:
            for number, batch in enumerate(self.loader):
                self.events.append(number)
                yield batch
        finally:
            self.events.append("end")


EVENTS = {
    # What is done when the provider is built, in a run, and after it.
    FRESH: ([], ["build", "begin", 0], ["end"]),
    WARM: (["build", "begin", 0, 1, "end"], ["begin", 0], [1, "end"]),
}


def test_what_is_timed(case, monkeypatch):
    events = []
    monkeypatch.setattr(case, "loaders", {"pillow": lambda recipe: Recorded(recipe, events)})
    before, timed, after = EVENTS[case.state]
    run = case.providers["pillow"](case)
    assert events == before
    for _ in range(2):
        events.clear()
        unfinished = run()
        assert events == timed
        unfinished.finish()
        assert events == timed + after


@pytest.mark.parametrize(
    "wrong",
    [
        lambda images, target: (images[:-1], target[:-1]),
        lambda images, target: (images.double(), target),
        lambda images, target: (images, target[:-1]),
    ],
)
def test_check_sees_what_the_first_batch_is(case, wrong, monkeypatch):
    events = []
    monkeypatch.setattr(case, "loaders", {"pillow": lambda recipe: Recorded(recipe, events)})
    case.check("pillow")
    _, _, after = EVENTS[case.state]
    assert events[-len(after) :] == after  # the run was finished
    right = case.providers["pillow"]

    def build(case):
        run = right(case)

        def changed():
            unfinished = run()
            return unfinished._replace(result=wrong(*unfinished.result))

        return changed

    monkeypatch.setattr(case, "providers", {"pillow": build})
    with pytest.raises(AssertionError):
        case.check("pillow")


def test_table():
    for data, size in ((None, 64), ("photographs", 224)):
        names = [
            label(LoaderLatencyCase, row)
            for row in LoaderLatencyCase.parameters(Options(torch.device("cpu"), data=data))
        ]
        assert names == [f"loader_latency/{state}-64x3x{size}x{size}/float32" for state in STATES]
