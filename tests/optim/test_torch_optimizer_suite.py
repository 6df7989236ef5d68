"""PyTorch's own checks of its optimizers, for these: the inputs of torch.testing._internal.common_optimizers, and what
test/test_optim.py in PyTorch's repository does with them.
"""

import copy
import io
import pickle
import weakref
from contextlib import nullcontext

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same

pytest.importorskip("expecttest")  # which torch.testing._internal imports
common = pytest.importorskip("torch.testing._internal.common_optimizers")


def inputs(*kwargs):
    return lambda device, dtype=None: [common.OptimizerInput(params=None, kwargs=k, desc=str(k)) for k in kwargs]


def errors(**expected):
    """The errors that all optimizers raise, and those of options, each with one bad value and its message."""

    def of(device, dtype):
        return common.get_error_inputs_for_all_optims(device, dtype) + [
            common.ErrorOptimizerInput(
                common.OptimizerInput(params=None, kwargs={name: value}, desc=name),
                error_type=ValueError,
                error_regex=message,
            )
            for name, (value, message) in expected.items()
        ]

    return of


MOMENTS = ({}, {"lr": 0.01}, {"weight_decay": 0.1, "maximize": True}, {"lr": torch.tensor(0.001), "capturable": True})
INFOS = [
    common.OptimizerInfo(
        SGD, optim_inputs_func=common.optim_inputs_func_sgd, optim_error_inputs_func=common.optim_error_inputs_func_sgd
    ),
    common.OptimizerInfo(
        Adam,
        optim_inputs_func=common.optim_inputs_func_adam,
        optim_error_inputs_func=common.optim_error_inputs_func_adam,
    ),
    common.OptimizerInfo(
        AdamW,
        optim_inputs_func=common.optim_inputs_func_adamw,
        optim_error_inputs_func=common.optim_error_inputs_func_adamw,
    ),
    common.OptimizerInfo(
        LAMB,
        optim_inputs_func=inputs(*MOMENTS, {"always_adapt": True, "weight_decay": 0}),
        optim_error_inputs_func=errors(betas=((1.0, 0.0), "Invalid beta parameter at index 0: 1.0")),
    ),
    common.OptimizerInfo(
        LARS,
        optim_inputs_func=inputs(*MOMENTS, {"momentum": 0}, {"nesterov": True, "weight_decay": 0.1}),
        optim_error_inputs_func=errors(
            momentum=(-0.5, "Invalid momentum value: -0.5"),
            trust_coefficient=(-1, "Invalid trust_coefficient value: -1"),
        ),
    ),
    common.OptimizerInfo(
        Lion,
        optim_inputs_func=inputs(*MOMENTS, {"betas": (0.5, 0.6)}),
        optim_error_inputs_func=errors(weight_decay=(-1, "Invalid weight_decay value: -1")),
    ),
]
THEIRS = {SGD: torch.optim.SGD, Adam: torch.optim.Adam, AdamW: torch.optim.AdamW}
every_optimizer = pytest.mark.parametrize("info", INFOS, ids=lambda info: info.name)
# What PyTorch refuses because its foreach implementation cannot; `foreach` means nothing here.
TAKEN_HERE = ("capturable=False and foreach=True",)


def inputs_of(info):
    # As for CUDA: with capturable, and learning rates and betas that are tensors.
    return info.optim_inputs_func(device="cuda", dtype=torch.float32)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Without the interpreter, unless a test asks for all paths."""
    if DEVICE.type == "cpu" and "path" not in request.fixturenames:
        monkeypatch.setattr("fastfeed.optim.plan.can_run", lambda device: False)


def network():
    """A network, its input, and parameters of which the last is empty."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Sigmoid(), torch.nn.Linear(2, 1, bias=False))
    x = torch.randn(4, 3)
    empty = torch.nn.Parameter(torch.empty(0, device=DEVICE))
    empty.grad = torch.empty_like(empty)
    model = model.to(DEVICE)
    return model, x.to(DEVICE), [*model.parameters(), empty]


def train(build, steps=7, **kwargs):
    """Return the optimizer(s) that `build` makes of parameters, trained; at one step there are no gradients."""
    model, x, params = network()
    optimizers = build(params, **kwargs)
    for step in range(steps):
        for p in model.parameters():
            p.grad = None
        if step != 3:
            model(x).square().sum().backward()
        for optimizer in optimizers:
            optimizer.step()
    return optimizers


