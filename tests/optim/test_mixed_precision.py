"""Masters, states in bf16, stochastic rounding, gradients in other dtypes, and all dtypes in one optimizer."""

import math

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, Lion
from tests.optim.peers import OPTIMIZERS, Peers
from tests.optim.training import CLOSE, DEVICE, EXACT, assert_same, parameters, set_gradients

HALF = [torch.float16, torch.bfloat16]
ALL = [torch.float32, torch.float64, *HALF]
# Every state, L2 or decoupled weight decay, and an eps that fp16 can hold.
OPTIONS = {
    SGD: {"momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1},
    Adam: {"amsgrad": True, "weight_decay": 0.1, "eps": 1e-3},
    AdamW: {"amsgrad": True, "weight_decay": 0.1, "eps": 1e-3},
    LAMB: {"weight_decay": 0.1, "eps": 1e-3},
    LARS: {"weight_decay": 0.1, "trust_coefficient": 0.1},
    Lion: {"weight_decay": 0.1},
}


def some(dtype):
    """A vector that ends within a block, an empty one, a scalar, one in channels-last, and one with holes."""
    tensors = parameters(dtype, sizes=[0, 131])
    return [tensors[i] for i in (1, 0, 2, 4, 7)]


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_masters_are_fp32_training(path, cls, exact_bf16):
    """Masters and states are those of fp32 training, and parameters the masters, rounded."""
    halves = [p for dtype in (*HALF, torch.float32) for p in parameters(dtype, sizes=[136])[:4]]
    singles = [torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p in halves]
    ours = cls(halves, lr=0.01, master_weights=True, **OPTIONS[cls])
    theirs = cls(singles, lr=0.01, **OPTIONS[cls])
    for step in range(2):
        set_gradients(halves, step)
        for p, q in zip(halves, singles, strict=True):
            q.grad = None if p.grad is None else p.grad.float()
        ours.step(), theirs.step()
    # The kernel adds up norms in the order of its blocks, which are of other sizes.
    tolerance = CLOSE if path == "kernel" and cls in (LAMB, LARS) else EXACT
    for p, q in zip(halves, singles, strict=True):
        state = ours.state[p]
        assert ("master" in state) == (p.dtype in HALF)
        torch.testing.assert_close(state.get("master", p), q, **tolerance)
        torch.testing.assert_close(p, state.get("master", p).to(p.dtype), **EXACT)
        for name, value in theirs.state[q].items():
            torch.testing.assert_close(state[name], value, **tolerance)


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW, LARS, Lion])
def test_rounded_once(path, cls, exact_bf16):
    """All dtypes in one optimizer: computed in fp32 or fp64, and rounded to what is stored."""
    params = [p for dtype in ALL for p in some(dtype)]
    ours = cls([{"params": params[::2]}, {"params": params[1::2], "lr": 0.02}], lr=0.01, **OPTIONS[cls])
    exact = Peers(ours, rounded=True)
    same, total = 0, 0
    for step in range(2):
        set_gradients([p for p, _ in exact.rows], step)
        ours.step(), exact.step()
    for label, own, truth in exact.pairs():
        eps = torch.finfo(own.dtype).eps
        torch.testing.assert_close(
            own.double(), truth, rtol=2 * eps, atol=2 * eps, msg=lambda text, label=label: f"{label}: {text}"
        )
        if own.dtype in HALF:
            same, total = same + (own == truth).sum(), total + own.numel()
    assert same > 0.99 * total


@pytest.mark.parametrize("dtype", HALF)
def test_lamb_reads_its_moments_as_they_are_stored(path, dtype, exact_bf16):
    p = torch.nn.Parameter(torch.linspace(0.1, 1, 1001, device=DEVICE).to(dtype))
    p.grad = torch.linspace(1, -2, 1001, device=DEVICE).to(dtype)
    before = p.detach().double()
    optimizer = LAMB([p], lr=0.5, eps=0.01, weight_decay=0.1)
    optimizer.step()
    m, v = (optimizer.state[p][name].double() for name in ("exp_avg", "exp_avg_sq"))
    update = m / 0.1 / ((v / 0.001).sqrt() + 0.01) + 0.1 * before
    expected = before - 0.5 * before.norm() / update.norm() * update
    assert (p == expected.to(dtype)).float().mean() > 0.99


