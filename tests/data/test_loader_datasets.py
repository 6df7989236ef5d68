"""DataLoader over PyTorch's datasets whose images DALI decodes: as a script for PyTorch's loader expects it."""

import copy
import logging
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ImageFile
from torch.utils.data import ConcatDataset, Dataset, RandomSampler, Subset, TensorDataset

from fastfeed import DataLoader, transforms
from tests.images import picture, write_folder
from tests.loaders import by_index
from tests.torch_loaders import PYTORCHS, Mapped

N = 11


class Photos(Dataset):
    """Says where its images are."""

    def __init__(self, folder):
        self.files = [folder / f"{i}.jpg" for i in range(N)]
        self.samples = list(range(N))
        self.transform = None

    def __len__(self):
        return len(self.samples)

    def get_encoded(self, i):
        return self.files[i], self.samples[i]


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photos")
    for i in range(N):
        picture(30 + i, 40, seed=i).save(folder / f"{i}.jpg")
    return Photos(folder)


def loader(dataset, batch_size=4, **options):
    return DataLoader(dataset, batch_size, **{"transform": transforms.eval(16), "device": "cpu", **options})


def order(data):
    return [i for _, target, *_ in data for i in target.tolist()]


@pytest.mark.dali
def test_batches_are_what_pytorchs_loader_would_give(photos):
    for batch in loader(photos):
        assert type(batch) is list  # as default_collate makes of pairs
        images, target = batch
        assert images.is_contiguous()
        assert images.view(len(images), -1).shape == (len(target), 3 * 16 * 16)
    images, _ = next(iter(loader(photos, memory_format=torch.channels_last)))
    assert images.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.dali
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_generators_order_is_that_of_pytorchs_loader(photos, epochs):
    def orders(make):
        data = make(generator=torch.Generator().manual_seed(5))
        return [[i for batch in data for i in batch[-1].tolist()] for _ in range(epochs)]

    theirs = orders(lambda **options: PYTORCHS(Mapped(N, lambda i: (0, i)), 4, shuffle=True, **options))
    assert orders(lambda **options: loader(photos, shuffle=True, **options)) == theirs


@pytest.mark.dali
def test_a_generators_next_epoch_does_not_depend_on_what_was_read_ahead(photos):
    def after_a_break(ahead):
        data = loader(photos, 1, shuffle=True, generator=torch.Generator().manual_seed(5), prefetch_factor=ahead)
        iterator = iter(data)
        given = [next(iterator) for _ in range(2)]
        del iterator
        return order(given), order(data)

    assert after_a_break(1) == after_a_break(2 * N)


@pytest.mark.dali
def test_pytorchs_seed_decides_where_none_is_given(photos):
    def pixels():
        data = loader(photos, shuffle=True, info=True, transform=transforms.train(16))
        return {i: image for i, (image, _) in by_index(data).items()}

    torch.manual_seed(1)
    first, second = pixels(), pixels()
    torch.manual_seed(1)
    again = pixels()
    torch.manual_seed(2)
    other = pixels()
    for i in range(N):
        assert torch.equal(first[i], again[i])
        assert not torch.equal(first[i], second[i])
        assert not torch.equal(first[i], other[i])


def test_a_loader_that_is_made_leaves_pytorchs_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    data = DataLoader(TensorDataset(torch.arange(40)), 5, shuffle=True, device="cpu")
    assert len(data) == 8
    iter(data)
    assert torch.rand(1) == expected  # a model that is made here has the weights that it has beside PyTorch's loader
    next(iter(data))
    before = torch.get_rng_state()
    assert data.seed == data.state_dict()["seed"]
    assert torch.equal(torch.get_rng_state(), before)  # drawn once
    resumed = DataLoader(TensorDataset(torch.arange(40)), 5, shuffle=True, device="cpu")
    resumed.load_state_dict(data.state_dict())
    assert torch.equal(torch.get_rng_state(), before)  # not at all: the state has it
    assert resumed.seed == data.seed


def test_new_loaders_have_new_orders_and_states_go_on():
    dataset = TensorDataset(torch.zeros(40), torch.arange(40))
    torch.manual_seed(3)
    loaders = [DataLoader(dataset, 5, shuffle=True, device="cpu") for _ in range(3)]
    assert len({tuple(order(data)) for data in loaders}) == 3
    torch.manual_seed(3)
    assert order(DataLoader(dataset, 5, shuffle=True, device="cpu")) == order(_at(loaders[0], 0))
    # A state has its seed with it, which nobody chose.
    iterator = iter(_at(loaders[1], 0))
    next(iterator)
    state = loaders[1].state_dict()
    rest = order(iterator)
    resumed = DataLoader(dataset, 5, shuffle=True, device="cpu")
    resumed.load_state_dict(state)
    assert order(resumed) == rest
    assert resumed.seed == loaders[1].seed
    resumed.load_state_dict(loaders[0].state_dict())  # of another seed, which again nobody chose
    assert resumed.seed == loaders[0].seed
    with pytest.raises(ValueError, match="the state is of a loader with seed"):
        DataLoader(dataset, 5, shuffle=True, device="cpu", seed=1).load_state_dict(state)
    # Ranks, which may have seeded PyTorch apart, share one epoch.
    ranks = [DataLoader(dataset, 5, shuffle=True, device="cpu", rank=rank, world_size=2) for rank in range(2)]
    assert [data.seed for data in ranks] == [0, 0]
    assert sorted(i for data in ranks for i in order(data)) == list(range(40))


