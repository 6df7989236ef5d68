import io
import math
import warnings

import pytest
import torch
from torch.optim import SGD
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LinearLR, LRScheduler, SequentialLR

from fastfeed.optim import AdamW, warmup_cosine


def parameter():
    return torch.nn.Parameter(torch.zeros(1))


def optimizer(*lrs):
    return SGD([{"params": [parameter()], "lr": lr} for lr in lrs])


def lrs(scheduler):
    return [float(group["lr"]) for group in scheduler.optimizer.param_groups]


def advance(scheduler, steps):
    """Do steps, and return the learning rates of each."""
    seen = []
    for _ in range(steps):
        seen.append(lrs(scheduler))
        scheduler.optimizer.step()
        scheduler.step()
    return seen


def saved(state):
    """What comes back from a file."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def test_is_a_scheduler_of_pytorch():
    scheduler = warmup_cosine(AdamW([parameter()], lr=0.5), 2, 4)
    assert isinstance(scheduler, LRScheduler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert advance(scheduler, 2) == [[0.25], [0.5]]
    assert scheduler.get_last_lr() == lrs(scheduler) == [0.5]


@pytest.mark.parametrize(
    ("warmup", "total", "ratio"), [(10, 100, 0.0), (10, 100, 0.1), (1, 7, 0.5), (0, 8, 0.0), (5, 5, 0.25), (3, 9, 1.0)]
)
def test_landmarks(warmup, total, ratio):
    seen = [lr for (lr,) in advance(warmup_cosine(optimizer(2.0), warmup, total, min_lr_ratio=ratio), total + 50)]
    if warmup:
        assert seen[0] == 2.0 / warmup
        assert seen[warmup - 1] == 2.0
        assert seen[:warmup] == pytest.approx([2.0 * (step + 1) / warmup for step in range(warmup)], rel=1e-15)
    if warmup < total:
        assert seen[warmup] == 2.0  # also the first step of all, without warm-up
        last = (math.pi / 2 / (total - warmup)) ** 2  # of the cosine's rise over its end, by its Taylor series
        rise = (seen[total - 1] - 2.0 * ratio) / 2.0
        assert (1 - ratio) * (last - last**2 / 3) <= rise <= (1 - ratio) * last
    if (warmup + total) % 2 == 0 and warmup < total:
        assert seen[(warmup + total) // 2] == pytest.approx(1.0 + ratio, rel=1e-14)
    assert seen[total:] == [2.0 * ratio] * 50
    assert max(seen) <= 2.0


@pytest.mark.parametrize(("warmup", "total", "ratio"), [(2, 30, 0.0), (10, 100, 0.1), (25, 26, 0.3)])
def test_against_schedulers_of_pytorch(warmup, total, ratio):
    reference = optimizer(0.3)
    linear = LinearLR(reference, start_factor=1 / warmup, total_iters=warmup - 1)
    cosine = CosineAnnealingLR(reference, T_max=total - warmup, eta_min=0.3 * ratio)
    expected = advance(SequentialLR(reference, [linear, cosine], milestones=[warmup]), total)
    seen = advance(warmup_cosine(optimizer(0.3), warmup, total, min_lr_ratio=ratio), total)
    # Theirs multiplies its way from step to step.
    torch.testing.assert_close(torch.tensor(seen), torch.tensor(expected), rtol=1e-9, atol=1e-12)


def test_does_not_drift():
    scheduler = warmup_cosine(optimizer(0.1), 1000, 10_000, min_lr_ratio=0.01)
    scheduler.optimizer.step()
    for _ in range(7777):
        scheduler.step()
    expected = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * 6777 / 9000))
    assert lrs(scheduler) == pytest.approx([0.1 * expected], rel=1e-15)


@pytest.mark.parametrize("done", range(9))
def test_resumes_at_any_step(done):
    def make():
        return warmup_cosine(optimizer(0.1, 0.7), 3, 7, min_lr_ratio=0.1)

    expected = advance(make(), 9)
    first = make()
    advance(first, done)
    state = saved({"optimizer": first.optimizer.state_dict(), "scheduler": first.state_dict()})
    second = make()
    second.optimizer.load_state_dict(state["optimizer"])
    second.load_state_dict(state["scheduler"])
    assert second.get_last_lr() == lrs(second)
    assert advance(second, 9 - done) == expected[done:]


def test_a_state_dict_brings_its_own_arguments():
    first = warmup_cosine(optimizer(0.1), 3, 7, min_lr_ratio=0.1)
    second = warmup_cosine(optimizer(0.9), 1, 2)
    second.load_state_dict(saved(first.state_dict()))
    advance(first, 2)
    advance(second, 2)
    assert lrs(first) == lrs(second)


@pytest.mark.parametrize("last_epoch", [-1, 0, 2, 4, 30])
def test_last_epoch_is_that_of_pytorch(last_epoch):
    def make():
        resumed = optimizer(0.1, 0.7)
        for group in resumed.param_groups:
            group["initial_lr"], group["lr"] = group["lr"], 0.123
        return resumed

    factors = [1 / 2, 1, *(0.5 + 0.5 * math.cos(math.pi * step / 4) for step in range(4)), *[0.0] * 40]
    reference = LambdaLR(make(), factors.__getitem__, last_epoch=last_epoch)
    seen = advance(warmup_cosine(make(), 2, 6, last_epoch=last_epoch), 5)
    assert seen == [pytest.approx(lr, rel=1e-14) for lr in advance(reference, 5)]
    with pytest.raises(KeyError, match="initial_lr"):
        warmup_cosine(optimizer(0.1), 2, 6, last_epoch=3)


def test_tensor_learning_rates_are_filled_in_place():
    tensors = torch.tensor(0.5), torch.tensor([0.25])
    scheduler = warmup_cosine(optimizer(*tensors, 2.0), 2, 4)
    seen = advance(scheduler, 5)
    assert seen == [[0.25, 0.125, 1.0], [0.5, 0.25, 2.0], [0.5, 0.25, 2.0], [0.25, 0.125, 1.0], [0.0, 0.0, 0.0]]
    for group, tensor in zip(scheduler.optimizer.param_groups, tensors, strict=False):
        assert group["lr"] is tensor
    # What is handed out is no alias, by which it would change with the next step.
    assert scheduler.get_last_lr()[0] is not tensors[0]
    again = warmup_cosine(optimizer(torch.tensor(9.0), torch.tensor([9.0]), 9.0), 2, 4)
    again.load_state_dict(saved(scheduler.state_dict()))
    again.last_epoch = 0
    again.step()
    assert lrs(again) == [0.5, 0.25, 2.0]


def test_a_group_that_is_added_later():
    scheduler = warmup_cosine(optimizer(0.5), 4, 8)
    advance(scheduler, 1)
    before = scheduler.state_dict()
    kept = list(before["base_lrs"])
    scheduler.optimizer.add_param_group({"params": [parameter()], "lr": 0.25})
    assert advance(scheduler, 4) == [[0.25, 0.25], [0.375, 0.1875], [0.5, 0.25], [0.5, 0.25]]
    assert before["base_lrs"] == kept

    # It resumes in a script that has the group from the start.
    state = saved({"optimizer": scheduler.optimizer.state_dict(), "scheduler": scheduler.state_dict()})
    resumed = warmup_cosine(optimizer(0.5, 0.3), 4, 8)
    resumed.optimizer.load_state_dict(state["optimizer"])
    resumed.load_state_dict(state["scheduler"])
    assert advance(resumed, 4) == advance(scheduler, 4)


def test_groups_that_share_the_tensor_of_the_optimizer():
    scheduler = warmup_cosine(SGD([parameter()], lr=torch.tensor(0.5)), 4, 8)
    advance(scheduler, 1)
    scheduler.optimizer.add_param_group({"params": [parameter()]})
    assert advance(scheduler, 3) == [[0.25, 0.25], [0.375, 0.375], [0.5, 0.5]]


def test_a_group_with_a_tensor_of_its_own_that_is_added_later():
    scheduler = warmup_cosine(optimizer(0.5), 4, 8)
    tensor = torch.tensor(0.25)
    scheduler.optimizer.add_param_group({"params": [parameter()], "lr": tensor})
    assert advance(scheduler, 5)[1:] == [[0.25, 0.125], [0.375, 0.1875], [0.5, 0.25], [0.5, 0.25]]
    assert scheduler.optimizer.param_groups[1]["lr"] is tensor


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"warmup_steps": -1}, r"warmup_steps is -1; expected a whole number, 0 or more"),
        ({"warmup_steps": 2.0}, r"warmup_steps is 2.0; expected a whole number"),
        ({"warmup_steps": 11}, r"warmup_steps is 11 and total_steps is 10; expected a warm-up no longer"),
        ({"total_steps": 0, "warmup_steps": 0}, r"total_steps is 0; expected a whole number, 1 or more"),
        ({"total_steps": 1e4}, r"total_steps is 10000.0; expected a whole number"),
        ({"min_lr_ratio": 1.5}, r"min_lr_ratio is 1.5; expected a share of each group's lr, 0 to 1"),
        ({"min_lr_ratio": -0.1}, r"min_lr_ratio is -0.1"),
        ({"min_lr_ratio": math.nan}, r"min_lr_ratio is nan"),
        ({"last_epoch": -2}, r"last_epoch is -2; expected a whole number, -1 or more"),
    ],
)
def test_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        warmup_cosine(optimizer(0.1), **{"warmup_steps": 2, "total_steps": 10, **arguments})


def test_no_optimizer():
    with pytest.raises(TypeError, match="is not an Optimizer"):
        warmup_cosine([parameter()], 2, 10)
