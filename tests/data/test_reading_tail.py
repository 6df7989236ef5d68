"""The tails of torchvision's transforms: which images travel as bytes; and that batches are PyTorch's, bit for bit."""

import ast
import copy
import functools
import inspect
import pickle
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, random_split

from fastfeed.data import collate
from fastfeed.data.reading import split_tail, tail
from tests.images import picture
from tests.torch_loaders import assert_same, generator
from tests.torchvision_tails import (
    CIFAR,
    EVERY_SECOND,
    FLOAT32,
    GREY,
    HALF,
    MEAN,
    N1,
    N2,
    PLAIN,
    STD,
    TENSORS,
    TO_FLOAT,
    V2,
    are_bytes,
    assert_pytorchs,
    cifar,
    datasets,
    images,
    spy_on_workers,
    v1,
    v2,
)


@pytest.fixture
def sent(monkeypatch):
    return spy_on_workers(monkeypatch)


# --------------------------------------------------------------------------------------------- transforms

SCREEN = Image.new("RGB", (11, 9))
BUFFER = torch.empty(3, 9, 11, dtype=torch.uint8)


def drawn_on_one_screen(image):
    SCREEN.paste(image)
    return SCREEN


def copied_into_one_buffer(image):
    return BUFFER.copy_(v1.functional.pil_to_tensor(image))


LEFT = {
    "ToTensor alone": v1.ToTensor(),
    "ToTensor": v1.Compose([v1.ToTensor()]),
    "CIFAR": CIFAR,
    "one mean for all channels": v1.Compose([v1.RandomVerticalFlip(), v1.ToTensor(), HALF]),
    "means in tensors": v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN), torch.tensor(STD).double())]),
    "a mean and three stds": v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), STD)]),
    "in place": v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD, inplace=True)]),
    "in a tuple": v1.Compose((v1.RandomHorizontalFlip(), v1.ToTensor(), N2)),
    "a lambda": v1.Compose([v1.Lambda(lambda image: image.rotate(90)), lambda image: image, v1.ToTensor(), N1]),
    "one image for all samples": v1.Compose([drawn_on_one_screen, v1.ToTensor(), N1]),
    "one tensor for all samples": v1.Compose([copied_into_one_buffer, FLOAT32, N1]),
    "grey": GREY,
    "with alpha": v1.Compose([lambda image: image.convert("RGBA"), v1.ToTensor(), HALF]),
    "PILToTensor": v1.Compose([v1.PILToTensor(), FLOAT32, N1]),
    "uint8 tensors": TENSORS,
    "modules": torch.nn.Sequential(v2.PILToTensor(), v1.RandomCrop(6), FLOAT32, N1),
    "all modules": torch.nn.Sequential(v2.PILToTensor(), FLOAT32),
    "v2's ToTensor": v2.Compose([v2.RandomHorizontalFlip(), v2.ToTensor(), N2]),
    "v2": V2,
    "v2 of PIL images": v2.Compose([v2.RandomRotation(20), v2.ToImage(), TO_FLOAT]),
    "v2, pure tensors": v2.Compose([v2.PILToTensor(), TO_FLOAT, v2.ToPureTensor(), N2, v2.ToPureTensor()]),
    "v2's ConvertImageDtype": v2.Compose([v2.ToImage(), v2.ToPureTensor(), v2.ConvertImageDtype(torch.float32)]),
    "v2, then v1": v1.Compose([v2.ToImage(), v2.RandomHorizontalFlip(), FLOAT32, N1]),
    "v1, then v2": v2.Compose([v1.PILToTensor(), TO_FLOAT, N1]),
}


@pytest.mark.parametrize("name", LEFT)
def test_bytes_travel_and_batches_are_pytorchs(name, sent):
    dataset = cifar(LEFT[name])
    assert split_tail(dataset) is not None
    batches = assert_pytorchs(dataset, shuffle=True)
    assert [batch[0].dtype for batch in batches] == [torch.float32] * 3
    assert are_bytes(sent) == [True] * 6


def float64(image):
    return v1.functional.to_tensor(image).double()


NOT_LEFT = {
    "none": None,
    "bytes": v1.PILToTensor(),
    "float16": v1.Compose([v1.PILToTensor(), v1.ConvertImageDtype(torch.float16)]),
    "not scaled": v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32), N2]),
    "by type": v2.Compose([v2.ToImage(), v2.ToDtype({v2.functional.to_image: None, "others": torch.float32})]),
    "two Normalizes": v1.Compose([v1.ToTensor(), N1, HALF]),
    "erasing": v1.Compose([v1.ToTensor(), N1, v1.RandomErasing(1)]),
    "a lambda at the end": v1.Compose([v1.ToTensor(), N1, lambda image: image]),
    "a function": float64,
    "a Compose in it": v1.Compose([v1.RandomHorizontalFlip(), PLAIN]),
    "negative std": v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), (-0.5,))]),
    "std of zero": v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), (0.0,))]),
    "means that do not fit": v1.Compose([v1.ToTensor(), v1.Normalize((0.5, 0.5), STD)]),
    "five channels": v1.Compose([v1.ToTensor(), v1.Normalize((0.5,) * 5, (0.5,) * 5)]),
    "no transforms": v1.Compose([]),
}


