"""What the step remembers between calls: everything that moves, is replaced or changes its kind must be noticed, or a
kernel writes where a tensor was.
"""

import copy
import weakref

import pytest
import torch

from fastfeed.optim import LAMB, SGD, AdamW
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same


def build(cls=AdamW, dtype=torch.float32, **options):
    values = torch.linspace(-1, 1, 24, device=DEVICE).to(dtype)
    params = [torch.nn.Parameter(values[:5].clone()), torch.nn.Parameter(values[5:].clone()[:16].view(2, 2, 2, 2))]
    return cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.02}], lr=0.1, **options)


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def step(optimizer, number):
    for i, p in enumerate(params_of(optimizer)):
        p.grad = torch.linspace(-1, number, p.numel(), device=DEVICE).to(p.dtype).view(p.shape) + i
    optimizer.step()


def change_data(optimizer):
    for p in params_of(optimizer):
        p.data = p.data.clone()


def change_memory_format(optimizer):
    p = params_of(optimizer)[1]
    p.data = p.data.to(memory_format=torch.channels_last)


def replace_parameter(optimizer):
    """As pruning and growing do."""
    old = optimizer.param_groups[1]["params"][0]
    new = torch.nn.Parameter(old.detach().clone())
    optimizer.state[new] = optimizer.state.pop(old)
    optimizer.param_groups[1]["params"] = [new]


def state_data(optimizer):
    for state in optimizer.state.values():
        for value in state.values():
            value.data = value.data.clone()


def state_values(optimizer):
    for state in optimizer.state.values():
        for name, value in state.items():
            state[name] = value.clone()


def one_state_value(optimizer):
    state = optimizer.state[params_of(optimizer)[1]]
    state["exp_avg"] = state["exp_avg"].clone()


def state_dicts(optimizer):
    for p in params_of(optimizer):
        optimizer.state[p] = {name: value.clone() for name, value in reversed(optimizer.state[p].items())}


def whole_state(optimizer):
    optimizer.state = copy.copy(optimizer.state)
    state_dicts(optimizer)


def number_steps(optimizer):
    for state in optimizer.state.values():
        state["step"] = int(state["step"])


def steps_of_another_kind(optimizer):
    for state in optimizer.state.values():
        state["step"] = state["step"].double().view(1)


def state_shares_memory_in_another_order(optimizer):
    """A matrix and its transpose lie at one address."""
    p = params_of(optimizer)[1]
    first = optimizer.state[p]["exp_avg"]
    optimizer.state[p]["exp_avg"] = first.transpose(0, 1).contiguous().transpose(0, 1)


MOVES = [
    change_data,
    change_memory_format,
    replace_parameter,
    state_data,
    state_values,
    one_state_value,
    state_dicts,
    whole_state,
    number_steps,
    steps_of_another_kind,
    state_shares_memory_in_another_order,
]


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_same_numbers_wherever_tensors_lie(path, move):
    moved, still = (build(ema_decay=0.9) for _ in range(2))
    for number in range(4):
        if number == 2:
            move(moved)
            held = [torch.full_like(p, 7.0) for p in params_of(moved)]  # takes the place of what was freed
        step(moved, number), step(still, number)
    other_order = move in (change_memory_format, state_shares_memory_in_another_order)  # stepped by the reference then
    assert_same(moved, still, check_stride=False, **(CLOSE if other_order else EXACT))
    assert all((t == 7).all() for t in held)


@pytest.mark.parametrize("move", MOVES, ids=lambda move: move.__name__)
def test_nothing_is_written_where_tensors_were(path, move):
    """Everything that the optimizer had is kept from being freed: it stays as it was."""
    optimizer = build(master_weights=True, dtype=torch.bfloat16)
    step(optimizer, 0), step(optimizer, 1)
    tensors = [*params_of(optimizer), *(v for state in optimizer.state.values() for v in state.values())]
    kept = [t.detach() for t in tensors]  # other objects, the same memory
    move(optimizer)
    states = [v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v)]
    now = {t.data_ptr() for t in (*params_of(optimizer), *states)}
    left = [t for t in kept if t.data_ptr() not in now]
    assert left
    values = [t.clone() for t in left]
    step(optimizer, 2), step(optimizer, 3)
    assert all(map(torch.equal, left, values))


