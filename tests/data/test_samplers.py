import pickle
from collections import Counter

import numpy as np
import pytest
import torch

from fastfeed._extension import extension
from fastfeed.data.order import Batches, permutation
from fastfeed.data.philox import philox
from fastfeed.data.samplers import (
    ClassBalancedSampler,
    RepeatedAugmentation,
    Sequential,
    Shuffled,
    WeightedSampler,
    _inverse_distribution,
)

SIZE = 100
LABELS = np.repeat(np.arange(5), [60, 30, 7, 2, 1])


def p_value(observed, probabilities):
    """The chance that independent draws lie as far from what is expected, or farther, by Pearson's chi-square test."""
    expected = np.asarray(probabilities) / np.sum(probabilities) * np.sum(observed)
    statistic = float(np.sum((observed - expected) ** 2 / expected))
    return float(torch.special.gammaincc(torch.tensor((len(observed) - 1) / 2), torch.tensor(statistic / 2)))


def earlier_occurrences(index):
    seen = Counter()
    copies = []
    for value in index.tolist():
        copies.append(seen[value])
        seen[value] += 1
    return copies


def test_sequential():
    for epoch in range(2):
        picks = Sequential().picks(5, None, seed=1, epoch=epoch)
        assert picks.index.tolist() == [0, 1, 2, 3, 4]
        assert picks.copy.tolist() == [0] * 5


def test_shuffled():
    picks = Shuffled().picks(SIZE, None, seed=1, epoch=2)
    assert np.array_equal(picks.index, permutation(SIZE, seed=1, epoch=2))
    assert picks.copy.tolist() == [0] * SIZE


@pytest.mark.parametrize("sampler", [
    Sequential(),
    Shuffled(),
    WeightedSampler(np.arange(SIZE)),
    WeightedSampler(np.arange(SIZE), num_samples=777),
    ClassBalancedSampler(),
    ClassBalancedSampler(num_samples=301),
    RepeatedAugmentation(),
    RepeatedAugmentation(4, num_samples=399),
], ids=str)  # fmt: skip
class TestEverySampler:
    def test_length_is_that_of_the_picks(self, sampler):
        picks = sampler.picks(SIZE, LABELS, seed=1, epoch=2)
        assert len(picks) == len(picks.index) == len(picks.copy) == sampler.length(SIZE)
        assert picks.index.dtype == picks.copy.dtype == np.int64
        assert picks.index.min() >= 0
        assert picks.index.max() < SIZE

    def test_copies_count_up(self, sampler):
        picks = sampler.picks(SIZE, LABELS, seed=1, epoch=2)
        assert picks.copy.tolist() == earlier_occurrences(picks.index)

    def test_picks_are_a_function_of_seed_and_epoch(self, sampler):
        def index(seed, epoch):
            return sampler.picks(SIZE, LABELS, seed=seed, epoch=epoch).index.tolist()

        assert index(1, 2) == index(1, 2)
        if not isinstance(sampler, Sequential):
            orders = [index(seed, epoch) for seed, epoch in [(1, 2), (1, 3), (2, 2), (1 + 2**32, 2), (2**63, 2)]]
            assert len({tuple(order) for order in orders}) == 5

    def test_identity_is_a_short_text_that_a_copy_has_too(self, sampler):
        text = sampler.identity(SIZE, LABELS)
        assert text == pickle.loads(pickle.dumps(sampler)).identity(SIZE, LABELS)
        assert text.startswith(type(sampler).__name__)
        assert len(text) < 80

    def test_pickled(self, sampler):
        again = pickle.loads(pickle.dumps(sampler))
        a, b = (s.picks(SIZE, LABELS, seed=1, epoch=2) for s in (sampler, again))
        assert np.array_equal(a.index, b.index)

    def test_no_field_can_be_set(self, sampler):
        with pytest.raises(AttributeError):
            sampler.num_samples = 1


# ---------------------------------------------------------------------------------------------- weights


