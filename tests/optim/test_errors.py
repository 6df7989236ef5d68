"""Bad input: an error of torch.optim's type, with its message where it has one, before anything is stepped."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.optim.training import DEVICE

OPTIMIZERS = [SGD, Adam, AdamW, LAMB, LARS, Lion]
every_optimizer = pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """Without the interpreter, unless a test asks for all paths."""
    if DEVICE.type == "cpu" and "path" not in request.fixturenames:
        monkeypatch.setattr("fastfeed.optim.plan.can_run", lambda device: False)


def parameter(*shape, grad=True, **options):
    p = torch.nn.Parameter(torch.ones(shape or (3,), **{"device": DEVICE, **options}))
    p.grad = torch.ones_like(p) if grad else None
    return p


def takes(cls, name):
    return name in cls([parameter()]).defaults


# Constructors.

HYPERPARAMETERS = [
    ("lr", -0.1, ValueError, "Invalid learning rate: -0.1"),
    ("lr", math.nan, ValueError, "Invalid learning rate: nan"),
    ("lr", torch.tensor(-1.0), ValueError, "Invalid learning rate: -1.0"),
    ("lr", torch.tensor([0.1, 0.1]), ValueError, "Tensor lr must be 1-element"),
    ("lr", "0.1", TypeError, "Invalid learning rate: '0.1': expected a number, not str"),
    ("lr", None, TypeError, "Invalid learning rate: None: expected a number"),
    ("eps", -1.0, ValueError, "Invalid epsilon value: -1.0"),
    ("weight_decay", -2, ValueError, "Invalid weight_decay value: -2"),
    ("weight_decay", math.nan, ValueError, "Invalid weight_decay value: nan"),
    ("momentum", -0.5, ValueError, "Invalid momentum value: -0.5"),
    ("momentum", [0.9], TypeError, r"Invalid momentum value: \[0.9\]: expected a number, not list"),
    ("trust_coefficient", -1.0, ValueError, "Invalid trust_coefficient value: -1.0"),
    ("betas", (1.0, 0.9), ValueError, "Invalid beta parameter at index 0: 1.0"),
    ("betas", (0.9, -0.1), ValueError, "Invalid beta parameter at index 1: -0.1"),
    ("betas", (0.9, math.nan), ValueError, "Invalid beta parameter at index 1: nan"),
    ("betas", (torch.tensor([0.9, 0.9]), torch.tensor(0.9)), ValueError, r"Tensor betas\[0\] must be 1-element"),
    ("betas", (0.9, "0.9"), TypeError, "Invalid beta parameter at index 1: '0.9'"),
    ("betas", (0.9,), ValueError, r"Invalid betas: \(0.9,\): expected two numbers, not 1"),
    ("betas", (0.9, 0.9, 0.9), ValueError, "expected two numbers, not 3"),
    ("betas", 0.9, TypeError, "Invalid betas: 0.9: expected a tuple of two numbers"),
    ("nesterov", True, ValueError, "Nesterov momentum requires a momentum and zero dampening"),
    ("differentiable", True, RuntimeError, "differentiable=True: .* Use the optimizer of torch.optim"),
]


@every_optimizer
def test_hyperparameters(cls):
    """Of the optimizer, of a group, of one that is added, and of one that was changed since."""
    checked = 0
    for name, value, error, message in HYPERPARAMETERS:
        if not takes(cls, name):
            continue
        checked += 1
        bad = {name: value, **({"momentum": 0.0} if name == "nesterov" else {})}
        p, q, r = parameter(), parameter(), parameter()
        with pytest.raises(error, match=message):
            cls([p], **bad)
        with pytest.raises(error, match=message):
            cls([{"params": [p]}, {"params": [q], **bad}])
        optimizer = cls([{"params": [p]}, {"params": [q]}], lr=0.1)
        with pytest.raises(error, match=message):
            optimizer.add_param_group({"params": [r], **bad})
        assert len(optimizer.param_groups) == 2
        if name == "differentiable":
            continue  # looked at once
        good = optimizer.param_groups[1] | {}
        optimizer.param_groups[1].update(bad)
        with pytest.raises(error, match=message):
            optimizer.step()
        assert not optimizer.state  # of the first group neither
        assert torch.equal(p, torch.ones_like(p))
        optimizer.param_groups[1].update(good)
        optimizer.step()
        assert all((x != 1).all() for x in (p, q))
    assert checked > 8


@every_optimizer
def test_integers_and_booleans_are_numbers(cls):
    p, q = parameter(), parameter()
    p.data *= 2
    q.data *= 2
    first = cls([p], lr=1, weight_decay=True, max_grad_norm=1, ema_decay=0, maximize=1, seed=True)
    second = cls([q], lr=1.0, weight_decay=1.0, max_grad_norm=1.0, ema_decay=0.0, maximize=True, seed=1)
    first.step(), second.step()
    assert torch.equal(p, q)
    assert (p != 2).all()


OPTIONS = [
    ({"seed": -1}, ValueError, "Invalid seed: -1: expected 0 to"),
    ({"seed": 2**63}, ValueError, "Invalid seed: 9223372036854775808"),
    ({"seed": 1.0}, TypeError, "Invalid seed: 1.0: expected an integer, not float"),
    ({"state_dtype": torch.float16}, ValueError, "Invalid state_dtype: torch.float16: expected torch.float32 or"),
    ({"state_dtype": "bf16"}, ValueError, "Invalid state_dtype: bf16"),
    ({"max_grad_norm": 0}, ValueError, "Invalid max_grad_norm: 0: expected a positive number, or None"),
    ({"max_grad_norm": math.nan}, ValueError, "Invalid max_grad_norm: nan"),
    ({"max_grad_norm": torch.tensor(1.0)}, TypeError, r"Invalid max_grad_norm: tensor\(1.\): expected a number"),
    ({"ema_decay": 1.5}, ValueError, "Invalid ema_decay: 1.5: expected 0 to 1"),
    ({"ema_decay": "0.9"}, TypeError, "Invalid ema_decay: '0.9'"),
    ({"master_weights": True, "stochastic_rounding": True}, ValueError, "choose one"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS, ids=lambda value: str(value)[:40])
def test_options(options, error, message):
    with pytest.raises(error, match=message):
        AdamW([parameter()], **options)
    optimizer = AdamW([p := parameter()])
    good = {name: getattr(optimizer, name) for name in options}
    for name, value in options.items():
        setattr(optimizer, name, value)
    with pytest.raises(error, match=message):
        optimizer.step()
    assert not optimizer.state
    for name, value in good.items():
        setattr(optimizer, name, value)
    optimizer.step()
    assert (p != 1).all()


@every_optimizer
def test_arguments(cls):
    p = parameter()
    for kwargs, error, message in (
        ({"foreach": True, "fused": True}, RuntimeError, "`fused` and `foreach` cannot be `True` together"),
        ({"momentun": 0.9}, TypeError, "got an unexpected keyword argument 'momentun'"),
    ):
        with pytest.raises(error, match=message):
            cls([p], **kwargs)
    for params, error, message in (
        ([], ValueError, "optimizer got an empty parameter list"),
        (p, TypeError, "params argument given to the optimizer should be an iterable of Tensors or dicts"),
        ([{"params": [p]}, parameter()], TypeError, "param_group must be a dict"),
        ([{"params": {p}}], TypeError, "need to be organized in ordered collections"),
        ([3.0], TypeError, "optimizer can only optimize Tensors"),
        ([p * 2], ValueError, "can't optimize a non-leaf Tensor"),
        ([{"params": [p]}, {"params": [p]}], ValueError, "some parameters appear in more than one parameter group"),
    ):
        with pytest.raises(error, match=message):
            cls(params)


@every_optimizer
@pytest.mark.parametrize(
    ("values", "message"),
    [
        (torch.zeros(2, dtype=torch.complex64), "complex parameters: pass torch.view_as_real"),
        (torch.zeros(2, dtype=torch.int64), "parameters of dtype torch.int64"),
        (torch.zeros(2, dtype=torch.float8_e4m3fn), "parameters of dtype torch.float8_e4m3fn"),
        (
            torch.zeros(2, 2).to_sparse(),
            "sparse parameters, as of layout torch.sparse_coo: consider torch.optim.Sparse",
        ),
    ],
    ids=["complex", "int", "float8", "sparse"],
)
def test_parameters_of_other_kinds(cls, values, message):
    bad = values if values.dtype == torch.int64 else torch.nn.Parameter(values)
    with pytest.raises(ValueError, match=f"{cls.__name__} does not support {message}"):
        cls([bad])
    optimizer = cls([p := parameter()])
    with pytest.raises(ValueError, match=message):
        optimizer.add_param_group({"params": [parameter(), bad]})
    optimizer.step()
    assert len(optimizer.param_groups) == 1
    assert len(optimizer.state) == 1
    assert (p != 1).all()


def test_stochastic_rounding_of_fp16():
    with pytest.raises(ValueError, match=r"stochastic_rounding of torch.float16 parameters: it is for torch.bfloat16"):
        AdamW([parameter(dtype=torch.float16)], stochastic_rounding=True)


# Steps.


def assert_nothing_steps(optimizer, error, message):
    """Neither other groups nor other parameters, whether it is the first step or a later one."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    values = [p.detach().clone() for p in params]
    states = {p: {name: value.clone() for name, value in state.items()} for p, state in optimizer.state.items()}
    with pytest.raises(error, match=message):
        optimizer.step()
    assert all(torch.equal(p, value) for p, value in zip(params, values, strict=True) if p.device.type != "meta")
    assert optimizer.state.keys() == states.keys()
    for p, state in optimizer.state.items():
        assert state.keys() == states[p].keys()
        assert all(torch.equal(value, states[p][name]) for name, value in state.items())