def test_parameter_that_is_transposed_where_it_lies(path):
    """At the same address, of the same size; its moments stay in the order that they have."""
    runs = []
    for cls in (AdamW, torch.optim.AdamW):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 9, device=DEVICE).view(3, 3))
        optimizer = cls([p], lr=0.1)
        for number in range(4):
            if number == 2:
                p.data = p.data.t()
            p.grad = None
            p.grad = torch.linspace(-1, number, 9, device=DEVICE).view(3, 3)
            optimizer.step()
        runs.append(p)
    torch.testing.assert_close(*runs, **CLOSE)


def test_states_that_are_cleared_begin_anew(path):
    optimizer, fresh = build(), build()
    step(optimizer, 0)
    optimizer.state.clear()
    with torch.no_grad():
        for p, q in zip(params_of(optimizer), params_of(fresh), strict=True):
            q.copy_(p)
    step(optimizer, 1), step(fresh, 1)
    assert_same(optimizer, fresh, **EXACT)


def test_gradients_of_other_kinds(path):
    """None, of another dtype, in another order, with holes, expanded, lazily negated, new at each step."""
    ours, theirs = build(), build(torch.optim.AdamW)
    kinds = [
        lambda g: g,
        lambda g: None,
        lambda g: g.double().float(),
        lambda g: torch.stack([g, g], -1)[..., 0],
        lambda g: g.flatten()[:1].view([1] * g.dim()).expand(g.shape),
        lambda g: torch._neg_view(g),
        lambda g: g.transpose(0, -1).contiguous().transpose(0, -1),
        lambda g: torch.cat([g.flatten()[:1], g.flatten()])[1:].view(g.shape),
    ]
    for number in range(2 * len(kinds)):
        for optimizer in (ours, theirs):
            for i, p in enumerate(params_of(optimizer)):
                values = torch.linspace(-1, number, p.numel(), device=DEVICE).view(p.shape)
                p.grad = None
                p.grad = kinds[(number + i) % len(kinds)](values)
                p.requires_grad_(number % 3 != 0)  # a frozen layer's old gradient counts, as in torch
            optimizer.step()
    assert_same(ours, theirs, **CLOSE)


def test_gradient_dtypes_that_change(path):
    p = torch.nn.Parameter(torch.ones(6, device=DEVICE, dtype=torch.bfloat16))
    optimizer = SGD([p], lr=0.5)
    for dtype in (torch.bfloat16, torch.float32, torch.float16, torch.float32):
        p.grad_dtype = dtype
        p.grad = torch.full((6,), 0.25, device=DEVICE, dtype=dtype)
        optimizer.step()
        p.grad = None
    assert p.tolist() == [0.5] * 6


def test_negated_gradient_of_one_element(path):
    """As autograd makes it for the imaginary part of a number that is conjugated."""
    real, imaginary = (torch.nn.Parameter(torch.ones(1, device=DEVICE)) for _ in range(2))
    number = torch.complex(real, imaginary).conj()
    (number.real + 3 * number.imag).sum().backward()
    assert imaginary.grad.is_neg()
    SGD([real, imaginary], lr=1.0).step()
    assert (real.item(), imaginary.item()) == (0.0, 4.0)


def test_gradient_that_is_negated_later(path):
    p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    optimizer = SGD([p], lr=1.0)
    gradient = torch.ones_like(p)
    for p.grad in (gradient, torch._neg_view(gradient), torch._neg_view(gradient), gradient, gradient):
        optimizer.step()
    assert p.tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16], ids=str)
def test_model_is_cast(path, dtype):
    """The step goes on in the new dtype; moments stay as they were until they are loaded again."""
    model = torch.nn.Linear(3, 2, device=DEVICE)
    optimizer = AdamW(model.parameters(), lr=0.5)
    for kind in (torch.float32, dtype, torch.float32):
        model.to(kind)
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        before = [p.detach().clone() for p in model.parameters()]
        optimizer.step()
        for p, value in zip(model.parameters(), before, strict=True):
            assert p.dtype == kind
            torch.testing.assert_close(p, (value.float() * (1 - 0.005) - 0.5).to(kind), rtol=0.02, atol=1e-2)


