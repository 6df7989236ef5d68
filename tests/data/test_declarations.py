"""What declarations hold and what they refuse: transforms, augmentations, mixing, size schedules."""

import math
import pickle
from dataclasses import fields

import numpy as np
import pytest
import torch

from fastfeed import Mix
from fastfeed.data.plan import make_plan
from fastfeed.data.schedule import MultiScale, ProgressiveSize
from fastfeed.data.transforms import RandomErasing, output_size
from fastfeed.transforms import (
    AutoAugment,
    CenterCrop,
    ColorJitter,
    GaussianBlur,
    RandAugment,
    RandomAdjustSharpness,
    RandomApply,
    RandomAutocontrast,
    RandomCrop,
    RandomEqualize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomInvert,
    RandomPosterize,
    RandomResizedCrop,
    RandomSolarize,
    RandomVerticalFlip,
    Resize,
    Transform,
    TrivialAugmentWide,
    eval,
    timm_eval,
    torchvision_eval,
    torchvision_train,
    train,
)

NAN, INF = math.nan, math.inf

WRONG_KIND = [
    # numbers of pixels
    (lambda: train("224"), "size is '224'; expected a whole number"),
    (lambda: train(2.5), "size is 2.5"),
    (lambda: train(True), "size is True"),
    (lambda: train(None), "size is None"),
    (lambda: train((224, 224.0)), "size is 224.0"),
    (lambda: train(torch.tensor(224)), r"size is tensor\(224\)"),
    (lambda: eval(224, resize=256.0), "CenterCrop: resize is 256.0"),
    (lambda: eval("224"), "size is '224'"),
    (lambda: CenterCrop(8, "9"), "CenterCrop: resize is '9'"),
    (lambda: CenterCrop(8, True), "CenterCrop: resize is True"),
    (lambda: CenterCrop(8, (9, 9.0)), "CenterCrop: resize is 9.0; expected a whole number"),
    (lambda: RandomCrop(8, resize=9.5), "RandomCrop: resize is 9.5"),
    (lambda: RandomCrop(8, resize=("9", 9)), "RandomCrop: resize is '9'"),
    (lambda: timm_eval((224, 224)), r"timm_eval: size is \(224, 224\)"),
    (lambda: timm_eval(224, "0.9"), "timm_eval: crop_pct is '0.9'; expected a share, above 0 and at most 1"),
    (lambda: Resize("8"), "size is '8'"),
    (lambda: RandomCrop(8, padding=(1, 1)), r"RandomCrop: padding is \(1, 1\)"),
    (lambda: RandomCrop(8, padding=True), "RandomCrop: padding is True"),
    (lambda: RandomCrop(8, pad_if_needed="no"), "RandomCrop: pad_if_needed is 'no'; expected True or False"),
    (lambda: RandomCrop(8, pad_if_needed=1), "RandomCrop: pad_if_needed is 1"),
    (lambda: RandomCrop(8, fill=1.5), "RandomCrop: fill is 1.5; expected a whole number, 0 to 255"),
    (lambda: RandomCrop(8, fill="black"), "RandomCrop: fill is 'black'"),
    (lambda: RandomCrop(8, fill=True), "RandomCrop: fill is True"),
    # ranges
    (lambda: train(scale=0.5), r"RandomResizedCrop: scale is 0.5; expected \(low, high\)"),
    (lambda: train(scale=(0.5, "1")), r"RandomResizedCrop: scale is \(0.5, '1'\)"),
    (lambda: train(scale=(False, True)), r"scale is \(False, True\)"),
    (lambda: train(scale="ab"), "scale is 'ab'"),
    (lambda: train(ratio=None), "RandomResizedCrop: ratio is None"),
    (lambda: RandomErasing(scale=0.5), "RandomErasing: scale is 0.5"),
    (lambda: RandomErasing(ratio=("1", 2)), r"RandomErasing: ratio is \('1', 2\)"),
    # probabilities
    (lambda: train(horizontal_flip=True), "Transform: horizontal_flip is True; expected a probability, 0 to 1"),
    (lambda: train(horizontal_flip="0.5"), "Transform: horizontal_flip is '0.5'"),
    (lambda: train(horizontal_flip=np.bool_(True)), "Transform: horizontal_flip is "),
    (lambda: Transform(Resize(8), vertical_flip=None), "Transform: vertical_flip is None"),
    (lambda: train(erase=True), "Transform: erase is True; expected a probability, 0 to 1, or a .*RandomErasing"),
    (lambda: train(erase="random"), "Transform: erase is 'random'"),
    (lambda: RandomErasing(True), "RandomErasing: p is True"),
    (lambda: RandomErasing(torch.tensor(0.5)), r"RandomErasing: p is tensor\(0.5"),
    (lambda: RandomHorizontalFlip(True), "RandomHorizontalFlip: p is True"),
    (lambda: RandomVerticalFlip(None), "RandomVerticalFlip: p is None"),
    (lambda: RandomGrayscale(0.5j), "RandomGrayscale: p is 0.5j"),
    (lambda: Mix(0.2, probability=True), "Mix: probability is True"),
    # values and statistics
    (lambda: RandomErasing(value=None), "RandomErasing: value is None; expected a finite number, one each for R, G"),
    (lambda: RandomErasing(value=True), "RandomErasing: value is True"),
    (lambda: RandomErasing(value=(1, None, 2)), r"RandomErasing: value is \(1, None, 2\)"),
    (lambda: train(mean=0.5), "Transform: mean is 0.5; expected a finite number each for R, G and B"),
    (lambda: train(mean="abc"), "Transform: mean is 'abc'"),
    (lambda: train(mean=("0.5",) * 3), r"Transform: mean is \('0.5', '0.5', '0.5'\)"),
    (lambda: train(std=1), "Transform: std is 1"),
    (lambda: train(std=None), "Transform: std is None"),
    # augmentations
    (lambda: ColorJitter(True), "ColorJitter: brightness is True; expected a number or a pair"),
    (lambda: ColorJitter(contrast=None), "ColorJitter: contrast is None"),
    (lambda: ColorJitter(saturation=("0.1", 2)), r"ColorJitter: saturation is \('0.1', 2\)"),
    (lambda: ColorJitter(hue=torch.tensor(0.1)), r"ColorJitter: hue is tensor\(0.1"),
    (lambda: TrivialAugmentWide("31"), "TrivialAugmentWide: num_magnitude_bins is '31'"),
    (lambda: TrivialAugmentWide(True), "TrivialAugmentWide: num_magnitude_bins is True"),
    (lambda: TrivialAugmentWide(fill=True), "TrivialAugmentWide: fill is True"),
    (lambda: RandAugment(2.0), "RandAugment: num_ops is 2.0"),
    (lambda: RandAugment(magnitude="9"), "RandAugment: magnitude is '9'"),
    (lambda: AutoAugment(fill=(0, "1", 2)), "AutoAugment: fill is '1'; expected a whole number, 0 to 255"),
    (lambda: RandAugment(fill=(1.5, 2, 3)), "RandAugment: fill is 1.5; expected a whole number, 0 to 255"),
    (lambda: RandAugment(fill=np.array([1.5, 2, 3])), "RandAugment: fill is 1.5"),
    (lambda: RandomCrop(8, fill=np.array([1.5, 2, 3])), "RandomCrop: fill is 1.5"),
    (lambda: train(augment=RandAugment), "Transform: augment has <class .*; expected steps, as fast"),
    (lambda: train(augment=[0.4]), r"Transform: augment has 0.4; .* as fastfeed.transforms.ColorJitter\("),
    (lambda: train(augment=None), r"Transform: augment has None"),
    (lambda: Transform(224), r"Transform: crop is 224; expected a crop, as fastfeed.transforms.RandomResizedCrop\("),
    (lambda: GaussianBlur(3.0), "GaussianBlur: kernel_size is 3.0; expected a whole number"),
    (lambda: GaussianBlur(True), "GaussianBlur: kernel_size is True"),
    (lambda: GaussianBlur((3, "5")), "GaussianBlur: kernel_size is '5'"),
    (lambda: GaussianBlur("3"), "GaussianBlur: kernel_size is '3'"),
    (lambda: GaussianBlur(3, "1"), "GaussianBlur: sigma is '1'; expected a positive number of pixels, or a range"),
    (lambda: GaussianBlur(3, (0.1, None)), r"GaussianBlur: sigma is \(0.1, None\)"),
    (lambda: GaussianBlur(3, True), "GaussianBlur: sigma is True"),
    (lambda: RandomInvert(True), "RandomInvert: p is True"),
    (lambda: RandomPosterize(4.0), "RandomPosterize: bits is 4.0"),
    (lambda: RandomPosterize(4, "1"), "RandomPosterize: p is '1'"),
    (lambda: RandomSolarize("128"), "RandomSolarize: threshold is '128'; expected a finite number of levels"),
    (lambda: RandomSolarize(128, None), "RandomSolarize: p is None"),
    (lambda: RandomAdjustSharpness(None), "RandomAdjustSharpness: sharpness_factor is None; expected 0 or more"),
    (lambda: RandomAdjustSharpness(2, True), "RandomAdjustSharpness: p is True"),
    (lambda: RandomAutocontrast("0.5"), "RandomAutocontrast: p is '0.5'"),
    (lambda: RandomEqualize(None), "RandomEqualize: p is None"),
    (lambda: RandomApply([0.4]), r"RandomApply: transforms has 0.4; expected a list of steps, as \[fastfeed"),
    (lambda: RandomApply(ColorJitter()), r"RandomApply: transforms is ColorJitter\(.*\); expected a list of steps"),
    (lambda: RandomApply("trivial"), "RandomApply: transforms is 'trivial'"),
    (lambda: RandomApply(["trivial"]), "RandomApply: transforms has 'trivial'"),
    (lambda: RandomApply(None), "RandomApply: transforms is None"),
    (lambda: RandomApply([RandomApply([3])]), "RandomApply: transforms has 3"),
    (lambda: RandomApply([], "0.5"), "RandomApply: p is '0.5'"),
    # schedules
    (lambda: ProgressiveSize(128, 224.0, 3), "ProgressiveSize: last is 224.0"),
    (lambda: ProgressiveSize(128, 224, 3, multiple=True), "ProgressiveSize: multiple is True"),
    (lambda: MultiScale(224), r"MultiScale: sizes is 224; expected a sequence, as \(192, 224, 256\)"),
    (lambda: MultiScale("224"), "MultiScale: sizes is '224'"),
    (lambda: MultiScale((192, "224")), "size is '224'"),
    (lambda: MultiScale((192,), every=2.0), "MultiScale: every is 2.0"),
    (lambda: MultiScale((192,), seed=None), "MultiScale: seed is None"),
]

