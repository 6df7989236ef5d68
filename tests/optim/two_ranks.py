"""Checks that two processes run together, see test_distributed.py: python -m tests.optim.two_ranks RANK STORE."""

import contextlib
import copy
import datetime
import functools
import itertools
import sys

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as funcol
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from fastfeed.optim import LAMB, LARS, SGD, Adam, AdamW, GradScaler, Lion, plan
from tests.optim.training import CLOSE, EXACT

OPTIMIZERS = {
    "SGD": (SGD, {"lr": 0.1, "momentum": 0.9, "dampening": 0.1, "weight_decay": 0.1}),
    "Adam": (Adam, {"lr": 0.01, "amsgrad": True, "weight_decay": 0.1}),
    "AdamW": (AdamW, {"lr": 0.01}),
    "LAMB": (LAMB, {"lr": 0.01, "weight_decay": 0.1}),
    "LARS": (LARS, {"lr": 0.1, "weight_decay": 0.1, "trust_coefficient": 0.1}),
    "Lion": (Lion, {"lr": 0.01, "weight_decay": 0.1}),
}
CHECKS = {}


def check(*values):
    """Add a function to CHECKS, once for each combination of `values`."""

    def add(function):
        for row in itertools.product(*values):
            CHECKS["-".join([function.__name__, *row])] = (function, row)
        return function

    return add


@contextlib.contextmanager
def stepped_by(path):
    """What steps parameters: the kernel, which is interpreted, torch's fused step, or the reference."""
    can_run, by = plan.can_run, plan.stepped_by
    if path == "fused":
        plan.can_run = lambda device: False
    elif path == "reference":
        plan.stepped_by = lambda *row: "reference"
    try:
        yield
    finally:
        plan.can_run, plan.stepped_by = can_run, by


def mine(x):
    """This rank's half of a batch."""
    return x.chunk(2)[dist.get_rank()]


def full(t):
    return t.full_tensor() if isinstance(t, DTensor) else t


def state_of(optimizer):
    """The parameters, and their states by name, as whole tensors."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [{"param": full(p.detach()), **{k: full(v) for k, v in optimizer.state[p].items()}} for p in params]


def assert_same(ours, theirs, **tolerance):
    for index, (mine_, other) in enumerate(zip(state_of(ours), state_of(theirs), strict=True)):
        assert mine_.keys() == other.keys(), (index, mine_.keys(), other.keys())
        for name, value in mine_.items():
            torch.testing.assert_close(
                value, other[name], **tolerance, msg=lambda text, at=f"{name} of parameter {index}": f"{at}: {text}"
            )


def assert_replicated(tensors):
    """Both ranks have the same bits."""
    for t in tensors:
        other = t.clone()
        dist.broadcast(other, 0)
        assert torch.equal(t, other)


class Network(nn.Module):
    """Rows that two ranks cannot halve, a layer of one row, of which the second has nothing, and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 7), nn.Tanh())
        self.extra = nn.Linear(7, 7)
        self.last = nn.Linear(7, 1)
        self.layers[2].weight.requires_grad_(False)

    def forward(self, x, extra=True):
        x = self.layers(x)
        return self.last(self.extra(x).tanh() if extra else x)


def network(dtype=torch.float32):
    torch.manual_seed(0)
    return Network().to(dtype)


def batches(steps=3):
    return torch.randn(steps, 8, 6, generator=torch.Generator().manual_seed(1)) * 3


def backward(net, batch, **options):
    net.zero_grad()
    net(batch.to(next(net.parameters()).dtype), **options).float().square().mean().backward()


def fill_gradients(params, step):
    """The same gradients for whole and for divided parameters."""
    generator = torch.Generator().manual_seed(step + 1)
    for p in params:
        grad = torch.randn(p.shape, generator=generator).to(p.dtype)
        if p.requires_grad:
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements) if isinstance(p, DTensor) else grad