def test_options_of_groups_that_are_switched(path):
    """momentum, amsgrad, dampening and nesterov, on and off, as torch.optim has them."""
    runs = []
    for cls in (SGD, torch.optim.SGD):
        optimizer = build(cls, momentum=0.9)
        for number, options in enumerate(
            [{}, {"momentum": 0.0}, {"momentum": 0.5}, {"dampening": 0.5}, {"dampening": 0, "nesterov": True}, {}]
        ):
            optimizer.param_groups[1].update(options)
            step(optimizer, number)
        runs.append(params_of(optimizer))
    torch.testing.assert_close(*runs, **CLOSE)
    optimizer = build()
    for number, amsgrad in enumerate([False, True, True, False, True]):
        optimizer.param_groups[1]["amsgrad"] = amsgrad
        kept = optimizer.state[params_of(optimizer)[1]].get("max_exp_avg_sq", torch.zeros(())).clone()
        step(optimizer, number)
        maximum = optimizer.state[params_of(optimizer)[1]].get("max_exp_avg_sq", torch.zeros(()))
        assert amsgrad != torch.equal(kept, maximum)


@pytest.mark.parametrize("cls", [AdamW, LAMB], ids=lambda cls: cls.__name__)
def test_options_of_the_optimizer_that_are_switched(path, cls):
    optimizer = build(cls, torch.float16)  # bf16 the interpreter does not round as GPUs do
    params = params_of(optimizer)
    step(optimizer, 0)
    assert optimizer.grad_norm is None
    optimizer.max_grad_norm = 0.5
    step(optimizer, 1)
    assert optimizer.grad_norm > 0
    optimizer.max_grad_norm, optimizer.ema_decay, optimizer.master_weights = None, 0.0, True
    step(optimizer, 2)
    for p in params:
        assert torch.equal(optimizer.state[p]["ema"], optimizer.state[p]["master"])
        assert torch.equal(optimizer.state[p]["master"].half(), p)
    optimizer.ema_decay = 1.0
    kept = [optimizer.state[p]["ema"].clone() for p in params]
    step(optimizer, 3)
    assert all(torch.equal(optimizer.state[p]["ema"], k) for p, k in zip(params, kept, strict=True))
    optimizer.ema_decay, optimizer.master_weights = None, False
    kept = [optimizer.state[p]["master"].clone() for p in params]
    step(optimizer, 4)
    assert all(torch.equal(optimizer.state[p]["master"], k) for p, k in zip(params, kept, strict=True))


def test_groups_that_come_and_go(path):
    optimizer, plain = build(), build(torch.optim.AdamW)
    for one in (optimizer, plain):
        step(one, 0)
        one.add_param_group({"params": [torch.nn.Parameter(torch.ones(3, device=DEVICE))], "lr": 0.5})
        step(one, 1)
        one.param_groups.reverse()
        step(one, 2)
        first = one.param_groups.pop(0)
        step(one, 3)
        one.add_param_group({"params": []})
        one.param_groups[0]["params"] += first["params"]
        step(one, 4)
    assert_same(optimizer, plain, **CLOSE)


def test_after_a_replay_the_table_is_brought_again():
    """A replay brings what was captured, unknown to the host: here by hand, as there may be no GPU."""
    pytest.importorskip("triton")
    optimizer = SGD([torch.nn.Parameter(torch.zeros(3, device=DEVICE))], lr=1.0)
    (p,) = params_of(optimizer)
    captured, eager = torch.full_like(p, 10), torch.ones_like(p)
    p.grad = captured
    optimizer.step()
    ((_, table),) = optimizer._plan.tables
    brought = table._moving.clone()
    table.captured.append(brought)
    for _ in range(2):
        p.grad = eager
        optimizer.step()
        table._moving.copy_(brought)
    assert p.tolist() == [-12, -12, -12]


def test_learning_rates_are_kept_while_launches_read_them():
    pytest.importorskip("triton")
    optimizer = build()
    step(optimizer, 0)
    ((indices, table),) = optimizer._plan.tables
    _, scalars = optimizer._scalars_on(DEVICE)
    converted = torch.ones((), device=DEVICE)
    kept = weakref.ref(converted)
    table.refresh([0] * len(indices), [None, converted], scalars)
    del converted
    assert kept() is not None


@pytest.mark.parametrize("cls", [AdamW, LAMB])
def test_default_device_has_no_part(path, cls):
    optimizer, plain = (build(cls, max_grad_norm=1.0, ema_decay=0.9) for _ in range(2))
    for one in (optimizer, plain):
        for p in params_of(one):
            p.grad = torch.ones_like(p)
    plain.step()
    with torch.device("meta"):
        optimizer.step()
    assert_same(optimizer, plain, **EXACT)
