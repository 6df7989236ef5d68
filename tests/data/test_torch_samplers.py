import itertools

import numpy as np
import pytest
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from fastfeed.data.torch_samplers import TorchSampler

SIZE = 23


def generator():
    return torch.Generator().manual_seed(0)


SAMPLERS = {
    "list": lambda: [3, 1, 4, 1, 5],
    "array": lambda: np.array([3, 1, 4, 1, 5]),
    "tensor": lambda: torch.tensor([3, 1, 4, 1, 5]),
    "empty": lambda: [],
    "sequential": lambda: SequentialSampler(range(SIZE)),
    "random": lambda: RandomSampler(range(SIZE), generator=generator()),
    "replacement": lambda: RandomSampler(range(SIZE), True, 40, generator=generator()),
    "subset": lambda: SubsetRandomSampler([2, 20, 7, 9], generator=generator()),
    "weighted": lambda: WeightedRandomSampler([1, 2, 3], 20, generator=generator()),
    "distributed": lambda: DistributedSampler(range(SIZE), 3, 1),
}


def given(sampler, batch_size=4, *, size=SIZE, **arguments):
    return list(sampler.batches(size, batch_size, **arguments))


def indices(batches):
    return [batch.index.tolist() for batch in batches]


class Stateful:
    """Endless, and goes on from its state; `drawn` counts all indices, of all iterations."""

    def __init__(self):
        self.next = self.drawn = 0

    def __iter__(self):
        while True:
            self.drawn += 1
            value = self.next * 7 % SIZE
            self.next += 1
            yield value

    def state_dict(self):
        return {"next": self.next}

    def load_state_dict(self, state):
        self.next = state["next"]


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_batches_are_those_of_torch(name, drop_last):
    theirs = DataLoader(
        range(SIZE), 4, sampler=SAMPLERS[name](), drop_last=drop_last, collate_fn=lambda batch: list(map(int, batch))
    )
    sampler = TorchSampler(SAMPLERS[name]())
    ours = given(sampler, drop_last=drop_last)
    assert indices(ours) == list(theirs)
    assert sampler.num_batches(4, drop_last=drop_last) == len(theirs) == len(ours)


@pytest.mark.parametrize("name", SAMPLERS)
def test_batch_samplers_batches_are_those_of_torch(name):
    theirs = DataLoader(
        range(SIZE),
        batch_sampler=BatchSampler(SAMPLERS[name](), 4, False),
        collate_fn=lambda batch: list(map(int, batch)),
    )
    sampler = TorchSampler(BatchSampler(SAMPLERS[name](), 4, False), batched=True)
    ours = given(sampler, batch_size=999)
    assert indices(ours) == list(theirs)
    assert sampler.num_batches(999) == len(theirs) == len(ours)


def test_what_a_batch_holds():
    batches = given(TorchSampler([3, 1, 4, 1, 5]), 2, rank=1, world_size=3)
    assert indices(batches) == [[3, 1], [4, 1], [5]]
    assert [batch.position.tolist() for batch in batches] == [[1, 4], [7, 10], [13]]
    assert [batch.copy.tolist() for batch in batches] == [[1, 4], [7, 10], [13]]
    assert [batch.valid.tolist() for batch in batches] == [[True] * 2, [True] * 2, [True]]
    assert [batch.consumed for batch in batches] == [6, 12, 15]
    assert [batch.step for batch in batches] == [0, 1, 2]
    assert [batch.sampler_state for batch in batches] == [None] * 3
    assert batches[0].index.dtype == batches[0].position.dtype == batches[0].copy.dtype == np.int64


def test_positions_of_a_distributed_sampler_are_those_of_the_epoch():
    epoch = list(DistributedSampler(range(SIZE), 1, 0))
    for rank in range(3):
        for batch in given(TorchSampler(DistributedSampler(range(SIZE), 3, rank)), rank=rank, world_size=3):
            padded = [epoch[p % SIZE] for p in batch.position]
            assert batch.index.tolist() == padded


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_to_resume_is_to_go_on(name, batched):
    def sampler():
        inner = SAMPLERS[name]()
        return TorchSampler(BatchSampler(inner, 3, False), batched=True) if batched else TorchSampler(inner)

    whole = given(sampler(), 3, rank=1, world_size=2)
    for done, batch in enumerate(whole, 1):
        resumed = given(sampler(), 3, rank=1, world_size=2, start=batch.consumed, step=batch.step + 1)
        assert len(resumed) == len(whole) - done
        for a, b in zip(resumed, whole[done:], strict=True):
            assert all(np.array_equal(getattr(a, k), getattr(b, k)) for k in ("index", "copy", "position", "valid"))
            assert (a.step, a.consumed) == (b.step, b.consumed)


