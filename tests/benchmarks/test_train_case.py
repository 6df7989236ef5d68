"""Training, end to end: who pays for which batch, what the check sees, and the timeline of a step."""

import multiprocessing
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options
from benchmarks.cases.train import FASTFEED_OPS, TORCH_OPS, Feed, TrainCase, Trainer, training_flops
from benchmarks.harness import measure_pass
from benchmarks.machine import Ceilings
from benchmarks.rows import make_rows
from benchmarks.steps import END, Steps, record_steps
from benchmarks.timing import Sample
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from fastfeed.demo.network import SmallResNet
from tests.torchvision_ops import torchvision_or_skip

PHASES = ["data wait", "forward", "backward", "optimizer"]
CPU = Options(torch.device("cpu"), quick=True, threads=1)
PARAMETERS = {"shape": "small-resnet-32x3x48x48", "dtype": torch.float32}


@pytest.fixture(autouse=True)
def _settings():
    torch.manual_seed(0)  # PyTorch's loader takes its order and its crops from this
    threads = torch.get_num_threads()
    torch.set_num_threads(CPU.threads)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def case():
    case = TrainCase(CPU, **PARAMETERS)
    yield case
    case.close()


def assert_sees(case, right, wrong):
    """Check that `right` passes, and that none of `wrong` does, for the reason that goes with it."""
    case.providers = {"right": right, **{name: provider for name, (provider, _) in wrong.items()}}
    case.check("right")
    for name, (_, reason) in wrong.items():
        with pytest.raises(AssertionError, match=reason):
            case.check(name)


# --- The loss and the optimizer.


def test_training_is_the_loop_that_people_write():
    batches = [(torch.randn(8, 3), torch.randint(5, (8,))) for _ in range(3)]
    ours, theirs = torch.nn.Linear(3, 5), torch.nn.Linear(3, 5)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.SGD(theirs.parameters(), lr=0.1)
    expected = []
    for images, target in batches:
        optimizer.zero_grad()
        expected.append(F.cross_entropy(theirs(images), target, label_smoothing=0.1))
        expected[-1].backward()
        optimizer.step()

    trainer = Trainer(ours, F.cross_entropy, torch.optim.SGD(ours.parameters(), lr=0.1), batches, torch.float32)
    phases = []
    losses = trainer.train(batches, phases.append)
    assert losses.tolist() == [loss.item() for loss in expected]
    assert torch.equal(ours.weight, theirs.weight)
    assert phases == [*PHASES * 3, "data wait", "end"]
    assert trainer().shape == (3,)


@pytest.mark.parametrize(
    ("device", "dtype"),
    [
        ("cpu", torch.float32),
        ("cpu", torch.bfloat16),
        pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu),
    ],
)
def test_check_of_steps(device, dtype):
    case = TrainCase(Options(torch.device(device), quick=True, threads=1), "small-resnet-8x3x48x48", dtype)
    cross_entropy, adamw = TORCH_OPS

    def smoothed(smoothing):
        return lambda logits, target, label_smoothing: F.cross_entropy(logits, target, label_smoothing=smoothing)

    def provider(cross_entropy, optimizer):
        return lambda case: case.trainer(case.synthetic_batches, cross_entropy, optimizer)

    wrong = {
        "unsmoothed": (provider(smoothed(0.0), adamw), "not close"),
        "other smoothing": (provider(smoothed(0.12), adamw), "not close"),
        "no step": (provider(cross_entropy, partial(adamw, lr=0)), "not close"),
        "other rate": (provider(cross_entropy, partial(adamw, lr=9e-4)), "not close"),
        "plain": (provider(cross_entropy, partial(torch.optim.SGD, lr=1e-3)), "not close"),
    }
    try:
        assert_sees(case, provider(*FASTFEED_OPS), wrong)
    finally:
        case.close()


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        ("resnet50-4x3x64x64", 25_557_032 - 992 * 2049),  # of 8 classes, not 1000
        # With 2 x 2 places, not 14 x 14, too.
        ("vit-s16-2x3x32x32", 22_050_664 - 992 * 385 - 192 * 384),
    ],
)
def test_networks(shape, parameters):
    torchvision_or_skip("torchvision")
    pytest.importorskip("timm", reason="needs the package timm, which is not installed")
    case = TrainCase(CPU, shape, torch.float32)
    try:
        assert sum(p.numel() for p in case.network.parameters()) == parameters
        case.check("synthetic, fastfeed ops")
    finally:
        case.close()


