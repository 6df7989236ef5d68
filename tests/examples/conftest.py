import pytest
import torch


@pytest.fixture
def one_thread():
    """Small operations on threads that have to wait for a core take a hundred times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