def test_a_sampler_with_a_state_goes_on_from_it():
    def first(n, sampler, **arguments):
        return list(itertools.islice(TorchSampler(sampler).batches(SIZE, 4, **arguments), n))

    whole = first(10, Stateful())
    assert [batch.sampler_state["own"]["next"] for batch in whole] == list(range(4, 44, 4))
    for done, batch in enumerate(whole, 1):
        sampler = Stateful()
        resumed = first(10 - done, sampler, start=batch.consumed, step=batch.step + 1, state=batch.sampler_state)
        assert indices(resumed) == indices(whole[done:])
        assert [batch.consumed for batch in resumed] == [batch.consumed for batch in whole[done:]]
        assert [batch.copy.tolist() for batch in resumed] == [batch.copy.tolist() for batch in whole[done:]]
        assert sampler.drawn == 4 * len(resumed)  # nothing was skipped by iterating


def test_a_state_is_not_changed_by_later_batches():
    class Live(Stateful):
        def __init__(self):
            super().__init__()
            self.state = {"next": 0}

        def state_dict(self):
            self.state["next"] = self.next
            return self.state

    batches = TorchSampler(Live()).batches(SIZE, 4)
    assert [batch.sampler_state["own"]["next"] for batch in itertools.islice(batches, 3)] == [4, 8, 12]


def test_an_endless_sampler_is_drawn_from_as_needed():
    sampler = Stateful()
    batches = TorchSampler(sampler).batches(SIZE, 4)
    assert sampler.drawn == 0
    next(batches)
    assert sampler.drawn == 4
    with pytest.raises(TypeError, match="len"):
        TorchSampler(sampler).num_batches(4)


def test_a_schedule_of_batch_sizes():
    batches = given(TorchSampler(range(12)), lambda step: step + 1)
    assert [len(batch.index) for batch in batches] == [1, 2, 3, 4, 2]
    resumed = given(TorchSampler(range(12)), lambda step: step + 1, start=3, step=2)
    assert [len(batch.index) for batch in resumed] == [3, 4, 2]
    assert TorchSampler(range(12)).num_batches(lambda step: step + 1) == 5


def test_the_epoch_is_left_alone_until_it_is_set():
    sampler = DistributedSampler(range(SIZE), 2, 0)
    sampler.set_epoch(3)
    ours = TorchSampler(sampler)
    assert ours.epoch_set_elsewhere() == 3
    first, again = given(ours), given(ours)
    assert indices(first) == indices(again)
    assert sampler.epoch == 3
    assert ours.epoch_set_elsewhere() is None
    ours.set_epoch(5)
    assert ours.epoch_set_elsewhere() is None
    assert indices(given(ours)) != indices(first)
    # A state has it, of before the first batch too.
    for state, start in ((first[1].sampler_state, first[1]), ({"epoch": 3, "own": None}, None)):
        fresh = TorchSampler(DistributedSampler(range(SIZE), 2, 0))
        place = {} if start is None else {"start": start.consumed, "step": start.step + 1}
        assert indices(given(fresh, state=state, **place)) == indices(first[2 if start else 0 :])
    assert ours.between_epochs() == {"epoch": 5, "own": None}
    TorchSampler(BatchSampler(sampler, 4, False), batched=True).set_epoch(9)
    assert sampler.epoch == 9


def test_a_batch_samplers_own_set_epoch_comes_first():
    class Own(BatchSampler):
        def set_epoch(self, epoch):
            self.epoch = epoch

    inner = DistributedSampler(range(SIZE), 2, 0)
    own = Own(inner, 4, False)
    TorchSampler(own, batched=True).set_epoch(9)
    assert (own.epoch, inner.epoch) == (9, 0)