def test_a_network_of_a_package_that_is_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm.models", None)
    found = measure_pass(TrainCase, {"shape": "resnet50-2x3x32x32", "dtype": torch.float32}, CPU)
    assert {verdict.status for verdict in found.verdicts.values()} == {"absent"}


def test_check_sees_a_last_step_that_is_wrong(case):
    class Stops(torch.optim.AdamW):
        steps = 0

        def step(self):
            self.steps += 1
            if self.steps < 4:
                super().step()

    right, stops = (partial(case.trainer, case.synthetic_batches, F.cross_entropy, o) for o in (TORCH_OPS[1], Stops))
    assert_sees(case, lambda case: right(), {"stops": (lambda case: stops(), "the median parameter went")})


# --- The loaders.


def test_check_of_batches(case):
    batches = list(case.fastfeed_batches)
    std, mean = (torch.tensor(values)[:, None, None] for values in (IMAGENET_STD, IMAGENET_MEAN))

    def provider(change):
        return lambda case: case.trainer([change(*batch) for batch in batches], *TORCH_OPS)

    def means(images):
        return images.mean((2, 3), keepdim=True)

    def by_themselves(images):
        return (images - means(images)) / images.std((2, 3), keepdim=True)

    wrong = {
        "constant": (provider(lambda images, target: (torch.zeros_like(images), target)), "not close"),
        "without texture": (provider(lambda images, target: (0 * images + means(images), target)), "not close"),
        "normalised one by one": (provider(lambda images, target: (by_themselves(images), target)), "not close"),
        "not normalised": (provider(lambda images, target: (images * std + mean, target)), "not close"),
        "not finite": (provider(lambda images, target: (images / 0, target)), "losses of a run"),
        "too few images": (provider(lambda images, target: (images[1:], target[1:])), "a batch is"),
        "channels first": (provider(lambda images, target: (images.contiguous(), target)), "channels-last"),
        "no class": (provider(lambda images, target: (images, target + 1)), "targets are"),
        "too few targets": (provider(lambda images, target: (images, target[1:])), "targets are"),
        "too few batches": (lambda case: case.trainer(batches[1:], *TORCH_OPS), "a run has 3 batches; expected 4"),
    }
    assert_sees(case, provider(lambda *batch: batch), wrong)


class Loader:
    """Epochs of batches that are numbered as they are made."""

    def __init__(self, length):
        self.length, self.epochs, self.made = length, 0, 0

    def __len__(self):
        return self.length

    def __iter__(self):
        self.epochs += 1
        return self.make()

    def make(self):
        for _ in range(self.length):
            yield torch.zeros(1, 3, 2, 2), torch.tensor([self.made])
            self.made += 1


@pytest.mark.parametrize(("length", "ahead", "left"), [(5, 2, 2), (5, 5, 5), (3, 4, 3)])
def test_a_run_pays_for_as_many_batches_as_it_trains_on(length, ahead, left):
    loader = Loader(length)
    feed = Feed(loader, ahead, CPU.device)
    seen = []
    for runs in range(1, 4):
        seen += [target.item() for _, target in feed]
        assert len(seen) == runs * length
        assert loader.made == (runs + 1) * length
    assert seen == list(range(length - left, length - left + len(seen)))


