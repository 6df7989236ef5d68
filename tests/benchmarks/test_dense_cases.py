"""The cases of losses over two matrices: that their checks see what is wrong, and their models of the work."""

import pytest
import torch
import torch.nn.functional as F

from benchmarks.case import Options
from benchmarks.cases.dense_cross_entropy import DenseCrossEntropyCase, MixupCrossEntropyCase
from benchmarks.cases.kl_divergence import KLDivergenceCase
from benchmarks.results import COMPILED
from fastfeed import MixedTarget
from fastfeed.functional import kl_divergence
from tests.benchmarks.test_cases import assert_sees

CPU = Options(torch.device("cpu"), quick=True)
GPU = Options(torch.device("cuda"), quick=True)
CASES = (DenseCrossEntropyCase, MixupCrossEntropyCase, KLDivergenceCase)
DEVICES = [(CPU, torch.float32), pytest.param(GPU, torch.bfloat16, marks=pytest.mark.gpu)]


@pytest.mark.parametrize("options", [CPU, GPU, Options(torch.device("cpu")), Options(torch.device("cuda"))], ids=str)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_sweeps_have_a_line_to_draw(case, options):
    table = case.parameters(options)
    for dtype in {parameters["dtype"] for parameters in table}:
        assert sum(parameters["dtype"] == dtype for parameters in table) >= (1 if options.quick else 3)


@pytest.mark.parametrize(
    ("case", "dtype", "bytes_per_run", "flops_per_run"),
    [
        # 40 logits of 4 or 2 bytes three times, and 40 probabilities of 4 bytes twice; 16 operations each.
        (DenseCrossEntropyCase, torch.float32, 800, 640),
        (DenseCrossEntropyCase, torch.bfloat16, 560, 640),
        # 4 times two labels of 8 bytes and a weight of 4, twice.
        (MixupCrossEntropyCase, torch.float32, 640, 640),
        (MixupCrossEntropyCase, torch.bfloat16, 400, 640),
        # 40 logits of each of two, twice, and 40 gradients; 23 operations each.
        (KLDivergenceCase, torch.float32, 800, 920),
        (KLDivergenceCase, torch.bfloat16, 400, 920),
    ],
)
def test_models(case, dtype, bytes_per_run, flops_per_run):
    instance = case(CPU, (4, 10), dtype)
    assert (instance.bytes_per_run, instance.flops_per_run) == (bytes_per_run, flops_per_run)


def of_the_gradient_alone(wrong):
    """A provider whose loss is right, and whose gradient is that of another one."""

    def build(case):
        right = case.providers[case.baseline](case)
        return lambda: (right()[0], wrong(case)()[1])

    return build


@pytest.mark.parametrize(("options", "dtype"), DEVICES)
@pytest.mark.parametrize("case", [DenseCrossEntropyCase, MixupCrossEntropyCase], ids=lambda case: case.name)
def test_cross_entropy_checks(case, options, dtype):
    def other(change=lambda target: target, **options):
        def loss(logits, target):
            target = target.dense(logits.shape[1]) if isinstance(target, MixedTarget) else target
            return F.cross_entropy(logits.float(), change(target), **{"label_smoothing": 0.1} | options)

        return lambda case: case.run(loss)

    assert_sees(
        case(options, (32, 100), dtype),
        unsmoothed=other(label_smoothing=0.0),
        unsmoothed_gradient=of_the_gradient_alone(other(label_smoothing=0.0)),
        other_smoothing=of_the_gradient_alone(other(label_smoothing=0.12)),
        sum=of_the_gradient_alone(other(reduction="sum")),
        others_targets=other(lambda target: target.roll(1, 0)),
        one_label=other(lambda target: F.one_hot(target.argmax(1), target.shape[1]).float()),
        no_gradient=of_the_gradient_alone(lambda case: lambda: (None, torch.zeros_like(case.logits))),
    )


@pytest.mark.parametrize(("options", "dtype"), DEVICES)
def test_kl_divergence_check(options, dtype):
    def other(temperature=4.0, reduction="batchmean", scale=1.0):
        return lambda case: case.run(
            lambda student, teacher: scale * kl_divergence(student.float(), teacher.float(), temperature, reduction)
        )

    absent = assert_sees(
        KLDivergenceCase(options, (32, 100), dtype),
        other_temperature=other(temperature=4.2),
        unscaled=other(scale=1 / 16),
        sum=of_the_gradient_alone(other(reduction="sum")),
        swapped=lambda case: case.run(lambda student, teacher: kl_divergence(teacher.float(), student.float(), 4.0)),
        gradient_of_another=of_the_gradient_alone(other(scale=1.2)),
        no_gradient=of_the_gradient_alone(lambda case: lambda: (None, torch.zeros_like(case.logits))),
    )
    if options is CPU:
        assert absent == {"liger-kernel"}


@pytest.mark.slow
def test_compiled_mixup():
    instance = MixupCrossEntropyCase(CPU, (32, 100), torch.float32)
    instance.check(COMPILED)
    instance.close()
