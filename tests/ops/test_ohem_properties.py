"""OHEM's choice of rows over many draws: the kernel and the reference choose those that a stable sort does."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastfeed.ops.ohem_cross_entropy as op
from tests.ops.test_ohem_cross_entropy import DEVICE, chosen


@given(
    values=st.lists(st.sampled_from([0.0, -0.0, 1e-8, 0.5, 0.5, 3.0, float("inf"), -1e-7]), min_size=1, max_size=40),
    count=st.integers(0, 45),
    seed=st.integers(0, 20),
)
@settings(max_examples=40, deadline=None)
def test_kernel_and_reference_choose_the_same(values, count, seed):
    from fastfeed.kernels.ohem import ohem

    loss = torch.tensor(values, device=DEVICE)
    valid = (torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) < 0.8).to(DEVICE)
    kept = op.hardest(loss, valid, count)
    assert kept.nonzero().flatten().tolist() == sorted(chosen(values, valid.tolist(), count))
    _, factor = ohem(loss, loss, valid, count, None, "sum", torch.float32)
    assert torch.equal(factor > 0, kept)
