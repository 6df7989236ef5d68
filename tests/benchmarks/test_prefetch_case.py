"""The Prefetcher's cases: that their checks see what is wrong, and that the work is done, on every batch."""

import pytest
import torch

from benchmarks.case import Options
from benchmarks.cases import prefetch
from benchmarks.cases.prefetch import DISTINCT, PrefetchCase, PrefetchOverlapCase, one_thread
from benchmarks.harness import measure_pass
from benchmarks.peers import Absent
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = Options(torch.device("cpu"), quick=True, threads=2)
GPU = Options(torch.device("cuda"), quick=True)
CASES = [PrefetchCase, PrefetchOverlapCase]
SHAPE = (4, 16, 17, 3)
DTYPES = [torch.float32, torch.bfloat16]


def name(value):
    """The id of a case; others have one by themselves."""
    return getattr(value, "name", None)


@pytest.fixture(autouse=True)
def _little_work(monkeypatch):
    monkeypatch.setattr(prefetch, "WORK", {"cpu": (16, 2), "cuda": (16, 2)})


def check(case, provider):
    try:
        return case.check(provider)
    except Absent as absent:
        assert provider in ("timm", "copy")
        assert provider == "timm" or case.device.type == "cpu"
        pytest.skip(str(absent))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "provider"), [(case, provider) for case in CASES for provider in case.providers], ids=name
)
def test_providers_pass(case, provider, dtype):
    error = check(case(CPU, SHAPE, dtype), provider)
    assert error == 0 if provider in ("fastfeed", "step alone") else 0 <= error < 0.02


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("case", "provider"), [(case, provider) for case in CASES for provider in case.providers], ids=name
)
def test_providers_pass_on_a_gpu(case, provider, dtype):
    instance = case(GPU, SHAPE, dtype)
    assert all(tensor.is_pinned() for batch in instance.loader for tensor in batch)
    error = check(instance, provider)
    assert error == 0 if provider in ("fastfeed", "step alone", "copy") else 0 <= error < 0.02


def test_a_copy_on_the_cpu_is_absent():
    with pytest.raises(Absent, match="a bound for GPUs"):
        PrefetchCase(CPU, SHAPE, torch.float32).check("copy")


