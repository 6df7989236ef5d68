import pytest
import torch

from benchmarks import machine, networks
from benchmarks.cases import all_cases

all_cases()  # imports the kernels, which stay as they are imported: in the interpreter, as the other tests need them


@pytest.fixture(autouse=True)
def _as_a_process_of_its_own(monkeypatch):
    """What the suite refuses, takes long over or leaves behind, where it runs inside of the tests."""
    # The other tests need Triton's interpreter where there is no GPU; the suite refuses to run in it.
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(machine, "BUDGET", 0.01)
    monkeypatch.setattr(machine, "COPY_BYTES", {"cuda": 64 << 20, "cpu": 4 << 20})
    monkeypatch.setattr(machine, "MATMUL", {"cuda": (1024, torch.bfloat16), "cpu": (256, torch.float32)})
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny(monkeypatch):
    """A network of 9 parameters in 2 tensors."""
    monkeypatch.setitem(networks.NETWORKS, "tiny", [(2, 3), (3,)])
    return "tiny"


@pytest.fixture
def graphs():
    """How many graphs torch.compile has compiled, as a function, in a compiler that has compiled nothing so far."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.compiler.reset()
