"""That the cases' own checks accept what is right, and see what is wrong, where a mistake is small."""

import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options, label
from benchmarks.cases import adamw, all_cases
from benchmarks.cases.adamw import AdamWCase
from benchmarks.cases.cross_entropy import CrossEntropyCase, torch_cross_entropy
from benchmarks.cases.finish import FinishCase
from benchmarks.gpu_timing import capture
from benchmarks.peers import Absent
from benchmarks.results import COMPILED
from fastfeed.data.finish import finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = Options(torch.device("cpu"), quick=True)
FULL = Options(torch.device("cpu"))
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


@pytest.mark.parametrize(
    ("network", "tensors", "parameters"),
    [
        # As torchvision's documentation and papers have them.
        ("squeezenet", 52, 1_235_496),
        ("resnet18", 62, 11_689_512),
        ("resnet50", 161, 25_557_032),
        ("vit_b16", 152, 86_567_656),
        ("vit_l16", 296, 304_326_632),
    ],
)
def test_networks(network, tensors, parameters):
    shapes = adamw.NETWORKS[network]
    assert len(shapes) == tensors
    assert sum(torch.Size(shape).numel() for shape in shapes) == parameters


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
    ("shape", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 96 values, of 1 byte in and 4 or 2 bytes out, and 2 flips; a product and a sum each.
        ((2, 4, 4, 3), torch.float32, 482, 192),
        ((2, 4, 4, 3), torch.bfloat16, 290, 192),
        # 1,204,224 values and 8 flips.
        ((8, 224, 224, 3), torch.float32, 6_021_128, 2_408_448),
        ((8, 224, 224, 3), torch.bfloat16, 3_612_680, 2_408_448),
    ],
)
def test_finish_model(shape, dtype, bytes_per_run, flops_per_run):
    case = FinishCase(CPU, shape, dtype)
    assert (case.bytes_per_run, case.flops_per_run) == (bytes_per_run, flops_per_run)


@pytest.mark.parametrize(
    ("network", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 9 elements: 4 numbers read and 3 written each, of 4 or 2 bytes; 13 operations each.
        ("tiny", torch.float32, 252, 117),
        ("tiny", torch.bfloat16, 126, 117),
        # 1,235,496 elements.
        ("squeezenet", torch.float32, 34_593_888, 16_061_448),
        ("squeezenet", torch.bfloat16, 17_296_944, 16_061_448),
    ],
)
def test_adamw_model(network, dtype, bytes_per_run, flops_per_run, tiny):
    case = AdamWCase(CPU, network, dtype)
    assert (case.bytes_per_run, case.flops_per_run) == (bytes_per_run, flops_per_run)


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


@pytest.fixture
def tiny(monkeypatch):
    """A network of 9 parameters in 2 tensors."""
    monkeypatch.setitem(adamw.NETWORKS, "tiny", [(2, 3), (3,)])
    return "tiny"


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


def test_adamw_check(tiny):
    optimizer = torch.optim.AdamW

    def twice(case):
        run = case.stepper(optimizer)
        return lambda: (run(), run())[1]

    absent = assert_sees(
        AdamWCase(CPU, tiny, torch.float32),
        no_decay=lambda case: case.stepper(lambda params, lr, weight_decay: optimizer(params, lr, weight_decay=0)),
        decay_of_the_gradient=lambda case: case.stepper(torch.optim.Adam),
        no_step=lambda case: lambda: case.params,
        two_steps=twice,
        other_beta=lambda case: case.stepper(partial(optimizer, betas=(0.9, 0.99))),
    )
    assert absent == {"apex"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_finish_check(dtype):
    def run(case, flip, mean=IMAGENET_MEAN, memory_format=torch.channels_last):
        return lambda: finish_reference(case.images, flip, mean, IMAGENET_STD, case.dtype, memory_format)

    absent = assert_sees(
        FinishCase(CPU, (4, 8, 8, 3), dtype),
        unflipped=lambda case: run(case, None),
        others_flipped=lambda case: run(case, ~case.flip),
        bgr=lambda case: run(case, case.flip, IMAGENET_MEAN[::-1]),
        other_dtype=lambda case: lambda: run(case, case.flip)().to(torch.float16),
        other_layout=lambda case: run(case, case.flip, memory_format=torch.contiguous_format),
    )
    assert absent == set()


def test_finish_is_exact_where_it_says_so():
    case = FinishCase(CPU, (4, 8, 8, 3), torch.float32)
    right = finish_reference(case.images, case.flip, IMAGENET_MEAN, IMAGENET_STD)
    off = right.nextafter(torch.full_like(right, torch.inf))
    case.providers = dict.fromkeys(("fastfeed", "another"), lambda case: lambda: off)
    assert 0 < case.check("another") < 1e-6
    with pytest.raises(AssertionError):
        case.check("fastfeed")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_finish_on_a_gpu_passes_its_check(dtype):
    case = FinishCase(Options(torch.device("cuda"), quick=True), (8, 32, 33, 3), dtype)
    assert case.check("fastfeed") == 0
    case.check("eager")


# --- torch.compile --------------------------------------------------------------------------------------------


@pytest.fixture
def graphs():
    """How many graphs torch.compile has compiled, as a function, in a compiler that has compiled nothing so far."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    yield lambda: torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch.compiler.reset()


@pytest.mark.slow
def test_compiled_cross_entropy(graphs):
    for _ in range(2):  # the second instance finds what was compiled for the first
        CrossEntropyCase(CPU, (32, 100), torch.float32).check(COMPILED)
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


@pytest.mark.slow
def test_compiled_adamw(graphs, tiny):
    case = AdamWCase(FULL, tiny, torch.float32)
    case.check(COMPILED)
    assert graphs() == 1
    with pytest.raises(Absent, match="--quick"):
        AdamWCase(CPU, tiny, torch.float32).check(COMPILED)


def test_compiled_adamw_does_not_run_eagerly(tiny):
    run = AdamWCase.providers[COMPILED](AdamWCase(FULL, tiny, torch.float32))
    with torch.compiler.set_stance("force_eager"), pytest.raises(RuntimeError, match="made 0 graphs of the step"):
        run()


@pytest.mark.parametrize(
    ("case", "shape", "function"),
    [(CrossEntropyCase, (4, 10), "torch_cross_entropy"), (FinishCase, (2, 4, 4, 3), "indexed_finish")],
    ids=["cross_entropy", "finish"],
)
def test_what_cannot_be_compiled_does_not_run_eagerly(case, shape, function, monkeypatch):
    def broken(*arguments):
        torch._dynamo.graph_break()
        return arguments[0].sum()

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
        (AdamWCase, "tiny", torch.float32),
    ],
)
def test_compiled_on_a_gpu(case, shape, dtype, tiny):
    instance = case(GPU, shape, dtype)
    instance.check(COMPILED)
    instance.close()


@pytest.mark.gpu
@pytest.mark.parametrize("provider", FinishCase.providers)
def test_finish_can_be_captured(provider):
    cases = [FinishCase(GPU, (4, 32, 32, 3), torch.bfloat16) for _ in range(2)]
    replay = capture([case.providers[provider](case) for case in cases], GPU.device)
    for case in cases:
        case.images.bitwise_not_()
    for case, output in zip(cases, replay(), strict=True):
        torch.testing.assert_close(output, case.expected())
        case.close()