@pytest.mark.parametrize("name", NOT_LEFT)
def test_other_transforms_stay_as_they_are(name, sent):
    dataset = cifar(NOT_LEFT[name])
    assert split_tail(dataset) is None
    assert_pytorchs(dataset)
    assert not any(are_bytes(sent))


def hooked():
    module = torch.nn.Sequential(v2.PILToTensor(), FLOAT32)
    module.register_forward_hook(lambda module, inputs, output: output * 2)
    return module


class Halved(v1.Normalize):
    def forward(self, image):
        return super().forward(image) / 2


@pytest.mark.parametrize("transform", [hooked(), v1.Compose([v1.ToTensor(), Halved(MEAN, STD)])], ids=["hook", "class"])
def test_what_was_changed_is_not_read(transform):
    assert split_tail(cifar(transform)) is None
    assert_pytorchs(cifar(transform))


# In the tail's place, and none of its business: each image goes its old way, in the worker.
BY_PYTORCH = {
    "floats": v1.Compose([v1.ToTensor(), FLOAT32, N1]),
    "bytes of v2's ToTensor": v2.Compose([v2.PILToTensor(), v2.ToTensor()]),
    "grey becomes three": v2.Compose([v2.Grayscale(1), v2.ToImage(), TO_FLOAT, N2]),
    "a palette": v1.Compose([lambda image: image.convert("P"), v1.ToTensor()]),
    "one bit": v1.Compose([lambda image: image.convert("1"), v1.ToTensor()]),
    "32 bits": v1.Compose([lambda image: image.convert("I"), v1.ToTensor()]),
    "arrays": v1.Compose([np.asarray, v1.ToTensor(), N1]),
    "tensors into ToTensor": v1.Compose([v1.PILToTensor(), v1.ToTensor()]),
    "tensors into ToImage": v2.Compose([v2.PILToTensor(), v2.ToImage(), v2.ToImage(), TO_FLOAT]),
    "two channels": v1.Compose([v1.PILToTensor(), lambda image: image[:2], FLOAT32]),
    "batches of one": v1.Compose([v1.PILToTensor(), lambda image: image[None], FLOAT32]),
    "int16": v1.Compose([v1.PILToTensor(), lambda image: image.short(), FLOAT32]),
    "empty": v1.Compose([v1.PILToTensor(), lambda image: image[:, :0], FLOAT32]),
    "no pixels": v1.Compose([lambda image: image.crop((2, 2, 2, 5)), v1.ToTensor()]),
    "PIL images into ToDtype": v2.Compose([v2.RandomHorizontalFlip(), TO_FLOAT]),
    "three means, one channel": v1.Compose([v1.Grayscale(1), v1.ToTensor(), N1]),
    "strings": v1.Compose([str, v1.ToTensor()]),
    "every second": EVERY_SECOND,
}


@pytest.mark.parametrize("name", BY_PYTORCH)
def test_other_images_go_their_old_way(name, sent):
    dataset = cifar(BY_PYTORCH[name])
    assert split_tail(dataset) is not None
    assert_pytorchs(dataset)
    assert not any(are_bytes(sent)) or name == "every second"


def test_ragged_images():
    ragged = [*images(4), *images(4, 7, 7, 3), *images(1, 9, 11, 3), *images(1, 7, 7, 3)]
    *batches, error = assert_pytorchs(cifar(PLAIN, ragged))
    assert [batch[0].shape[2] for batch in batches] == [9, 7]
    assert error[0] is RuntimeError
    assert "stack expects each tensor to be equal size" in error[1]


def test_tensors_and_pil_images_in_one_batch():
    def every_second(image):
        return v1.functional.pil_to_tensor(image) if image.getpixel((0, 0))[0] % 2 else image

    assert_pytorchs(cifar(v2.Compose([every_second, v2.ToImage(), TO_FLOAT, N2])))


def test_default_dtype(sent):
    torch.set_default_dtype(torch.float64)
    try:
        (batch, *_) = assert_pytorchs(cifar(PLAIN))
        assert batch[0].dtype == torch.float64
        assert not any(are_bytes(sent))
        assert assert_pytorchs(cifar(LEFT["PILToTensor"]))[0][0].dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)
    assert any(are_bytes(sent))


