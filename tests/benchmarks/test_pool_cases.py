"""The cases of the pools: their models of the work, and that their checks see what is wrong."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options
from benchmarks.cases.avg_max_pool import AvgMaxPoolCase, torch_avg_max_pool
from benchmarks.cases.gem_pool import GeMPoolCase, textbook_gem_pool
from benchmarks.peers import Absent

CPU = Options(torch.device("cpu"), quick=True)
GPU = Options(torch.device("cuda"), quick=True)
DEVICES = [(CPU, torch.float32), pytest.param(GPU, torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.mark.parametrize(
    ("case", "shape", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 96 elements of 4 or 2 bytes, three times, and 10 operations; twice, and 2 operations.
        (GeMPoolCase, "contiguous-2x3x4x4", torch.float32, 1152, 960),
        (GeMPoolCase, "channels_last-2x3x4x4", torch.bfloat16, 576, 960),
        (AvgMaxPoolCase, "contiguous-2x3x4x4", torch.float32, 768, 192),
        (AvgMaxPoolCase, "channels_last-2x3x4x4", torch.bfloat16, 384, 192),
    ],
)
def test_models(case, shape, dtype, bytes_per_run, flops_per_run):
    instance = case(CPU, shape, dtype)
    assert (instance.bytes_per_run, instance.flops_per_run) == (bytes_per_run, flops_per_run)
    assert instance.x.is_contiguous() == shape.startswith("contiguous")
    assert instance.x.is_contiguous(memory_format=torch.channels_last) != instance.x.is_contiguous()


@pytest.mark.parametrize(("options", "dtype"), DEVICES)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_gem_check(memory_format, options, dtype):
    case = GeMPoolCase(options, f"{memory_format}-2x16x7x7", dtype)
    for provider in ("eager", "fastfeed"):
        case.check(provider)
    right = case.run(textbook_gem_pool)

    def without(which):
        def run():
            results = list(right())
            results[which] = torch.zeros_like(results[which])
            return results

        return run

    wrong = {
        "average": case.run(lambda x, p: F.adaptive_avg_pool2d(x, 1) * p / p),
        "another_p": case.run(lambda x, p: textbook_gem_pool(x, p * 1.01)),
        "no_gradient_of_x": without(1),
        "no_gradient_of_p": without(2),
    }
    case.providers = case.providers | {name: lambda case, run=run: run for name, run in wrong.items()}
    for name in wrong:
        with pytest.raises(AssertionError):
            case.check(name)


@pytest.mark.parametrize(("options", "dtype"), DEVICES)
@pytest.mark.parametrize("memory_format", ["contiguous", "channels_last"])
def test_avg_max_check(memory_format, options, dtype):
    case = AvgMaxPoolCase(options, f"{memory_format}-2x16x7x7", dtype)
    for provider in ("eager", "timm", "fastfeed"):
        try:
            case.check(provider)
        except Absent:
            assert provider == "timm"
    right = case.run(torch_avg_max_pool)
    wrong = {
        "swapped": case.run(lambda x: torch.cat(torch_avg_max_pool(x).chunk(2, dim=1)[::-1], dim=1)),
        "maximum_twice": case.run(lambda x: F.adaptive_max_pool2d(x, 1).repeat(1, 2, 1, 1)),
        "no_gradient": lambda: (right()[0], torch.zeros_like(case.x)),
    }
    case.providers = case.providers | {name: lambda case, run=run: run for name, run in wrong.items()}
    for name in wrong:
        with pytest.raises(AssertionError):
            case.check(name)
