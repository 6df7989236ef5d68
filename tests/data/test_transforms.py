import pytest

from fastfeed import transforms


def test_recipes():
    assert transforms.train(192).crop == transforms.RandomResizedCrop(192, (0.08, 1.0), (3 / 4, 4 / 3))
    assert transforms.eval(224).crop == transforms.CenterCrop(224, 256)
    assert transforms.eval(224, resize=232).crop == transforms.CenterCrop(224, 232)
    assert transforms.train().horizontal_flip == 0.5
    assert transforms.eval().horizontal_flip == 0.0
    # the statistics of ImageNet that torchvision's weights are trained with
    assert transforms.train().mean == transforms.eval().mean == (0.485, 0.456, 0.406)
    assert transforms.train().std == transforms.eval().std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(("make", "message"), [
    (lambda: transforms.train(0), "size is 0"),
    (lambda: transforms.train(scale=(0.5, 0.1)), r"scale is \(0.5, 0.1\)"),
    (lambda: transforms.train(scale=(0, 1)), r"scale is \(0, 1\)"),
    (lambda: transforms.train(ratio=(1,)), r"ratio is \(1,\)"),
    (lambda: transforms.train(horizontal_flip=1.5), "horizontal_flip is 1.5"),
    (lambda: transforms.train(mean=(0.5,)), r"mean is \(0.5,\)"),
    (lambda: transforms.train(std=(1, 0, 1)), r"std is \(1, 0, 1\)"),
    (lambda: transforms.eval(224, resize=200), "size is 224, larger than resize, 200"),
])  # fmt: skip
def test_bad_declarations(make, message):
    with pytest.raises(ValueError, match=message):
        make()
