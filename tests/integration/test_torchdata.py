"""torchdata's StatefulDataLoader: our loader has its protocol, and goes on from the middle of an epoch as it does."""

import json

import pytest
import torch

from fastfeed import DataLoader
from tests.torch_loaders import Stream, assert_same

stateful = pytest.importorskip(
    "torchdata.stateful_dataloader", reason="needs the package torchdata, which is not installed"
)

ROWS = list(range(11))
MADE = {
    "in order": {"batch_size": 3},
    "whole batches": {"batch_size": 3, "drop_last": True},
    "samples": {"batch_size": None},
    "of workers": {"batch_size": 3, "num_workers": 2},
    "by a sampler": {"batch_size": 3, "sampler": [7, 1, 4, 4, 0, 10, 2]},
    "by batches": {"batch_sampler": [[7, 1], [4], [0, 10, 2]]},
}


def test_our_loader_is_stateful():
    from torchdata.stateful_dataloader.stateful import Stateful

    assert isinstance(DataLoader(ROWS, device="cpu"), Stateful)


def left_after(make, taken):
    """Return what another loader gives that takes over a state from the middle of an epoch; and its next epoch."""
    loader = make()
    iterator = iter(loader)
    for _ in range(taken):
        next(iterator)
    state = loader.state_dict()
    rest = list(iterator)
    resumed = make()
    resumed.load_state_dict(state)
    again = list(resumed)
    assert_same(again, rest)
    return again, list(resumed)


@pytest.mark.parametrize("how", MADE)
def test_what_is_left_is_theirs(how):
    for taken in (1,) if "workers" in how else (0, 1, 2):
        ours = left_after(lambda: DataLoader(ROWS, device="cpu", **MADE[how]), taken)
        theirs = left_after(lambda: stateful.StatefulDataLoader(ROWS, **MADE[how]), taken)
        assert_same(ours, theirs)


def test_streams():
    for dataset in (Stream, Counting):
        ours = left_after(lambda dataset=dataset: DataLoader(dataset(7), 2, device="cpu"), 2)
        theirs = left_after(lambda dataset=dataset: stateful.StatefulDataLoader(dataset(7), 2), 2)
        assert_same(ours, theirs)


class Counting(Stream):
    """A stream with torchdata's protocol."""

    at = 0

    def __iter__(self):
        while self.at < self.n:
            self.at += 1
            yield self.at - 1
        self.at = 0

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        self.at = state["at"]


def test_a_shuffled_epoch_and_a_state_of_a_few_numbers():
    def make():
        return DataLoader(ROWS, 3, shuffle=True, device="cpu", seed=0)

    first = [batch.tolist() for batch in make()]
    (rest, second) = left_after(make, 2)
    assert [batch.tolist() for batch in rest] == first[2:]
    assert [batch.tolist() for batch in second] != first
    loader = make()
    next(iter(loader))
    assert len(json.dumps(loader.state_dict())) < 200


def test_a_state_is_saved_with_the_rest(tmp_path):
    loader = DataLoader(ROWS, 4, device="cpu")
    next(iterator := iter(loader))
    torch.save({"loader": loader.state_dict()}, tmp_path / "checkpoint.pt")
    other = DataLoader(ROWS, 4, device="cpu")
    other.load_state_dict(torch.load(tmp_path / "checkpoint.pt")["loader"])
    assert_same(list(other), list(iterator))
