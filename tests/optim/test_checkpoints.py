"""State dicts: exact resume, exchange with torch.optim, older checkpoints, and what is shared with what was loaded."""

import copy
import io
import pickle

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same, copies, parameters, set_gradients, train

OPTIMIZERS = [SGD, Adam, AdamW, LAMB, LARS, Lion]
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
MIXED = {
    "fp32": (torch.float32, {}),
    "fp32-ema-bf16-states": (torch.float32, {"ema_decay": 0.9, "state_dtype": torch.bfloat16}),
    "fp16-masters": (torch.float16, {"master_weights": True}),
    "bf16-masters-ema": (torch.bfloat16, {"master_weights": True, "ema_decay": 0.9, "max_grad_norm": 0.5}),
    "bf16-stochastic": (torch.bfloat16, {"stochastic_rounding": True, "seed": 7}),
    "bf16-stochastic-fp32-states": (
        torch.bfloat16,
        {"stochastic_rounding": True, "state_dtype": torch.float32, "ema_decay": 0.9},
    ),
}


@pytest.fixture
def quick(monkeypatch):
    """Without the interpreter."""
    if DEVICE.type == "cpu":
        monkeypatch.setattr("fastfeed.optim.plan.can_run", lambda device: False)


def small(dtype=torch.float32):
    values = torch.linspace(-1, 1, 9, device=DEVICE).to(dtype)
    return [torch.nn.Parameter(values[:3].clone()), torch.nn.Parameter(values[3:].clone().view(2, 3).t())]


def params_of(optimizer):
    return [p for group in optimizer.param_groups for p in group["params"]]


def like(optimizer, dtype=None):
    """New parameters of the same values."""
    return [torch.nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params_of(optimizer)]


def saved(optimizer):
    """The state dict as it comes from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def options_of(cls, **options):
    """With momentum, and without its learning rate's making every step vanish in half precision."""
    momentum = {"momentum": 0.9, "dampening": 0.5} if cls in (SGD, LARS) else {}
    return {"lr": 0.1, **momentum, **options}


def check_resume(cls, dtype, options):
    straight, first = (cls(small(dtype), **options_of(cls, **options)) for _ in range(2))
    train(straight, range(1, 6))
    train(first, range(1, 4))
    resumed = cls(like(first), **options)
    resumed.load_state_dict(saved(first))
    train(resumed, range(4, 6))
    assert_same(resumed, straight, **EXACT)
    return resumed


@every_optimizer
@pytest.mark.parametrize("mixed", MIXED)
def test_resume_is_exact(quick, cls, mixed):
    dtype, options = MIXED[mixed]
    resumed = check_resume(cls, dtype, options)
    for p, state in resumed.state.items():
        wide = {"step", "ema", "master"}
        assert all(state[name].dtype == torch.float32 for name in wide & state.keys())
        average = options.get("state_dtype", torch.float32 if options.get("master_weights") else dtype)
        assert all(state[name].dtype == average for name in state.keys() - wide)
        assert ("master" in state) == bool(options.get("master_weights"))
        assert ("ema" in state) == ("ema_decay" in options)
        assert p.dtype == dtype


@pytest.mark.parametrize("cls", [AdamW, LAMB], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("mixed", ["bf16-masters-ema", "bf16-stochastic"])
def test_resume_is_exact_on_every_path(path, cls, mixed):
    check_resume(cls, *MIXED[mixed])


@every_optimizer
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda optimizer: pickle.loads(pickle.dumps(optimizer))])
def test_copies_step_alike(quick, cls, copied):
    dtype, options = MIXED["bf16-masters-ema"]
    original = cls(small(dtype), **options_of(cls, **options))
    train(original, range(2))
    copy_ = copied(original)
    train(original, range(2, 4)), train(copy_, range(2, 4))
    assert_same(copy_, original, **EXACT)
    original.swap_ema()
    copy_ = copied(original)  # in the middle of an evaluation
    original.swap_ema(), copy_.swap_ema()
    assert_same(copy_, original, **EXACT)


# With torch.optim.

