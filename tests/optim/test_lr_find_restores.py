"""What a range test puts back: everything, whether or not it ends well."""

import copy
import json
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import fastfeed
from fastfeed.optim import AdamW, lr_find, warmup_cosine
from tests.images import write_folder


@pytest.fixture(autouse=True)
def _no_interpreter(monkeypatch):
    """Step as a user does: interpreted kernels have tests of their own."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


class Model(nn.Module):
    """With all that training changes: batch norm, dropout, buffers that are not saved or are replaced."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten())
        self.frozen = nn.BatchNorm1d(16)
        self.head = nn.Linear(16, 2)
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.register_buffer("replaced", torch.zeros(3))
        self.register_buffer("none", None)
        self.unused = nn.Parameter(torch.ones(1))

    def forward(self, x):
        self.seen += 1
        self.replaced = self.replaced + 1
        return self.head(self.frozen(self.body(x)))


class Centres(nn.Module):
    """A loss with a parameter and a buffer."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, output, target):
        loss = nn.functional.cross_entropy(self.scale * output, target)
        self.mean += loss.detach()
        return loss


def batches():
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 3, 4, 4, generator=generator), torch.randint(2, (8,), generator=generator)) for _ in range(3)
    ]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def sgd_of_tensor_lr(parameters):
    parameters = list(parameters)
    groups = [{"params": parameters[:3], "lr": torch.tensor(0.01)}, {"params": parameters[3:]}]
    return torch.optim.SGD(groups, lr=torch.tensor(0.1), momentum=0.9)


def ours(parameters):
    return AdamW(parameters, lr=0.01)


def torch_adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01, amsgrad=True)


OPTIMIZERS = [sgd, sgd_of_tensor_lr, ours, torch_adam]


def train(model, optimizer, loss_fn, scheduler=None, steps=3):
    for images, target in batches()[:steps]:
        optimizer.zero_grad()
        loss_fn(model(images), target).backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def generators():
    return random.getstate()[1], np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()


def everything(model, optimizer, loss_fn):
    """All that is to be as before, by value and, of tensors that others may hold, by identity."""
    parameters = [*model.parameters(), *loss_fn.parameters()]
    buffers = [buffer for module in (model, loss_fn) for buffer in module.buffers()]
    return copy.deepcopy(
        {
            "parameters": parameters,
            "buffers": buffers,
            "gradients": [p.grad for p in parameters],
            "modes": [module.training for module in model.modules()],
            "optimizer": optimizer.state_dict(),
            "generators": generators(),
        }
    ), [id(tensor) for tensor in (*parameters, *buffers, *(p.grad for p in parameters))] + [
        id(group["lr"]) for group in optimizer.param_groups if isinstance(group["lr"], torch.Tensor)
    ]


def assert_same(before, after):
    torch.testing.assert_close(after[0], before[0], rtol=0, atol=0)
    assert after[1] == before[1]


@pytest.mark.parametrize("begun", [False, True], ids=["fresh", "in training"])
@pytest.mark.parametrize("make", OPTIMIZERS)
def test_everything_is_as_before(make, begun):
    model, loss_fn = Model(), Centres()
    optimizer = make([*model.parameters(), *loss_fn.parameters()])
    if begun:
        train(model, optimizer, loss_fn)
    model.frozen.eval()
    before = everything(model, optimizer, loss_fn)
    changed = []

    def look(module, inputs, output):
        changed.append(everything(model, optimizer, loss_fn)[0])

    hook = model.register_forward_hook(look)
    result = lr_find(model, optimizer, batches(), loss_fn, start=1e-3, end=0.1, steps=10, early_stop_threshold=None)
    hook.remove()
    assert len(result.losses) == 10
    assert_same(before, everything(model, optimizer, loss_fn))

    # There was something to put back.
    for name in ("parameters", "buffers", "optimizer"):
        with pytest.raises(AssertionError):
            torch.testing.assert_close(changed[-1][name], before[0][name], rtol=0, atol=0)
    assert changed[0]["modes"] == before[0]["modes"]  # frozen layers stay so
    assert changed[-1]["generators"][2] != before[0]["generators"][2]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_training_goes_on_as_without_it(make):
    results = []
    for interrupt in (False, True):
        model, loss_fn = Model(), Centres()
        optimizer = make([*model.parameters(), *loss_fn.parameters()])
        scheduler = warmup_cosine(optimizer, 2, 8)
        train(model, optimizer, loss_fn, scheduler)
        if interrupt:
            lr_find(model, optimizer, batches(), loss_fn, steps=10)
        train(model, optimizer, loss_fn, scheduler)
        results.append((model.state_dict(), optimizer.state_dict(), loss_fn.state_dict(), scheduler.get_last_lr()))
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["loader", "forward", "loss", "step"])
def test_an_error_leaves_everything_as_before(where, error):
    model, loss_fn = Model(), Centres()
    optimizer = ours([*model.parameters(), *loss_fn.parameters()])
    train(model, optimizer, loss_fn)
    model.eval()
    before = everything(model, optimizer, loss_fn)
    calls = []

    def fail(at, *_):
        calls.append(at)
        if at == where and calls.count(at) == 5:
            random.random()
            np.random.rand()
            raise error("stop")

    def loader():
        for batch in batches() * 4:
            fail("loader")
            yield batch

    hooks = [
        model.register_forward_hook(lambda *_: fail("forward")),
        loss_fn.register_forward_hook(lambda *_: fail("loss")),
        optimizer.register_step_post_hook(lambda *_: fail("step")),
    ]
    with pytest.raises(error, match="stop"):
        lr_find(model, optimizer, loader(), loss_fn, start=1e-3, end=0.1, steps=12, early_stop_threshold=None)
    for hook in hooks:
        hook.remove()
    assert calls.count("step") >= 4
    assert_same(before, everything(model, optimizer, loss_fn))


@pytest.mark.parametrize("training", [False, True])
def test_a_model_in_evaluation_is_trained_and_one_in_training_left_alone(training):
    model = Model().train(training)
    model.frozen.eval()
    seen = set()
    model.register_forward_hook(lambda *_: seen.add((model.training, model.frozen.training)))
    lr_find(model, sgd(model.parameters()), batches(), nn.functional.cross_entropy, steps=10)
    assert seen == {(True, not training)}
    assert (model.training, model.frozen.training) == (training, False)


def test_gradients_from_before_have_no_part_in_it():
    results = []
    for stale in (False, True):
        model = Model()
        if stale:
            for p in model.parameters():
                p.grad = torch.full_like(p, 1e3)
        optimizer = sgd(model.head.parameters())  # which clears none but these
        results.append(lr_find(model, optimizer, batches(), nn.functional.cross_entropy, steps=10))
        assert all((p.grad == 1e3).all() if stale else p.grad is None for p in model.parameters())
    assert results[0] == results[1]


def test_under_no_grad():
    model = Model()
    with torch.no_grad():
        result = lr_find(model, sgd(model.parameters()), batches(), nn.functional.cross_entropy, steps=10)
    assert len(result.losses) > 1


@pytest.mark.dali
def test_a_loader_begins_where_it_was(tmp_path):
    write_folder(tmp_path, {"a": 4, "b": 5}, sizes=((8, 8),))

    def make():
        transform = fastfeed.transforms.eval(8)
        return fastfeed.DataLoader(tmp_path, 2, shuffle=True, transform=transform, device="cpu", num_workers=1, seed=0)

    def targets(loader, epochs=2):
        return [target.tolist() for _ in range(epochs) for _, target in loader]

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    loader, expected = make(), targets(make())
    lr_find(model, sgd(model.parameters()), loader, nn.functional.cross_entropy, steps=12, early_stop_threshold=None)
    assert targets(loader) == expected


@pytest.mark.gpu
def test_gpu():
    model, loss_fn = Model().cuda(), Centres().cuda()
    optimizer = sgd([*model.parameters(), *loss_fn.parameters()])
    for images, target in batches():
        loss_fn(model(images.cuda()), target.cuda()).backward()
        optimizer.step()
    before, state = everything(model, optimizer, loss_fn), torch.cuda.get_rng_state()
    results = [
        lr_find(model, optimizer, [(x.pin_memory(), y) for x, y in batches()], loss_fn, steps=20, start=1e-4, **options)
        for options in ({}, {"autocast": torch.float16}, {"autocast": torch.bfloat16})
    ]
    assert_same(before, everything(model, optimizer, loss_fn))
    assert torch.equal(torch.cuda.get_rng_state(), state)
    assert all(len(result.losses) > 1 for result in results)


RANK = """
import json, sys, torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from fastfeed.optim import lr_find

rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)

def ddp(model):
    return torch.nn.Sequential(torch.nn.parallel.DistributedDataParallel(model))  # in a wrapper, as torch.compile's

def fsdp(model):
    return fully_shard(model, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (2,)))

def loss_fn(output, target):
    global steps
    steps += 1
    # Rank 1 alone diverges, at its step 15.
    loss = (output - target).square().mean() + (1e3 if rank == 1 and steps >= 15 else rank)
    own.append(float(loss.detach()))
    return loss

found = {}
for share in (ddp, fsdp):
    torch.manual_seed(0)
    layers = torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.ReLU(), torch.nn.Linear(8, 1)
    model = share(torch.nn.Sequential(*layers))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    before = [t.clone() for t in (*model.parameters(), *model.buffers())]
    generator = torch.Generator().manual_seed(rank)
    batches = [(torch.randn(8, 4, generator=generator), torch.randn(8, 1, generator=generator)) for _ in range(3)]
    steps, own = 0, []
    result = lr_find(model, optimizer, batches, loss_fn, start=1e-4, end=1e-2, steps=20)
    after = (*model.parameters(), *model.buffers())
    same = all(bool((a == b).all()) for a, b in zip(before, after, strict=True)) and not optimizer.state
    found[share.__name__] = {"losses": result.losses, "smoothed": result.smoothed, "own": own, "same": same}
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_ranks_stop_together(tmp_path):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", RANK]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=120) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    first, second = (json.loads(output.decode()) for output, _ in outputs)
    for kind in ("ddp", "fsdp"):
        a, b = first[kind], second[kind]
        assert a["same"]
        assert b["same"]
        assert len(a["own"]) == len(b["own"]) == 15
        assert a["losses"] == b["losses"] == pytest.approx(np.mean([a["own"], b["own"]], axis=0))
        assert a["smoothed"] == b["smoothed"]
