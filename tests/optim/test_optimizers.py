"""The updates of all optimizers: against torch.optim's and timm's in fp64, and the kernel against the reference."""

import copy
import math

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.optim.peers import OPTIMIZERS, Peers
from tests.optim.training import ALL_SIZES, CLOSE, DEVICE, EXACT, assert_same, parameters, set_gradients, train

# The parameter groups of one optimizer.
GROUPS = {
    SGD: [
        {"weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1, "lr": torch.tensor(0.02)},
        {"momentum": 0.5, "nesterov": True},
    ],
    Adam: [
        {"weight_decay": 0.1, "lr": torch.tensor(0.02)},
        {"amsgrad": True, "betas": (0.4, 0.9), "eps": 0.1},
        {"maximize": True, "betas": (0.0, 0.0), "eps": 1e-3},
    ],
    AdamW: [
        {"weight_decay": 0.5, "lr": 0.1},
        {"amsgrad": True, "betas": (0.6, 0.3), "maximize": True, "weight_decay": 0.1},
        {"betas": (0.4, 0.9999), "eps": 0.1, "weight_decay": 0, "lr": torch.tensor(0.02)},
    ],
    LAMB: [
        {"weight_decay": 0.1, "betas": (0.4, 0.9), "lr": torch.tensor(0.02)},
        {"weight_decay": 0, "always_adapt": True, "maximize": True, "eps": 0.1},
        {"weight_decay": 0},
    ],
    LARS: [
        {"weight_decay": 0.1, "trust_coefficient": 0.1, "dampening": 0.3, "lr": torch.tensor(0.5)},
        {"always_adapt": True, "eps": 0.1, "trust_coefficient": 1.0, "nesterov": True, "maximize": True},
        {"momentum": 0},
    ],
    Lion: [
        {"weight_decay": 0.5, "lr": torch.tensor(0.02)},
        {"betas": (0.4, 0.7), "maximize": True},
        {"betas": (0.0, 0.0)},
    ],
}


def grouped(cls, tensors, **options):
    """An optimizer of three groups, over which `tensors` are dealt out; the last of them is frozen."""
    tensors[-1].requires_grad_(False)
    return cls([{"params": tensors[i::3], **group} for i, group in enumerate(GROUPS[cls])], lr=0.01, **options)


def set_gradients_of(optimizer, step):
    """Missing for a quarter at each step, for one until the fourth, and for what is frozen."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    set_gradients(params, step)
    for i, p in enumerate(params):
        if not p.requires_grad or (i == 2 and step < 3):
            p.grad = None


def worst(a, b):
    return (a.double() - b.double()).abs().max().item() if a.numel() else 0.0


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_matches_torch_and_timm(path, cls):
    """After six steps in fp32 the error is at most twice that of torch's or timm's in fp32, and half an ulp."""
    ours = grouped(cls, parameters(sizes=[0, 3, 4099, 128]))
    exact, single = Peers(ours), Peers(ours, torch.float32)
    steps = dict.fromkeys(ours.param_groups[0]["params"], 0)
    for step in range(6):
        set_gradients_of(ours, step)
        for optimizer in (ours, exact, single):
            optimizer.step()
        steps = {p: steps.get(p, 0) + (p.grad is not None) for p, _ in exact.rows}
    for (label, own, truth), (_, _, usual) in zip(exact.pairs(), single.pairs(), strict=True):
        half_ulp = 2**-24 * worst(truth, torch.zeros(()))
        assert worst(own, truth) <= 2 * worst(usual, truth) + half_ulp, label
    assert {p: ours.state[p]["step"].item() if p in ours.state else 0 for p in steps} == steps


@pytest.mark.parametrize("cls", [AdamW, LARS])
def test_sizes_around_vectors_blocks_and_chunks(path, cls):
    ours = cls(parameters(sizes=ALL_SIZES), lr=0.1, weight_decay=0.1)
    exact = Peers(ours)
    for step in range(2):
        set_gradients([p for p, _ in exact.rows], step)
        ours.step(), exact.step()
    for _, own, truth in exact.pairs():
        torch.testing.assert_close(own.double(), truth, **CLOSE)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_fp64(path, cls):
    """No constant on the way has been through fp32."""
    ours = grouped(cls, parameters(torch.float64, sizes=[0, 3]))
    ours.param_groups[0]["lr"] = 0.02
    exact = Peers(ours)
    for step in range(4):
        set_gradients_of(ours, step)
        ours.step(), exact.step()
    for label, own, truth in exact.pairs():
        assert worst(own, truth) <= 1e-14 * max(1, worst(truth, torch.zeros(()))), label


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"master_weights": True, "ema_decay": 0.6, "max_grad_norm": 0.5},
        {"state_dtype": torch.bfloat16, "ema_decay": 0.3, "max_grad_norm": 0.5},
    ],
    ids=["plain", "masters", "states"],
)
def test_kernel_and_reference_agree(cls, options, exact_bf16, by_reference):
    """In every dtype, with scaled gradients in others: to a few ulp of what is stored."""

    def run():
        tensors = [
            t
            for dtype in (torch.float32, torch.float16, torch.bfloat16)
            for t in parameters(dtype, sizes=[130])[:4:3]  # a vector, and channels-last
        ]
        optimizer = grouped(cls, tensors, **options)
        optimizer.grad_scale = torch.tensor(8.0, device=DEVICE)
        generator = torch.Generator().manual_seed(0)
        for step in range(2):
            for i, p in enumerate(tensors):
                p.grad_dtype = None  # any
                dtype = [p.dtype, torch.float32, torch.bfloat16][(i + step) % 3]
                p.grad = torch.empty_like(p, dtype=dtype).copy_(8 * torch.randn(p.shape, generator=generator))
            optimizer.step()
        return optimizer, tensors

    ours, params = run()
    with by_reference():
        theirs, expected = run()
    for p, q in zip(params, expected, strict=True):
        pairs = [(p, q), *zip(ours.state[p].values(), theirs.state[q].values(), strict=True)]
        # What is stored in bf16 differs by an ulp where the fp32 before was close to a middle; so does what follows.
        coarsest = max(torch.finfo(a.dtype).eps for a, _ in pairs) if "state_dtype" in options else 0
        for a, b in pairs:
            assert worst(a, b) <= 4 * max(torch.finfo(a.dtype).eps, coarsest) * b.abs().max().item()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_overflow_leaves_everything_as_it_was(path, cls, exact_bf16):
    """At the very first step and in the middle: the training then goes on as if there had been none."""
    options = {"master_weights": True, "ema_decay": 0.9, "max_grad_norm": 1.0}

    def build():
        return grouped(cls, [*parameters(sizes=[3])[::3], *parameters(torch.bfloat16, sizes=[130])[:1]], **options)

    straight, ours = build(), build()
    rows = [(p, q) for (p, _), (q, _) in zip(Peers(straight).rows, Peers(ours).rows, strict=True)]
    for step in range(3):
        set_gradients_of(straight, step)
        for p, q in rows:
            q.grad = None if p.grad is None else torch.full_like(q, math.inf)
        before = {q: (q.detach().clone(), copy.deepcopy(ours.state.get(q))) for _, q in rows}
        ours.found_inf = torch.tensor(float(step + 1), device=DEVICE)  # several devices add up
        ours.step()
        for q, (value, state) in before.items():
            assert torch.equal(q, value)
            assert state is None or all(torch.equal(ours.state[q][name], kept) for name, kept in state.items())
        ours.found_inf.zero_()
        for p, q in rows:
            q.grad = p.grad
        straight.step(), ours.step()
    assert_same(ours, straight, **EXACT)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_neighbours_are_not_written(path, cls):
    base = torch.full((16, 9), 7.0, device=DEVICE)
    mine = torch.zeros_like(base, dtype=torch.bool)
    views, own = ([t[:8, ::2], t[8:12, 1:4], t[14]] for t in (base, mine))
    for view in own:
        view.fill_(True)
    train(cls([torch.nn.Parameter(view) for view in views], lr=0.1), range(1, 2))
    assert torch.equal(base != 7, mine)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_no_weight_decay_is_not_weight_decay_of_zero(path, cls):
    p = torch.nn.Parameter(torch.tensor([-math.inf, 1.0, -0.0], device=DEVICE))
    p.grad = torch.zeros_like(p)
    cls([p], weight_decay=0).step()
    assert str(p.tolist()) == "[-inf, 1.0, -0.0]"


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_gradients_that_are_not_finite(path, cls):
    """What they touch becomes what it does in torch and timm; Lion takes the sign of NaN for 0."""
    p = torch.nn.Parameter(torch.ones(5, device=DEVICE))
    ours = cls([p], lr=0.1, weight_decay=0)
    exact = Peers(ours, torch.float32)
    p.grad = torch.tensor([math.nan, math.inf, -math.inf, 0.0, 1.0], device=DEVICE)
    ours.step(), exact.step()
    for _, own, truth in exact.pairs():
        torch.testing.assert_close(own, truth, equal_nan=True, **CLOSE)


@pytest.mark.parametrize("cls", [LAMB, LARS])
def test_zero_norms(path, cls):
    """The trust ratio is 1 where the parameter is zero, and where the gradient is."""
    zero, still = torch.nn.Parameter(torch.zeros(4, device=DEVICE)), torch.nn.Parameter(torch.ones(4, device=DEVICE))
    ours = cls([zero, still], lr=0.1, weight_decay=0, always_adapt=True)
    exact = Peers(ours)
    zero.grad, still.grad = torch.ones_like(zero), torch.zeros_like(still)
    ours.step(), exact.step()
    for _, own, truth in exact.pairs():
        torch.testing.assert_close(own.double(), truth, rtol=1e-6, atol=1e-7)
    assert (zero < -0.09).all()


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_nothing_to_do(path, cls):
    cls(parameters()).step()  # no gradients
    p = torch.nn.Parameter(torch.empty(0, 3, device=DEVICE))
    p.grad = torch.empty_like(p)
    optimizer = cls([p], max_grad_norm=1.0)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1
    assert optimizer.grad_norm == 0


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
def test_launches(calls, cls, max_grad_norm):
    """One for all tensors, one more for the norms of LAMB and LARS, and one for clipping."""
    train(grouped(cls, parameters()[:-1], max_grad_norm=max_grad_norm), range(1))
    norm = [] if max_grad_norm is None else ["norm"]
    assert calls == ["__init__", *norm, *(["trust"] if cls in (LAMB, LARS) else []), "step"]


@pytest.mark.parametrize("cls", [Adam, LAMB, LARS])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_default_dtype_does_not_matter(path, cls, dtype):
    def run(default):
        optimizer = grouped(cls, parameters(sizes=[130])[:4], max_grad_norm=0.5, ema_decay=0.5)
        for step in range(2):
            set_gradients_of(optimizer, step)
            torch.set_default_dtype(default)
            try:
                optimizer.step()
            finally:
                torch.set_default_dtype(torch.float32)
        return optimizer

    assert_same(run(dtype), run(torch.float32), **EXACT)