@pytest.mark.parametrize("cls", [SGD, Adam, AdamW, LARS, Lion])
@pytest.mark.parametrize("path", ["kernel", "reference"], indirect=True)  # torch's step has no such states
def test_states_in_bf16(path, cls, exact_bf16):
    """As if each step rounded what it has left behind; the update sees what is not rounded yet."""

    def build(params, **more):
        return cls(params, lr=0.01, **OPTIONS[cls], **more)

    options = {"state_dtype": torch.bfloat16, "master_weights": True}
    ours = build([*parameters(sizes=[136]), *parameters(torch.float16, sizes=[136])[:1]], **options)
    theirs = build([torch.nn.Parameter(p.detach().to(torch.float32, copy=True)) for p, _ in Peers(ours).rows])
    pairs = list(zip(*(o.param_groups[0]["params"] for o in (ours, theirs)), strict=True))
    for step in range(3):
        set_gradients([p for p, _ in pairs], step)
        for p, q in pairs:
            q.grad = None if p.grad is None else torch.empty_like(q).copy_(p.grad)
        ours.step(), theirs.step()
        for state in theirs.state.values():
            for name in cls.state_names:
                state[name].copy_(state[name].bfloat16())
    tolerance = CLOSE if cls is LARS else EXACT
    for p, q in pairs[:-2] + pairs[-1:]:  # one has no holes any more, and is not stepped by the kernel
        state = ours.state[p]
        torch.testing.assert_close(state.get("master", p), q, **tolerance)
        for name in cls.state_names:
            assert state[name].dtype == torch.bfloat16
            torch.testing.assert_close(state[name].float(), theirs.state[q][name], **tolerance)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_gradients_in_another_dtype(path, cls, exact_bf16):
    """What fits both dtypes gives the same step in either."""

    def run(dtype):
        params = [p for own in ALL for p in parameters(own, sizes=[131])[:4:3]]
        optimizer = cls(params, lr=0.01, **OPTIONS[cls])
        set_gradients(params, 1)
        for p in params:
            if p.grad is not None:
                grad = (p.grad.float() * 8).round().clamp(-31, 31) / 8  # 5 bits
                p.grad_dtype = None  # any
                p.grad = grad.to(dtype)
        optimizer.step()
        return params

    expected = run(torch.float32)
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        for p, q in zip(run(dtype), expected, strict=True):
            # torch's step takes half precision with gradients of the same alone, the kernel none in fp64.
            eps = 0 if path == "reference" or (path == "kernel" and dtype in HALF) else torch.finfo(p.dtype).eps
            torch.testing.assert_close(p, q, rtol=eps, atol=eps)


# Stochastic rounding. Between 1 and 2 two bf16 lie this far apart:
ULP = 2**-7


def stepped(cls, values, grads, steps=1, **options):
    """A bf16 parameter after steps by the same gradients, and its optimizer; what is computed is exact."""
    p = torch.nn.Parameter(values.to(DEVICE, torch.bfloat16))
    p.grad_dtype = None  # any
    p.grad = torch.empty_like(p, dtype=torch.float32).copy_(grads)
    optimizer = cls([p], **{"lr": 1.0, "stochastic_rounding": True, **options})
    for _ in range(steps):
        optimizer.step()
    return p.detach(), optimizer


def assert_share(ups, probability):
    """Whether as many went up as by chance would, to four standard errors."""
    error = math.sqrt(probability * (1 - probability) / ups.numel())
    assert abs(ups.double().mean().item() - probability) < 4 * error


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("share", [1 / 512, 0.3, 0.5, 0.99])
def test_stochastic_rounding_is_unbiased(path, sign, share):
    p, _ = stepped(SGD, torch.full((8192,), sign), torch.tensor(-sign * share * ULP))
    ups = p == sign * (1 + ULP)
    assert ((p == sign) | ups).all()
    assert_share(ups, share)
    # A momentum buffer too.
    _, optimizer = stepped(SGD, torch.full((8192,), sign), torch.tensor(-sign * (1 + share * ULP)), momentum=0.5)
    buffer = optimizer.state_dict()["state"][0]["momentum_buffer"]
    ups = buffer == -sign * (1 + ULP)
    assert ((buffer == -sign) | ups).all()
    assert_share(ups, share)


