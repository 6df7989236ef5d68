"""That the cases' own checks accept what is right, and see what is wrong, where a mistake is small."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from benchmarks.cases import adamw, all_cases, loader
from benchmarks.cases.cross_entropy import CrossEntropyCase, _step
from benchmarks.cases.finish import FinishCase
from benchmarks.harness import Options, label
from fastfeed.data.finish import finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

CPU = Options(torch.device("cpu"), quick=True)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_tables(device):
    full, quick = (
        [label(case, p) for case in all_cases() for p in case.parameters(Options(torch.device(device), quick))]
        for quick in (False, True)
    )
    assert {name.partition("/")[0] for name in quick} == {"adamw", "cross_entropy", "finish", "loader"}
    assert set(quick) < set(full)
    # Else `--filter` could not name one alone.
    assert [name for name in full if sum(name in other for other in full) > 1] == []


@pytest.mark.parametrize("case", all_cases(), ids=lambda case: case.name)
def test_baseline_is_a_provider(case):
    assert case.baseline in case.providers
    assert "fastfeed" in case.providers


def test_resnet50_shapes():
    shapes = adamw.resnet_shapes(adamw.BLOCKS["resnet50"])
    assert len(shapes) == 161
    assert sum(torch.Size(shape).numel() for shape in shapes) == 25_557_032


def assert_sees(case, **wrong):
    """Check that all providers pass, and that none of `wrong` does."""
    for provider in case.providers:
        case.check(provider)
    case.providers = case.providers | wrong
    for provider in wrong:
        with pytest.raises(AssertionError):
            case.check(provider)


@pytest.mark.parametrize(
    ("device", "dtype"), [("cpu", torch.float32), pytest.param("cuda", torch.bfloat16, marks=pytest.mark.gpu)]
)
def test_cross_entropy_check(device, dtype):
    options = Options(torch.device(device), quick=True)

    def smoothed(smoothing):
        def loss(logits, target, label_smoothing):
            return F.cross_entropy(logits.float(), target, label_smoothing=smoothing)

        return lambda case: _step(loss, case.logits, case.target)

    assert_sees(CrossEntropyCase(options, (32, 100), dtype), unsmoothed=smoothed(0.0), other=smoothed(0.12))


def test_adamw_check(monkeypatch):
    monkeypatch.setitem(adamw.BLOCKS, "tiny", ())
    optimizer = torch.optim.AdamW
    assert_sees(
        adamw.AdamWCase(CPU, "tiny", torch.float32),
        no_decay=lambda case: case._stepper(lambda params, lr, weight_decay: optimizer(params, lr, weight_decay=0)),
        no_step=lambda case: lambda: case.params,
        other_beta=lambda case: case._stepper(partial(optimizer, betas=(0.9, 0.99))),
    )


def test_finish_check():
    def run(case, flip, memory_format=torch.channels_last):
        return lambda: finish_reference(case.images, flip, IMAGENET_MEAN, IMAGENET_STD, case.dtype, memory_format)

    assert_sees(
        FinishCase(CPU, (4, 8, 8, 3), torch.float32),
        unflipped=lambda case: run(case, None),
        other_layout=lambda case: run(case, case.flip, torch.contiguous_format),
    )


def test_loader_check(monkeypatch):
    monkeypatch.setattr(loader, "CORES", 1)

    def mirrored(case, train):
        for images, target in loader.dali(case, train):
            yield images.flip(3), target

    def short(case, train):
        batches = list(loader.dali(case, train))
        return batches[:-1] if train else batches

    wrong = {"mirrored": mirrored, "short": short}
    monkeypatch.setattr(loader, "LOADERS", loader.LOADERS | wrong)
    case = loader.LoaderCase(CPU, (8, 3, 32, 32), torch.float32)
    try:
        assert_sees(case, **{name: partial(loader.epochs, make) for name, make in wrong.items()})
    finally:
        case.close()