@every_optimizer
@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
def test_sparse_gradients(cls, later):
    optimizer = cls([{"params": [parameter()]}, {"params": [p := parameter(4, 4)]}], lr=0.1, max_grad_norm=1.0)
    if later:
        optimizer.step()
    p.grad = torch.eye(4, device=DEVICE).to_sparse()  # the one layout that a dense parameter's gradient can have
    message = f"{cls.__name__} does not support sparse gradients, and parameter 1 has one of layout torch.sparse_coo"
    assert_nothing_steps(optimizer, RuntimeError, message)
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer.step()
    assert (p != before).all()


@every_optimizer
def test_parameters_without_data(cls):
    optimizer = cls([{"params": [parameter()]}, {"params": [p := parameter(4, device="meta")]}])
    assert_nothing_steps(
        optimizer, NotImplementedError, r"parameter 1 is on the meta device, .* to_empty\(device=...\)"
    )
    p.grad = None
    optimizer.step()  # frozen, it may stay there
    assert len(optimizer.state) == 1


@pytest.mark.filterwarnings("error:Accessing the data pointer of FakeTensor")
def test_clipping_over_devices():
    """There is no GPU here, but tensors that would be on one."""
    with FakeTensorMode() if DEVICE.type == "cpu" else nullcontext():
        optimizer = AdamW([parameter(device="cpu"), parameter(device="cuda")], max_grad_norm=1.0)
        with pytest.raises(
            RuntimeError, match=r"on one device, but they are on cpu, cuda:0: clip them with .*clip_grad_norm_"
        ):
            optimizer.step()
        assert [int(state["step"].device.type == "cuda") for state in optimizer.state.values()] == [0, 1]
        optimizer.max_grad_norm = None
        for _ in range(3):
            optimizer.step()


