"""Steps on a GPU: how many launches, never a synchronisation, in CUDA graphs, on two devices, beyond 2**31 elements."""

import math
from functools import partial

import pytest
import torch

from fastfeed.optim import LAMB, LARS, SGD, AdamW, Lion
from tests.optim.training import CLOSE, parameters, set_gradients, train

pytestmark = pytest.mark.gpu

CUDA = torch.device("cuda")
EVERYTHING = {"max_grad_norm": 1.0, "ema_decay": 0.9}
# An optimizer, and the kernels of one step.
OPTIMIZERS = {
    "sgd": (partial(SGD, momentum=0.9), 1),
    "adamw": (AdamW, 1),
    "adamw amsgrad": (partial(AdamW, amsgrad=True), 1),
    "adamw masters": (partial(AdamW, master_weights=True), 1),
    "adamw stochastic": (partial(AdamW, stochastic_rounding=True), 1),
    "adamw everything": (partial(AdamW, **EVERYTHING), 2),
    "lion": (Lion, 1),
    "lamb": (LAMB, 2),
    "lamb everything": (partial(LAMB, **EVERYTHING), 3),
    "lars": (partial(LARS, momentum=0.9), 2),
}


@pytest.fixture(params=OPTIMIZERS)
def name(request):
    return request.param


def tensors():
    """Parameters that the kernel takes, in two dtypes and awkward sizes and memory orders."""
    return [*parameters()[:-1], *parameters(torch.bfloat16)[:-1]]


def scale_on(optimizer, scale=2.0, found_inf=0.0):
    """Do what torch.amp.GradScaler does before it calls `step`; return the flag."""
    optimizer.grad_scale = torch.tensor(scale, device=CUDA)
    optimizer.found_inf = torch.tensor(found_inf, device=CUDA)
    return optimizer.found_inf


def on_device(run):
    """The names of the kernels and copies of a run."""
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        run()
        torch.cuda.synchronize()
    return [
        event.name
        for event in profile.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]


def values(optimizer):
    """All that a step may change, copied."""
    params = [p for group in optimizer.param_groups for p in group["params"]]
    return [t.detach().clone() for p in params for t in (p, *optimizer.state[p].values())]


def test_launches(name):
    """With the scale and the flag of a GradScaler, which add none."""
    build, launches = OPTIMIZERS[name]
    optimizer = build(tensors())
    scale_on(optimizer)
    train(optimizer, range(1))
    optimizer.step()
    work = on_device(optimizer.step)
    assert len(work) == launches, work


def test_a_step_without_anything_else_is_one_launch():
    optimizer = AdamW(tensors())
    train(optimizer, range(1))
    optimizer.step()
    work = on_device(optimizer.step)
    assert len(work) == 1, work


def test_one_copy_brings_all_that_has_changed(name):
    build, launches = OPTIMIZERS[name]
    optimizer = build(tensors())
    scale_on(optimizer)
    params = train(optimizer, range(1))
    optimizer.step()
    for group in optimizer.param_groups:
        group["lr"] /= 2
    for p in params:
        p.grad = None if p.grad is None else p.grad.clone()
    work = on_device(optimizer.step)
    assert len(work) == launches + 1, work
    assert sum("Memcpy HtoD" in event for event in work) == 1, work


def test_reading_the_norm_later_is_no_part_of_the_step():
    optimizer = AdamW(tensors(), **EVERYTHING)
    scale_on(optimizer)
    train(optimizer, range(2))
    optimizer.grad_norm  # noqa: B018 - loads what computes it
    assert len(on_device(lambda: optimizer.grad_norm)) == 1


def test_never_synchronises(name):
    build, _ = OPTIMIZERS[name]
    params = tensors()
    optimizer = build(params)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0)
    scaler.scale(torch.zeros((), device=CUDA))
    for _ in range(2):  # compiles the kernels, and those of the scaler
        set_gradients(params, 0)
        scaler.step(optimizer)
        scaler.update()
    gradients = [None if p.grad is None else p.grad.clone() for p in params]
    torch.cuda.set_sync_debug_mode("error")
    try:
        scaler.step(optimizer)
        scaler.update()
        for p, g in zip(params, gradients, strict=True):
            p.grad = g  # moved
        scaler.step(optimizer)
        scaler.update()
        norm = optimizer.grad_norm
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (norm is None) == (optimizer.max_grad_norm is None)


# --- CUDA graphs ----------------------------------------------------------------------------------------------


class Training:
    """Forward, backward and step; the loss is of elementwise operations, so that its gradients are exact."""

    def __init__(self, build):
        self.params = tensors()
        self.targets = [torch.zeros_like(p) for p in self.params]
        self.lr = torch.tensor(1e-2, device=CUDA)
        self.optimizer = build(self.params, lr=self.lr, capturable=True)
        self.found_inf = scale_on(self.optimizer)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                self.optimizer.zero_grad()
                self.step()
        torch.cuda.current_stream().wait_stream(stream)

    def step(self):
        sum((p - target).square().sum().float() for p, target in zip(self.params, self.targets, strict=True)).backward()
        self.optimizer.step()

    def captured(self):
        """Return a graph of a step, with gradients that are allocated in it."""
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step()
        return graph

    def prepare(self, number):
        """Change what a step reads: the data, and the learning rate."""
        generator = torch.Generator(CUDA).manual_seed(number)
        for target in self.targets:
            target.copy_(torch.randn(target.shape, generator=generator, device=CUDA))
        self.lr.fill_(1e-2 / number)

    def steps(self, number):
        """How many steps each parameter counts."""
        assert {self.optimizer.state[p]["step"].item() for p in self.params} == {number}


