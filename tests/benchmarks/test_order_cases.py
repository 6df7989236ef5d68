"""The cases of what comes before the samples: that their checks see a wrong length, state or order."""

import numpy as np
import pytest
import torch

from benchmarks.case import Options
from benchmarks.cases.epoch_order import SHUFFLED, WEIGHTED, WEIGHTS, EpochOrderCase
from benchmarks.cases.loader_state import BATCH_SIZE, OPERATIONS, ByHand, LoaderStateCase, NeverRead
from benchmarks.peers import Absent

CPU = Options(torch.device("cpu"), quick=True, threads=1)
SAMPLES = 1000  # 15 batches of 64 and a last one of 40
LOADERS = [
    pytest.param(name, marks=pytest.mark.dali) if name == "fastfeed" else name for name in LoaderStateCase.loaders
]


def state_case(operation):
    return LoaderStateCase(CPU, f"{operation}-{SAMPLES}", torch.int64)


def order_case(kind, samples=SAMPLES):
    return EpochOrderCase(CPU, f"{kind}-{samples}", torch.int64)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("provider", LOADERS)
def test_state_check(provider, operation):
    try:
        assert state_case(operation).check(provider) is None
    except Absent as absent:
        assert provider == "torchdata"
        pytest.skip(str(absent))


@pytest.mark.dali
def test_states_are_those_of_the_middle_of_an_epoch():
    case = state_case("state_dict")
    assert case.done == 7
    assert case.providers["torch"](case)()["done"] == 7
    state = case.providers["fastfeed"](case)()
    assert (state["consumed"], state["step"], state["samples"]) == (7 * BATCH_SIZE, 7, SAMPLES)


class OtherLength(ByHand):
    def __len__(self):
        return super().__len__() - 1


class OtherPlace(ByHand):
    def state(self):
        return super().state() | {"done": self._done + 1}


class OtherOrder(ByHand):
    def resume(self, state):
        batch = super().resume(state)
        self._begin = self._generator.get_state()  # of another epoch
        return super().resume(self.state()) if batch else batch


class OnlyOnce(ByHand):
    def resume(self, state):
        batch = super().resume(state | {"done": self._done})
        self._done += 1
        return batch


class Unshuffled(ByHand):
    def epoch(self):
        return (list(range(i, min(i + BATCH_SIZE, SAMPLES))) for i in range(0, SAMPLES, BATCH_SIZE))

    def resume(self, state):
        return list(self.epoch())[state["done"]]


class WithReplacement(ByHand):
    def epoch(self):
        return ([batch[0]] * len(batch) for batch in super().epoch())

    def resume(self, state):
        return list(self.epoch())[state["done"]]


@pytest.mark.parametrize(
    ("operation", "wrong"),
    [
        ("len", OtherLength),
        *(("state_dict", kind) for kind in (OtherPlace, OtherOrder, Unshuffled, WithReplacement)),
        *(("load_state_dict", kind) for kind in (OtherPlace, OtherOrder, OnlyOnce, Unshuffled, WithReplacement)),
    ],
)
def test_state_check_sees(operation, wrong):
    case = state_case(operation)
    case.loaders = {"wrong": wrong}
    with pytest.raises(AssertionError):
        case.check("wrong")


def test_samples_are_never_read():
    source = NeverRead(SAMPLES)
    assert len(source) == SAMPLES
    assert len(source.subset([3, 4])) == 2
    with pytest.raises(RuntimeError, match="should read no samples"):
        source.read([0], None)


@pytest.mark.parametrize("kind", [SHUFFLED, WEIGHTED])
@pytest.mark.parametrize("provider", EpochOrderCase.providers)
def test_order_check(provider, kind):
    assert order_case(kind).check(provider) is None


def drawn(weights, samples=SAMPLES):
    """Runs that draw with weights of which each holds for every fourth sample."""
    weights = np.resize(np.array(weights, float), samples)
    rng = np.random.default_rng(0)
    return lambda: rng.choice(samples, samples, p=weights / weights.sum())


def permuted(change):
    rng = np.random.default_rng(0)
    return lambda: change(rng.permutation(SAMPLES))


def nearly_sorted():
    rng = np.random.default_rng(0)
    return lambda: np.concatenate([rng.permutation(10) + i for i in range(0, SAMPLES, 10)])


WRONG_ORDERS = {
    SHUFFLED: {
        "the same again": lambda: lambda: np.random.default_rng(0).permutation(SAMPLES),
        "sorted": lambda: lambda: np.arange(SAMPLES),
        "rotated": lambda: permuted(lambda order: (np.arange(SAMPLES) + order[0]) % SAMPLES),
        "one too few": lambda: permuted(lambda order: order[:-1]),
        "one twice": lambda: permuted(lambda order: np.append(order[:-1], order[0])),
        "with replacement": lambda: drawn([1, 1, 1, 1]),
    },
    WEIGHTED: {
        "the same again": lambda: lambda: drawn(WEIGHTS)(),
        "permutation": lambda: permuted(lambda order: order),
        "without weights": lambda: drawn([1, 1, 1, 1]),
        "a weight of 0": lambda: drawn([0.1, 1, 2, 4]),
        "one too few": lambda: drawn(WEIGHTS, SAMPLES - 1),
        "sorted weights": lambda: drawn(WEIGHTS[::-1]),
    },
}


def test_order_check_accepts_what_is_right():
    for kind, right in ((SHUFFLED, permuted(lambda order: order)), (WEIGHTED, drawn(WEIGHTS))):
        case = order_case(kind)
        case.providers = {"right": lambda case, right=right: lambda: torch.from_numpy(right())}
        case.check("right")


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, table in WRONG_ORDERS.items() for name in table])
def test_order_check_sees(kind, name):
    case = order_case(kind)
    run = WRONG_ORDERS[kind][name]()
    case.providers = {"wrong": lambda case: lambda: torch.from_numpy(run())}
    with pytest.raises(AssertionError):
        case.check("wrong")


def test_order_model():
    # 8 bytes an index, and as many for its weight.
    assert order_case(SHUFFLED).bytes_per_run == 8000
    assert order_case(WEIGHTED).bytes_per_run == 16000