def placed_parameters():
    """Whole parameters, and the same divided in every way, with the placements of their gradients."""
    line = init_device_mesh("cpu", (2,))
    wide, deep = init_device_mesh("cpu", (1, 2)), init_device_mesh("cpu", (2, 1))
    table = [
        ((5, 3), line, [Shard(0)], None),
        ((1, 3), line, [Shard(0)], None),  # the second rank has nothing of it
        ((3, 5), line, [Shard(1)], [Shard(0)]),
        ((3, 2, 2), line, [Replicate()], None),
        ((4, 3), line, [Shard(0)], [Partial()]),
        ((7,), line, [Replicate()], [Partial()]),
        ((5,), line, [Shard(0)], [Replicate()]),
        ((3, 4), wide, [Replicate(), Shard(0)], None),
        ((5, 4), wide, [Shard(0), Shard(1)], [Partial(), Shard(1)]),
        ((5, 2), deep, [Replicate(), Shard(0)], None),
        ((5, 3), deep, [Shard(0), Replicate()], [Replicate(), Partial()]),
        ((3, 3), line, [Shard(0)], None),  # frozen
    ]
    generator = torch.Generator().manual_seed(0)
    whole = [nn.Parameter(torch.randn(shape, generator=generator)) for shape, *_ in table]
    divided = [
        nn.Parameter(distribute_tensor(p.detach().clone(), row[1], row[2])) for p, row in zip(whole, table, strict=True)
    ]
    whole.append(nn.Parameter(torch.ones(4)))  # a plain tensor, the same on both ranks
    divided.append(nn.Parameter(torch.ones(4)))
    return whole, divided, [*(row[3] or row[2] for row in table), None]


def set_gradients(step, whole, divided, placements):
    generator = torch.Generator().manual_seed(step + 1)
    for i, (p, q, places) in enumerate(zip(whole, divided, placements, strict=True)):
        grad = torch.randn(p.shape, generator=generator)
        p.grad, q.grad = None, None
        if (i + step) % 4 == 0 or i == 11:
            continue
        p.grad, q.grad = grad, grad.clone()
        if isinstance(q, DTensor):
            start = [Replicate() if place.is_partial() else place for place in places]
            value = distribute_tensor(grad, q.device_mesh, start).to_local().clone()
            for dim, place in enumerate(places):
                if place.is_partial():
                    # Unequal parts of a sum: one rank has all of it but a quarter.
                    value *= 1 if q.device_mesh.size(dim) == 1 else (0.75, 0.25)[q.device_mesh.get_local_rank(dim)]
            q.grad = DTensor.from_local(value, q.device_mesh, places, shape=p.shape, stride=p.stride())


@check(OPTIMIZERS, ["fused", "reference"])
@check(["AdamW", "LAMB", "LARS"], ["kernel"])
def placements(name, path):
    """Also the trust ratios of LAMB and LARS, and the gradients' norm, are those of whole tensors."""
    cls, options = OPTIMIZERS[name]
    whole, divided, places = placed_parameters()
    options = {**options, "max_grad_norm": 1.0, "ema_decay": 0.9}
    alone, shared = (cls([{"params": p[:6]}, {"params": p[6:], "lr": 0.02}], **options) for p in (whole, divided))
    for step in range(2 if path == "kernel" else 4):
        set_gradients(step, whole, divided, places)
        norm = torch.nn.utils.get_total_norm([p.grad for p in whole if p.grad is not None])
        with stepped_by("reference"):
            alone.step()
        with stepped_by(path):
            shared.step()
        torch.testing.assert_close(shared.grad_norm, norm, rtol=1e-6, atol=0)
        assert_replicated([shared.grad_norm])
    assert_same(shared, alone, **CLOSE)
    assert_replicated(value for state in state_of(shared) for value in state.values())


@check(["kernel", "fused"])
def gradients_not_yet_there(path):
    """What functional collectives return has no memory of its own: of a DTensor, and of a plain tensor."""
    mesh = init_device_mesh("cpu", (2,))
    params = [nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Replicate()])), nn.Parameter(torch.ones(4))]
    optimizer = SGD(params, lr=1.0)
    for p in params:
        p.grad = torch.zeros_like(p)
    with stepped_by(path):
        optimizer.step()  # with memory: the addresses are remembered
        for p in params:
            waiting = funcol.all_reduce(torch.ones(4), "sum", mesh)
            p.grad = DTensor.from_local(waiting, mesh, [Replicate()], run_check=False) if p is params[0] else waiting
        optimizer.step()
    for p in params:
        assert torch.equal(full(p.detach()), torch.full((4,), -1.0))


MIXED = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)


