"""Which datasets are read, as what, and why the others are not."""

import io
import shutil

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset, TensorDataset, random_split

from fastfeed import DataLoader
from fastfeed import transforms as ours
from fastfeed.data.reading import Unreadable, read_dataset
from fastfeed.data.sources import EncodedSource, ListSource, SampleSource
from fastfeed.data.transforms import Transform
from tests.images import picture, write_folder
from tests.torchvision_ops import torchvision_or_skip

torchvision = torchvision_or_skip("torchvision")
datasets = torchvision_or_skip("torchvision.datasets")
v1 = torchvision_or_skip("torchvision.transforms")

TRANSFORM = v1.Compose([v1.Resize((16, 20)), v1.ToTensor()])
READ = Transform(ours.Resize((16, 20)), mean=(0.0,) * 3, std=(1.0,) * 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("images") / "all", {"cat": 3, "dog": 4})


@pytest.fixture
def folder(root):
    return datasets.ImageFolder(root, TRANSFORM)


def reasons(dataset):
    with pytest.raises(Unreadable) as raised:
        read_dataset(dataset)
    return raised.value.reasons


def targets_of(source, pool):
    return source.read(range(len(source)), pool).targets


def paths_of(source):
    return [source.name(i) for i in range(len(source))]


class Encoded(Dataset):
    def __init__(self, count=3, transform=None):
        self.count, self.transform = count, transform

    def __len__(self):
        return self.count

    def get_encoded(self, index):
        file = io.BytesIO()
        picture(8, 9, seed=index).save(file, "PNG")
        return file.getvalue(), {"label": index}


def test_image_folder(folder, pool):
    reading = read_dataset(folder)
    assert isinstance(reading.source, ListSource)
    assert paths_of(reading.source) == [path for path, _ in folder.samples]
    assert reading.source.labels.tolist() == folder.targets == targets_of(reading.source, pool).tolist()
    assert reading.source.classes == ["cat", "dog"]
    assert (reading.transform, reading.dtype) == (READ, torch.float32)


def test_no_transform(root):
    reading = read_dataset(datasets.ImageFolder(root))
    assert (reading.transform, reading.dtype) == (None, None)


def test_dataset_folder_and_imagenet(root, pool):
    """ImageNet's archives are not there, but what makes it: another list of classes, of tuples."""
    by_loader = datasets.DatasetFolder(str(root), datasets.folder.default_loader, (".jpg",), TRANSFORM)
    assert read_dataset(by_loader).source.classes == ["cat", "dog"]
    imagenet = object.__new__(datasets.ImageNet)
    vars(imagenet).update(vars(by_loader), classes=[("cat", "tabby"), ("dog",)])
    reading = read_dataset(imagenet)
    assert reading.source.classes == ["cat, tabby", "dog"]
    assert reading.source.labels.tolist() == by_loader.targets


def test_target_transform(root, pool):
    reading = read_dataset(datasets.ImageFolder(root, TRANSFORM, target_transform=lambda target: [target, str(target)]))
    assert isinstance(reading.source, SampleSource)
    numbers, names = targets_of(reading.source, pool)
    assert numbers.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert list(names) == list("0001111")
    assert reading.source.classes is None  # of targets that may be anything


def test_samples_that_were_changed(folder, pool):
    folder.samples = [(path, float(i)) for i, (path, _) in enumerate(folder.samples[:2])]
    source = read_dataset(folder).source
    assert targets_of(source, pool).tolist() == [0.0, 1.0]
    assert source.classes is None
    folder.samples = [(path, 5) for path, _ in folder.samples]
    source = read_dataset(folder).source
    assert source.labels.tolist() == [5, 5]
    assert source.classes is None  # of which there are two
    folder.samples = [(folder.samples[0][0], 1), (folder.samples[0][0], "one")]
    assert reasons(folder) == ["ImageFolder: targets[1] is of type str, but targets[0] of type int; expected one type"]


def test_subsets(folder):
    paths = [path for path, _ in folder.samples]
    for indices in ([5, 0, 5], np.array([5, 0, 5]), torch.tensor([5, 0, 5]), (-2, 0, 5)):
        source = read_dataset(Subset(folder, indices)).source
        assert paths_of(source) == [paths[5], paths[0], paths[5]]
        assert source.labels.tolist() == [1, 0, 1]
        assert source.classes == ["cat", "dog"]
    assert paths_of(read_dataset(Subset(Subset(folder, range(6, 0, -1)), [0, -1])).source) == [paths[6], paths[1]]
    halves = random_split(folder, [3, 4], torch.Generator().manual_seed(0))
    assert sorted(path for half in halves for path in paths_of(read_dataset(half).source)) == paths


