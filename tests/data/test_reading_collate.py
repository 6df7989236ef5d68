"""Which collate functions are read, as what, and why the others are not."""

import functools

import pytest
import torch
import torch.utils.data as data_module
from torch.utils.data import default_collate
from torch.utils.data import default_collate as renamed

from fastfeed import Mix
from fastfeed.data.reading import Unreadable, read_collate
from tests.torchvision_ops import torchvision_or_skip

v1 = torchvision_or_skip("torchvision.transforms")
v2 = torchvision_or_skip("torchvision.transforms.v2")

mixup = v2.MixUp(alpha=0.2, num_classes=10)
cutmix = v2.CutMix(alpha=0.7, num_classes=10)
either = v2.RandomChoice([cutmix, mixup])
counter = 0
numbers = [1, 2]


def plain(batch):
    return default_collate(batch)


def plain_pair(batch):
    images, target = renamed(batch)
    return images, target


def starred(batch):
    return mixup(*default_collate(batch))


def whole(batch):
    return cutmix(default_collate(batch))


def by_module(batch):
    return either(*torch.utils.data.default_collate(batch))


def by_another_module(batch):
    return either(*data_module.dataloader.default_collate(batch))


def two_names(batch):
    images, target = default_collate(batch)
    images, target = mixup(images, target)
    return images, target


def imports_inside(batch):
    import torch.utils.data
    from torch.utils.data import default_collate as inside

    del inside
    return mixup(*torch.utils.data.default_collate(batch))


def with_default(batch, mix=mixup, *, collate=default_collate):
    return mix(*collate(batch))


def with_helper(batch):
    def collated():
        return default_collate(batch)

    return mixup(*collated())


def closure(mix, collate=default_collate):
    return lambda batch: mix(*collate(batch))


BOTH = Mix(0.2, 0.7, num_classes=10)
MIXUP = Mix(0.2, num_classes=10)


@pytest.mark.parametrize(("function", "expected"), [
    (None, None),
    (default_collate, None),
    (plain, None),
    (plain_pair, None),
    (starred, MIXUP),
    (whole, Mix(0.0, 0.7, num_classes=10)),
    (by_module, BOTH),
    (by_another_module, BOTH),
    (two_names, MIXUP),
    (imports_inside, MIXUP),
    (with_default, MIXUP),
    (with_helper, MIXUP),
    (closure(mixup), MIXUP),
    (closure(v2.MixUp(alpha=0.3)), Mix(0.3)),
    (closure(v2.RandomChoice([mixup, cutmix], p=[3, 3])), BOTH),
    (closure(v2.RandomChoice([mixup])), MIXUP),
    (closure(v2.RandomApply([either], p=0.3)), Mix(0.2, 0.7, probability=0.3, num_classes=10)),
    (closure(v2.RandomApply(torch.nn.ModuleList([cutmix]))), Mix(0.0, 0.7, probability=0.5, num_classes=10)),
])  # fmt: skip
def test_functions_that_are_read(function, expected):
    assert read_collate(function) == expected


def prints(batch):
    print("a batch")
    return mixup(*default_collate(batch))


def counts(batch):
    global counter
    counter += 1
    return mixup(*default_collate(batch))


def appends(batch):
    numbers.append(3)
    return mixup(*default_collate(batch))


def looks(batch):
    return mixup(*default_collate(batch)) if batch[0] else default_collate(batch)


def asks(batch):
    return mixup(*default_collate(batch)) if batch else default_collate(batch)


def compares(batch):
    return mixup(*default_collate(batch)) if batch == 1 else default_collate(batch)


def depends(batch):
    if torch.rand(()) < 0.5:
        return default_collate(batch)
    return mixup(*default_collate(batch))


def sets(batch):
    torch.batch = batch
    return mixup(*default_collate(batch))


def swapped(batch):
    images, target = default_collate(batch)
    return mixup(target, images)