def test_stochastic_rounding_of_each_state_is_unbiased_and_independent(path):
    grad = 1 + 0.5 * ULP
    p, optimizer = stepped(Adam, torch.ones(8192), torch.tensor(grad), lr=0.0, betas=(0.5, 0.5), amsgrad=True)
    state = optimizer.state_dict()["state"][0]
    ups = [state["exp_avg"] > 0.5, state["exp_avg_sq"] > 0.5 * (1 + ULP)]
    assert (p == 1).all()
    assert_share(ups[0], 0.5)
    assert_share(ups[1], (grad**2 - 1) / ULP - 1)
    assert torch.equal(state["exp_avg_sq"], state["max_exp_avg_sq"])
    p, optimizer = stepped(SGD, torch.full((8192,), 4.0), torch.tensor(1 + 0.5 * ULP), momentum=0.5)
    buffer = optimizer.state_dict()["state"][0]["momentum_buffer"]
    correlation = torch.corrcoef(torch.stack([(p > 2.99).double(), (buffer > 1).double()]))[0, 1]
    assert abs(correlation) < 4 / math.sqrt(p.numel())


@pytest.mark.parametrize(("cls", "seed"), [(SGD, 2**31), (Adam, 0), (LAMB, 2**63 - 1)])
def test_kernel_and_reference_draw_the_same_bits(cls, seed, by_reference):
    def run():
        tensors = [torch.ones(()), torch.ones(5), torch.ones(4099), torch.ones(3, 5, 2, 2)]
        tensors.append(tensors[-1].to(memory_format=torch.channels_last))
        params = [torch.nn.Parameter(t.to(DEVICE, torch.bfloat16)) for t in tensors]
        moments = {"lr": 0.0, "betas": (0.5, 0.5), "weight_decay": 0}
        exact = {SGD: {"lr": 1.0, "momentum": 0.5}, Adam: {"amsgrad": True, **moments}, LAMB: moments}
        optimizer = cls(params, stochastic_rounding=True, seed=seed, **exact[cls])
        generator = torch.Generator().manual_seed(0)
        for _ in range(2):
            for p in params:
                p.grad_dtype = None  # any
                grad = torch.randint(1, 2**11, p.shape, generator=generator) / 2**14
                p.grad = torch.empty_like(p, dtype=torch.float32).copy_(grad)
            optimizer.step()
        return optimizer

    ours = run()
    with by_reference():
        assert_same(ours, run(), **EXACT)


def test_small_updates_survive(path, exact_bf16):
    """Eight steps, each of a tenth of an ulp; to nearest, each is lost."""
    start, grad = torch.ones(4096), torch.tensor(-ULP / 10)
    p, _ = stepped(SGD, start, grad, steps=8, stochastic_rounding=False)
    assert (p == 1).all()
    p, _ = stepped(SGD, start, grad, steps=8)
    moved = (p.double() - 1) / ULP
    assert abs(moved.mean() - 0.8) < 4 * moved.std() / math.sqrt(p.numel())


def test_replicas_agree_and_nothing_else_does(path):
    def run(step=0, number=0, **options):
        params = [torch.nn.Parameter(torch.ones(512, device=DEVICE, dtype=torch.bfloat16)) for _ in range(number + 1)]
        optimizer = SGD(params, lr=1.0, stochastic_rounding=True, **options)
        params[-1].grad = torch.full_like(params[-1], -ULP / 2)
        optimizer.state[params[-1]] = {"step": torch.tensor(float(step), device=DEVICE)}
        optimizer.step()
        return params[-1].detach()

    first = run()
    assert torch.equal(run(), first)
    for other in (run(seed=1), run(seed=2**32), run(step=1), run(number=1)):
        assert 0.4 < (other == first).float().mean() < 0.6


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
def test_every_bf16_stays_as_it_is(path, exact_bf16):
    """Zeros of both signs, denormals, the largest, infinities and NaNs; and NaNs whose bits would carry into zeros."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    values = bits.view(torch.bfloat16)
    p, _ = stepped(SGD, values, torch.zeros(()))
    number = ~values.isnan()
    assert torch.equal(p.view(torch.int16).cpu()[number], bits[number])
    assert p.isnan()[~number].all()
    p, _ = stepped(SGD, torch.ones(64), torch.tensor(2**31 - 1, dtype=torch.int32).view(torch.float32))
    assert p.isnan().all()