# Each takes the right batches, a list of (images, target), and makes something else of them.
WRONG = {
    "one too few": lambda batches: batches[:-1],
    "one too many": lambda batches: [*batches, batches[0]],
    "other order": lambda batches: [batches[1], batches[0], *batches[2:]],
    "the last twice": lambda batches: [*batches[:-2], batches[-1], batches[-1]],
    "last not finished": lambda batches: [*batches[:-1], (torch.zeros_like(batches[-1][0]), batches[-1][1])],
    "others' targets": lambda batches: [(images, target.roll(1)) for images, target in batches],
    "not centred": lambda batches: [(images + 0.1, target) for images, target in batches],
    "bgr": lambda batches: [(images.flip(1), target) for images, target in batches],
    "other layout": lambda batches: [(images.contiguous(), target) for images, target in batches],
    "other dtype": lambda batches: [(images.double(), target) for images, target in batches],
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("provider", ["eager", "timm", "fastfeed"])
@pytest.mark.parametrize("wrong", WRONG)
def test_check_sees(wrong, provider, dtype):
    case = PrefetchCase(CPU, SHAPE, dtype)
    right = list(case.epochs["fastfeed"](case)())
    case.epochs = {provider: lambda case: lambda: iter(right)}
    assert case.check(provider) == 0
    case.epochs = {provider: lambda case: lambda: iter(WRONG[wrong](right))}
    with pytest.raises(AssertionError):
        case.check(provider)


def test_ours_is_checked_bit_for_bit():
    case = PrefetchCase(CPU, SHAPE, torch.float32)
    right = list(case.epochs["fastfeed"](case)())
    off = [(images.nextafter(torch.full_like(images, torch.inf)), target) for images, target in right]
    case.epochs = dict.fromkeys(("fastfeed", "eager"), lambda case: lambda: iter(off))
    assert 0 < case.check("eager") < 1e-6
    with pytest.raises(AssertionError):
        case.check("fastfeed")


def test_rounding_of_every_step_is_allowed_to_timm_alone():
    case = PrefetchCase(CPU, (4, 32, 32, 3), torch.bfloat16)
    mean, std = (
        torch.tensor([255 * value for value in values], dtype=torch.bfloat16)[:, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD)
    )

    def batches():
        for images, target in case.loader:
            yield images.permute(0, 3, 1, 2).to(torch.bfloat16).sub(mean).div(std), target

    case.epochs = dict.fromkeys(("timm", "eager"), lambda case: batches)
    assert 0.005 < case.check("timm") < 0.02
    with pytest.raises(AssertionError):
        case.check("eager")


def test_batches_are_told_apart():
    """Else the check could not see their order."""
    loader = PrefetchCase(CPU, SHAPE, torch.float32).loader
    assert len(loader) == 8
    first = [images.flatten().tolist() for images, _ in loader[:DISTINCT]]
    assert len(set(map(tuple, first))) == DISTINCT
    assert [images.flatten().tolist() for images, _ in loader] == first * 2


@pytest.mark.parametrize("provider", ["eager", "fastfeed", "step alone"])
def test_a_run_works_on_every_batch(provider, monkeypatch):
    case = PrefetchOverlapCase(CPU, SHAPE, torch.float32)
    seen = []
    monkeypatch.setattr(case, "work", seen.append)
    run = case.providers[provider](case)
    for _ in range(2):
        seen.clear()
        run()
        assert sum(map(len, seen)) == case.images_per_run == 32
        for images, expected in zip(seen, case._finished * 2, strict=True):
            torch.testing.assert_close(images, expected)


def test_work():
    case = PrefetchOverlapCase(CPU, SHAPE, torch.float32)
    ((images, _), *_) = case.epochs["fastfeed"](case)()
    values = images.double().permute(0, 2, 3, 1).reshape(-1)[:256].reshape(16, 16)
    expected = values @ case.factor.double() @ case.factor.double()
    torch.testing.assert_close(case.work(images).double(), expected, rtol=1e-4, atol=1e-4)
    assert PrefetchCase(CPU, SHAPE, torch.float32).work(images) is None


def test_work_is_done_in_one_thread():
    counts = []

    class Factor:
        def __len__(self):
            return 16

        def __rmatmul__(self, x):
            counts.append(torch.get_num_threads())
            return x

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        case = PrefetchOverlapCase(CPU, SHAPE, torch.float32)
        ((images, _), *_) = case.epochs["fastfeed"](case)()
        case.factor = Factor()
        case.work(images)
        assert counts == [1, 1]
        assert torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError), one_thread():
            raise ZeroDivisionError
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("case", CASES, ids=name)
def test_harness_times_it(case):
    done = measure_pass(case, {"shape": SHAPE, "dtype": torch.float32}, CPU)
    statuses = {provider: verdict.status for provider, verdict in done.verdicts.items()}
    assert statuses.pop("timm") in ("ok", "absent")
    assert statuses.pop("copy", "absent") == "absent"
    assert set(statuses.values()) == {"ok"}
    assert done.timing == "wall"
    assert done.work == {"bytes": None, "flops": None, "images": 32}
    assert {"eager", "fastfeed"} <= done.samples.keys()


@pytest.mark.gpu
@pytest.mark.parametrize("case", CASES, ids=name)
def test_harness_times_it_on_a_gpu(case):
    done = measure_pass(case, {"shape": SHAPE, "dtype": torch.bfloat16}, GPU)
    statuses = {provider: verdict.status for provider, verdict in done.verdicts.items()}
    assert statuses.pop("timm") in ("ok", "absent")
    assert set(statuses.values()) == {"ok"}
    assert done.timing == "wall"
    assert done.work["images"] == 128
