"""Ten crops of every image: that the check sees what is wrong."""

from functools import partial

import pytest
import torch
from PIL import Image

from benchmarks.case import Options
from benchmarks.cases.loader_views import LoaderViewsCase, TenCrops
from benchmarks.loaders import fastfeed as ours
from fastfeed.transforms import TTA

pytestmark = pytest.mark.dali


@pytest.fixture
def case():
    options = Options(torch.device("cpu"), threads=1, quick=True)
    case = LoaderViewsCase(options, (2, 3, 32, 32), torch.float32)
    yield case
    case.close()


def test_check(case):
    assert case.check("pillow") == 0
    assert case.check("fastfeed") < 0.01


@pytest.mark.parametrize("tta", [TTA(5, vertical_flip=True), TTA(5), TTA(1, True)], ids=["flip", "five", "two"])
def test_other_views_are_seen(case, monkeypatch, tta):
    monkeypatch.setitem(case.loaders, "fastfeed", partial(ours.loader, tta=tta))
    with pytest.raises(AssertionError, match=r"off on average|the views are"):
        case.check("fastfeed")


def test_targets_of_a_run(case):
    expected = [target for _, target in case.source.samples]
    for name in case.providers:
        assert case.providers[name](case)().tolist() == expected


def test_pillows_ten_crops():
    image = Image.effect_noise((40, 30), 50).convert("RGB")
    views = TenCrops(24, 20)(image)
    assert views.shape == (10, 3, 20, 20)
    # The corners of the mirror image are those of the image, mirrored, left and right exchanged.
    assert torch.equal(views[[6, 5, 8, 7]], views[:4].flip(3))