def test_a_run_starts_the_loader_before_it_trains_on_what_is_left():
    loader = Loader(5)
    feed = Feed(loader, 2, CPU.device)
    next(iter(feed))
    assert (loader.epochs, loader.made) == (2, 5)


def test_a_run_that_was_left_early_takes_nothing_from_the_next():
    feed = Feed(Loader(5), 2, CPU.device)
    next(iter(feed))
    assert [target.item() for _, target in feed] == [3, 4, 5, 6, 7]


# --- The timeline.


class Clock:
    """Of the host, which stands still until it works or waits, and of a GPU that does what is in its queue."""

    def __init__(self):
        self.now = self.idle_from = 0.0

    def __call__(self):
        return self.now

    def queue(self, seconds):
        self.idle_from = max(self.idle_from, self.now) + seconds

    def synchronize(self):
        self.now = max(self.now, self.idle_from)

    def Event(self, enable_timing):
        assert enable_timing
        return Event(self)

    # Memory: what is held, and the most since it was looked at.

    held = peak = 0

    def hold(self, size):
        self.held += size
        self.peak = max(self.peak, self.held)

    def reset_peak_memory_stats(self):
        self.peak = self.held

    def memory_allocated(self):
        return self.held

    def max_memory_allocated(self):
        return self.peak


class Event:
    def __init__(self, clock):
        self.clock = clock

    def record(self):
        self.time = max(self.clock.now, self.clock.idle_from)

    def elapsed_time(self, end):
        assert max(self.time, end.time) <= self.clock.now, "an event that has not passed yet"
        return 1e3 * (end.time - self.time)


def train(clock, waits, host, device, last_wait=0):
    """Return the training of a step per wait, in which the host spends `host` on each phase, the GPU `device`."""

    def steps(begin):
        for wait in waits:
            begin(PHASES[0])
            clock.now += wait
            for phase, seconds in zip(PHASES[1:], device, strict=True):
                begin(phase)
                clock.queue(seconds)
                clock.now += host
        begin(PHASES[0])
        clock.now += last_wait
        begin(END)

    return steps


def spans(lane, *times):
    """Return the spans of consecutive phases with these boundaries, in s, as they are in a row, in µs."""
    return [
        {"lane": lane, "name": name, "start_us": 1e6 * start, "end_us": 1e6 * end}
        for name, (start, end) in zip(PHASES, pairwise(times), strict=True)
    ]


def test_step_nearest_to_the_mean_on_the_host():
    clock = Clock()
    clock.now = 7.0
    steps = record_steps(train(clock, [64, 4, 8, 2, 16], 1, (0, 0, 0)), clock=clock)
    # Steps of 67, 7, 11, 5 and 19 s: 21.8 s on average.
    assert steps == Steps(spans("host", 0, 16, 17, 18, 19), data_wait=94 / (94 + 5 * 3))


def test_batches_that_were_ready_are_paid_for_at_the_end():
    clock = Clock()
    steps = record_steps(train(clock, [0, 0, 0, 4, 5], 1, (0, 0, 0), last_wait=12), clock=clock)
    assert steps.data_wait == 21 / (21 + 5 * 3)
    assert steps.timeline == spans("host", 0, 4, 5, 6, 7)  # 7.2 s on average


def test_gpu_that_waits_for_data():
    clock = Clock()
    clock.queue(0.5)  # of something before
    steps = record_steps(train(clock, [8, 8, 8], 0.25, (1, 2, 0.5)), clock, clock)
    # A step is 8.75 s on the host. The GPU ends its 3.5 s of work 2.75 s into the next one, and idles until 8 s.
    assert steps.timeline == spans("host", 0, 8, 8.25, 8.5, 8.75) + spans("device", 2.75, 8, 9, 11, 11.5)
    assert steps.data_wait == 24 / 26.25
    # In the first step it idles for 8 s.
    assert steps.device_wait == pytest.approx((8 + 5.25 + 5.25) / (8 + 2 * 5.25 + 3 * 3.5))