# --------------------------------------------------------------------------------------------- datasets


def makes_images_last(cls):
    """Which of `transform` and `transforms` is the last thing that happens to the image of a pair; by the source."""
    function = ast.parse(textwrap.dedent(inspect.getsource(vars(cls)["__getitem__"]))).body[0]
    returned = [node.value for node in ast.walk(function) if isinstance(node, ast.Return)]
    if not returned or not all(isinstance(value, ast.Tuple) and len(value.elts) == 2 for value in returned):
        return None
    name = returned[0].elts[0].id
    assigned = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Assign) and name in {n.id for n in ast.walk(node.targets[0]) if isinstance(n, ast.Name)}
    ]
    last = max(assigned, key=lambda node: node.lineno).value
    return getattr(getattr(last, "func", None), "attr", None)


def test_the_classes_are_those_that_transform_last():
    exported = [getattr(datasets, name) for name in datasets.__all__ if inspect.isclass(getattr(datasets, name))]
    classes = {cls for found in exported for cls in found.__mro__ if cls.__module__.startswith("torchvision.datasets.")}
    found = {cls.__name__: makes_images_last(cls) for cls in classes if "__getitem__" in vars(cls)}
    # Of another version than 0.28 some may be missing, or new.
    for names, how in ((tail._CALL_TRANSFORM, "transform"), (tail._CALL_TRANSFORMS, "transforms")):
        assert {found.get(name, how) for name in names} == {how}
        assert {name for name in names if name in found}


def mnist(transform):
    return cifar(transform, torch.from_numpy(images(6, 8, 8)), datasets.FashionMNIST)


def pets(transform, folder):
    """Targets in tuples; `transforms` for image and target."""
    dataset = datasets.OxfordIIITPet.__new__(datasets.OxfordIIITPet)
    paths = []
    for i in range(5):
        picture(9, 7, seed=i).save(folder / f"{i}.png")
        paths.append(folder / f"{i}.png")
    dataset.__dict__.update(_images=paths, _labels=[*range(5)], _bin_labels=[0] * 5)
    dataset.__dict__.update(_target_types=["category", "binary-category"])
    dataset.transforms = datasets.vision.StandardTransform(transform, lambda target: (*target, "name"))
    return dataset


def celeba(transform, folder):
    """Images whose files are open until they are loaded; targets that are tensors."""
    dataset = datasets.CelebA.__new__(datasets.CelebA)
    (folder / "celeba/img_align_celeba").mkdir(parents=True)
    for i in range(5):
        picture(9, 7, seed=i).save(folder / "celeba/img_align_celeba" / f"{i}.png")
    dataset.__dict__.update(root=folder, filename=[f"{i}.png" for i in range(5)], target_type=["attr", "identity"])
    dataset.__dict__.update(attr=torch.arange(15).view(5, 3), identity=torch.arange(5)[:, None])
    dataset.__dict__.update(transform=transform, target_transform=None)
    return dataset


class Own(datasets.CIFAR10):
    """Which changes nothing of how samples are made."""

    def extra_repr(self):
        return "mine"


DATASETS = {
    "FakeData": lambda folder: datasets.FakeData(
        6, (3, 6, 8), transform=PLAIN, target_transform=lambda target: target + 1
    ),
    "grey FakeData": lambda folder: datasets.FakeData(6, (1, 6, 8), transform=v1.ToTensor()),
    "FashionMNIST": lambda folder: mnist(v1.ToTensor()),
    "SVHN": lambda folder: cifar(PLAIN, images(6, 3, 8, 6), datasets.SVHN, labels=np.arange(6)),
    "unlabelled STL10": lambda folder: cifar(PLAIN, images(6, 3, 8, 6), datasets.STL10, labels=None),
    "OxfordIIITPet": lambda folder: pets(PLAIN, folder),
    "CelebA": lambda folder: celeba(PLAIN, folder),
    "a subclass": lambda folder: cifar(PLAIN, cls=Own),
    "Subset": lambda folder: Subset(cifar(PLAIN), [3, 1, 4, 1, 5]),
    "ConcatDataset": lambda folder: ConcatDataset([cifar(PLAIN), cifar(copy.deepcopy(PLAIN), images(5))]),
    "nested": lambda folder: Subset(
        ConcatDataset([Subset(cifar(PLAIN), range(9, 2, -2)), *random_split(cifar(PLAIN), [5, 5], generator())]),
        [13, 2, 4, 0, 5, 7],
    ),
}


@pytest.mark.parametrize("name", DATASETS)
def test_datasets(name, sent, tmp_path):
    dataset = DATASETS[name](tmp_path)
    before = dict(vars(dataset))
    assert_pytorchs(dataset)
    assert all(are_bytes(sent)) == (name != "unlabelled STL10")  # of None no batch can be made
    assert vars(dataset) == before