def test_concatenations(folder, root, tmp_path, pool):
    paths = [path for path, _ in folder.samples]
    negated = datasets.ImageFolder(root, TRANSFORM, target_transform=lambda target: -target)
    whole = ConcatDataset([Subset(folder, [1, 6]), ConcatDataset([negated, folder])])
    source = read_dataset(whole).source
    assert paths_of(source) == [paths[1], paths[6], *paths, *paths]
    assert targets_of(source, pool).tolist() == [0, 1, 0, 0, 0, -1, -1, -1, -1, *folder.targets]
    shuffled = read_dataset(Subset(whole, [15, 3, 1, 8])).source
    assert paths_of(shuffled) == [paths[6], paths[1], paths[6], paths[6]]
    assert targets_of(shuffled, pool).tolist() == [1, 0, 1, -1]
    plain = read_dataset(ConcatDataset([folder, folder])).source
    assert plain.labels.tolist() == folder.targets * 2
    assert plain.classes == ["cat", "dog"]
    shutil.copytree(root, tmp_path / "other")
    (tmp_path / "other" / "cat").rename(tmp_path / "other" / "bird")
    other = datasets.ImageFolder(tmp_path / "other", v1.Compose([v1.Resize((16, 20)), v1.ToTensor()]))
    mixed = read_dataset(ConcatDataset([folder, other]))  # of transforms that do the same
    assert mixed.source.labels.tolist() == folder.targets * 2
    assert mixed.source.classes is None


def test_datasets_that_say_where_their_images_are(pool):
    first, second = Encoded(), Encoded(2, TRANSFORM)
    reading = read_dataset(first)
    assert isinstance(reading.source, EncodedSource)
    assert (reading.transform, reading.dtype) == (None, None)
    assert targets_of(reading.source, pool)["label"].tolist() == [0, 1, 2]
    assert read_dataset(second).transform == READ
    source = read_dataset(ConcatDataset([Subset(second, [1]), second])).source
    assert targets_of(source, pool)["label"].tolist() == [1, 0, 1]


class _OtherItems(datasets.ImageFolder):
    def __getitem__(self, index):
        return super().__getitem__(index)


class _OtherBatches(datasets.ImageFolder):
    def __getitems__(self, indices):
        return [self[i] for i in indices]


class _OtherLength(datasets.ImageFolder):
    def __len__(self):
        return 1


class _SameItems(datasets.ImageFolder):
    extra = 1


class _OtherSubset(Subset):
    def __getitem__(self, index):
        return super().__getitem__(index)

    def __getitems__(self, indices):
        return super().__getitems__(indices)


class _OtherConcat(ConcatDataset):
    def __getitem__(self, index):
        return super().__getitem__(index)


class _Endless(IterableDataset):
    def __iter__(self):
        return iter([])

    def get_encoded(self, index):
        return b"", 0


class _NoLength:
    def get_encoded(self, index):
        return b"", 0


KNOWN = (
    "is none of the datasets that can be read: ImageFolder, DatasetFolder and ImageNet, Subset and ConcatDataset of "
    "them, and classes with get_encoded()"
)


@pytest.mark.parametrize("cls", [_OtherItems, _OtherBatches, _OtherLength])
def test_subclasses_with_methods_of_their_own(root, cls):
    assert reasons(cls(root, TRANSFORM)) == [f"{cls.__name__} {KNOWN}"]


def test_subclasses_without(root):
    assert read_dataset(_SameItems(root, TRANSFORM)).transform == READ


