"""Published recipes: their numbers, and what the libraries that they come from make themselves, where installed."""

import pytest

from fastfeed import transforms
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from tests.torchvision_ops import torchvision_or_skip


def test_numbers():
    v1, v2 = (transforms.torchvision_train(f"IMAGENET1K_{name}") for name in ("V1", "V2"))
    assert transforms.torchvision_train() == v1 == transforms.train(224)
    assert v2 == transforms.train(176, augment=transforms.TrivialAugmentWide(interpolation="bilinear"), erase=0.1)
    assert transforms.torchvision_eval() == transforms.eval(224, resize=256)
    assert transforms.torchvision_eval("IMAGENET1K_V2") == transforms.eval(224, resize=232)
    jitter = transforms.ColorJitter(0.4, 0.4, 0.4)
    assert transforms.timm_train(192) == transforms.train(192, interpolation="random", augment=jitter)
    assert transforms.timm_eval() == transforms.eval(224, resize=256, interpolation="bicubic")
    assert transforms.timm_eval(224, 0.95).crop.resize == 235  # 235.8
    assert transforms.nvidia_train() == transforms.train(224)
    assert transforms.nvidia_eval() == transforms.eval(224, resize=256)
    cifar = transforms.cifar_train()
    assert cifar.crop == transforms.RandomCrop(32, padding=4)
    assert (cifar.horizontal_flip, cifar.augment, cifar.erase) == (0.5, (), None)
    assert cifar.mean == transforms.cifar_eval().mean == (0.4914, 0.4822, 0.4465)
    assert cifar.std == transforms.cifar_eval().std == (0.2470, 0.2435, 0.2616)
    assert transforms.cifar_eval().crop == transforms.CenterCrop(32)


@pytest.mark.parametrize("recipe", ["IMAGENET1K_V1", "IMAGENET1K_V2"])
def test_evaluation_of_torchvisions_weights(recipe):
    torchvision_or_skip("torchvision.transforms")
    resnet = torchvision_or_skip("torchvision.models.resnet")
    theirs, ours = resnet.ResNet50_Weights[recipe].transforms(), transforms.torchvision_eval(recipe)
    assert [ours.crop.size] == theirs.crop_size
    assert [ours.crop.resize] == theirs.resize_size
    assert ours.crop.interpolation == theirs.interpolation.value
    assert (ours.mean, ours.std) == (tuple(theirs.mean), tuple(theirs.std))


def steps_of_timm(**arguments):
    torchvision_or_skip("torchvision.transforms")
    return {
        type(step).__name__: step for step in pytest.importorskip("timm.data").create_transform(**arguments).transforms
    }


@pytest.mark.parametrize("size", [224, 192, 299])
def test_training_with_timm(size):
    theirs, ours = steps_of_timm(input_size=size, is_training=True, interpolation="random"), transforms.timm_train(size)
    assert set(theirs) == {
        *("RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "ColorJitter", "MaybeToTensor", "Normalize")
    }
    crop = theirs["RandomResizedCropAndInterpolation"]
    assert (ours.size, ours.crop.scale, ours.crop.ratio) == (crop.size, crop.scale, crop.ratio)
    assert [mode.value for mode in crop.interpolation] == ["bilinear", "bicubic"]
    assert ours.crop.interpolation == "random"
    assert ours.horizontal_flip == theirs["RandomHorizontalFlip"].p
    (jitter,) = ours.augment
    names = ("brightness", "contrast", "saturation", "hue")
    expected = {name: getattr(theirs["ColorJitter"], name) for name in names}
    ranges = {kind.name.lower(): values for kind, values in jitter.ranges().items()}
    assert ranges == {name: values for name, values in expected.items() if values is not None}
    assert (ours.mean, ours.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert theirs["Normalize"].mean.tolist() == pytest.approx(ours.mean)
    assert theirs["Normalize"].std.tolist() == pytest.approx(ours.std)


@pytest.mark.parametrize("crop_pct", [0.875, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("size", [224, 160, 225, 299])
def test_evaluation_with_timm(size, crop_pct):
    theirs = steps_of_timm(input_size=size, crop_pct=crop_pct, interpolation="bicubic")
    ours = transforms.timm_eval(size, crop_pct)
    assert set(theirs) == {"Resize", "CenterCrop", "MaybeToTensor", "Normalize"}
    assert ours.crop.resize == theirs["Resize"].size
    assert ours.crop.interpolation == theirs["Resize"].interpolation.value
    assert ours.size == tuple(theirs["CenterCrop"].size)
    assert theirs["Normalize"].mean.tolist() == pytest.approx(ours.mean)


def test_what_timms_scripts_take_by_default():
    torchvision_or_skip("torchvision.transforms")
    config = pytest.importorskip("timm.data").resolve_data_config({}, pretrained_cfg={"num_classes": 10})
    ours = transforms.timm_eval()
    assert config["interpolation"] == ours.crop.interpolation
    assert config["crop_mode"] == "center"
    assert ours.crop.resize == int(config["input_size"][1] / config["crop_pct"])
    assert (config["mean"], config["std"]) == (ours.mean, ours.std)
