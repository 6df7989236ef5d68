"""A batch is a function of (dataset, seed, epoch, position), and of nothing else."""

import itertools
from dataclasses import replace

import pytest
import torch

from fastfeed import Mix
from fastfeed.data.samplers import RepeatedAugmentation
from fastfeed.data.schedule import MultiScale, ProgressiveSize
from fastfeed.data.sources import FolderSource, ListSource
from fastfeed.data.steps import ColorJitter
from fastfeed.data.transforms import CenterCrop, RandomCrop, RandomErasing, RandomResizedCrop, Resize, Transform
from tests.images import picture, write_folder
from tests.loaders import assert_same_batches, assert_same_samples, by_index, everything, index_of, make_loader, ranks

pytestmark = pytest.mark.dali

SIZE = 70
TRANSFORMS = [("trivial", 0.5), ("rand", "random"), ("auto", (-1.0, 0.0, 2.0))]
MIXES = [Mix(mixup=0.4), Mix(cutmix=1.0), Mix(0.4, 1.0, per="sample")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("contracts") / "data", {"cat": 30, "dog": 26, "owl": 14})


@pytest.mark.parametrize(("auto_augment", "value"), TRANSFORMS)
def test_a_sample_depends_on_no_setting(folder, auto_augment, value):
    options = {"shuffle": True, "seed": 3, "transform": everything(auto_augment, value)}
    data = make_loader(folder, 16, **options)
    expected = [by_index(data), by_index(data)]
    for workers, prefetch, batch_size in itertools.product((1, 2, 4), (1, 2, 4), (7, 64)):
        data = make_loader(folder, batch_size, num_workers=workers, prefetch_factor=prefetch, **options)
        for epoch in expected:
            assert_same_samples(by_index(data), epoch)


@pytest.mark.parametrize(("auto_augment", "value"), TRANSFORMS)
@pytest.mark.parametrize("batch_size", [7, 64])
def test_a_sample_depends_on_no_rank(folder, auto_augment, value, batch_size):
    options = {"shuffle": True, "seed": 3, "transform": everything(auto_augment, value)}
    one = make_loader(folder, batch_size, **options)
    four = ranks(folder, 4, batch_size, **options)
    for _ in range(2):
        expected = by_index(one)
        assert sorted(expected) == list(range(SIZE))
        shares = [list(data) for data in four]
        assert_same_samples(by_index(itertools.chain(*shares)), expected)


def test_ranks_take_turns_in_the_order_of_one(folder):
    options = {"shuffle": True, "sampler": None, "transform": Transform(Resize(4))}
    order = index_of(make_loader(folder, 10, **options))
    for world_size in (2, 3, 5):
        steps = zip(*ranks(folder, world_size, 4, **options), strict=True)
        infos = [[info for _, _, info in step] for step in steps]
        index = torch.cat([torch.stack([info.index for info in step], dim=1).flatten() for step in infos])
        valid = torch.cat([torch.stack([info.valid for info in step], dim=1).flatten() for step in infos])
        assert index[valid].tolist() == order


PARTS = {
    "crop": {"crop": Resize(20)}, "horizontal flip": {"horizontal_flip": 0.0}, "vertical flip": {"vertical_flip": 0.0},
    "auto-augment": 0, "colour": 1, "grey": 2,
    "erase": {"erase": None},
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("auto_augment", "value"), TRANSFORMS)
def test_every_random_part_is_at_work(folder, auto_augment, value, part):
    # or the tests above would compare nothing with nothing
    transform = everything(auto_augment, value)
    what = PARTS[part]
    if isinstance(what, int):  # which of the steps
        what = {"augment": [step for i, step in enumerate(transform.steps) if i != what]}
    whole, without = (by_index(make_loader(folder, 64, transform=t)) for t in (transform, replace(transform, **what)))
    assert sum(not torch.equal(whole[i][0], without[i][0]) for i in whole) > SIZE / 10


def test_a_sample_differs_between_epochs_and_seeds(folder):
    options = {"transform": everything()}
    data = make_loader(folder, 64, **options)
    first, second, other = by_index(data), by_index(data), by_index(make_loader(folder, 64, seed=1, **options))
    for i in range(SIZE):
        assert not torch.equal(first[i][0], second[i][0])
        assert not torch.equal(first[i][0], other[i][0])


COPIED = [RandomResizedCrop(20), {"augment": ColorJitter(0.9, 0.9)}, {"erase": RandomErasing(1.0, value="random")}]


@pytest.mark.parametrize("part", COPIED, ids=["crop", "colour", "erase"])
def test_copies_of_a_sample_differ_and_are_the_same_on_any_rank(folder, part):
    transform = Transform(Resize(20), **part) if isinstance(part, dict) else Transform(part)
    options = {"sampler": RepeatedAugmentation(3), "transform": transform}
    images, _, info = next(iter(make_loader(folder, 64, **options)))
    assert info.index[:3].unique().numel() == 1
    assert not torch.equal(images[0], images[1])
    assert not torch.equal(images[1], images[2])
    assert not torch.equal(images[0], images[2])
    dealt = torch.stack([next(iter(data))[0] for data in ranks(folder, 4, 16, **options)], dim=1).flatten(0, 1)
    assert torch.equal(dealt, images)


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixed_batch_depends_on_no_setting(folder, mix):
    options = {"shuffle": True, "transform": everything(), "mix": mix}
    expected = list(make_loader(folder, 7, **options))
    for workers, prefetch in itertools.product((1, 4), (1, 4)):
        assert_same_batches(
            list(make_loader(folder, 7, num_workers=workers, prefetch_factor=prefetch, **options)), expected
        )