def _at(data, epoch):
    data.epoch = epoch
    return data


@pytest.mark.dali
@pytest.mark.parametrize("change", ["transform", "length", "indices"])
def test_a_dataset_that_is_changed_later_is_noticed(photos, change):
    dataset = Photos(photos.files[0].parent)
    subset = Subset(dataset, [2, 1, 0])
    data = loader(subset)
    assert order(data) == [2, 1, 0]
    if change == "transform":
        dataset.transform = lambda image: image
    elif change == "length":
        dataset.samples.append(0)
    else:
        subset.indices = [0, 1, 2]
    with pytest.raises(RuntimeError, match="Subset was changed, its transform or its samples, after the DataLoader"):
        list(data)


class Named(Photos):
    """Has methods and properties of its own under the names that torchvision's datasets have for other things."""

    transform = property(lambda self: None, lambda self, value: None)
    samples = property(lambda self: [i + self.shift for i in range(N)], lambda self, value: None)
    shift = 0

    def target_transform(self, target):
        return target

    def loader(self, path):
        return path


@pytest.mark.dali
def test_what_get_encoded_gives_may_change(photos):
    dataset = Named(photos.files[0].parent)
    data = loader(dataset)
    assert order(data) == list(range(N))
    dataset.shift = 5  # it is asked each time
    assert order(data) == list(range(5, N + 5))


@pytest.mark.dali
@pytest.mark.parametrize("change", ["transform", "size", "step", "samples", "target_transform", "loader"])
def test_a_folder_that_is_changed_later_is_noticed(tmp_path, change):
    pytest.importorskip("tests.torchvision_ops").torchvision_or_skip("torchvision")
    from torchvision import datasets
    from torchvision import transforms as theirs

    def transform(size=8):
        return theirs.Compose([theirs.Resize((size, 8)), theirs.ToTensor()])

    folder = write_folder(tmp_path, {"a": 2, "b": 2})
    dataset = datasets.ImageFolder(folder, transform())
    data = DataLoader(ConcatDataset([Subset(dataset, [3, 0]), dataset]), 6, device="cpu", backend="dali")
    copies = [copy.deepcopy(data), pickle.loads(pickle.dumps(data))]
    ((expected, target),) = data
    assert target.tolist() == [1, 0, 0, 0, 1, 1]
    dataset.transform, before = transform(), dataset.transform
    assert torch.equal(next(iter(data))[0], expected)  # another object, and the same transform
    dataset.transform = before
    match change:
        case "transform":
            dataset.transform = transform(9)
        case "size":
            dataset.transform.transforms[0].size = (9, 8)
        case "step":
            dataset.transform.transforms.append(theirs.Normalize(0.5, 0.5))
        case "samples":
            dataset.samples = [*reversed(dataset.samples)]
        case "target_transform":
            dataset.target_transform = str
        case "loader":
            dataset.loader = datasets.folder.accimage_loader
    place = data.state_dict()
    with pytest.raises(
        RuntimeError, match=r"ConcatDataset was changed, .*: make a new DataLoader.* `size`, a schedule"
    ):
        list(data)
    assert data.state_dict() == place  # no epoch was begun
    for other in copies:
        assert torch.equal(next(iter(other))[0], expected)


@pytest.mark.parametrize("targets", [
    [torch.ones(3, 4), torch.ones(2, 4)], [[1, 2], [3]], torch.ones(2, requires_grad=True), ["a", "b"], [1.5, 2], [],
    [True, False], np.zeros((2, 2), int), torch.zeros(2, 3).long(), None,
], ids=str)  # fmt: skip
def test_targets_of_any_kind_are_no_matter(targets):
    dataset = Mapped(2, lambda i: i)
    dataset.targets = targets
    assert [batch.tolist() for batch in DataLoader(dataset, 2, device="cpu")] == [[0, 1]]


def test_annotations():
    def train(loader: DataLoader[Any]) -> None: ...

    assert train.__annotations__["loader"].__origin__ is DataLoader


def test_ranks_that_share_say_so(caplog, monkeypatch):
    dataset = TensorDataset(torch.arange(6))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)

    def said(**options):
        caplog.clear()
        data = DataLoader(dataset, device="cpu", **options)
        with caplog.at_level(logging.WARNING, "fastfeed"):
            list(data)
            list(data)
        return [record.getMessage() for record in caplog.records]

    (message,) = said()  # once
    assert message.startswith("DataLoader: the samples of TensorDataset are dealt to 2 ranks, for no sampler was given")
    assert said(rank=0, world_size=2) == []
    assert said(sampler=RandomSampler(dataset)) == []


def test_why_there_is_no_way(tmp_path, photos):
    with pytest.raises(TypeError, match=r"Photos has no __getitem__, which PyTorch's workers need, .*: collate_fn"):
        loader(photos, transform=None, collate_fn=lambda batch: batch[0])


def test_truncated_images_that_pillow_is_told_to_load(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("tests.torchvision_ops").torchvision_or_skip("torchvision")
    from torchvision import datasets
    from torchvision import transforms as theirs

    (tmp_path / "a").mkdir()
    picture(30, 40).save(tmp_path / "a" / "0.jpg")
    transform = theirs.Compose([theirs.Resize((16, 16)), theirs.ToTensor()])
    dataset = datasets.ImageFolder(tmp_path, transform)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ValueError, match="LOAD_TRUNCATED_IMAGES is set, and DALI loads no truncated images"):
        DataLoader(dataset, device="cpu", backend="dali")
    assert torchvision is not None