@check(["kernel", "fused", "mixed"])
def fsdp_trains(path):
    """As with torch's optimizer and clip_grad_norm_, and as a single process does with both ranks' batches."""
    policy = MIXED if path == "mixed" else MixedPrecisionPolicy()
    nets = [fully_shard(network(), mp_policy=policy), fully_shard(network(), mp_policy=policy), network()]
    ours = AdamW(nets[0].parameters(), lr=0.01, max_grad_norm=0.1)
    theirs = torch.optim.AdamW(nets[1].parameters(), lr=0.01)
    alone = AdamW(nets[2].parameters(), lr=0.01, max_grad_norm=0.1)
    for step, batch in enumerate(batches()):
        for net, x in zip(nets, (mine(batch), mine(batch), batch), strict=True):
            backward(net, x, extra=step != 1)
        norm = clip_grad_norm_(nets[1].parameters(), 0.1).full_tensor()
        assert norm > 0.1
        theirs.step()
        with stepped_by("kernel" if path == "kernel" else "fused"):
            ours.step()
        with stepped_by("fused"):
            alone.step()
        torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-6, atol=0)
        if path != "mixed":
            torch.testing.assert_close(alone.grad_norm, norm, rtol=1e-5, atol=0)
    assert_same(ours, theirs, **CLOSE)
    if path != "mixed":
        assert_same(ours, alone, rtol=1e-4, atol=1e-5)


@check(["kernel", "reference"])
def fsdp_in_low_precision(path):
    """Masters, averages and rounding are, to the bit, those of whole parameters."""
    options = {"lr": 0.01, "master_weights": True, "ema_decay": 0.9}
    nets = fully_shard(network(torch.bfloat16)), network(torch.bfloat16)
    shared, alone = (AdamW(net.parameters(), **options) for net in nets)
    with stepped_by(path):
        for step in range(2):
            for net, optimizer in zip(nets, (shared, alone), strict=True):
                fill_gradients(net.parameters(), step)
                optimizer.step()
    assert all(isinstance(state[name], DTensor) for state in shared.state.values() for name in ("master", "ema"))
    assert_same(shared, alone, **EXACT)


@check(["fused", "kernel"])
def ddp(path):
    """As a single process with both ranks' batches, with the same bits on both."""
    options = {"lr": 0.01, "max_grad_norm": 0.1, "ema_decay": 0.9}
    nets = DistributedDataParallel(network(), gradient_as_bucket_view=True), network()
    shared, alone = (AdamW(net.parameters(), **options) for net in nets)
    for batch in batches():
        for net, optimizer, x in zip(nets, (shared, alone), (mine(batch), batch), strict=True):
            backward(net, x)
            with stepped_by(path):
                optimizer.step()
        torch.testing.assert_close(shared.grad_norm, alone.grad_norm, rtol=1e-5, atol=0)
    assert_same(shared, alone, rtol=1e-4, atol=1e-5)
    assert_replicated(value for state in state_of(shared) for value in state.values())


LOW_PRECISION = {
    "masters": {"master_weights": True},
    "stochastic": {"stochastic_rounding": True, "state_dtype": torch.bfloat16, "seed": 3},
}


@check(LOW_PRECISION, ["kernel", "reference"])
def ddp_in_low_precision(name, path):
    net = DistributedDataParallel(network(torch.bfloat16))
    optimizer = AdamW(net.parameters(), lr=0.01, max_grad_norm=0.1, ema_decay=0.9, **LOW_PRECISION[name])
    start = [p.detach().clone() for p in net.parameters()]
    for batch in batches(2):
        backward(net, mine(batch))
        with stepped_by(path):
            optimizer.step()
    assert any((p != q).any() for p, q in zip(net.parameters(), start, strict=True))
    assert_replicated(value for state in state_of(optimizer) for value in state.values())