def half(batch):
    images, target = default_collate(batch)
    mixed, _ = mixup(images, target)
    return mixed, target


def both(batch):
    return mixup(*cutmix(*default_collate(batch)))


def one_for_nothing(batch):
    cutmix(*default_collate(batch))
    return mixup(*default_collate(batch))


def unmixed(batch):
    mixup(*default_collate(batch))
    return default_collate(batch)


def three(batch):
    images, target = default_collate(batch)
    return images, target, 1


def nothing(batch):
    default_collate(batch)


def generates(batch):
    yield default_collate(batch)


def own(batch):
    return torch.stack([image for image, _ in batch]), torch.tensor([target for _, target in batch])


def other_batch(batch):
    return default_collate([batch])


class Collate:
    def __call__(self, batch):
        return default_collate(batch)


class MyMixUp(v2.MixUp):
    pass


MORE = "which does more than can be read"


@pytest.mark.parametrize(("function", "reason"), [
    (prints, rf"collate_fn is prints, {MORE} \(name 'print' is not defined\)"),
    (counts, rf"{MORE} \(name 'counter' is not defined\)"),
    (appends, rf"{MORE} \(name 'numbers' is not defined\)"),
    (looks, MORE),
    (asks, rf"{MORE} \(it looks at the batch\)"),
    (compares, rf"{MORE} \(it looks at the batch\)"),
    (depends, rf"{MORE} \(it uses torch.rand\)"),
    (sets, rf"{MORE} \(it sets batch of a module\)"),
    (swapped, rf"{MORE} \(it gives MixUp something else than the images and the target\)"),
    (half, "collate_fn is half, which returns something else"),
    (both, rf"{MORE} \(it gives MixUp something else"),
    (one_for_nothing, "returns something else"),
    (unmixed, "returns something else"),
    (three, "returns something else"),
    (nothing, "returns something else"),
    (generates, "returns something else"),
    (own, rf"{MORE} \(it uses torch.stack\)"),
    (other_batch, rf"{MORE} \(it collates something else than the batch\)"),
    (Collate(), "collate_fn is Collate, which cannot be read"),
    (Collate().__call__, "collate_fn is Collate.__call__, which cannot be read"),
    (functools.partial(starred), "collate_fn is partial, which cannot be read"),
    (mixup, "collate_fn is MixUp, which cannot be read"),
    (torch.utils.data.default_convert, MORE),
    (closure(None), rf"{MORE} \('_Opaque' object is not callable\)"),
    (closure(MyMixUp(num_classes=3)), MORE),
    (closure(v2.RandomChoice([cutmix, mixup], p=[0.4, 0.6])),
     r"RandomChoice: p is \[0.4, 0.6\], and only equal probabilities can be done"),
    (closure(v2.RandomChoice([mixup, mixup])),
     "RandomChoice has MixUp, MixUp, and of batches only MixUp, CutMix, or one of each can be done"),
    (closure(v2.RandomChoice([mixup, v2.RandomErasing()])), "RandomChoice has MixUp, RandomErasing"),
    (closure(v2.RandomApply([mixup, cutmix])), "RandomApply has 2 transforms, and of batches one can be done"),
    (closure(v2.RandomChoice([mixup, v2.CutMix(num_classes=3)])), "different num_classes, (3 and 10|10 and 3)"),
    (closure(v2.MixUp(num_classes=3, labels_getter=lambda batch: batch[1])),
     "MixUp: labels_getter is given, and only the default one can be done"),
    (closure(v2.MixUp(num_classes=0)), "Mix: num_classes is 0; expected at least 1"),
])  # fmt: skip
def test_functions_that_are_not_read(function, reason, capsys):
    with pytest.raises(Unreadable, match=reason):
        read_collate(function)
    # Nor did they do anything.
    assert capsys.readouterr().out == ""
    assert counter == 0
    assert numbers == [1, 2]
    assert not hasattr(torch, "batch")