def assert_equal(ours, theirs):
    for a, b in zip(values(ours.optimizer), values(theirs.optimizer), strict=True):
        assert torch.equal(a, b)


def test_replays_are_steps(name):
    build, _ = OPTIMIZERS[name]
    captured, eager = Training(build), Training(build)
    assert_equal(captured, eager)
    graph = captured.captured()
    assert_equal(captured, eager)  # capturing does nothing
    for number in range(1, 5):
        for training in (captured, eager):
            training.prepare(number)
        graph.replay()
        eager.optimizer.zero_grad()
        eager.step()
        assert_equal(captured, eager)
    captured.steps(6)


def test_replays_are_skipped_when_told_of_an_overflow(name):
    build, _ = OPTIMIZERS[name]
    training = Training(build)
    graph = training.captured()
    training.prepare(1)
    training.found_inf.fill_(1)
    before = values(training.optimizer)
    graph.replay()
    assert all(map(torch.equal, values(training.optimizer), before))
    training.found_inf.zero_()
    graph.replay()
    training.steps(3)


def test_two_graphs_and_eager_steps_in_turn():
    build = partial(AdamW, **EVERYTHING)
    captured, eager = Training(build), Training(build)
    graphs = [captured.captured() for _ in range(2)]  # the second right after the first, with gradients elsewhere
    for number, graph in enumerate([*graphs, None, *graphs, None], 1):
        for training in (captured, eager):
            training.prepare(number)
        if graph is not None:
            graph.replay()
        else:
            captured.optimizer.zero_grad()
            captured.step()
        eager.optimizer.zero_grad()
        eager.step()
        assert_equal(captured, eager)


def test_a_replay_is_the_same_launches_and_one_copy():
    training = Training(partial(AdamW, **EVERYTHING))
    gradients = [torch.randn_like(p) for p in training.params]
    for p, g in zip(training.params, gradients, strict=True):
        p.grad = g
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        training.optimizer.step()
    work = on_device(graph.replay)
    assert len(work) == 3, work


# --- Devices and sizes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("overflow", [False, True])
@pytest.mark.parametrize("optimizer", [AdamW, LAMB, partial(SGD, momentum=0.9)], ids=["adamw", "lamb", "sgd"])
def test_parameters_on_cpu_and_gpu(optimizer, overflow):
    def build(device):
        params = [
            *parameters(device=device),
            *parameters(torch.bfloat16, device),
            *parameters(device="cpu"),
            *parameters(torch.bfloat16, "cpu"),
        ]
        return optimizer(params, lr=0.01, master_weights=True, ema_decay=0.9)

    mixed, alone = build(CUDA), build("cpu")
    for one in (mixed, alone):
        train(one, range(2))
    before = values(mixed)
    flag = torch.tensor(float(overflow), device=CUDA)
    mixed.grad_scale, mixed.found_inf = torch.tensor(2.0, device=CUDA), flag
    alone.grad_scale, alone.found_inf = mixed.grad_scale.cpu(), flag.cpu()
    for one in (mixed, alone):
        train(one, range(2, 4))
    after = values(mixed)
    assert all(map(torch.equal, after, before)) == overflow
    for a, b in zip(after, values(alone), strict=True):
        tolerance = {"rtol": 2**-7, "atol": 1e-6} if a.dtype == torch.bfloat16 else CLOSE
        torch.testing.assert_close(a.cpu(), b, **tolerance)


def test_more_than_two_to_the_31_elements():
    numel = 2**31 + 8  # 16 GiB, with its gradient and averages
    if torch.cuda.mem_get_info()[0] < 20 << 30:
        pytest.skip("needs 20 GiB of free GPU memory")
    large = torch.nn.Parameter(torch.ones(numel, device=CUDA, dtype=torch.bfloat16))
    large.grad = torch.ones_like(large)
    last = slice(-8, None)
    large.grad[last] = torch.arange(-4, 4, device=CUDA)
    small = torch.nn.Parameter(large.detach()[last].clone())
    small.grad = large.grad[last].clone()
    # A norm, but nothing to clip.
    optimizer, theirs = AdamW([large], lr=0.1, max_grad_norm=math.inf), AdamW([small], lr=0.1)
    for _ in range(2):
        optimizer.step()
        theirs.step()
    assert torch.equal(large[last], small)
    assert (large[:8] == large[0]).all()
    assert large[0] != 1
    torch.testing.assert_close(optimizer.grad_norm.item(), math.sqrt(2**31 + 44), rtol=1e-6, atol=0)
    assert optimizer.state[large]["step"] == 2