OUT_OF_RANGE = [
    (lambda: train(0), "size is 0"),
    (lambda: train((224, -1)), "size is -1"),
    (lambda: train((1, 2, 3)), r"size is \(1, 2, 3\); expected one whole number of pixels, or two: height and width"),
    (lambda: train(()), r"size is \(\)"),
    (lambda: CenterCrop(8, 0), "CenterCrop: resize is 0"),
    (lambda: CenterCrop(8, (9, 0)), "CenterCrop: resize is 0"),
    (
        lambda: CenterCrop(8, (9, 9, 9)),
        r"CenterCrop: resize is \(9, 9, 9\); expected one whole number of pixels, the len",
    ),
    (lambda: CenterCrop((8, 9), 8), r"CenterCrop: size is \(8, 9\), larger than resize, 8"),
    (lambda: CenterCrop((8, 9), (9, 8)), r"CenterCrop: size is \(8, 9\), larger than resize, \(9, 8\)"),
    (lambda: CenterCrop(8, interpolation="random"), "CenterCrop: interpolation is 'random'; expected one of bilinear"),
    (lambda: RandomCrop(8, resize=7), "RandomCrop: size is 8, larger than resize, 7: .* Make resize at least as large"),
    (lambda: RandomCrop(8, resize=(7, 20)), r"RandomCrop: size is 8, larger than resize, \(7, 20\)"),
    (lambda: RandomCrop(8, 1, resize=9), "RandomCrop: padding is 1 and resize is 9: .* Leave one of them out"),
    (lambda: RandomCrop(8, interpolation="random"), "RandomCrop: interpolation is 'random'"),
    (lambda: Resize(8, "random"), "Resize: interpolation is 'random'"),
    (lambda: RandomResizedCrop(8, interpolation="any"), "is 'any'; expected one of bilinear, bicubic, lanczos, random"),
    (
        lambda: torchvision_train("V2"),
        "torchvision_train: recipe is 'V2'; expected one of 'IMAGENET1K_V1', 'IMAGENET1K_",
    ),
    (lambda: torchvision_eval(None), "torchvision_eval: recipe is None; expected one of"),
    (lambda: timm_eval(0), "timm_eval: size is 0"),
    (lambda: timm_eval(224, 0), "timm_eval: crop_pct is 0"),
    (lambda: timm_eval(224, 1.1), "timm_eval: crop_pct is 1.1"),
    (lambda: RandomCrop(8, padding=-1), "RandomCrop: padding is -1"),
    (lambda: RandomCrop(8, fill=256), "RandomCrop: fill is 256"),
    (lambda: RandomCrop(8, fill=(1, 2)), r"RandomCrop: fill is \(1, 2\); expected one level, or one each for R"),
    (lambda: Resize(8, "area"), "Resize: interpolation is 'area'; expected one of bilinear"),
    (lambda: Resize(8, ["bilinear"]), r"Resize: interpolation is \['bilinear'\]"),
    (lambda: train(scale=(NAN, 1)), r"scale is \(nan, 1\)"),
    (lambda: train(scale=(0.1, NAN)), r"scale is \(0.1, nan\)"),
    (lambda: train(scale=(0.1, INF)), r"scale is \(0.1, inf\)"),
    (lambda: train(scale=(0.1, 0.5, 1)), r"scale is \(0.1, 0.5, 1\)"),
    (lambda: train(ratio=(-1, 1)), r"ratio is \(-1, 1\)"),
    (lambda: RandomErasing(ratio=(2, 1)), r"RandomErasing: ratio is \(2, 1\)"),
    (lambda: RandomErasing(scale=(0.1, 1.1)), r"RandomErasing: scale is \(0.1, 1.1\); expected shares of the image"),
    (lambda: RandomErasing(NAN), "RandomErasing: p is nan"),
    (lambda: train(erase=NAN), "Transform: erase is nan"),
    (lambda: train(erase=-0.5), "Transform: erase is -0.5"),
    (lambda: train(horizontal_flip=np.float32(1.5)), "horizontal_flip is .*1.5"),
    (lambda: RandomErasing(value=NAN), "RandomErasing: value is nan"),
    (lambda: RandomErasing(value=1e39), "RandomErasing: value is 1e.39"),
    (lambda: RandomErasing(value=[1, 2]), r"RandomErasing: value is \[1, 2\]"),
    (lambda: RandomErasing(value=(0, INF, 0)), r"RandomErasing: value is \(0, inf, 0\)"),
    (lambda: RandomErasing(value="noise"), "RandomErasing: value is 'noise'; expected .* or 'random'"),
    (lambda: train(mean=(0, NAN, 1)), r"Transform: mean is \(0, nan, 1\)"),
    (lambda: train(mean=(0, INF, 1)), r"Transform: mean is \(0, inf, 1\)"),
    (lambda: train(mean=(0, 0)), r"Transform: mean is \(0, 0\)"),
    (lambda: train(std=(1, NAN, 1)), r"Transform: std is \(1, nan, 1\); expected a positive number each"),
    (lambda: train(std=(1, 1, -1)), r"Transform: std is \(1, 1, -1\)"),
    (lambda: train(std=(1e-40, 1, 1)), "so small that values overflow"),
    (lambda: ColorJitter(np.float32(-0.1)), "brightness is .*-0.1"),
    (lambda: ColorJitter(contrast=(NAN, 1)), r"contrast is \(nan, 1.0\)"),
    (lambda: RandAugment(magnitude=31), "RandAugment: magnitude is 31; expected 0 to 30"),
    (lambda: AutoAugment(None), "AutoAugment: policy is None; expected one of 'imagenet'"),
    (lambda: AutoAugment(["imagenet"]), r"AutoAugment: policy is \['imagenet'\]"),
    (lambda: TrivialAugmentWide(fill=(1, 2)), r"TrivialAugmentWide: fill is \(1, 2\)"),
    (
        lambda: TrivialAugmentWide(interpolation="bicubic"),
        "TrivialAugmentWide: interpolation is 'bicubic'; expected one of nearest, bilinear",
    ),
    (lambda: RandAugment(interpolation=2), "RandAugment: interpolation is 2; expected one of nearest, bilinear"),
    (lambda: AutoAugment("svhn", ["nearest"]), r"AutoAugment: interpolation is \['nearest'\]"),
    (
        lambda: train(augment=[AutoAugment(), RandAugment(interpolation="bilinear")]),
        "the steps have different interpolations, bilinear and nearest",
    ),
    (lambda: GaussianBlur(4), "GaussianBlur: kernel_size is 4; expected odd numbers of pixels"),
    (lambda: GaussianBlur((3, 2)), r"GaussianBlur: kernel_size is \(3, 2\); expected odd numbers"),
    (lambda: GaussianBlur(-1), "GaussianBlur: kernel_size is -1; expected at least 1"),
    (lambda: GaussianBlur([0, 3]), "GaussianBlur: kernel_size is 0; expected at least 1"),
    (lambda: GaussianBlur((3, 3, 3)), r"kernel_size is \(3, 3, 3\); expected one odd number, or width and height"),
    (lambda: GaussianBlur(()), r"kernel_size is \(\)"),
    (lambda: GaussianBlur(3, 0), "GaussianBlur: sigma is 0; expected a positive number"),
    (lambda: GaussianBlur(3, -1.5), "GaussianBlur: sigma is -1.5"),
    (lambda: GaussianBlur(3, NAN), "GaussianBlur: sigma is nan"),
    (lambda: GaussianBlur(3, 1e-50), "GaussianBlur: sigma is 1e-50; expected .* finite in fp32"),
    (lambda: GaussianBlur(3, 1e39), "GaussianBlur: sigma is 1e.39"),
    (lambda: GaussianBlur(3, (0, 1)), r"GaussianBlur: sigma is \(0, 1\)"),
    (lambda: GaussianBlur(3, (2, 1)), r"GaussianBlur: sigma is \(2, 1\)"),
    (lambda: GaussianBlur(3, (1, INF)), r"GaussianBlur: sigma is \(1, inf\)"),
    (lambda: GaussianBlur(3, (1, 2, 3)), r"GaussianBlur: sigma is \(1, 2, 3\)"),
    (lambda: RandomInvert(1.5), "RandomInvert: p is 1.5"),
    (lambda: RandomPosterize(0), "RandomPosterize: bits is 0; expected 1 to 8"),
    (lambda: RandomPosterize(9), "RandomPosterize: bits is 9; expected 1 to 8"),
    (lambda: RandomPosterize(4, -1), "RandomPosterize: p is -1"),
    (lambda: RandomSolarize(NAN), "RandomSolarize: threshold is nan"),
    (lambda: RandomSolarize(INF), "RandomSolarize: threshold is inf"),
    (lambda: RandomSolarize(128, 2), "RandomSolarize: p is 2"),
    (lambda: RandomAdjustSharpness(-0.1), "RandomAdjustSharpness: sharpness_factor is -0.1"),
    (lambda: RandomAdjustSharpness(1e39), "RandomAdjustSharpness: sharpness_factor is 1e.39; expected .* finite"),
    (lambda: RandomAdjustSharpness(1, 2), "RandomAdjustSharpness: p is 2"),
    (lambda: RandomAutocontrast(-1), "RandomAutocontrast: p is -1"),
    (lambda: RandomEqualize(NAN), "RandomEqualize: p is nan"),
    (lambda: RandomApply([], 1.1), "RandomApply: p is 1.1"),
    (
        lambda: train(8, augment=GaussianBlur(17)),
        "17 x 17 .*width x height.* 8 x 8 pixels.* at most 15 x 15",
    ),
    (lambda: train((8, 9), augment=RandomApply([GaussianBlur((19, 1))])), "19 x 1 .* 9 x 8 pixels.* 17 x 15"),
    (lambda: Transform(Resize((8, 9)), augment=[GaussianBlur((17, 17))]), "17 x 17 .* 9 x 8 pixels.* 17 x 15"),
    (lambda: Mix(10**400), "Mix: mixup is 1000"),
    (lambda: MultiScale([]), "MultiScale: sizes is empty"),
    (lambda: MultiScale((192,), every=0), "MultiScale: every is 0"),
    (lambda: MultiScale((192,), seed=-1), "MultiScale: seed is -1"),
    (lambda: MultiScale((192,), seed=2**64), "MultiScale: seed is 18446744073709551616"),
    (lambda: ProgressiveSize(128, 224, 0), "ProgressiveSize: epochs is 0"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_KIND)
def test_values_of_another_kind(make, message):
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(("make", "message"), OUT_OF_RANGE)
def test_values_out_of_range(make, message):
    with pytest.raises(ValueError, match=message):
        make()


ONE, HALF = np.int64(1), np.float32(0.5)

# What is given as NumPy's numbers, arrays, lists or tensors; and the same as Python's.
SAME = [
    (lambda: RandomResizedCrop(np.int32(8)), lambda: RandomResizedCrop(8)),
    (lambda: RandomResizedCrop(np.array([8, 9])), lambda: RandomResizedCrop((8, 9))),
    (lambda: RandomResizedCrop([8, np.uint8(9)]), lambda: RandomResizedCrop((8, 9))),
    (lambda: RandomResizedCrop(8, [HALF, ONE], np.array([0.5, 2])), lambda: RandomResizedCrop(8, (0.5, 1), (0.5, 2))),
    (lambda: CenterCrop([8, 8], np.int64(9)), lambda: CenterCrop((8, 8), 9)),
    (lambda: CenterCrop(8, np.array([9, 10])), lambda: CenterCrop(8, (9, 10))),
    (lambda: RandomCrop(8, resize=[ONE * 9, 10]), lambda: RandomCrop(8, resize=(9, 10))),
    (lambda: Resize([8, 9]), lambda: Resize((8, 9))),
    (lambda: RandomCrop(8, ONE, np.bool_(True), [ONE, 2, 3]), lambda: RandomCrop(8, 1, True, (1, 2, 3))),
    (lambda: RandomCrop(8, fill=np.array([1, 2, 3])), lambda: RandomCrop(8, fill=(1, 2, 3))),
    (lambda: RandomCrop(8, fill=torch.tensor([1, 2, 3])), lambda: RandomCrop(8, fill=(1, 2, 3))),
    (lambda: RandomErasing(HALF, value=HALF), lambda: RandomErasing(0.5, value=0.5)),
    (lambda: RandomErasing(value=[1, 2, 3]), lambda: RandomErasing(value=(1, 2, 3))),
    (lambda: RandomErasing(value=torch.tensor([1, 2, 3])), lambda: RandomErasing(value=(1, 2, 3))),
    (lambda: train(8, erase=HALF, horizontal_flip=HALF), lambda: train(8, erase=0.5, horizontal_flip=0.5)),
    (lambda: train(8, mean=np.full(3, 0.5), std=[ONE] * 3), lambda: train(8, mean=(0.5,) * 3, std=(1, 1, 1))),
    (lambda: train(8, mean=torch.full((3,), 0.5)), lambda: train(8, mean=(0.5,) * 3)),
    (lambda: RandomGrayscale(HALF), lambda: RandomGrayscale(0.5)),
    (lambda: ColorJitter(HALF, [HALF, ONE]), lambda: ColorJitter(0.5, (0.5, 1))),
    (
        lambda: ColorJitter(np.array([0.5, 1.5]), hue=torch.tensor([0.25, 0.5])),
        lambda: ColorJitter((0.5, 1.5), hue=(0.25, 0.5)),
    ),
    (lambda: TrivialAugmentWide(np.int8(5), fill=np.uint8(7)), lambda: TrivialAugmentWide(5, fill=7)),
    (lambda: RandAugment(ONE, ONE, fill=np.array([1, 2, 3])), lambda: RandAugment(1, 1, fill=(1, 2, 3))),
    (lambda: AutoAugment(fill=[7]), lambda: AutoAugment(fill=7)),
    (lambda: GaussianBlur(np.int64(3), HALF), lambda: GaussianBlur((3, 3), (0.5, 0.5))),
    (lambda: GaussianBlur([3], np.array([0.5, 1])), lambda: GaussianBlur(3, (0.5, 1))),
    (lambda: GaussianBlur(torch.tensor([3, 5]), [HALF, ONE]), lambda: GaussianBlur((3, 5), (0.5, 1.0))),
    (lambda: RandomPosterize(np.uint8(3), HALF), lambda: RandomPosterize(3, 0.5)),
    (lambda: RandomSolarize(ONE, ONE), lambda: RandomSolarize(1, 1)),
    (lambda: RandomAdjustSharpness(HALF, ONE), lambda: RandomAdjustSharpness(0.5, 1)),
    (lambda: RandomInvert(HALF), lambda: RandomInvert(0.5)),
    (lambda: RandomAutocontrast(HALF), lambda: RandomAutocontrast(0.5)),
    (lambda: RandomEqualize(HALF), lambda: RandomEqualize(0.5)),
    (lambda: RandomApply([RandomInvert(ONE)], HALF), lambda: RandomApply((RandomInvert(1),), 0.5)),
    (lambda: Mix(HALF, ONE, probability=HALF), lambda: Mix(0.5, 1, probability=0.5)),
    (lambda: ProgressiveSize(*np.array([32, 64, 3])), lambda: ProgressiveSize(32, 64, 3)),
    (lambda: MultiScale(np.array([8, 9]), ONE, ONE), lambda: MultiScale((8, 9), 1, 1)),
    (lambda: MultiScale([8, [9, ONE]]), lambda: MultiScale((8, (9, 1)))),
]


def assert_is_python(value):
    """Assert that a value is made of Python's own types, none of which can change."""
    if isinstance(value, tuple):
        for item in value:
            assert_is_python(item)
    elif hasattr(value, "__dataclass_fields__"):
        for field in fields(value):
            assert_is_python(getattr(value, field.name))
    else:
        assert type(value) in (bool, int, float, str, type(None))


@pytest.mark.parametrize(("given", "python"), SAME)
def test_numpys_numbers_and_sequences_are_pythons(given, python):
    declaration = given()
    assert declaration == python()
    assert repr(declaration) == repr(python())
    assert hash(declaration) == hash(python())
    assert pickle.loads(pickle.dumps(declaration)) == declaration
    assert_is_python(declaration)


def test_a_declaration_does_not_change_with_the_list_it_was_given():
    sizes, mean = [8, [9, 10]], [0.0, 0.0, 0.0]
    schedule, transform = MultiScale(sizes), train(8, mean=mean)
    sizes[1][0], mean[0] = 0, 1.0
    assert schedule.sizes == (8, (9, 10))
    assert transform.mean == (0, 0, 0)


def test_a_centre_crop_of_another_size_from_a_list():
    # Whose declared size decides how much of the image its window holds.
    sizes, indices = np.array([[60, 80]]), np.arange(1)
    plans = [
        make_plan(Transform(CenterCrop(size, 36)), sizes, indices, seed=0, epoch=0, size=(16, 16))
        for size in ([32, 32], (32, 32), 32)
    ]
    assert len({plan.box.tobytes() + plan.start.tobytes() for plan in plans}) == 1


def test_shares_above_the_whole_image_are_attempts_that_fail():
    # Half of the areas fit, so of a thousand windows one or so fits in none of ten attempts, and is the whole image.
    n = 2000
    sizes = np.tile([[64, 64]], (n, 1))
    plan = make_plan(train(8, scale=(0.1, 1.9), ratio=(1, 1)), sizes, np.arange(n), seed=0, epoch=0)
    area = plan.shape.prod(axis=1) / 64**2
    assert (plan.start >= 0).all()
    assert (plan.start + plan.shape <= 64).all()
    assert abs(area.mean() - 0.55) < 5 * 0.26 / n**0.5  # uniform from 0.1 to 1


def test_output_size():
    assert output_size(8) == output_size(np.array([8, 8])) == (8, 8)
    assert output_size([8, np.int16(9)]) == (8, 9)
