import pytest

from fastfeed.optim import plan
from tests.optim.training import DEVICE


@pytest.fixture(params=["kernel", "fused", "reference"])
def path(request, monkeypatch):
    """What steps parameters: the kernel (interpreted where there is no GPU), torch's fused step, or the reference."""
    if request.param == "kernel":
        pytest.importorskip("triton")
        assert plan.can_run(DEVICE)
    elif request.param == "reference":
        monkeypatch.setattr(plan, "stepped_by", lambda *row: "reference")
    else:
        if DEVICE.type != "cpu":
            pytest.skip("torch's fused step is taken on the CPU alone")
        monkeypatch.setattr(plan, "can_run", lambda device: False)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """What is done on the device, in order."""
    tables = pytest.importorskip("fastfeed.kernels.tensor_table")
    names = []

    def recorded(name):
        method = getattr(tables.TensorTable, name)

        def record(*args, **kwargs):
            names.append(name)
            return method(*args, **kwargs)

        monkeypatch.setattr(tables.TensorTable, name, record)

    for name in ("__init__", "norm", "trust", "step"):
        recorded(name)
    return names
