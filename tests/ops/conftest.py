"""Through which of the two ways the tests of the cross-entropy of labels go."""

import pytest
import torch

import fastfeed.ops.cross_entropy as op
from tests.ops import labels


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    """Run a test once through the Triton kernels and once through the eager reference."""
    if request.param == "reference":
        monkeypatch.setattr(op, "kernel_takes", lambda *tensors: False)
        monkeypatch.setattr(labels, "function", labels.through_reference)
    else:
        assert op.kernel_takes(torch.ones(1, device=labels.DEVICE)), (
            "the tests must reach the kernel; is TRITON_INTERPRET set?"
        )
    return request.param