@pytest.mark.parametrize("mix", MIXES)
def test_a_mixed_sample_depends_on_its_batch_alone(folder, tmp_path, mix):
    def epoch(paths, labels):
        return list(make_loader(ListSource(paths, labels), 5, transform=everything(), mix=mix))

    source = FolderSource(folder)
    paths, labels = [path for path, _ in source.samples][:20], source.labels[:20].tolist()
    picture(90, 70, seed=99).save(tmp_path / "other.png")
    whole = epoch(paths, labels)
    elsewhere = epoch([path if i // 5 == 1 else tmp_path / "other.png" for i, path in enumerate(paths)], labels)
    assert torch.equal(elsewhere[1][0], whole[1][0])
    assert all(map(torch.equal, elsewhere[1][1], whole[1][1]))

    inside = epoch([tmp_path / "other.png" if i == 7 else path for i, path in enumerate(paths)], labels)
    changed = [
        5 * number + i
        for number, ((images, _, _), (expected, _, _)) in enumerate(zip(inside, whole, strict=True))
        for i in range(5)
        if not torch.equal(images[i], expected[i])
    ]
    assert 7 in changed
    assert set(changed) <= {5, 6, 7, 8, 9}
    assert len(changed) == 2  # itself, and the one whose partner it is


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 13])
def test_length_steps_and_validity_on_all_ranks(folder, size, drop_last):
    source = FolderSource(folder).subset(range(size))
    for world_size in range(1, 6):
        options = {"shuffle": True, "drop_last": drop_last, "transform": Transform(Resize(4))}
        loaders = ranks(source, world_size, 3, **options)
        whole, rest = divmod(size, 3 * world_size)
        steps = whole if drop_last else whole + (rest > 0)
        for _ in range(3):
            assert [len(data) for data in loaders] == [steps] * world_size
            batches = [list(data) for data in loaders]
            # equally many steps, of equal sizes: nobody waits for an all-reduce that another rank has no batch for
            assert len({tuple(len(target) for _, target, _ in share) for share in batches}) == 1
            assert [len(share) for share in batches] == [steps] * world_size
            index = index_of(itertools.chain(*batches))
            if drop_last:
                assert len(index) == len(set(index)) == 3 * world_size * whole
            else:  # exact evaluation
                assert sorted(index) == list(range(size))


def test_length_stays_through_breaks_epochs_set_and_resumes(folder):
    data = make_loader(folder, 8, shuffle=True)
    next(iter(data))
    state = data.state_dict()
    assert len(data) == len(list(data)) == 9
    data.set_epoch(7)
    assert len(data) == len(list(data)) == 9
    data.load_state_dict(state)
    assert len(data) == 9  # of an epoch, not of what is left
    assert len(list(data)) == 8
    assert len(data) == len(list(data)) == 9


def test_sizes_that_grow_from_epoch_to_epoch(folder):
    data = make_loader(folder, 40, size=ProgressiveSize(16, 32, epochs=3, multiple=8))
    graph = data._engine._idle_graph
    for expected in (16, 24, 32, 32):
        assert {images.shape[2:] for images, _, _ in data} == {(expected, expected)}
    data.epoch = 0
    assert next(iter(data))[0].shape[2:] == (16, 16)
    assert data._engine._idle_graph is graph  # not rebuilt


@pytest.mark.parametrize("crop", [
    Resize(24),
    CenterCrop(24, 28),
    CenterCrop(24, (28, 40)),
    CenterCrop(24),
    RandomCrop(24, pad_if_needed=True),
    RandomCrop(24, resize=28),
    RandomResizedCrop(24, interpolation="random"),
], ids=str)  # fmt: skip
def test_sizes_that_change_between_steps(folder, crop):
    schedule = MultiScale((16, 24, (32, 20)), every=2, seed=1)
    data = make_loader(folder, 6, size=schedule, transform=Transform(crop), prefetch_factor=3)
    graph = data._engine._idle_graph
    seen = set()
    for epoch in range(2):
        sizes = [tuple(images.shape[2:]) for images, _, _ in data]
        declared = [schedule(epoch, step) for step in range(12)]
        assert sizes == [(size, size) if isinstance(size, int) else size for size in declared]
        seen.update(sizes)
    assert len(seen) == 3
    assert data._engine._idle_graph is graph


@pytest.mark.parametrize("crop", [Resize, lambda size: RandomCrop(size, padding=4)])
def test_a_size_from_a_schedule_is_that_of_the_transform(folder, crop):
    # images of 48 x 64, of which a random crop can be this large
    source = FolderSource(folder).subset(range(0, SIZE, 3))
    expected = by_index(make_loader(source, 6, transform=Transform(crop(40))))
    got = by_index(make_loader(source, 6, transform=Transform(crop(16)), size=lambda epoch, step: 40))
    assert_same_samples(got, expected)


def test_a_random_crop_larger_than_the_image_by_its_schedule(folder):
    data = make_loader(folder, 4, transform=Transform(RandomCrop(16)), size=lambda epoch, step: 50)
    with pytest.raises(RuntimeError, match=r"000.jpg: its 48 x 64 pixels are too few for RandomCrop's 50 x 50"):
        next(iter(data))