@every_optimizer
def test_matches_a_loop_over_parameters(info, path):
    cases, steps = inputs_of(info), 7
    if path == "kernel" and DEVICE.type == "cpu":  # the interpreter is slow, and other tests have their numbers
        cases, steps = cases[2::3], 5
    for case in cases:
        kwargs = copy.deepcopy(case.kwargs)
        (ours,) = train(lambda params, kwargs=kwargs: [info.optim_cls(params, **kwargs)], steps)
        if info.optim_cls in THEIRS:
            kwargs.pop("capturable", None)  # theirs asks for a GPU
            (loop,) = train(
                lambda params, kwargs=kwargs: [THEIRS[info.optim_cls](params, foreach=False, **kwargs)], steps
            )
            for (p, q), name in zip(
                zip(ours.param_groups[0]["params"], loop.param_groups[0]["params"], strict=True), "wbve", strict=True
            ):
                torch.testing.assert_close(p, q, msg=lambda m, n=name, d=case.desc: f"{d}, {n}: {m}", **CLOSE)
                for key, value in loop.state[q].items():
                    torch.testing.assert_close(ours.state[p][key], value, check_device=False, **CLOSE)
        else:
            loop = train(lambda params, kwargs=kwargs: [info.optim_cls([p], **kwargs) for p in params], steps)
            for p, one in zip(ours.param_groups[0]["params"], loop, strict=True):
                torch.testing.assert_close(p, one.param_groups[0]["params"][0], **EXACT)
        assert len(ours.state) == 4
        assert all(ours.state.values())  # there are those who ask for states that are not empty


@every_optimizer
def test_errors(info):
    taken = 0
    for case in info.optim_error_inputs_func(device="cpu", dtype=torch.float32):
        params, kwargs = case.optimizer_error_input.params, case.optimizer_error_input.kwargs
        if params is None:
            params = [torch.nn.Parameter(torch.randn(2, 3))]
        if any(text in case.error_regex for text in TAKEN_HERE):
            info.optim_cls(params, **kwargs)
            taken += 1
        elif issubclass(case.error_type, Warning):
            # Of a parameter that is twice in a group torch says that it will be an error; here it is one.
            is_twice = "duplicate parameters" in case.error_regex
            refused = pytest.raises(ValueError, match="twice in a group: pass it once") if is_twice else nullcontext()
            with pytest.warns(case.error_type, match=case.error_regex), refused:
                info.optim_cls(params, **kwargs)
        else:
            with pytest.raises(case.error_type, match=case.error_regex):
                info.optim_cls(params, **kwargs)
    assert taken == (2 if info.optim_cls in (Adam, AdamW) else 0)


@every_optimizer
@pytest.mark.parametrize("scale", [None, 2.0])
def test_nothing_happens_after_an_overflow(info, path, scale):
    for case in inputs_of(info)[:5]:
        p = torch.nn.Parameter(torch.ones(2, device=DEVICE))
        p.grad = torch.ones_like(p)
        optimizer = info.optim_cls([p], ema_decay=0.5, **case.kwargs)
        optimizer.grad_scale = None if scale is None else torch.tensor(scale, device=DEVICE)
        optimizer.found_inf = torch.tensor(3.0, device=DEVICE)  # the sum over three devices
        optimizer.step()
        state = optimizer.state[p]
        assert state.pop("step") == 0
        assert torch.equal(state.pop("ema"), torch.ones_like(p))
        assert not any(value.any() for value in state.values())
        assert torch.equal(p, torch.ones_like(p))


@every_optimizer
def test_finite_steps_are_those_without_a_scaler(info, path):
    case = inputs_of(info)[-1]
    params = [torch.nn.Parameter(torch.ones(2, device=DEVICE)) for _ in range(2)]
    optimizers = [info.optim_cls([p], max_grad_norm=0.1, **case.kwargs) for p in params]
    for step in range(3):
        for p, scale in zip(params, (1.0, 8.0), strict=True):
            p.grad = torch.tensor([3.0, -step], device=DEVICE) * scale
        optimizers[1].grad_scale = torch.tensor(8.0, device=DEVICE)
        optimizers[1].found_inf = torch.tensor(0.0, device=DEVICE)
        for optimizer in optimizers:
            optimizer.step()
    assert_same(*optimizers, **EXACT)
    assert optimizers[1].grad_norm == optimizers[0].grad_norm


