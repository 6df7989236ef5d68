"""What goes wrong in a dataset, a sampler or a collate function, with DataLoader and with PyTorch's."""

import pytest
import torch

from tests.torch_loaders import PYTORCHS, DataLoader, Faulty, Mapped, outcomes


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batch_size", [None, 1, 2])
def test_errors_of_a_dataset_and_the_batches_after_them(workers, batch_size):
    ours, theirs = (
        outcomes(cls(Faulty(7, None), batch_size, num_workers=workers, collate_fn=repr))
        for cls in (DataLoader, PYTORCHS)
    )
    assert ours == theirs
    assert sum(isinstance(one, tuple) for one in ours) == 2
    if workers:
        (_, message), *_ = (one for one in ours if isinstance(one, tuple))
        assert "in DataLoader worker process" in message
        assert 'raise KeyError(f"no {i}")' in message


def test_batches_after_an_error_are_the_right_ones():
    data = DataLoader(Faulty(7, None), 1, num_workers=2, info=True)
    good = [batch for batch in outcomes(data) if not isinstance(batch[0], type)]
    assert [batch.item() for batch, _ in good] == [info.index.item() for _, info in good] == [0, 1, 3, 4, 6]
    stable = DataLoader(Faulty(7, None), 1, stable_addresses=True)
    assert [batch.item() for batch in outcomes(stable) if isinstance(batch, torch.Tensor)] == [6] * 5


@pytest.mark.parametrize("workers", [0, 2])
def test_a_state_after_an_error(workers):
    data = DataLoader(Faulty(7, None), num_workers=workers)
    iterator = iter(data)
    assert [next(iterator).item(), next(iterator).item()] == [0, 1]
    with pytest.raises(KeyError, match="no 2"):
        next(iterator)
    resumed = DataLoader(range(7), num_workers=workers)
    resumed.load_state_dict(data.state_dict())
    assert [batch.item() for batch in resumed] == [2, 3, 4, 5, 6]  # the one that failed is tried again
    assert next(iterator).item() == 3
    resumed.load_state_dict(data.state_dict())
    assert [batch.item() for batch in resumed] == [4, 5, 6]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("batched", [False, True])
def test_errors_of_a_sampler_come_after_the_batches_before_them(workers, batched):
    def indices():
        for i in (4, 3, 2):
            yield [i] if batched else i
        raise ZeroDivisionError("of the sampler")

    data = DataLoader(range(9), num_workers=workers, **{"batch_sampler" if batched else "sampler": indices()})
    *batches, error = outcomes(data)
    assert [batch.item() for batch in batches] == [4, 3, 2]
    assert error == (ZeroDivisionError, "of the sampler")


@pytest.mark.parametrize("workers", [0, 1])
def test_errors_of_collate_fn(workers):
    def collate(samples):
        raise ArithmeticError(f"of {samples}")

    for collate_fn in (collate, None):
        dataset = Mapped(2, lambda i: torch.ones(i))  # of two sizes, which PyTorch's does not take
        ours, theirs = (
            outcomes(cls(dataset, 2, num_workers=workers, collate_fn=collate_fn)) for cls in (DataLoader, PYTORCHS)
        )
        assert ours == theirs
        assert len(ours) == 1
