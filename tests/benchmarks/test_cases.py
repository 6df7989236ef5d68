"""That the cases' own checks accept what is right, and see what is wrong, where a mistake is small."""

import sys

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options, label
from benchmarks.cases import all_cases
from benchmarks.cases.avg_max_pool import AvgMaxPoolCase
from benchmarks.cases.cross_entropy import CrossEntropyCase, torch_cross_entropy
from benchmarks.cases.dense_cross_entropy import DenseCrossEntropyCase
from benchmarks.cases.finish import FinishCase, FinishMixupCase
from benchmarks.cases.gem_pool import GeMPoolCase
from benchmarks.cases.hard_examples import FocalCase, OhemCase
from benchmarks.cases.kl_divergence import KLDivergenceCase
from benchmarks.cases.optimizers import AdamWCase, SGDCase
from benchmarks.gpu_timing import capture
from benchmarks.peers import Absent
from benchmarks.results import COMPILED
from fastfeed.data.finish import SampleParameters, finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = Options(torch.device("cpu"), quick=True)
GPU = Options(torch.device("cuda"), quick=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tables(device):
    full, quick = (
        [label(case, p) for case in all_cases() for p in case.parameters(Options(torch.device(device), quick))]
        for quick in (False, True)
    )
    assert {name.partition("/")[0] for name in quick} == {case.name for case in all_cases()}
    assert set(quick) < set(full)
    # Else `--filter` could not name one alone.
    assert [name for name in full if sum(name in other for other in full) > 1] == []


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_baseline_is_a_provider(case):
    assert case.baseline in case.providers
    assert "fastfeed" in case.providers


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("case", [AdamWCase, CrossEntropyCase, FinishCase], ids=lambda case: case.name)
def test_sweeps_have_a_line_to_draw(case, device, quick):
    table = case.parameters(Options(torch.device(device), quick))
    for dtype in {parameters["dtype"] for parameters in table}:
        assert sum(parameters["dtype"] == dtype for parameters in table) >= (2 if quick else 3)


def test_what_the_last_pass_is_for_is_in_every_run():
    """The batches that it must be fast for, with and without mixing, in both dtypes."""
    for device, batch in (("cpu", 64), ("cuda", 256)):
        for quick in (False, True):
            options = Options(torch.device(device), quick)
            rows = {label(case, p) for case in (FinishCase, FinishMixupCase) for p in case.parameters(options)}
            for name in ("finish", "finish_mixup"):
                assert {f"{name}/{batch}x224x224x3/{dtype}" for dtype in ("float32", "bfloat16")} <= rows


# --- Models of the work: the numbers are counted by hand ------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 40 logits: 160 bytes three times, and 32 bytes of targets twice; 9 operations each.
        ((4, 10), torch.float32, 544, 360),
        ((4, 10), torch.bfloat16, 304, 360),
        # 128,000 logits: 512,000 bytes three times, and 1024 bytes of targets twice.
        ((128, 1000), torch.float32, 1_538_048, 1_152_000),
        ((128, 1000), torch.bfloat16, 770_048, 1_152_000),
    ],
)
def test_cross_entropy_model(shape, dtype, bytes_per_run, flops_per_run):
    case = CrossEntropyCase(CPU, shape, dtype)
    assert (case.bytes_per_run, case.flops_per_run) == (bytes_per_run, flops_per_run)


@pytest.mark.parametrize(
    ("case", "shape", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 96 values, of 1 byte in and 4 or 2 bytes out, and 2 flips; a product and a sum each.
        (FinishCase, (2, 4, 4, 3), torch.float32, 482, 192),
        (FinishCase, (2, 4, 4, 3), torch.bfloat16, 290, 192),
        # 1,204,224 values and 8 flips.
        (FinishCase, (8, 224, 224, 3), torch.float32, 6_021_128, 2_408_448),
        (FinishCase, (8, 224, 224, 3), torch.bfloat16, 3_612_680, 2_408_448),
        # 2 bytes in, and 9 bytes for each of 2 and 8 images; two products and two sums.
        (FinishMixupCase, (2, 4, 4, 3), torch.float32, 594, 384),
        (FinishMixupCase, (2, 4, 4, 3), torch.bfloat16, 402, 384),
        (FinishMixupCase, (8, 224, 224, 3), torch.float32, 7_225_416, 4_816_896),
        (FinishMixupCase, (8, 224, 224, 3), torch.bfloat16, 4_816_968, 4_816_896),
    ],
)
def test_finish_model(case, shape, dtype, bytes_per_run, flops_per_run):
    instance = case(CPU, shape, dtype)
    assert (instance.bytes_per_run, instance.flops_per_run) == (bytes_per_run, flops_per_run)


