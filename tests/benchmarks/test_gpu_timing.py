"""What is timed on a GPU, against what can be known of it beforehand."""

from typing import ClassVar

import pytest
import torch

from benchmarks import gpu_timing
from benchmarks.case import Case, Options
from benchmarks.harness import measure_pass
from benchmarks.machine import ceilings
from benchmarks.rows import make_rows
from benchmarks.timing import Band

pytestmark = pytest.mark.gpu
MIB = 1 << 20


@pytest.fixture
def device():
    # A block that other tests left counts as a whole, though it is up to 1 MiB larger than what is asked for.
    torch.cuda.empty_cache()
    return torch.device("cuda", torch.cuda.current_device())


def median(timer, run, rounds=20):
    return Band.of([timer(run).seconds for _ in range(rounds)]).p50


def test_copies_fill_the_l2_cache(device):
    l2 = torch.cuda.get_device_properties(device).L2_cache_size
    assert gpu_timing.copies_to_fill_l2(10 * l2, device) == 1
    assert gpu_timing.copies_to_fill_l2(l2, device) == 3
    assert gpu_timing.copies_to_fill_l2(l2 // 4, device) == 12
    assert gpu_timing.copies_to_fill_l2(None, device) == gpu_timing.MAX_COPIES


def test_graphs_and_events_agree_on_a_copy(device):
    source, target = (torch.empty(256 * MIB, dtype=torch.uint8, device=device) for _ in range(2))

    def copy():
        return target.copy_(source)

    graph = gpu_timing.capture([copy] * 4, device)
    by_graph, by_events = gpu_timing.graph_timer(device, 4), gpu_timing.event_timer(device, 1e-4)
    seconds = [
        Band.of([timer(run).seconds for _ in range(20)]).p50 for timer, run in ((by_graph, graph), (by_events, copy))
    ]
    assert seconds[0] == pytest.approx(seconds[1], rel=0.1)


def test_a_graph_computes_what_its_runs_do(device):
    inputs = [torch.full((10,), float(i), device=device) for i in range(3)]
    replay = gpu_timing.capture([lambda x=x: x * 2 for x in inputs], device)
    for x in inputs:
        x.add_(1)
    assert [out[0].item() for out in replay()] == [2, 4, 6]


def test_small_inputs_do_not_stay_in_the_cache(device):
    # The copies are of one buffer each, and all of them together are twice the cache: a byte costs what it costs
    # in memory. From the cache it would be several times cheaper.
    limit = ceilings(device).copy_gb_per_s
    size = 8 * MIB
    count = gpu_timing.copies_to_fill_l2(2 * size, device)
    pairs = [tuple(torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2)) for _ in range(count)]
    graph = gpu_timing.capture([lambda a=a, b=b: a.copy_(b) for a, b in pairs], device)
    timer = gpu_timing.graph_timer(device, count)
    rate = 2 * size / median(timer, graph) / 1e9
    assert rate < 1.25 * limit


def test_the_queue_is_ahead_of_the_gpu(device):
    x = torch.zeros(1, device=device)

    def many():  # on the host far longer than on the device
        for _ in range(200):
            x.add_(1)

    host = gpu_timing.host_seconds(many, device)
    timer = gpu_timing.event_timer(device, host)
    assert median(timer, many) < host


def test_launches_and_peak_memory(device):
    x = torch.zeros(1 << 20, device=device)
    assert gpu_timing.launches(lambda: x.add_(1).mul_(2), device) == 2
    assert gpu_timing.launches(lambda: torch.zeros_like(x).copy_(x), device) == 2  # a memset or a fill, and a copy
    assert gpu_timing.peak_bytes(lambda: (x + 1) + 1, device) == 2 * 4 * MIB
    assert gpu_timing.peak_bytes(lambda: x.add_(1), device) == 0


class Addition(Case):
    name = "addition"
    direction = "forward"
    baseline = "eager"
    synchronise = False

    @classmethod
    def parameters(cls, options):
        return [{"shape": (MIB,), "dtype": torch.float32}]

    def __init__(self, options, shape, dtype):
        self.x = torch.ones(shape, dtype=dtype, device=options.device)
        self.bytes_per_run = 2 * self.x.nbytes

    def _two_steps(self):
        return lambda: self.x.add(1).add(1)

    def _one_step(self):
        if self.synchronise:
            return lambda: self.x.add(self.x[0].item() + 1)
        return lambda: self.x.add(2)

    providers: ClassVar = {"eager": _two_steps, "fastfeed": _one_step}


@pytest.mark.parametrize("synchronise", [False, True])
def test_rows(device, synchronise):
    uncapturable = frozenset({"fastfeed"} if synchronise else ())
    case = type("Addition", (Addition,), {"synchronise": synchronise, "uncapturable": uncapturable})
    options = Options(device, quick=True)
    parameters = case.parameters(options)[0]
    rows = make_rows(case, parameters, options, ceilings(device), [measure_pass(case, parameters, options)])
    assert [row["status"] for row in rows] == ["ok", "ok"]
    # What no graph can hold is timed by events, and so is what it is compared with.
    assert {row["timing"] for row in rows} == {"events" if synchronise else "graph"}
    assert rows[0]["launches"] == 2
    assert rows[0]["peak_bytes"] == 2 * 4 * MIB
    assert all(row["host_us"] > 0 and row["cores_used"] is None for row in rows)
    if not synchronise:
        assert rows[1]["speedup_p50"] > 1.2