def test_state_on_another_device():
    optimizer = AdamW([parameter(), p := parameter()])
    optimizer.step()
    optimizer.state[p]["exp_avg"] = torch.ones(3, device="meta")
    with pytest.raises(RuntimeError, match="the state 'exp_avg' of parameter 1 is on meta, .*load_state_dict moves"):
        optimizer.step()


@pytest.mark.gpu
def test_gradient_on_another_device():
    optimizer = AdamW([parameter(), p := parameter(device="cpu")])
    optimizer.step()
    p.data = p.data.cuda()
    assert_nothing_steps(optimizer, RuntimeError, "the gradient of parameter 1 is on cpu, but the parameter on cuda:0")


@pytest.mark.parametrize("path", ["kernel"], indirect=True)
def test_gradient_that_has_lost_its_memory(path):
    optimizer = AdamW([{"params": [parameter()]}, {"params": [p := parameter()]}], max_grad_norm=1.0)
    optimizer.step()
    p.grad.untyped_storage().resize_(0)
    assert_nothing_steps(optimizer, RuntimeError, rf"a gradient of shape \[3\] on {DEVICE}.* has no memory")


@every_optimizer
def test_shapes_that_differ(cls, path):
    """A kernel would read what lies behind them."""
    optimizer = cls(
        [q := parameter(), p := parameter(8)], lr=0.1, **({"momentum": 0.9} if takes(cls, "momentum") else {})
    )
    optimizer.step()
    p.grad.data = torch.ones(2, device=DEVICE)
    assert_nothing_steps(
        optimizer, RuntimeError, r"the gradient of parameter 1 has shape \[2\], but the parameter \[8\]"
    )
    p.grad.data = torch.ones(8, device=DEVICE)
    optimizer.step()
    name = optimizer.state_names[0]
    p.data, p.grad = torch.ones(4, device=DEVICE), None
    p.grad = torch.ones_like(p)
    assert_nothing_steps(optimizer, RuntimeError, rf"the state '{name}' of parameter 1 has shape \[8\], .* \[4\]")
    optimizer.state[p][name] = 3.0
    with pytest.raises(TypeError, match=f"the state '{name}' of parameter 1 is 3.0: expected a tensor"):
        optimizer.step()
    del optimizer.state[p]
    before = q.detach().clone()
    optimizer.step()
    assert (p != 1).all()
    assert (q != before).all()


def test_elements_that_share_memory():
    p = torch.nn.Parameter(torch.zeros(3, device=DEVICE).expand(5, 3))
    p.grad = torch.ones(5, 3, device=DEVICE)
    optimizer = AdamW([parameter(), p])
    assert_nothing_steps(optimizer, RuntimeError, "cannot step parameter 1: .* refers to a single memory location")


def test_averaged_weights():
    optimizer = AdamW([parameter()])
    with pytest.raises(RuntimeError, match="AdamW keeps no averaged weights: pass ema_decay"):
        optimizer.swap_ema()
    optimizer = AdamW([p := parameter()], ema_decay=0.5)
    optimizer.step()
    with optimizer.ema_weights():
        assert_nothing_steps(optimizer, RuntimeError, r"averaged weights are swapped in: call swap_ema\(\)")
        optimizer.ema_decay = None  # no reason not to put the weights back
    assert (p != 1).all()
    assert optimizer.step() is None


@every_optimizer
def test_stale_graphs_are_found(cls, path):
    """As with torch.optim: a weight that a graph has kept for the backward pass has changed since."""
    first, second = torch.nn.Linear(2, 2, device=DEVICE), torch.nn.Linear(2, 2, device=DEVICE)
    optimizer = cls(second.parameters())
    loss = second(first(torch.ones(1, 2, device=DEVICE))).sum()
    loss.backward(retain_graph=True)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