# --- Checks ---------------------------------------------------------------------------------------------------


def assert_sees(case, **wrong):
    """Check that all providers pass that can run here, and that none of `wrong` does. Return those that cannot run.

    The compiled ones, which take long, have tests of their own.
    """
    absent = set()
    for provider in case.providers.keys() - {COMPILED}:
        try:
            case.check(provider)
        except Absent:
            absent.add(provider)
    case.providers = case.providers | wrong
    for provider in wrong:
        with pytest.raises(AssertionError):
            case.check(provider)
    return absent


@pytest.mark.parametrize(
    ("options", "dtype"), [(CPU, torch.float32), pytest.param(GPU, torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_cross_entropy_check(options, dtype):
    def smoothed(smoothing):
        return lambda case: case.run(
            lambda logits, target: F.cross_entropy(logits.float(), target, label_smoothing=smoothing)
        )

    def other_gradient(of):
        def build(case):
            right = case.run(torch_cross_entropy)
            return lambda: (right()[0], of(case)()[1])

        return build

    def other_loss(case):
        right = case.run(torch_cross_entropy)
        return lambda: (right()[0] * 1.02, right()[1])

    def summed(case):
        return case.run(
            lambda logits, target: F.cross_entropy(logits.float(), target, label_smoothing=0.1, reduction="sum")
        )

    absent = assert_sees(
        CrossEntropyCase(options, (32, 100), dtype),
        unsmoothed=smoothed(0.0),
        other_smoothing=smoothed(0.12),
        other_loss=other_loss,
        unsmoothed_gradient=other_gradient(smoothed(0.0)),
        gradient_of_the_sum=other_gradient(summed),
        no_gradient=other_gradient(lambda case: lambda: (None, torch.zeros_like(case.logits))),
    )
    if options is CPU:
        assert absent == {"liger-kernel", "apex"}


def test_cross_entropy_error_is_the_largest():
    case = CrossEntropyCase(CPU, (4, 10), torch.float32)
    loss, grad = case.run(torch_cross_entropy)()
    off = grad.clone()
    off[2, 3] *= 1 + 5e-5  # within the tolerance
    case.providers = case.providers | {"off": lambda case: lambda: (loss, off)}
    assert case.check("off") == pytest.approx(5e-5 * abs(grad[2, 3].item()), rel=1e-2)
    assert case.check("eager") == 0


def finished(mean=IMAGENET_MEAN, memory_format=torch.channels_last, **changed):
    """A provider that finishes a case's images with other parameters of the samples, or otherwise."""

    def build(case):
        parameters = SampleParameters(len(case.images), **{"flip": case.flip} | case.mix | changed)
        return lambda: finish_reference(case.images, parameters, mean, IMAGENET_STD, case.dtype, memory_format)

    return build


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("case", [FinishCase, FinishMixupCase], ids=lambda case: case.name)
def test_finish_check(case, dtype):
    absent = assert_sees(
        case(CPU, (4, 8, 8, 3), dtype),
        unflipped=finished(flip=None),
        others_flipped=finished(flip=torch.arange(4) % 2 == 1),
        bgr=finished(IMAGENET_MEAN[::-1]),
        other_dtype=lambda case: lambda: finished()(case)().to(torch.float16),
        other_layout=finished(memory_format=torch.contiguous_format),
        copy=lambda case: lambda: case.images.bitwise_xor(1).to(case.dtype),
    )
    assert absent == set()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finish_mixup_check(dtype):
    case = FinishMixupCase(CPU, (4, 8, 8, 3), dtype)
    assert_sees(
        case,
        unmixed=finished(partner=None, weight=None),
        others_partners=finished(partner=case.mix["partner"][::-1]),
        weights_of_the_partners=finished(weight=1 - case.mix["weight"]),
        one_weight=finished(weight=[case.mix["weight"][0]] * 4),
    )


def test_everything_is_mixed():
    case = FinishMixupCase(CPU, (64, 8, 8, 3), torch.float32)
    assert sorted(case.mix["partner"]) == list(range(64))
    assert (case.mix["partner"] != range(64)).all()
    assert ((case.mix["weight"] > 0) & (case.mix["weight"] < 1)).all()


def test_finish_is_exact_where_it_says_so():
    case = FinishCase(CPU, (4, 8, 8, 3), torch.float32)
    right = finished()(case)()
    off = right.nextafter(torch.full_like(right, torch.inf))
    case.providers = dict.fromkeys(("fastfeed", "another"), lambda case: lambda: off)
    assert 0 < case.check("another") < 1e-6
    with pytest.raises(AssertionError):
        case.check("fastfeed")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", [FinishCase, FinishMixupCase], ids=lambda case: case.name)
def test_finish_on_a_gpu_passes_its_check(case, dtype):
    instance = case(GPU, (8, 32, 33, 3), dtype)
    assert instance.check("fastfeed") == 0
    assert instance.check("copy") == 0
    instance.check("eager")


# --- torch.compile --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        (DenseCrossEntropyCase, (32, 100)),
        (OhemCase, (2, 19, 8, 8)),
        (FocalCase, (2, 19, 8, 8)),
        (KLDivergenceCase, (32, 100)),
        (GeMPoolCase, "contiguous-2x16x7x7"),
        (AvgMaxPoolCase, "channels_last-2x16x7x7"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_compiled(case, shape):
    instance = case(CPU, shape, torch.float32)
    instance.check(COMPILED)
    instance.close()


@pytest.mark.slow
def test_compiled_cross_entropy(graphs):
    for _ in range(2):  # the second instance finds what was compiled for the first
        CrossEntropyCase(CPU, (32, 100), torch.float32).check(COMPILED)
        assert graphs() == 1


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_finish_mixup(graphs, dtype):
    for _ in range(2):
        FinishMixupCase(CPU, (4, 8, 8, 3), dtype).check(COMPILED)
        assert graphs() == 1


@pytest.mark.slow
def test_compiled_finish_throughout_a_long_sweep(graphs):
    for batch in range(1, 11):  # torch.compile gives up on a function after the eighth
        cases = [FinishCase(CPU, (batch, 8, 8, 3), torch.float32) for _ in range(2)]
        for case in cases:
            case.check(COMPILED)
        assert graphs() == batch
        for case in cases:
            case.close()


@pytest.mark.parametrize(
    ("case", "shape", "function"),
    [
        (CrossEntropyCase, (4, 10), "torch_loss"),
        (FinishCase, (2, 4, 4, 3), "indexed_finish"),
        (FinishMixupCase, (2, 4, 4, 3), "indexed_finish"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_cannot_be_compiled_does_not_run_eagerly(case, shape, function, monkeypatch):
    def broken(*arguments):
        torch._dynamo.graph_break()
        return arguments[0].sum()

    if function == "torch_loss":
        monkeypatch.setattr(case, function, staticmethod(broken))
    else:
        monkeypatch.setattr(sys.modules[case.__module__], function, broken)
    run = case.providers[COMPILED](case(CPU, shape, torch.float32))
    with pytest.raises(torch._dynamo.exc.Unsupported, match="graph_break"):
        run()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("case", "shape", "dtype"),
    [
        (CrossEntropyCase, (32, 1000), torch.float32),
        (CrossEntropyCase, (32, 1000), torch.bfloat16),
        (FinishCase, (4, 32, 32, 3), torch.float32),
        (FinishCase, (4, 32, 32, 3), torch.bfloat16),
        (FinishMixupCase, (4, 32, 32, 3), torch.float32),
        (FinishMixupCase, (4, 32, 32, 3), torch.bfloat16),
        (AdamWCase, "tiny", torch.float32),
        (SGDCase, "tiny", torch.float32),
    ],
)
def test_compiled_on_a_gpu(case, shape, dtype, tiny):
    instance = case(GPU, shape, dtype)
    instance.check(COMPILED)
    instance.close()


@pytest.mark.gpu
@pytest.mark.parametrize("provider", FinishCase.providers)
@pytest.mark.parametrize("case", [FinishCase, FinishMixupCase], ids=lambda case: case.name)
def test_finish_can_be_captured(case, provider):
    instances = [case(GPU, (4, 32, 32, 3), torch.bfloat16) for _ in range(2)]
    replay = capture([case.providers[provider](instance) for instance in instances], GPU.device)
    for instance in instances:
        instance.images.bitwise_not_()
    for instance, output in zip(instances, replay(), strict=True):
        torch.testing.assert_close(output, instance.expected(provider))
        instance.close()
