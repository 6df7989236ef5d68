"""The tail of torchvision's transforms: which images travel as bytes, and that every batch is PyTorch's, bit for bit."""

import ast
import copy
import inspect
import logging
import pickle
import textwrap

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Subset, default_collate, random_split

import fastfeed
from fastfeed.data import workers
from fastfeed.data.reading import LeftBatch, split_tail, tail
from tests.images import picture
from tests.torch_loaders import PYTORCHS, DataLoader, assert_same, generator, outcomes
from tests.torchvision_ops import torchvision_or_skip

torchvision = torchvision_or_skip("torchvision")
datasets = torchvision_or_skip("torchvision.datasets")
v1 = torchvision_or_skip("torchvision.transforms")
v2 = torchvision_or_skip("torchvision.transforms.v2")

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
N1, N2 = v1.Normalize(MEAN, STD), v2.Normalize(MEAN, STD)
HALF = v1.Normalize((0.5,), (0.5,))
TO_FLOAT = v2.ToDtype(torch.float32, scale=True)
PLAIN = v1.Compose([v1.ToTensor(), N1])
FLOAT32 = v1.ConvertImageDtype(torch.float32)


def images(count=10, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *(shape or (9, 11, 3))), np.uint8)


def cifar(transform, data=None, cls=datasets.CIFAR10, **attributes):
    """A CIFAR10 of any images, which is not read from a file."""
    dataset = cls.__new__(cls)
    data = images() if data is None else data
    dataset.__dict__.update(
        data=data, targets=[i % 3 for i in range(len(data))], transform=transform, target_transform=None, **attributes
    )
    return dataset


def epoch(loader):
    torch.manual_seed(4)
    return outcomes(loader)


def assert_pytorchs(dataset, batch_size=4, **options):
    """Assert that two epochs are those of PyTorch's loader; errors too, but for the text of a traceback."""
    ours, theirs = (cls(dataset, batch_size, generator=generator(), **options) for cls in (DataLoader, PYTORCHS))
    for _ in range(2):
        got, expected = epoch(ours), epoch(theirs)
        assert [type(batch) for batch in got] == [type(batch) for batch in expected]
        for batch, other in zip(got, expected, strict=True):
            if isinstance(batch, tuple):
                assert batch[1].splitlines()[-1:] == other[1].splitlines()[-1:]
                continue
            assert_same(batch, other)
            image, its = (b[0] if isinstance(b, list) else b for b in (batch, other))
            assert image.stride() == its.stride()
    ours.close()
    return got


@pytest.fixture
def sent(monkeypatch):
    """What comes from the workers, batch by batch."""
    seen = []
    original = workers._next_result

    def spy(batches):
        result = original(batches)
        if result is not workers._END:
            seen.append(result)
        return result

    monkeypatch.setattr(workers, "_next_result", spy)
    return seen


def are_bytes(batches):
    return [isinstance(batch, LeftBatch) for batch in batches]


# --------------------------------------------------------------------------------------------- transforms

LEFT = {
    "ToTensor alone": v1.ToTensor(),
    "ToTensor": v1.Compose([v1.ToTensor()]),
    "CIFAR": v1.Compose([v1.RandomCrop(8, 2), v1.RandomHorizontalFlip(), v1.ToTensor(), N1]),
    "one mean for all channels": v1.Compose([v1.RandomVerticalFlip(), v1.ToTensor(), HALF]),
    "means in tensors": v1.Compose([v1.ToTensor(), v1.Normalize(torch.tensor(MEAN), torch.tensor(STD).double())]),
    "a mean and three stds": v1.Compose([v1.ToTensor(), v1.Normalize((0.5,), STD)]),
    "in place": v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD, inplace=True)]),
    "in a tuple": v1.Compose((v1.RandomHorizontalFlip(), v1.ToTensor(), N2)),
    "a lambda": v1.Compose([v1.Lambda(lambda image: image.rotate(90)), lambda image: image, v1.ToTensor(), N1]),
    "grey": v1.Compose([v1.Grayscale(1), v1.ToTensor(), HALF]),
    "with alpha": v1.Compose([lambda image: image.convert("RGBA"), v1.ToTensor(), HALF]),
    "PILToTensor": v1.Compose([v1.PILToTensor(), FLOAT32, N1]),
    "uint8 tensors": v1.Compose([v1.PILToTensor(), v1.RandomHorizontalFlip(), FLOAT32]),
    "modules": torch.nn.Sequential(v2.PILToTensor(), v1.RandomCrop(6), FLOAT32, N1),
    "all modules": torch.nn.Sequential(v2.PILToTensor(), FLOAT32),
    "v2's ToTensor": v2.Compose([v2.RandomHorizontalFlip(), v2.ToTensor(), N2]),
    "v2": v2.Compose([v2.ToImage(), v2.RandomCrop(8, padding=2), v2.RandomHorizontalFlip(), TO_FLOAT, N2]),
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
    "PIL images into ToDtype": v2.Compose([v2.RandomHorizontalFlip(), TO_FLOAT]),
    "three means, one channel": v1.Compose([v1.Grayscale(1), v1.ToTensor(), N1]),
    "strings": v1.Compose([str, v1.ToTensor()]),
    "every second": v1.Compose(
        [lambda image: image.convert("L" if image.getpixel((0, 0))[0] % 2 else "P"), v1.ToTensor()]
    ),
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