@check(["kernel", "reference"])
def parameters_of_each_rank(path):
    """Whole tensors that each rank has alone, one of them in fp64: clipped together; a rank may have no gradients."""
    torch.manual_seed(0)
    values = [torch.randn(3, 2), torch.randn(5), torch.randn(4, dtype=torch.float64)]
    owners = (0, 1, 1)
    whole = [nn.Parameter(value) for value in values]
    own = [nn.Parameter(v.clone()) for v, owner in zip(values, owners, strict=True) if owner == dist.get_rank()]
    options = {"lr": 0.01, "max_grad_norm": 0.1, "weight_decay": 0.1}
    shared, alone = LAMB(own, **options, process_group=dist.group.WORLD), LAMB(whole, **options)
    for step in range(3):
        fill_gradients(whole, step)
        if step == 1:  # the second rank has none
            whole[1].grad = whole[2].grad = None
        mine_ = [p for p, owner in zip(whole, owners, strict=True) if owner == dist.get_rank()]
        for p, q in zip(own, mine_, strict=True):
            p.grad = q.grad
        with stepped_by(path):
            shared.step()
        with stepped_by("reference"):
            alone.step()
        torch.testing.assert_close(shared.grad_norm, alone.grad_norm, check_dtype=False, rtol=1e-6, atol=0)
    for p, q in zip(own, mine_, strict=True):
        torch.testing.assert_close(p, q, **CLOSE)


@check(["LAMB", "LARS", "AdamW"], ["kernel", "reference"])
def no_gradient_on_one_rank(name, path):
    """The other does not wait for it."""
    mesh = init_device_mesh("cpu", (2,))
    p = nn.Parameter(distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)]))
    q = nn.Parameter(torch.ones(2))
    cls, options = OPTIMIZERS[name]
    optimizer = cls([p, q], max_grad_norm=1.0, **options)
    if dist.get_rank() == 0:
        p.grad = DTensor.from_local(torch.full((2, 3), 2.0), mesh, [Shard(0)])
    with stepped_by(path):
        optimizer.step()
    torch.testing.assert_close(optimizer.grad_norm, torch.tensor(24.0).sqrt())
    assert bool((p.to_local() != 1).all()) == (dist.get_rank() == 0)


@check()
def no_parameters_on_one_rank():
    """Of the second's plain parameters there are none: beside a DTensor, and none at all."""
    mesh, first = init_device_mesh("cpu", (2,)), dist.get_rank() == 0
    plain = [nn.Parameter(torch.ones(2))] if first else []
    shared = nn.Parameter(distribute_tensor(torch.ones(4), mesh, [Shard(0)]))
    shared.grad = torch.ones_like(shared)
    for p in plain:
        p.grad = torch.ones_like(p)
    for params, square in (([shared, *plain], 6.0), (plain, 2.0)):
        optimizer = AdamW([{"params": params}], max_grad_norm=1.0, process_group=dist.group.WORLD)
        optimizer.step()
        torch.testing.assert_close(optimizer.grad_norm, torch.tensor(square).sqrt())


def check_state_dicts(build, options):
    """Saved and loaded in a new process, everything goes on as it would have, to the bit."""
    net = build()
    optimizer = AdamW(net.parameters(), lr=0.01, **options)
    for step in range(2):
        fill_gradients(net.parameters(), step)
        optimizer.step()
    for full_state_dict in (False, True):
        how = StateDictOptions(full_state_dict=full_state_dict)
        saved = copy.deepcopy(get_optimizer_state_dict(net, optimizer, options=how))
        fresh = build()
        fresh.load_state_dict(net.state_dict())
        loaded = AdamW(fresh.parameters(), lr=0.5, **options)
        set_optimizer_state_dict(fresh, loaded, saved, options=how)
        assert loaded.param_groups[0]["lr"] == 0.01
        assert_same(loaded, optimizer, **EXACT)
        before = copy.deepcopy(state_of(optimizer))
        for other in (fresh, net):
            fill_gradients(other.parameters(), 2)
        loaded.step(), optimizer.step()
        assert_same(loaded, optimizer, **EXACT)
        assert any(not torch.equal(a["param"], b["param"]) for a, b in zip(before, state_of(optimizer), strict=True))


@check(["masters", "plain"])
def state_dicts(kind):
    low = kind == "masters"
    with stepped_by("reference"):
        check_state_dicts(
            lambda: fully_shard(network(torch.bfloat16 if low else torch.float32)),
            {"ema_decay": 0.9, "amsgrad": True, "master_weights": low},
        )