THEIRS = {SGD: torch.optim.SGD, Adam: torch.optim.Adam, AdamW: torch.optim.AdamW}
EXCHANGED = [
    (SGD, {}),
    (SGD, {"momentum": 0.9, "dampening": 0.5}),
    (SGD, {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1}),
    (Adam, {"weight_decay": 0.1}),
    (Adam, {"amsgrad": True, "maximize": True}),
    (AdamW, {"weight_decay": 0.1}),
    (AdamW, {"amsgrad": True, "lr": torch.tensor(0.1)}),
]


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("ours_first", [True, False], ids=["ours-to-torch", "torch-to-ours"])
@pytest.mark.parametrize(("cls", "options"), EXCHANGED, ids=lambda value: getattr(value, "__name__", str(value)))
def test_checkpoints_go_both_ways(quick, cls, options, ours_first, steps):
    source, target = (cls, THEIRS[cls]) if ours_first else (THEIRS[cls], cls)
    before = source(small(), **{"lr": 0.1, **options})
    train(before, range(steps))
    after = target(like(before))
    after.load_state_dict(saved(before))
    train(before, range(steps, steps + 3)), train(after, range(steps, steps + 3))
    for p, q in zip(params_of(before), params_of(after), strict=True):
        torch.testing.assert_close(p, q, **CLOSE)
        for name in (before.state[p].keys() & after.state[q].keys()) - {"step"}:
            torch.testing.assert_close(before.state[p][name], after.state[q][name], **CLOSE)
    assert before.state_dict()["state"].keys() == after.state_dict()["state"].keys() or options == {}


def test_checkpoints_of_awkward_parameters(path):
    before = torch.optim.AdamW(parameters(), lr=0.01, weight_decay=0.1)
    params = train(before, range(3))
    after = AdamW(copies(params))
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    assert after.param_groups[0]["lr"] == 0.01
    train(before, range(3, 5)), train(after, range(3, 5))
    assert_same(after, before, **CLOSE)


def without(*names):
    def change(state):
        for group in state["param_groups"]:
            for name in names:
                group.pop(name, None)

    return change


def with_flags(**flags):
    return lambda state: [group.update(flags) for group in state["param_groups"]]


def number_steps(state):
    for values in state["state"].values():
        values["step"] = values["step"].item()


OLDER = {
    "no flags": (AdamW, {}, without("maximize", "amsgrad", "decoupled_weight_decay", "foreach", "capturable", "fused")),
    "number steps": (Adam, {}, number_steps),
    "steps as vectors": (
        Adam,
        {},
        lambda state: [values.update(step=values["step"].view(1)) for values in state["state"].values()],
    ),
    "sgd": (SGD, {"momentum": 0.9}, without("maximize", "nesterov", "foreach", "fused", "differentiable")),
    "sgd without momentum": (
        SGD,
        {},
        lambda state: state.update(state={index: {"momentum_buffer": None} for index in range(2)}),
    ),
    "fused": (AdamW, {}, with_flags(fused=True, foreach=None)),
    "foreach": (AdamW, {}, with_flags(foreach=True)),
    "differentiable": (AdamW, {}, with_flags(differentiable=True, decoupled_weight_decay=False)),
    "capturable": (
        AdamW,
        {},
        with_flags(capturable=True, lr=torch.tensor(0.1), betas=(torch.tensor(0.9), torch.tensor(0.999))),
    ),
    "lists": (AdamW, {}, with_flags(betas=[0.9, 0.999])),
}


@pytest.mark.parametrize("older", OLDER)
def test_older_checkpoints_and_flags_of_others(quick, older):
    cls, options, change = OLDER[older]
    before = THEIRS[cls](small(), lr=0.1, **options)
    train(before, range(3))
    state = saved(before)
    change(state)
    after = cls(like(before))
    after.load_state_dict(state)
    group = after.param_groups[0]
    assert not any(group[name] for name in ("foreach", "fused", "capturable", "differentiable"))
    train(before, range(3, 5)), train(after, range(3, 5))
    torch.testing.assert_close(params_of(after), params_of(before), **CLOSE)


def test_every_group_is_read(quick):
    def build(cls, params):
        return cls([{"params": params[:1]}, {"params": params[1:], "lr": 0.3}])

    theirs = build(torch.optim.AdamW, small())
    train(theirs, range(2))
    state = saved(theirs)
    state["param_groups"][1]["lr"] = torch.tensor(0.3)  # as a capturable optimizer keeps it
    ours = build(AdamW, like(theirs))
    ours.load_state_dict(state)
    assert all(state["step"].device == p.device for p, state in ours.state.items())
    train(ours, range(2, 4)), train(theirs, range(2, 4))
    assert_same(ours, theirs, **CLOSE)