@every_optimizer
def test_saved_copied_and_pickled(info):
    for case in inputs_of(info):
        (optimizer,) = train(lambda params, case=case: [info.optim_cls(params, **case.kwargs)], steps=3)
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        params = optimizer.param_groups[0]["params"]
        loaded = info.optim_cls([torch.nn.Parameter(p.detach().clone()) for p in params])
        loaded.load_state_dict(torch.load(file, weights_only=True))
        for one in (loaded, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
            assert {name for name in dir(one) if name[0] != "_"} == {name for name in dir(optimizer) if name[0] != "_"}
            for p, q in zip(params, one.param_groups[0]["params"], strict=True):
                p.grad = q.grad = torch.ones_like(p)
            # capturable is the process's own: not taken over from a checkpoint
            own = optimizer.param_groups[0] | {"params": None, "capturable": None}
            assert one.param_groups[0] | {"params": None, "capturable": None} == own
            one.step()
        optimizer.step()
        assert_same(loaded, optimizer, **EXACT)
    assert repr(optimizer).startswith(f"{info.name} (\nParameter Group 0\n")


@every_optimizer
def test_step_without_gradients_or_with_zeros(info):
    p = torch.nn.Parameter(torch.tensor([1.0, -2.0], device=DEVICE))
    optimizer = info.optim_cls([p], weight_decay=0)
    optimizer.step()
    assert not optimizer.state
    for zero in (None, torch.zeros_like(p)):
        p.grad = zero
        optimizer.step()
    assert p.tolist() == [1.0, -2.0]
    assert (optimizer.state[p]["step"]) == 1
    optimizer.zero_grad()
    assert p.grad is None


@every_optimizer
def test_groups(info):
    """Each with its own learning rate and decay; added later; without parameters; named."""
    tensors = [torch.nn.Parameter(torch.ones(2, device=DEVICE)) for _ in range(4)]
    groups = [{"params": [("a", tensors[0])]}, {"params": [("b", tensors[1])], "lr": 0.5, "weight_decay": 0.2}]
    optimizer = info.optim_cls(groups, lr=0.1, weight_decay=0.0)
    optimizer.add_param_group({"params": []} | {"params": [("c", tensors[2])], "lr": torch.tensor(0.25)})
    alone = [
        info.optim_cls([torch.nn.Parameter(torch.ones(2, device=DEVICE))], lr=lr, weight_decay=decay)
        for lr, decay in ((0.1, 0.0), (0.5, 0.2), (0.25, 0.0))
    ]
    for step in range(3):
        if step == 2:
            optimizer.add_param_group({"params": iter([("d", tensors[3])])})
            alone.append(info.optim_cls([torch.nn.Parameter(torch.ones(2, device=DEVICE))], lr=0.1, weight_decay=0))
        for p in (*tensors, *(one.param_groups[0]["params"][0] for one in alone)):
            p.grad = torch.full_like(p, step - 0.5)
        for one in (optimizer, *alone):
            one.step()
    for p, one in zip(tensors, alone, strict=True):
        torch.testing.assert_close(p, one.param_groups[0]["params"][0], **EXACT)
    assert [group["param_names"] for group in optimizer.param_groups] == [["a"], ["b"], ["c"], ["d"]]
    assert [group["param_names"] for group in optimizer.state_dict()["param_groups"]] == [["a"], ["b"], ["c"], ["d"]]


@every_optimizer
def test_hooks(info):
    """Those of step, of the optimizer and of all; of state_dict; of load_state_dict; in their order."""
    p = torch.nn.Parameter(torch.ones(2, device=DEVICE))
    optimizer = info.optim_cls([p])
    seen = []
    handles = [
        register_optimizer_step_pre_hook(lambda *a: seen.append("all before")),
        register_optimizer_step_post_hook(lambda *a: seen.append("all after")),
        optimizer.register_step_pre_hook(lambda o, args, kwargs: seen.append("before")),
        optimizer.register_step_post_hook(lambda o, args, kwargs: seen.append(float(o.state[p]["step"]))),
        optimizer.register_state_dict_pre_hook(lambda o: seen.append("saving")),
        optimizer.register_state_dict_post_hook(lambda o, state: {**state, "extra": 1}),
        optimizer.register_load_state_dict_pre_hook(lambda o, state: seen.append(state["extra"])),
        optimizer.register_load_state_dict_post_hook(lambda o: seen.append(o.param_groups[0]["lr"])),
    ]
    try:
        p.grad = torch.ones_like(p)
        optimizer.step()
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] = 0.75
        optimizer.load_state_dict(state)
    finally:
        for handle in handles:
            handle.remove()
    optimizer.step()
    assert seen == ["all before", "before", 1.0, "all after", "saving", 1, 0.75]
    optimizer.register_step_pre_hook(lambda o, args, kwargs: ((o, lambda: 5.0), kwargs))
    assert optimizer.step() == 5.0  # a closure that the hook has put in