def test_gpu_that_is_behind_the_host():
    clock = Clock()
    steps = record_steps(train(clock, [0.25, 0.25, 0.25], 0.25, (1, 2, 1)), clock, clock)
    # The first step is longer on the GPU, for it waits for data then, and the others are alike: it is the second. On
    # the host all are alike.
    assert steps.timeline == spans("host", 0, 0.25, 0.5, 0.75, 1) + spans("device", 3.25, 3.25, 4.25, 6.25, 7.25)
    assert steps.device_wait == 0.25 / 12.25


def test_memory_at_its_peak():
    clock = Clock()
    clock.hold(9)
    clock.hold(-4)  # 5 are left from before

    def begin_and_hold(begin):
        clock.hold(3)
        train(clock, [1], 1, (1, 1, 1))(begin)
        clock.hold(-3)

    assert record_steps(begin_and_hold, clock, clock).peak_bytes == 3


# --- All of it.


def test_rows():
    cases = []

    class Tiny(TrainCase):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            cases.append(self)

    def timer(run):  # runs nothing: the check and the timeline do
        return Sample(seconds=1.0)

    before = set(multiprocessing.active_children())
    limits = Ceilings(1.0, 1.0, "float32", None)
    rows = make_rows(Tiny, PARAMETERS, CPU, limits, [measure_pass(Tiny, PARAMETERS, CPU, timer=timer)])
    assert {row["provider"]: row["status"] for row in rows} == dict.fromkeys(TrainCase.providers, "ok")
    for row in rows:
        assert row["images"] == 4 * 32
        assert row["tflop_per_s"] > 0
        assert row["max_error"] < 1e-2
        assert [(span["lane"], span["name"]) for span in row["timeline"]] == [("host", name) for name in PHASES]
        assert row["timeline"][0]["start_us"] == 0
        assert 0 < row["data_wait"] < 1
        assert row["device_wait"] is row["peak_bytes"] is None
    (case,) = cases
    assert not Path(case.source.root).exists()
    assert set(multiprocessing.active_children()) == before


def test_close_ends_workers_that_runs_refer_to():
    before = set(multiprocessing.active_children())
    case = TrainCase(CPU, **PARAMETERS)
    runs = [TrainCase.providers[name](case) for name in ("torch", "fastfeed ops")]
    assert len(set(multiprocessing.active_children()) - before) == 1  # they share the loader
    case.close()
    assert set(multiprocessing.active_children()) == before
    del runs


@pytest.mark.gpu
@pytest.mark.dali
def test_on_a_gpu():
    case = TrainCase(Options(torch.device("cuda"), quick=True, threads=2), "small-resnet-32x3x64x64", torch.bfloat16)
    try:
        for provider in case.providers:
            case.check(provider)
            recorded = case.record(provider)
            step = recorded.timeline
            assert 0 <= recorded.device_wait < 1
            assert recorded.peak_bytes > 0
            assert [(s["lane"], s["name"]) for s in step] == [(lane, n) for lane in ("host", "device") for n in PHASES]
            host, device = step[:4], step[4:]
            for lane in (host, device):
                assert all(a["end_us"] == b["start_us"] <= b["end_us"] for a, b in pairwise(lane))
            # The GPU begins nothing before the host has queued it.
            assert all(d["start_us"] > h["start_us"] - 1000 for h, d in zip(host, device, strict=True))
    finally:
        case.close()


def test_training_flops():
    network = SmallResNet(8)
    flops = training_flops(network, (2, 3, 64, 64))
    forward = []

    def count(layer, inputs, output):
        per_output = layer.weight[0].numel()  # channels times kernel, or features
        forward.append(2 * per_output * output.numel())

    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(count)
    network(torch.zeros(2, 3, 64, 64))
    # The backward has two products as large as the forward's, but nobody asks for the gradient of the images.
    assert flops == 3 * sum(forward) - forward[0]