def test_momentum_that_is_switched_on_begins_as_in_torch(path):
    """The first buffer is the gradient without dampening, however many steps there were without momentum."""
    ours, theirs = (cls([torch.nn.Parameter(torch.ones(3, device=DEVICE))], lr=0.1) for cls in (SGD, torch.optim.SGD))
    for step in range(4):
        for optimizer in (ours, theirs):
            optimizer.param_groups[0].update({"momentum": 0.9, "dampening": 0.5} if step == 2 else {})
            (p,) = params_of(optimizer)
            p.grad = torch.full_like(p, step + 1.0)
            optimizer.step()
    torch.testing.assert_close(params_of(ours), params_of(theirs), **CLOSE)


# Between kinds of runs.


@every_optimizer
def test_what_a_checkpoint_lacks_begins_with_the_parameters(quick, cls):
    before = cls(small(torch.bfloat16), **options_of(cls))
    train(before, range(1, 4))
    after = cls(like(before), master_weights=True, ema_decay=1.0)
    after.load_state_dict(saved(before))
    train(after, range(1, 3))
    for p, q in zip(params_of(before), params_of(after), strict=True):
        assert torch.equal(after.state[q]["ema"], p.float())
        assert not torch.equal(after.state[q]["master"], p.float())
        assert torch.equal(after.state[q]["master"].bfloat16(), q)
    # and what it has too much is left out
    again = cls(like(after))
    again.load_state_dict(saved(after))
    train(again, range(3, 5))
    assert not any({"master", "ema"} & state.keys() for state in again.state.values())


@every_optimizer
def test_checkpoint_of_an_fp32_run_in_a_bf16_run_with_masters(quick, cls):
    before = cls(small(), **options_of(cls))
    train(before, range(1, 4))
    after = cls(like(before, torch.bfloat16), master_weights=True)
    after.load_state_dict(saved(before))
    for p, q in zip(params_of(before), params_of(after), strict=True):
        for name, value in before.state[p].items():
            assert torch.equal(after.state[q][name], value), name
    # the way back: the checkpoint has the masters, but they are not an fp32 optimizer's state
    train(after, range(4, 6))
    back = cls(like(after, torch.float32))
    back.load_state_dict(saved(after))
    assert all(value.dtype == torch.float32 for state in back.state.values() for value in state.values())


@pytest.mark.parametrize("source", [torch.optim.AdamW, AdamW])
def test_checkpoint_of_a_contiguous_model_in_channels_last(calls, source):
    before = source([torch.nn.Parameter(torch.rand(2, 3, 2, 2, device=DEVICE))])
    (q,) = train(before, range(1, 3))
    p = torch.nn.Parameter(q.detach().to(memory_format=torch.channels_last, copy=True))
    after = AdamW([p])
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    calls.clear()
    train(before, range(1, 3)), train(after, range(1, 3))
    assert calls.count("step") == (4 if source is AdamW else 2)  # the kernel takes it
    assert_same(after, before, check_stride=False, **CLOSE)


# Contracts of load_state_dict.


@every_optimizer
def test_groups_that_do_not_match_change_nothing(quick, cls):
    optimizer = cls(small(), ema_decay=0.9, **options_of(cls))
    train(optimizer, range(1, 3))
    good, before = saved(optimizer), copy.deepcopy(optimizer)
    good["state"][0]["step"].add_(5)
    good["param_groups"][0]["lr"] = 100.0
    bad = [({**good, "param_groups": good["param_groups"] * 2}, "different number of parameter groups")]
    bad += [({**good, "param_groups": [{**good["param_groups"][0], "params": [0]}]}, "doesn't match the size")]
    for state, message in bad:
        with pytest.raises(ValueError, match=message):
            optimizer.load_state_dict(state)
        assert not optimizer._optimizer_load_state_dict_pre_hooks
        assert not optimizer._optimizer_load_state_dict_post_hooks
    train(optimizer, range(3, 5)), train(before, range(3, 5))
    assert_same(optimizer, before, **EXACT)


