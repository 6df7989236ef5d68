import pytest

from fastfeed.optim import adamw
from tests.optim.training import DEVICE


@pytest.fixture(params=["kernel", "torch", "reference"])
def path(request, monkeypatch):
    """What steps fp32 parameters: the kernel (interpreted where there is no GPU), torch's fused step, or eager."""
    if request.param == "reference":
        monkeypatch.setattr(adamw, "_stepper", lambda *row: "reference")
    elif request.param == "torch":
        if DEVICE.type != "cpu":
            pytest.skip("torch's fused step is for parameters on the CPU")
        monkeypatch.setattr(adamw, "can_run", lambda device: False)
    else:
        pytest.importorskip("triton")
        assert adamw.can_run(DEVICE)
    return request.param


@pytest.fixture
def calls(monkeypatch):
    """The functions of the kernel file that are called, in order."""
    kernels = pytest.importorskip("fastfeed.kernels.multi_tensor")
    names = []

    def recorded(function):
        def record(*args, **kwargs):
            names.append(function.__name__)
            return function(*args, **kwargs)

        return record

    for function in (kernels.build_table, kernels.adamw_step):
        monkeypatch.setattr(kernels, function.__name__, recorded(function))
    return names
