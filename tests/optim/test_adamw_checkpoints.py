"""State dicts of fastfeed.optim.AdamW: exact resume, and exchange with torch.optim.AdamW."""

import copy
import pickle

import pytest
import torch

from fastfeed.optim import AdamW
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same, copies, parameters, train


def state_of(optimizer):
    return copy.deepcopy(optimizer.state_dict())  # load_state_dict shares tensors with what it is given


def test_resume_is_exact(path):
    straight = AdamW(parameters(), lr=0.01)
    train(straight, range(5))
    first = AdamW(parameters(), lr=0.01)
    params = train(first, range(2))
    resumed = AdamW(copies(params))
    resumed.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    train(resumed, range(2, 5))
    assert_same(resumed, straight, **EXACT)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_step_alike(path, copied):
    original = AdamW(parameters()[:-1], lr=0.01)  # a copy has no holes
    train(original, range(2))
    copy_ = copied(original)
    train(original, range(2, 4)), train(copy_, range(2, 4))
    assert_same(copy_, original, **EXACT)


@pytest.mark.parametrize(("source", "target"), [(AdamW, torch.optim.AdamW), (torch.optim.AdamW, AdamW)])
def test_checkpoints_go_both_ways(path, source, target):
    params = train(before := source(parameters(), lr=0.01, weight_decay=0.1), range(3))
    after = target(copies(params))
    after.load_state_dict(state_of(before))
    assert after.param_groups[0]["lr"] == 0.01
    train(before, range(3, 6)), train(after, range(3, 6))
    assert_same(after, before, **CLOSE)


@pytest.mark.parametrize(
    "flags",
    [
        {"fused": True, "foreach": None},
        {"foreach": True},
        {"capturable": True, "lr": torch.tensor(0.01), "betas": (torch.tensor(0.9), torch.tensor(0.999))},
        {"differentiable": True, "decoupled_weight_decay": False},
    ],
    ids=lambda flags: "-".join(flags),
)
def test_flags_of_a_checkpoint_do_not_matter(path, flags):
    theirs = torch.optim.AdamW(parameters(), lr=0.01)
    params = train(theirs, range(2))
    state = state_of(theirs)
    state["param_groups"][0].update(flags)
    ours = AdamW(copies(params))
    ours.load_state_dict(state)
    train(ours, range(2, 4)), train(theirs, range(2, 4))
    assert_same(ours, theirs, **CLOSE)


def test_every_group_of_a_checkpoint_is_read(path):
    theirs = torch.optim.AdamW([{"params": parameters()[:3]}, {"params": parameters()[3:], "lr": 0.1}])
    train(theirs, range(2))
    state = state_of(theirs)
    state["param_groups"][1]["lr"] = torch.tensor(0.1)  # as a capturable optimizer keeps it
    ours = AdamW([{"params": copies([p for g in theirs.param_groups for p in g["params"]])[:3]}, {"params": []}])
    ours.param_groups[1]["params"] = copies([p for g in theirs.param_groups for p in g["params"]])[3:]
    ours.load_state_dict(state)
    assert all(
        ours.state[p]["step"].device == p.device for g in ours.param_groups for p in g["params"] if ours.state[p]
    )
    train(ours, range(2, 4)), train(theirs, range(2, 4))
    assert_same(ours, theirs, **CLOSE)


def test_checkpoint_of_a_contiguous_model_in_channels_last(calls):
    before = torch.optim.AdamW([torch.nn.Parameter(torch.rand(8, 3, 3, 3, device=DEVICE))])
    (q,) = train(before, range(1, 3))
    p = torch.nn.Parameter(q.detach().to(memory_format=torch.channels_last, copy=True))
    after = AdamW([p])
    after.load_state_dict(state_of(before))
    train(before, range(1, 3)), train(after, range(1, 3))
    assert "step" in calls
    assert_same(after, before, check_stride=False, **CLOSE)