@check(OPTIMIZERS)
def states_made_by_a_step_without_gradients(name):
    """get_optimizer_state_dict makes them so: with gradients of zero and a learning rate of 0."""
    cls, options = OPTIMIZERS[name]
    net = fully_shard(network(torch.bfloat16))
    start = [p.full_tensor() for p in net.parameters()]
    optimizer = cls(net.parameters(), **options, master_weights=True, ema_decay=0.9, max_grad_norm=1.0)
    with stepped_by("reference"):
        get_optimizer_state_dict(net, optimizer)
    assert optimizer.param_groups[0]["lr"] == options["lr"]
    states = state_of(optimizer)
    for p, before, state in zip(net.parameters(), start, states, strict=True):
        torch.testing.assert_close(state.pop("param"), before, **EXACT)
        if not p.requires_grad:
            assert not state
            continue
        assert state.pop("step") == 1  # as in torch.optim
        for tensor in (state.pop("master"), state.pop("ema")):
            torch.testing.assert_close(tensor, before.float(), **EXACT)


@check()
def averaged_weights():
    net = fully_shard(network(torch.bfloat16))
    optimizer = AdamW(net.parameters(), lr=0.1, ema_decay=0.5)
    with stepped_by("reference"):
        for batch in batches(2):
            backward(net, mine(batch))
            optimizer.step()
    before = copy.deepcopy(state_of(optimizer))
    with optimizer.ema_weights():
        net(batch.bfloat16())
        for now, state in zip(state_of(optimizer), before, strict=True):
            if "ema" in state:
                assert torch.equal(now["param"], state["ema"].bfloat16())
                assert not torch.equal(now["param"], state["param"])
    for now, state in zip(state_of(optimizer), before, strict=True):
        assert torch.equal(now["param"], state["param"])


SCALERS = {"torch": torch.amp.GradScaler, "fastfeed": GradScaler}


@check(SCALERS, ["kernel", "fused"])
def loss_scaling(name, path):
    """An infinity that one rank alone has: no rank steps, and both lower the scale."""
    nets = fully_shard(network()), fully_shard(network())
    scaled, plain = (AdamW(net.parameters(), lr=0.01, max_grad_norm=0.1) for net in nets)
    scaler = SCALERS[name]("cpu", init_scale=4.0)
    for step, batch in enumerate(batches(2)):
        for net, factor in zip(nets, (scaler.scale(torch.tensor(1.0)), 1.0), strict=True):
            net.zero_grad()
            (net(mine(batch)).square().mean() * factor).backward()
        if step == 0 and dist.get_rank() == 0:
            next(nets[0].parameters()).grad.to_local()[0, 0] = torch.inf
        with stepped_by(path):
            scaler.step(scaled)
        scaler.update()
        if step == 0:
            assert not scaled.state or all(state["step"] == 0 for state in scaled.state.values())
            for p, q in zip(*(net.parameters() for net in nets), strict=True):
                assert torch.equal(p.to_local(), q.to_local())
            assert scaler.get_scale() == 2.0
    with stepped_by("fused"):
        plain.step()
    assert_same(scaled, plain, **CLOSE)


@check()
def zero_redundancy():
    """torch's ZeroRedundancyOptimizer around ours is ours alone."""
    nets = DistributedDataParallel(network()), network()
    options = {"lr": 0.01, "weight_decay": 0.1, "max_grad_norm": 0.1}
    divided = functools.partial(AdamW, process_group=dist.group.WORLD)  # its own `process_group` means another thing
    shared = ZeroRedundancyOptimizer(nets[0].parameters(), optimizer_class=divided, **options)
    alone = AdamW(nets[1].parameters(), **options)
    with stepped_by("fused"):
        for step, batch in enumerate(batches(4)):
            for net, optimizer, x in zip(nets, (shared, alone), (mine(batch), batch), strict=True):
                backward(net, x)
                optimizer.step()
            torch.testing.assert_close(shared.optim.grad_norm, alone.grad_norm, rtol=1e-5, atol=0)
            if step == 1:
                shared.consolidate_state_dict(0)
                saved = [shared.state_dict() if dist.get_rank() == 0 else None]
                dist.broadcast_object_list(saved)
                shared = ZeroRedundancyOptimizer(nets[0].parameters(), optimizer_class=divided, **options)
                shared.load_state_dict(saved[0])
    for p, q in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5)


def main(rank, store, *names):
    """Run all checks, or those named, up to the first that fails."""
    # Where one rank alone fails, the other waits for it.
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=int(rank), world_size=2, timeout=patience)
    torch.set_num_threads(1)
    for name in names or CHECKS:
        function, row = CHECKS[name]
        try:
            function(*row)
        except Exception as error:
            raise AssertionError(f"rank {rank}: {name} failed") from error
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
