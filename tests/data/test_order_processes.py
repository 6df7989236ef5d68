import numpy as np
import pytest
import torch
import torch.distributed
import torch.multiprocessing

from fastfeed.data.order import Batches, rank_and_world_size
from fastfeed.data.samplers import Shuffled

WORLD_SIZE, SIZE, BATCH_SIZE = 4, 103, 8


def share(rank, world_size):
    picks = Shuffled().picks(SIZE, None, seed=7, epoch=2)
    return [
        np.stack([batch.index, batch.position, batch.valid])
        for batch in Batches(picks, BATCH_SIZE, rank=rank, world_size=world_size)
    ]


def process(number, folder):
    # Another order than that of the processes.
    rank = (number + 1) % WORLD_SIZE
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=WORLD_SIZE
    )
    found = rank_and_world_size()
    gathered = [None] * WORLD_SIZE
    torch.distributed.all_gather_object(gathered, (found, share(*found)))
    torch.save(gathered, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed")
def test_processes_agree_with_ranks_given_explicitly(tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.multiprocessing.spawn(process, (tmp_path,), nprocs=WORLD_SIZE)
    for rank in range(WORLD_SIZE):
        gathered = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        for other, (found, batches) in enumerate(gathered):
            assert found == (other, WORLD_SIZE)
            expected = share(other, WORLD_SIZE)
            assert len(batches) == len(expected) == 4
            assert all(np.array_equal(a, b) for a, b in zip(batches, expected, strict=True))
    index, _, valid = np.concatenate([batch for _, batches in gathered for batch in batches], axis=1)
    assert np.array_equal(np.sort(index[valid == 1]), np.arange(SIZE))