@pytest.mark.parametrize(("indices", "batched", "error", "message"), [
    ([0, 23], False, IndexError, "sampler gave index 23; expected one of 23 samples, -23 to 22"),
    ([0, -24], False, IndexError, "sampler gave index -24"),
    ([0, 2**70], False, IndexError, f"sampler gave index {2**70}"),
    ([[0, 23]], True, IndexError, "batch_sampler gave index 23"),
    ([0, 1.0], False, TypeError, "sampler gave 1.0; expected a whole number"),
    ([0, "a"], False, TypeError, "sampler gave 'a'"),
    ([0, None], False, TypeError, "sampler gave None"),
    ([0, [1, 2]], False, TypeError, r"sampler gave \[1, 2\]"),
    ([torch.tensor(0), torch.tensor([1, 2])], False, TypeError, r"sampler gave tensor\(\[1, 2\]\)"),
    ([[0, 1], 2], True, TypeError, "batch_sampler gave 2; expected a list"),
    ([[0, 1], []], True, ValueError, "batch_sampler gave an empty batch"),
])  # fmt: skip
def test_samplers_that_give_something_else(indices, batched, error, message):
    with pytest.raises(error, match=message):
        given(TorchSampler(indices, batched=batched))


def test_negative_indices_count_from_the_end():
    assert indices(given(TorchSampler([0, -1, -23]), 3)) == [[0, 22, 0]]
    assert indices(given(TorchSampler([-1]), size=None)) == [[-1]]  # which a dataset's own code is given


def test_batches_before_a_bad_index_are_given():
    batches = TorchSampler([0, 1, 2, 99]).batches(SIZE, 2)
    assert next(batches).index.tolist() == [0, 1]
    with pytest.raises(IndexError, match="99"):
        next(batches)


def test_an_error_of_the_samplers_own_comes_through():
    def broken():
        yield 0
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        given(TorchSampler(broken()))


@pytest.mark.parametrize(("sampler", "batched", "arguments", "message"), [
    ([0, 1, 2], False, {"start": 4}, "sampler cannot go on after 4 indices: it gave 3"),
    ([[0, 1], [2, 3]], True, {"start": 3}, "batch_sampler cannot go on after 3 indices: it gave 4"),
    ([[0, 1], [2, 3]], True, {"start": 5}, "batch_sampler cannot go on after 5 indices: it gave 4"),
    ([0, 1, 2], False, {"start": 3, "world_size": 2}, "start is 3, but 2 ranks"),
    ([0, 1, 2], False, {"batch_size": 0}, "batch_size of step 0 is 0"),
])  # fmt: skip
def test_where_a_sampler_cannot_go_on(sampler, batched, arguments, message):
    with pytest.raises(ValueError, match=message):
        given(TorchSampler(sampler, batched=batched), **arguments)


@pytest.mark.timeout(20)
def test_empty_batches_without_end_are_not_skipped_forever():
    with pytest.raises(ValueError, match="empty batch"):
        given(TorchSampler(itertools.repeat([]), batched=True), start=4)


def test_a_sampler_that_cannot_be_iterated_over():
    with pytest.raises(TypeError, match="batch_sampler is int; expected an iterable"):
        TorchSampler(3, batched=True)


@pytest.mark.parametrize("give", [list, tuple, np.array, torch.tensor, lambda x: list(np.array(x))])
def test_listed_indices_are_known_by_a_digest(give):
    def identity(indices, batched=False):
        return TorchSampler(indices, batched=batched).identity(1)

    assert identity(give([0, 1, 2])) == identity(range(3)) != identity(range(4))
    assert len({identity(give(indices)) for indices in ([0, 1, 2], [2, 1, 0], [9, 8, 7], [0, 1])}) == 4
    assert identity([give([0, 1]), [2]], True) == identity([(0, 1), (2,)], True) != identity([[0], [1, 2]], True)


def test_other_samplers_are_known_by_their_class():
    for indices in ([2, 3], [4, 5]):
        assert TorchSampler(SubsetRandomSampler(indices)).identity(1) == "sampler SubsetRandomSampler"
        # Each rank has a list of its own, and goes on from any rank's state.
        assert TorchSampler(indices).identity(2) == "sampler list"


@pytest.mark.parametrize("indices", [["a"], [None], [2**70], [[1], 2]], ids=str)
def test_what_is_no_index_does_not_show_before_its_turn(indices):
    assert TorchSampler(indices).identity(1) == "sampler list"
    assert TorchSampler(indices, batched=True).identity(1) == "batch_sampler list"