def test_neither_saved_nor_loaded_while_averaged_weights_are_swapped_in(quick):
    optimizer = AdamW(small(), ema_decay=0.9)
    params = train(optimizer, range(1, 3))
    values = [p.detach().clone() for p in params]
    state = optimizer.state_dict()
    with optimizer.ema_weights():
        with pytest.raises(RuntimeError, match=r"call swap_ema\(\) before load_state_dict\(\)"):
            optimizer.load_state_dict(state)
        with pytest.raises(RuntimeError, match=r"call swap_ema\(\) before state_dict\(\)"):
            optimizer.state_dict()  # with the model's it would hold the averages twice, and the weights nowhere
    assert all(map(torch.equal, params, values))


def test_what_is_shared_with_a_checkpoint_is_what_torch_shares(quick):
    """The tensors that need no cast; a checkpoint's groups, and what is cast, stay as they are."""
    for dtype in (torch.float32, torch.bfloat16):
        changed = []
        for cls in (AdamW, torch.optim.AdamW):
            source = cls(small(), lr=0.1)
            train(source, range(1, 3))
            state = saved(source)
            kept = copy.deepcopy(state)
            optimizer = cls(like(source, dtype))
            optimizer.load_state_dict(state)
            train(optimizer, range(3, 5))
            optimizer.param_groups[0]["lr"] = 5.0
            assert state["param_groups"] == kept["param_groups"]
            changed.append(
                {
                    (index, name): not torch.equal(value, kept["state"][index][name])
                    for index, values in state["state"].items()
                    for name, value in values.items()
                }
            )
        if DEVICE.type == "cpu":  # where no optimizer moves the steps
            assert changed[0] == changed[1]
        assert any(changed[0].values()) == (dtype == torch.float32 or DEVICE.type == "cpu")


def test_hooks_see_and_replace_what_is_loaded(quick):
    optimizer = AdamW(small(torch.bfloat16), master_weights=True)
    params = train(optimizer, range(1, 3))
    state, seen = saved(optimizer), []

    def replace(_, given):
        assert given is not state  # a copy, as in torch
        seen.append(given["state"].keys())
        states = {k: {**v, "master": torch.full_like(v["master"], 1 / 3)} for k, v in given["state"].items()}
        return {**given, "state": states}

    def look(loaded):
        seen.append([loaded.state[p]["master"].flatten()[0].item() for p in params])

    hooks = [
        optimizer.register_load_state_dict_pre_hook(replace),
        optimizer.register_load_state_dict_post_hook(look),
        optimizer.register_load_state_dict_post_hook(look, prepend=True),
    ]
    optimizer.load_state_dict(state)
    third = torch.tensor(1 / 3).item()
    assert seen == [{0, 1}, [third, third], [third, third]]  # not rounded to bf16
    for hook in hooks:
        hook.remove()
    optimizer.load_state_dict(state)
    assert len(seen) == 3


def test_states_of_others_are_kept(quick):
    optimizer = AdamW(small())
    params = train(optimizer, range(1, 3))
    optimizer.state[params[0]]["note"] = torch.arange(5)
    optimizer.state["run"] = 3
    optimizer.load_state_dict(optimizer.state_dict())
    train(optimizer, range(3, 5))
    assert optimizer.state[params[0]]["note"].tolist() == [0, 1, 2, 3, 4]
    assert optimizer.state["run"] == 3
    assert optimizer.state[params[0]]["step"] == 3


def test_distributed_checkpoint_functions(quick):
    """They step once with a learning rate of 0 to have states to load into."""
    functions = pytest.importorskip("torch.distributed.checkpoint.state_dict")
    runs = []
    for _ in range(2):
        model = torch.nn.Linear(2, 2).to(DEVICE)
        runs.append((model, AdamW(model.parameters(), lr=0.1, ema_decay=0.9)))
    (model, optimizer), (other_model, other) = runs
    train(optimizer, range(1, 4))
    state = functions.get_state_dict(model, optimizer)
    functions.set_state_dict(other_model, other, model_state_dict=state[0], optim_state_dict=copy.deepcopy(state[1]))
    for one in (optimizer, other):
        set_gradients(params_of(one), 1)
        one.step()
    assert_same(other, optimizer, **EXACT)