def test_a_weighted_draw_inverts_the_distribution():
    weights = np.array([0.0, 3.0, 0.5, 0.0, 1.0, 2.5, 0.0])
    picks = WeightedSampler(weights, num_samples=1001).picks(7, None, seed=9, epoch=4)
    counter = np.array([[position // 2, 0, 4, 0x6F726473] for position in range(1001)], np.uint32)
    words = philox(9, counter)
    for position, index in enumerate(picks.index):
        low, high = words[position, 2 * (position % 2) :][:2]
        draw = (int(high) << 21 | int(low) >> 11) / 2**53 * 7  # exact: sums of these weights are
        assert weights[:index].sum() <= draw < weights[: index + 1].sum()


def test_draws_on_the_edge_of_a_share():
    weights = np.array([0.0, 0.0, 1.0, 0.0, 0.0, 3.0, 4.0, 0.0])
    draws = np.array([0.0, 2.0**-53, 0.125, 0.5, 1 - 2.0**-53])
    just_below = np.nextafter([0.125, 0.5], 0)
    assert _inverse_distribution(weights, draws).index.tolist() == [2, 2, 5, 6, 6]
    assert _inverse_distribution(weights, just_below).index.tolist() == [2, 5]


@pytest.mark.parametrize("size", [1, 2, 3, 255, 256, 257, 1000])
def test_a_weighted_order_is_that_of_a_binary_search(size):
    rng = np.random.default_rng(size)
    for weights in (
        rng.pareto(1, size) + 1e-9,  # a few of them weigh as much as all others
        np.where(rng.random(size) < 0.5, 0, 1) + np.eye(1, size, size // 2)[0],
        10.0 ** -np.arange(size),
        np.eye(1, size, size - 1)[0],
    ):
        draws = np.concatenate([rng.random(3 * size), [0.0, 1 - 2.0**-53]])
        cumulative = np.cumsum(weights / weights.max())
        cumulative /= cumulative[-1]
        draws = np.concatenate([draws, cumulative[cumulative < 1], np.nextafter(cumulative, 0)])
        picks = _inverse_distribution(weights, draws)
        assert np.array_equal(picks.index, np.searchsorted(cumulative, draws, side="right"))
        assert picks.copy.tolist() == earlier_occurrences(picks.index)


def test_what_no_order_can_be_drawn_from():
    invert = extension().invert_distribution
    for cumulative in ([], [0.5], [0.5, 0.9], [0.5, float("nan")]):
        with pytest.raises(ValueError, match="cumulative shares are to end with 1"):
            invert(np.array(cumulative), np.zeros(1))
    for draw in (1.0, -0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"a draw is outside of \[0, 1\)"):
            invert(np.ones(3), np.array([0.5, draw]))
    with pytest.raises(ValueError, match="n is negative"):
        extension().uniform_draws(-1, 0, 0)


def test_samples_come_as_often_as_they_weigh():
    weights = np.random.default_rng(0).uniform(0.5, 4, SIZE)
    index = WeightedSampler(weights, num_samples=200_000).picks(SIZE, None, seed=3, epoch=0).index
    assert 1e-4 < p_value(np.bincount(index, minlength=SIZE), weights) < 1 - 1e-4


def test_successive_draws_are_independent():
    index = WeightedSampler([1, 2, 3, 4], num_samples=100_001).picks(4, None, seed=3, epoch=1).index
    pairs = np.bincount(index[:-1:2] * 4 + index[1::2], minlength=16)
    assert 1e-4 < p_value(pairs, np.outer([1, 2, 3, 4], [1, 2, 3, 4]).ravel()) < 1 - 1e-4


@pytest.mark.parametrize("weights", [
    [0, 1, 0, 1, 0],
    [0, 0, 0, 0, 5e-324],
    [5e-324, 0, 0, 0, 5e-324],
    [1.7e308, 0, 1.7e308, 1.7e308, 0],
    [1e-300, 0, 1e300, 0, 1e300],
], ids=str)  # fmt: skip
def test_a_weight_of_0_is_never_drawn(weights):
    with np.errstate(all="raise", under="ignore"):
        index = WeightedSampler(weights, num_samples=20_000).picks(5, None, seed=0, epoch=0).index
    assert (np.array(weights)[index] > 0).all()
    # Beside the heaviest the other weights are nothing.
    heavy = np.flatnonzero(np.array(weights) == max(weights))
    counts = np.bincount(index, minlength=5)[heavy]
    assert np.abs(counts / 20_000 - 1 / len(heavy)).max() < 5 * 0.5 / 20_000**0.5


def test_weights_of_every_kind():
    plain = WeightedSampler([1.0, 2.0, 0.0]).picks(3, None, seed=0, epoch=0).index
    kinds = [
        (1, 2, 0),
        np.array([1, 2, 0], np.uint8),
        np.array([0, 2, 1.0])[::-1],
        torch.tensor([1, 2, 0]),
        torch.tensor([1, 2, 0], dtype=torch.bfloat16),
        torch.tensor([1.0, 2.0, 0.0], requires_grad=True),
        [torch.tensor(1.0), np.float32(2), 0],
    ]
    for weights in kinds:
        assert np.array_equal(WeightedSampler(weights).picks(3, None, seed=0, epoch=0).index, plain)


def test_weights_are_copied():
    weights = np.array([1.0, 2.0])
    sampler = WeightedSampler(weights, num_samples=50)
    before = sampler.picks(2, None, seed=0, epoch=0).index
    weights[0] = 0
    assert np.array_equal(sampler.picks(2, None, seed=0, epoch=0).index, before)
    with pytest.raises(ValueError):
        sampler.weights[0] = 0


@pytest.mark.parametrize(("arguments", "error", "message"), [
    (([1, -1],), ValueError, "weight of sample 1 is -1.0"),
    (([1, float("nan")],), ValueError, "weight of sample 1 is nan"),
    (([float("inf"), 1],), ValueError, "weight of sample 0 is inf"),
    (([0, 0],), ValueError, "all 2 weights are 0"),
    (([],), ValueError, "weights is empty; expected one number for each sample"),
    (([[1, 2]],), ValueError, r"shape \[1, 2\]"),
    ((3.0,), ValueError, r"shape \[\]"),
    ((["a"],), TypeError, "weights is list"),
    ((None,), ValueError, r"shape \[\]"),
    (([[1], [1, 2]],), TypeError, "weights is list"),
    ((["1", "2"],), TypeError, "weights is list, not all of it real numbers; expected one number for each sample"),
    (([1, b"2"],), TypeError, "weights is list"),
    ((np.array(["1", 2], object),), TypeError, "weights is ndarray"),
    (([1 + 2j, 2],), TypeError, "weights is list"),
    ((np.array([1 + 2j, 2]),), TypeError, "weights is ndarray, not all of it real numbers"),
    ((torch.tensor([1 + 2j, 2]),), TypeError, "weights is Tensor, not all of it real numbers"),
    (([1, None],), ValueError, "weight of sample 1 is nan"),
    (([1, 2], 0), ValueError, "num_samples is 0"),
    (([1, 2], 2.0), ValueError, "num_samples is 2.0"),
])  # fmt: skip
def test_weights_that_cannot_be_drawn_from(arguments, error, message):
    with pytest.raises(error, match=message):
        WeightedSampler(*arguments)


def test_the_identity_of_weights_is_that_of_every_weight():
    weights = np.arange(1.0, 9.0)
    text = WeightedSampler(weights).identity(8, None)
    assert text == WeightedSampler(torch.arange(1, 9)).identity(8, None)
    assert text == WeightedSampler(weights, 8).identity(8, None)
    for i in range(8):
        other = weights.copy()
        other[i] += 0.5
        assert WeightedSampler(other).identity(8, None) != text
    assert WeightedSampler(weights[::-1]).identity(8, None) != text
    assert WeightedSampler(weights, 7).identity(8, None) != text


def test_weights_of_another_source():
    sampler = WeightedSampler([1, 2])
    for call in (lambda: sampler.length(3), lambda: sampler.picks(3, None, seed=0, epoch=0)):
        with pytest.raises(ValueError, match="2 weights for 3 samples"):
            call()


# ---------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("labels", [LABELS, LABELS[::-1] * 7 - 3], ids=["sorted", "with gaps"])
def test_every_class_is_equally_likely_and_so_are_its_samples(labels):
    index = ClassBalancedSampler(num_samples=100_000).picks(SIZE, labels, seed=0, epoch=0).index
    counts = np.bincount(index, minlength=SIZE)
    classes = np.unique(labels)
    assert 1e-4 < p_value(np.array([counts[labels == c].sum() for c in classes]), np.ones(5)) < 1 - 1e-4
    for c in classes[np.array([(labels == c).sum() > 1 for c in classes])]:
        assert 1e-4 < p_value(counts[labels == c], np.ones((labels == c).sum())) < 1 - 1e-4


def test_classes_that_cannot_be_balanced():
    with pytest.raises(ValueError, match="needs the samples' class indices"):
        ClassBalancedSampler().picks(3, None, seed=0, epoch=0)
    with pytest.raises(ValueError, match=r"labels have shape \[2\]; expected one class index for each of 3"):
        ClassBalancedSampler().picks(3, np.array([0, 1]), seed=0, epoch=0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        ClassBalancedSampler(0)
    with pytest.raises(ValueError, match="num_samples is 4, but there are no samples"):
        ClassBalancedSampler(4).picks(0, np.zeros(0, np.int64), seed=0, epoch=0)


def test_a_sample_without_a_label_is_in_no_class():
    labels = np.array([3, -100, 3, 5, -100, 3])
    index = ClassBalancedSampler(num_samples=20_000).picks(6, labels, seed=0, epoch=0).index
    counts = np.bincount(index, minlength=6)
    assert counts[1] == counts[4] == 0
    assert abs(counts[3] / 20_000 - 0.5) < 5 * 0.5 / 20_000**0.5
    sampler = ClassBalancedSampler()
    for call in (
        lambda: sampler.identity(6, labels * 0 - 100),
        lambda: sampler.picks(2, labels[[1, 4]], seed=0, epoch=0),
    ):
        with pytest.raises(ValueError, match="labels are -100, which is no label: .* take shuffle=True instead"):
            call()


def test_an_empty_source_has_an_empty_epoch():
    labels = np.zeros(0, np.int64)
    for sampler in (Sequential(), Shuffled(), ClassBalancedSampler(), RepeatedAugmentation()):
        assert sampler.length(0) == len(sampler.picks(0, labels, seed=0, epoch=0)) == 0


# --------------------------------------------------------------------------------- repeated augmentation


@pytest.mark.parametrize(("size", "length"), [(1, 1), (255, 255), (256, 256), (511, 256), (1_281_167, 1_281_024)])
def test_an_epoch_of_repeated_augmentation_is_rounded_down(size, length):
    assert RepeatedAugmentation().length(size) == length


@pytest.mark.parametrize("repeats", [1, 2, 3, 5])
def test_samples_stand_in_a_row(repeats):
    picks = RepeatedAugmentation(repeats).picks(600, None, seed=1, epoch=2)
    expected = [(i, copy) for i in permutation(600, seed=1, epoch=2) for copy in range(repeats)][:512]
    assert list(zip(picks.index, picks.copy, strict=True)) == expected


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_ranks_get_what_the_reference_sampler_gives_them(world_size):
    # RASampler's rule, over our shuffled order.
    size, repeats = 700, 3
    repeated = [i for i in permutation(size, seed=1, epoch=2) for _ in range(repeats)]
    repeated += repeated[: -len(repeated) % world_size]
    picks = RepeatedAugmentation(repeats).picks(size, None, seed=1, epoch=2)
    for rank in range(world_size):
        theirs = repeated[rank::world_size][: size // 256 * 256 // world_size]
        ours = [batch.index for batch in Batches(picks, 17, rank=rank, world_size=world_size)]
        assert np.concatenate(ours).tolist() == theirs


@pytest.mark.parametrize("world_size", [3, 4, 7])
def test_copies_go_to_different_ranks(world_size):
    picks = RepeatedAugmentation(3).picks(300, None, seed=1, epoch=2)
    ranks_of = {}
    for rank in range(world_size):
        for batch in Batches(picks, 8, rank=rank, world_size=world_size):
            for index in batch.index[batch.valid].tolist():
                ranks_of.setdefault(index, []).append(rank)
    assert sum(len(ranks) == 3 for ranks in ranks_of.values()) == 256 // 3
    assert all(len(set(ranks)) == len(ranks) for ranks in ranks_of.values())


def test_repeats_that_cannot_be():
    with pytest.raises(ValueError, match="repeats is 0"):
        RepeatedAugmentation(0)
    with pytest.raises(ValueError, match="num_samples is 0"):
        RepeatedAugmentation(num_samples=0)
    with pytest.raises(ValueError, match="num_samples is 31; expected at most 30"):
        RepeatedAugmentation(num_samples=31).length(10)
    assert RepeatedAugmentation(num_samples=30).length(10) == 30
