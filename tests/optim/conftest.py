import contextlib

import numpy as np
import pytest
import torch

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
def by_reference(monkeypatch):
    """A context in which the reference steps all parameters."""

    @contextlib.contextmanager
    def context():
        with monkeypatch.context() as patch:
            patch.setattr(plan, "stepped_by", lambda *row: "reference")
            yield

    return context


@pytest.fixture
def exact_bf16(monkeypatch):
    """Let Triton's interpreter convert bf16 as a GPU does: it truncates where a GPU rounds to nearest."""
    if DEVICE.type == "cuda":
        return
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    tl = pytest.importorskip("triton.language")
    own = interpreter._convert_float

    def convert(data, source, target, rounding):
        bits = torch.from_numpy(np.ascontiguousarray(data).view(f"int{source.primitive_bitwidth}").copy())
        if (source, target) == (tl.float32, tl.bfloat16):
            converted = bits.view(torch.float32).bfloat16().view(torch.uint16)
        elif (source, target) == (tl.bfloat16, tl.float32):
            converted = bits.view(torch.bfloat16).float().view(torch.uint32)
        else:
            return own(data, source, target, rounding)
        return converted.numpy().reshape(data.shape)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


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
