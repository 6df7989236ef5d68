"""DataLoader over torchvision's datasets that PyTorch's workers make batches of: images travel as bytes, exactly."""

import copy
import logging
import pickle

import pytest
import torch
from torch.utils.data import Subset, default_collate

import fastfeed
from tests.torch_loaders import PYTORCHS, DataLoader, assert_same, generator
from tests.torchvision_tails import (
    CIFAR,
    EVERY_SECOND,
    GREY,
    MEAN,
    N1,
    N2,
    PLAIN,
    STD,
    TENSORS,
    TO_FLOAT,
    V2,
    are_bytes,
    assert_pytorchs,
    cifar,
    epoch,
    images,
    spy_on_workers,
    v1,
    v2,
)


@pytest.fixture
def sent(monkeypatch):
    return spy_on_workers(monkeypatch)


WORKERS = {
    "a worker": {"num_workers": 1},
    "that stay": {"num_workers": 2, "persistent_workers": True},
    "pinned": {"num_workers": 1, "pin_memory": True},
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("how", WORKERS)
def test_workers(how, sent):
    assert_pytorchs(cifar(CIFAR), shuffle=True, multiprocessing_context="fork", **WORKERS[how])
    assert are_bytes(sent) == [True] * 6
    if how == "a worker":
        assert_pytorchs(cifar(EVERY_SECOND), multiprocessing_context="fork", **WORKERS[how])


def test_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "fastfeed"):
        for dataset in (cifar(PLAIN), cifar(v1.ToTensor())):
            DataLoader(dataset, 2)
        DataLoader(cifar(PLAIN), None)
        DataLoader(cifar(PLAIN), 2, collate_fn=lambda batch: batch)
    said = [record.getMessage().rpartition("; ")[2] for record in caplog.records]
    assert said[:2] == ["ToTensor and Normalize run in the last pass", "ToTensor run in the last pass"]
    assert not any("last pass" in line for line in said[2:])


def test_samples_and_other_collate_functions(sent):
    dataset = cifar(PLAIN)
    assert_pytorchs(dataset, None)
    assert_pytorchs(dataset, collate_fn=lambda batch: default_collate(batch)[::-1])
    assert not any(are_bytes(sent))
    assert_pytorchs(dataset, collate_fn=default_collate)
    assert all(are_bytes(sent[-3:]))


def test_the_dataset_is_what_was_given():
    dataset = cifar(PLAIN)
    loader = DataLoader(dataset, 4)
    list(loader)
    assert loader.dataset is dataset
    assert dataset.transform is PLAIN
    assert len(PLAIN.transforms) == 2


def change_targets(dataset):
    dataset.targets = [7] * 10


def change_data(dataset):
    dataset.data = images(seed=3)


def change_the_transform(dataset):
    dataset.transform = v2.Compose([v2.ToImage(), TO_FLOAT, N2])


def change_a_part(dataset):
    dataset.transform = v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)])
    dataset.transform.transforms[1].mean = (0.1, 0.2, 0.3)


def leave_no_tail(dataset):
    dataset.transform = v1.Compose([v1.ToTensor(), N1, lambda image: -image])


def change_what_is_done_to_targets(dataset):
    dataset.target_transform = float


@pytest.mark.parametrize(
    "change",
    [
        change_targets,
        change_data,
        change_the_transform,
        change_a_part,
        leave_no_tail,
        change_what_is_done_to_targets,
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_set_later_shows_from_the_next_epoch_on(change, workers):
    if workers and change is not leave_no_tail:
        return
    dataset = cifar(PLAIN)
    nested = Subset(dataset, [2, 3, 5, 7, 1])
    ours, theirs = (
        cls(nested, 2, num_workers=workers, multiprocessing_context="fork" if workers else None)
        for cls in (DataLoader, PYTORCHS)
    )
    first = epoch(ours)
    change(dataset)
    second = epoch(ours)
    assert_same(second, epoch(theirs))
    with pytest.raises(AssertionError):
        assert_same(first, second)
    dataset.transform = PLAIN
    assert_same(epoch(ours), epoch(theirs))


def test_a_collate_fn_that_is_set_later(sent):
    ours, theirs = (cls(cifar(PLAIN), 4) for cls in (DataLoader, PYTORCHS))
    for collate_fn in (lambda batch: default_collate(batch)[0], default_collate):
        ours.collate_fn = theirs.collate_fn = collate_fn
        assert_same(list(ours), list(theirs))
    assert are_bytes(sent) == [False] * 3 + [True] * 3


def test_an_iterator_goes_on_when_another_one_begins_with_another_transform():
    dataset = cifar(PLAIN)
    loader = DataLoader(dataset, 5)
    iterator = iter(loader)
    first = next(iterator)
    dataset.transform = v1.ToTensor()
    (one, other) = list(loader)
    assert_same([first[1], *next(iterator)], [one[1], *other])


def test_resume():
    dataset = cifar(PLAIN, images(12))
    loader = DataLoader(dataset, 3, shuffle=True)
    batches = list(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator), next(iterator)
    other = DataLoader(dataset, 3, shuffle=True)
    other.load_state_dict(loader.state_dict())
    assert_same(list(other), batches[2:])


def test_info():
    for batch in DataLoader(cifar(PLAIN), 4, info=True):
        assert type(batch) is tuple  # as of every dataset
        expected = default_collate([cifar(PLAIN)[i] for i in batch[2].index.tolist()])
        assert_same([*batch[:2]], expected)


def test_stable_addresses():
    dataset = cifar(EVERY_SECOND, images(24))
    for given in (dataset, cifar(PLAIN, images(24))):
        loader = DataLoader(given, 2, stable_addresses=True)
        addresses = set()
        for got, expected in zip(loader, PYTORCHS(given, 2), strict=True):
            assert_same(got, expected)
            addresses.add((got[0].data_ptr(), got[1].data_ptr()))
        assert len(addresses) == 1


def test_copies_of_a_loader():
    loader = DataLoader(cifar(PLAIN), 4)
    expected = list(loader)
    for copied in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert_same(list(copied), expected)
        copied.dataset.data = images(seed=9)
        assert not torch.equal(next(iter(copied))[0], expected[0][0])
    assert_same(list(loader), expected)
    loader.close()
    assert_same(list(loader), expected)


def test_a_batch_may_be_kept_and_changed():
    loader = DataLoader(cifar(PLAIN), 4)
    expected = list(PYTORCHS(cifar(PLAIN), 4))
    batches = list(loader)
    for batch in loader:
        batch[0].zero_()
    assert_same(batches, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("transform", [CIFAR, V2, TENSORS, GREY], ids=["CIFAR", "v2", "tensors", "grey"])
def test_batches_on_a_gpu_are_pytorchs(transform, pin_memory):
    dataset = cifar(transform, images(10, 16, 24, 3))
    torch.manual_seed(4)
    got = list(fastfeed.DataLoader(dataset, 4, device="cuda", seed=0, generator=generator(), pin_memory=pin_memory))
    torch.manual_seed(4)
    expected = list(PYTORCHS(dataset, 4, generator=generator()))
    for batch, other in zip(got, expected, strict=True):
        assert batch[0].is_cuda
        assert_same([part.cpu() for part in batch], other)