@pytest.mark.parametrize(("make", "expected"), [
    (lambda f: TensorDataset(torch.zeros(3)), [f"TensorDataset {KNOWN}"]),
    (lambda f: [1, 2, 3], [f"list {KNOWN}"]),
    (lambda f: _OtherSubset(f, [1]), [f"_OtherSubset {KNOWN}"]),
    (lambda f: _OtherConcat([f, f]), [f"_OtherConcat {KNOWN}"]),
    (lambda f: ConcatDataset([f, TensorDataset(torch.zeros(3))]), [f"TensorDataset {KNOWN}"]),
    (lambda f: _Endless(), ["_Endless has get_encoded(), but no length: expected a map-style dataset"]),
    (lambda f: _NoLength(), ["_NoLength has get_encoded(), but no length: expected a map-style dataset"]),
    (lambda f: Subset(f, []), ["Subset has no samples"]),
    (lambda f: Subset(f, [1, 7]), ["Subset: its index 7 is out of range for 7 samples"]),
    (lambda f: Subset(f, [-8]), ["Subset: its index -8 is out of range for 7 samples"]),
    (lambda f: Subset(f, [0.5]), ["Subset: its indices are float64 [1]; expected integers [N]"]),
    (lambda f: Subset(f, [True, False]), ["Subset: its indices are bool [2]; expected integers [N]"]),
    (lambda f: ConcatDataset([f, Encoded(3, TRANSFORM)]),
     ["ConcatDataset: some of its parts are folders, others have get_encoded(): expected one kind"]),
    (lambda f: ConcatDataset([f, datasets.ImageFolder(f.root)]),
     ["ConcatDataset: its parts have different transforms, and only one for all can be done"]),
    (lambda f: ConcatDataset([f, datasets.ImageFolder(f.root, v1.Compose([v1.Resize((16, 21)), v1.ToTensor()]))]),
     ["ConcatDataset: its parts have different transforms, and only one for all can be done"]),
    (lambda f: datasets.ImageFolder(f.root, v1.Compose([v1.RandomPerspective(), lambda x: x]), loader=open),
     ["RandomPerspective(...) has no equivalent", "transform 1 is a function, whose workings cannot be read",
      "ImageFolder: loader is open, and only torchvision's default_loader can be done"]),
    (lambda f: Encoded(3, lambda x: x), ["transform is a function, whose workings cannot be read"]),
])  # fmt: skip
def test_what_cannot_be_read_is_named(folder, make, expected):
    assert reasons(make(folder)) == expected


def test_other_image_files(tmp_path):
    root = write_folder(tmp_path / "all", {"cat": 2})
    for name in ("x.tif", "y.PPM"):
        picture(8, 8).save(root / "cat" / name)
    dataset = datasets.ImageFolder(root, TRANSFORM)
    said = f"end in none of .jpg, .jpeg, .jfif, .jpe, .png, .bmp, .webp, '{root}/cat/x.tif' for one"
    assert reasons(dataset) == [f"ImageFolder: 2 of its 4 files {said}"]
    assert len(read_dataset(Subset(dataset, [0, 1])).source) == 2  # without them
    assert reasons(ConcatDataset([Subset(dataset, [2]), dataset])) == [f"ImageFolder: 3 of its 5 files {said}"]
    again = datasets.ImageFolder(root, TRANSFORM)
    assert reasons(ConcatDataset([dataset, again])) == [f"ImageFolder: 2 of its 4 files {said}"]


def test_another_image_backend(folder):
    torchvision.set_image_backend("accimage")
    try:
        assert reasons(folder) == ["ImageFolder: torchvision's image backend is 'accimage', and only 'PIL' can be done"]
    finally:
        torchvision.set_image_backend("PIL")


@pytest.mark.dali
def test_batches_are_those_of_torchvision(root, pool):
    """Pixel by pixel: what is read, through the loader, against PyTorch's loader."""
    dataset = datasets.ImageFolder(
        root, TRANSFORM, target_transform=lambda target: {"class": target, "half": target / 2}
    )
    order = [4, 0, 6, 2]
    reading = read_dataset(Subset(dataset, order))
    ((images, targets),) = DataLoader(reading.source, 4, transform=reading.transform, dtype=reading.dtype, device="cpu")
    ((expected, expected_targets),) = torch.utils.data.DataLoader(Subset(dataset, order), 4)
    assert torch.equal(images, expected)
    assert targets.keys() == expected_targets.keys()
    assert all(torch.equal(targets[key], value) for key, value in expected_targets.items())


@pytest.mark.dali
def test_what_get_encoded_raises_comes_as_it_is(tmp_path):
    class Broken(Encoded):
        def get_encoded(self, index):
            if index == 2:
                raise ZeroDivisionError("sample 2")
            return super().get_encoded(index)

    source = read_dataset(Broken()).source
    batches = iter(DataLoader(source, 1, transform=READ, device="cpu"))
    assert [next(batches)[1]["label"].item() for _ in range(2)] == [0, 1]
    with pytest.raises(ZeroDivisionError, match="sample 2"):
        next(batches)