@every_optimizer
def test_profiler_sees_the_step(info):
    p = torch.nn.Parameter(torch.ones(2, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = info.optim_cls([p])
    optimizer.step()
    with torch.autograd.profiler.profile() as profile:
        optimizer.step(), optimizer.zero_grad()
    names = [event.name for event in profile.function_events]
    assert names.count(f"Optimizer.step#{info.name}.step") == 1
    assert f"Optimizer.zero_grad#{info.name}.zero_grad" in names


SCHEDULERS = {
    "StepLR": lambda o: lr_scheduler.StepLR(o, gamma=0.9, step_size=2),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, threshold=10.0),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=9),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=3),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.ExponentialLR(o, 0.5)], milestones=[2]
    ),
}


@every_optimizer
@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers(info, scheduler):
    """They write numbers to the groups, fill learning rates that are tensors, and cycle momentum or the first beta."""
    runs = []
    for lr in (0.05, torch.tensor(0.05)):
        p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
        optimizer = info.optim_cls([p], lr=lr, **({"momentum": 0.9} if "momentum" in info.optim_cls.__doc__ else {}))
        schedule = SCHEDULERS[scheduler](optimizer)
        rates, losses = [], []
        for _ in range(6):
            p.grad = p.detach() * 2
            losses.append(p.detach().square().sum().item())
            optimizer.step()
            schedule.step(*[1.0][: scheduler == "ReduceLROnPlateau"])
            rates.append(float(optimizer.param_groups[0]["lr"]))
        runs.append((rates, losses, p.detach()))
        assert len(set(rates)) > 1
        assert losses[-1] < losses[0]
        if isinstance(lr, torch.Tensor):
            assert optimizer.param_groups[0]["lr"] is lr
    (rates, _, p), (other_rates, _, q) = runs
    torch.testing.assert_close(rates, other_rates, rtol=1e-6, atol=0)
    torch.testing.assert_close(p, q, rtol=1e-6, atol=0)


def test_nothing_keeps_an_optimizer_alive():
    p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
    p.grad = torch.ones_like(p)
    optimizer = AdamW([p])
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    reference = weakref.ref(optimizer)
    del optimizer
    assert reference() is None


def compiled(function):
    counter = pytest.importorskip("torch._dynamo.testing").CompileCounter()
    torch.compiler.reset()
    return torch.compile(function, backend=counter), counter


@every_optimizer
def test_compiled_training_step(info):
    """The step is a graph break: the numbers are those outside, and nothing is compiled again at any step."""
    results = []
    for compile_it in (True, False):
        model, x, _ = network()
        optimizer = info.optim_cls(model.parameters(), lr=0.1)
        schedule = lr_scheduler.ExponentialLR(optimizer, 0.9)

        def training_step(x, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = model(x).square().sum()
            loss.backward()
            optimizer.step()
            return loss * 2

        run, counter = compiled(training_step) if compile_it else (training_step, None)
        counts = []
        for _ in range(4):
            loss = run(x)
            schedule.step()
            counts.append(counter and counter.frame_count)
        assert len(set(counts[1:])) == 1
        assert not compile_it or counts[0] >= 1
        results.append([loss, *model.parameters()])
    torch.testing.assert_close(*results, **EXACT)


def test_compiled_step_and_closure(path):
    results = []
    for compile_it in (True, False):
        p = torch.nn.Parameter(torch.ones(3, device=DEVICE))
        p.grad = torch.ones_like(p)
        optimizer = AdamW([p], lr=0.1)

        def closure(p=p, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (p * p).sum()
            loss.backward()
            return loss

        step, evaluate = (lambda optimizer=optimizer: optimizer.step()), closure
        if compile_it:
            (step, _), (evaluate, counter) = compiled(step), compiled(closure)
        for _ in range(3):
            step()
            loss = optimizer.step(evaluate)
        assert not compile_it or counter.frame_count == 1
        results.append([loss, p])
    torch.testing.assert_close(*results, **EXACT)