@pytest.mark.parametrize("transform", [PLAIN, LEFT["v2"], LEFT["uint8 tensors"]], ids=["v1", "v2", "tensors"])
def test_the_copy_can_be_sent_to_a_worker_that_is_spawned(transform):
    dataset = Subset(datasets.FakeData(6, (3, 8, 8), transform=transform), range(3))
    split = split_tail(dataset)
    (again, collate), samples = pickle.loads(pickle.dumps((split.dataset, tail.collate_left))), range(3)
    torch.manual_seed(0)
    got = collate([again[i] for i in samples])
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
    dataset.__dict__.update(data=images(), targets=[0] * 10, target_transform=None)
    return dataset


OTHERS = {
    "a class of one's own": lambda: Mine(PLAIN),
    "__getitem__": lambda: cifar(PLAIN, cls=Doubled),
    "__getitems__": lambda: cifar(PLAIN, cls=InBulk),
    "a property": with_property,
    "a Subset of one's own": lambda: Odd(cifar(PLAIN), range(5)),
    "two tails": lambda: ConcatDataset([cifar(PLAIN), cifar(v1.Compose([v1.ToTensor(), HALF]))]),
    "one of one's own": lambda: ConcatDataset([cifar(PLAIN), Mine(PLAIN)]),
    "a list": lambda: Subset([(torch.ones(1), 1)] * 3, range(3)),
    "wrapped for version 2": lambda: datasets.wrap_dataset_for_transforms_v2(cifar(LEFT["v2"], transforms=None)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_datasets_stay_as_they_are(name, sent):
    dataset = OTHERS[name]()
    assert split_tail(dataset) is None
    assert_pytorchs(dataset)
    assert not any(are_bytes(sent))


def test_a_truncated_file(tmp_path):
    dataset = celeba(PLAIN, tmp_path)
    path = tmp_path / "celeba/img_align_celeba" / "4.png"
    path.write_bytes(path.read_bytes()[:-60])
    *_, error = assert_pytorchs(dataset)
    assert error[0] is OSError


def test_files_are_closed_with_their_sample(tmp_path):
    image, _ = split_tail(celeba(PLAIN, tmp_path)).dataset[0]
    assert image.image.fp is None


# --------------------------------------------------------------------------------------------- the loader

WORKERS = {
    "a worker": {"num_workers": 1},
    "that stay": {"num_workers": 2, "persistent_workers": True},
    "pinned": {"num_workers": 1, "pin_memory": True},
}


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
@pytest.mark.parametrize("how", WORKERS)
def test_workers(how, sent):
    assert_pytorchs(cifar(LEFT["CIFAR"]), shuffle=True, multiprocessing_context="fork", **WORKERS[how])
    assert are_bytes(sent) == [True] * 6
    assert all(batch.images.is_shared() for batch in sent)  # and not copied into shared memory on their way
    if how == "a worker":
        assert_pytorchs(cifar(BY_PYTORCH["every second"]), multiprocessing_context="fork", **WORKERS[how])


def test_the_log_says_so(caplog):
    with caplog.at_level(logging.INFO, "fastfeed"):
        for dataset in (cifar(PLAIN), cifar(v1.ToTensor())):
            DataLoader(dataset, 2)
        DataLoader(cifar(PLAIN), None)
        DataLoader(cifar(PLAIN), 2, collate_fn=lambda batch: batch)
    said = [record.getMessage().rpartition("; ")[2] for record in caplog.records]
    assert said[:2] == ["ToTensor and Normalize run in the last pass", "ToTensor run in the last pass"]
    assert not any("last pass" in line for line in said[2:])


def test_samples_and_other_collate_functions(sent):
    dataset = cifar(PLAIN)
    assert_pytorchs(dataset, None)
    assert_pytorchs(dataset, collate_fn=lambda batch: default_collate(batch)[::-1])
    assert not any(are_bytes(sent))
    assert_pytorchs(dataset, collate_fn=default_collate)
    assert all(are_bytes(sent[-3:]))


def test_the_dataset_is_what_was_given():
    dataset = cifar(PLAIN)
    loader = DataLoader(dataset, 4)
    list(loader)
    assert loader.dataset is dataset
    assert dataset.transform is PLAIN
    assert len(PLAIN.transforms) == 2


def change_targets(dataset):
    dataset.targets = [7] * 10


def change_data(dataset):
    dataset.data = images(seed=3)


def change_the_transform(dataset):
    dataset.transform = v2.Compose([v2.ToImage(), TO_FLOAT, N2])


def change_a_part(dataset):
    dataset.transform = v1.Compose([v1.ToTensor(), v1.Normalize(MEAN, STD)])
    dataset.transform.transforms[1].mean = (0.1, 0.2, 0.3)


def leave_no_tail(dataset):
    dataset.transform = v1.Compose([v1.ToTensor(), N1, lambda image: -image])


def change_what_is_done_to_targets(dataset):
    dataset.target_transform = float


@pytest.mark.parametrize(
    "change",
    [
        change_targets,
        change_data,
        change_the_transform,
        change_a_part,
        leave_no_tail,
        change_what_is_done_to_targets,
    ],
)
@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_set_later_shows_from_the_next_epoch_on(change, workers):
    if workers and change is not leave_no_tail:
        return
    dataset = cifar(PLAIN)
    nested = Subset(dataset, [2, 3, 5, 7, 1])
    ours, theirs = (
        cls(nested, 2, num_workers=workers, multiprocessing_context="fork" if workers else None)
        for cls in (DataLoader, PYTORCHS)
    )
    first = epoch(ours)
    change(dataset)
    second = epoch(ours)
    assert_same(second, epoch(theirs))
    with pytest.raises(AssertionError):
        assert_same(first, second)
    dataset.transform = PLAIN
    assert_same(epoch(ours), epoch(theirs))


def test_a_collate_fn_that_is_set_later(sent):
    ours, theirs = (cls(cifar(PLAIN), 4) for cls in (DataLoader, PYTORCHS))
    for collate_fn in (lambda batch: default_collate(batch)[0], default_collate):
        ours.collate_fn = theirs.collate_fn = collate_fn
        assert_same(list(ours), list(theirs))
    assert are_bytes(sent) == [False] * 3 + [True] * 3


def test_an_iterator_goes_on_when_another_one_begins_with_another_transform():
    dataset = cifar(PLAIN)
    loader = DataLoader(dataset, 5)
    iterator = iter(loader)
    first = next(iterator)
    dataset.transform = v1.ToTensor()
    (one, other) = list(loader)
    assert_same([first[1], *next(iterator)], [one[1], *other])


def test_resume():
    dataset = cifar(PLAIN, images(12))
    loader = DataLoader(dataset, 3, shuffle=True)
    batches = list(loader)
    loader.set_epoch(0)
    iterator = iter(loader)
    next(iterator), next(iterator)
    other = DataLoader(dataset, 3, shuffle=True)
    other.load_state_dict(loader.state_dict())
    assert_same(list(other), batches[2:])


def test_info():
    for images_, target, info in DataLoader(cifar(PLAIN), 4, info=True):
        expected = default_collate([cifar(PLAIN)[i] for i in info.index.tolist()])
        assert_same([images_, target], expected)


def test_stable_addresses():
    dataset = cifar(BY_PYTORCH["every second"], images(24))
    for given in (dataset, cifar(PLAIN, images(24))):
        loader = DataLoader(given, 2, stable_addresses=True)
        addresses = set()
        for got, expected in zip(loader, PYTORCHS(given, 2), strict=True):
            assert_same(got, expected)
            addresses.add((got[0].data_ptr(), got[1].data_ptr()))
        assert len(addresses) == 1


def test_copies_of_a_loader():
    loader = DataLoader(cifar(PLAIN), 4)
    expected = list(loader)
    for copied in (copy.deepcopy(loader), pickle.loads(pickle.dumps(loader))):
        assert_same(list(copied), expected)
        copied.dataset.data = images(seed=9)
        assert not torch.equal(next(iter(copied))[0], expected[0][0])
    assert_same(list(loader), expected)
    loader.close()
    assert_same(list(loader), expected)


def test_a_batch_may_be_kept_and_changed():
    loader = DataLoader(cifar(PLAIN), 4)
    expected = list(PYTORCHS(cifar(PLAIN), 4))
    batches = list(loader)
    for batch in loader:
        batch[0].zero_()
    assert_same(batches, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("pin_memory", [False, True])
@pytest.mark.parametrize("name", ["CIFAR", "v2", "uint8 tensors", "grey"])
def test_batches_on_a_gpu_are_pytorchs(name, pin_memory):
    dataset = cifar(LEFT[name], images(10, 16, 24, 3))
    torch.manual_seed(4)
    got = list(fastfeed.DataLoader(dataset, 4, device="cuda", seed=0, generator=generator(), pin_memory=pin_memory))
    torch.manual_seed(4)
    expected = list(PYTORCHS(dataset, 4, generator=generator()))
    for batch, other in zip(got, expected, strict=True):
        assert batch[0].is_cuda
        assert_same([part.cpu() for part in batch], other)