@pytest.mark.parametrize("transform", [PLAIN, V2, TENSORS], ids=["v1", "v2", "tensors"])
def test_the_copy_can_be_sent_to_a_worker_that_is_spawned(transform):
    dataset = Subset(datasets.FakeData(6, (3, 8, 8), transform=transform), range(3))
    split = split_tail(dataset)
    (again, collate_again), samples = pickle.loads(pickle.dumps((split.dataset, tail.collate_left))), range(3)
    torch.manual_seed(0)
    got = collate_again([again[i] for i in samples])
    torch.manual_seed(0)
    expected = tail.collate_left([split.dataset[i] for i in samples])
    assert got.scaling == expected.scaling == split.tail.scaling
    assert_same(list(got[:2]), list(expected[:2]))


class Doubled(datasets.CIFAR10):
    def __getitem__(self, i):
        image, target = super().__getitem__(i)
        return image * 2, target


class InBulk(datasets.CIFAR10):
    def __getitems__(self, indices):
        return [(self[i][0] + i, i) for i in indices]


class Property(datasets.CIFAR10):
    @property
    def transform(self):
        return PLAIN


class Counted(datasets.CIFAR10):
    """Whose code, which `__getitem__` runs, changes the dataset itself."""

    @property
    def target_transform(self):
        self.asked += 1
        return lambda target: self.asked


class CopiedInItsOwnWay(datasets.CIFAR10):
    def __getstate__(self):
        return {**vars(self), "targets": None}


class Mine(torch.utils.data.Dataset):
    def __init__(self, transform):
        self.transform = transform

    def __len__(self):
        return 5

    def __getitem__(self, i):
        return self.transform(Image.fromarray(images()[i])) * 2, i


class Odd(Subset):
    def __getitem__(self, i):
        image, target = self.dataset[i]
        return image * 3, target

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def with_property():
    dataset = datasets.CIFAR10.__new__(Property)
    dataset.__dict__.update(data=images(), targets=[0] * 10, target_transform=None, transform=v1.ToTensor())
    return dataset


def with_count():
    dataset = datasets.CIFAR10.__new__(Counted)
    dataset.__dict__.update(data=images(), targets=[0] * 10, asked=0, transform=PLAIN)
    return dataset


OTHERS = {
    "a class of one's own": lambda: Mine(PLAIN),
    "__getitem__": lambda: cifar(PLAIN, cls=Doubled),
    "__getitems__": lambda: cifar(PLAIN, cls=InBulk),
    "a property": with_property,
    "a property that is read": with_count,
    "__getstate__": lambda: cifar(PLAIN, cls=CopiedInItsOwnWay),
    "a Subset of one's own": lambda: Odd(cifar(PLAIN), range(5)),
    "two tails": lambda: ConcatDataset([cifar(PLAIN), cifar(v1.Compose([v1.ToTensor(), HALF]))]),
    "one of one's own": lambda: ConcatDataset([cifar(PLAIN), Mine(PLAIN)]),
    "a list": lambda: Subset([(torch.ones(1), 1)] * 3, range(3)),
    "wrapped for version 2": lambda: datasets.wrap_dataset_for_transforms_v2(cifar(V2, transforms=None)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_datasets_stay_as_they_are(name, sent):
    dataset = OTHERS[name]()
    assert split_tail(dataset) is None
    assert_pytorchs(OTHERS[name])
    assert not any(are_bytes(sent))


def test_a_class_that_was_patched_is_not_read(monkeypatch):
    original = datasets.CIFAR10.__getitem__
    doubled = functools.wraps(original)(lambda dataset, i: (original(dataset, i)[0] * 2, i))
    monkeypatch.setattr(datasets.CIFAR10, "__getitem__", doubled)
    assert split_tail(cifar(PLAIN)) is None
    assert_pytorchs(cifar(PLAIN))


def test_a_truncated_file(tmp_path):
    dataset = celeba(PLAIN, tmp_path)
    path = tmp_path / "celeba/img_align_celeba" / "4.png"
    path.write_bytes(path.read_bytes()[:-60])
    *_, error = assert_pytorchs(dataset)
    assert error[0] is OSError


def test_files_are_closed_with_their_sample(tmp_path):
    image, _ = split_tail(celeba(PLAIN, tmp_path)).dataset[0]
    assert getattr(image.image, "fp", None) is None


def test_a_worker_stacks_into_shared_memory(monkeypatch):
    split = split_tail(cifar(PLAIN))
    assert not tail.collate_left([split.dataset[0]]).images.is_shared()
    monkeypatch.setattr(collate, "get_worker_info", object)
    assert tail.collate_left([split.dataset[0]]).images.is_shared()
