import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch

from fastfeed import transforms
from fastfeed.data import augment, plan
from fastfeed.data import mix as mix_module
from fastfeed.data.mix import Mix, draw_mix

N = 20_000


def draw(mix, batch_size=N, height=224, width=224, seed=5, epoch=2, batch=3):
    return draw_mix(mix, batch_size, height, width, seed=seed, epoch=epoch, batch=batch)


def is_permutation(partner):
    return np.array_equal(np.sort(partner), np.arange(len(partner)))


# --- Mix ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "error", "message"), [
    ({}, ValueError, "mixup and cutmix are both 0"),
    ({"mixup": -0.1}, ValueError, "mixup is -0.1; expected a finite alpha"),
    ({"cutmix": math.inf}, ValueError, "cutmix is inf"),
    ({"mixup": 1.0, "cutmix": math.nan}, ValueError, "cutmix is nan"),
    ({"mixup": "0.2"}, TypeError, "mixup is '0.2'"),
    ({"mixup": None}, TypeError, "mixup is None"),
    ({"cutmix": True}, TypeError, "cutmix is True"),
    ({"cutmix": torch.tensor(1.0)}, TypeError, r"cutmix is tensor\(1"),
    ({"mixup": 1.0, "probability": 1.01}, ValueError, "probability is 1.01; expected a probability, 0 to 1"),
    ({"mixup": 1.0, "probability": -1}, ValueError, "probability is -1"),
    ({"mixup": 1.0, "probability": math.nan}, ValueError, "probability is nan"),
    ({"mixup": 1.0, "probability": "1"}, TypeError, "probability is '1'"),
    ({"mixup": 1.0, "per": "elem"}, ValueError, "per is 'elem'; expected 'batch' or 'sample'"),
])  # fmt: skip
def test_bad_declarations(arguments, error, message):
    with pytest.raises(error, match=message):
        Mix(**arguments)


def test_a_declaration_is_a_value():
    mix = Mix(0.2, 1.0, probability=0.5, per="sample")
    assert pickle.loads(pickle.dumps(mix)) == mix == copy.deepcopy(mix)
    assert len({mix, copy.copy(mix)}) == 1
    with pytest.raises(AttributeError):
        mix.mixup = 1.0
    with pytest.raises(TypeError):
        Mix(0.2, 1.0, 0.5)  # what comes after the alphas is given by name


def test_numpys_numbers_are_numbers():
    assert np.array_equal(draw(Mix(np.float32(0.5), np.int64(1))).lam, draw(Mix(0.5, 1)).lam)


@pytest.mark.parametrize("shape", [(-1, 8, 8), (4, 0, 8), (4, 8, -3)])
def test_bad_shapes(shape):
    with pytest.raises(ValueError, match=f"batch_size, height and width are {shape[0]}, {shape[1]} and {shape[2]}"):
        draw(Mix(1.0), *shape)


# --- The weights --------------------------------------------------------------------------------------------


def distance_to(values, cdf):
    """Kolmogorov-Smirnov: the largest distance of the values' distribution from `cdf`."""
    expected = cdf(np.sort(values))
    steps = np.arange(len(values) + 1) / len(values)
    return max(np.abs(expected - steps[1:]).max(), np.abs(expected - steps[:-1]).max())


def distance_between(a, b):
    """The same for two samples."""
    at = np.sort(np.concatenate([a, b]))
    return np.abs(
        np.searchsorted(np.sort(a), at, "right") / len(a) - np.searchsorted(np.sort(b), at, "right") / len(b)
    ).max()


# One time in a thousand the distance of n samples from their distribution exceeds 1.95 / sqrt(n), and that of n samples
# from m others 1.95 * sqrt(1 / n + 1 / m).

CLOSED_FORMS = {
    0.5: lambda x: 2 / np.pi * np.arcsin(np.sqrt(x)),
    1.0: lambda x: x,
    1.5: lambda x: (2 * (2 * x - 1) * np.sqrt(x * (1 - x)) + np.arcsin(2 * x - 1)) / np.pi + 0.5,
    2.0: lambda x: 3 * x**2 - 2 * x**3,
    3.0: lambda x: 10 * x**3 - 15 * x**4 + 6 * x**5,
}


@pytest.mark.parametrize("alpha", CLOSED_FORMS)
def test_weights_follow_the_closed_form_of_the_beta_distribution(alpha):
    weight = draw(Mix(alpha, per="sample"), 20 * N).weight.astype(np.float64)
    assert distance_to(weight, CLOSED_FORMS[alpha]) < 1.95 / math.sqrt(20 * N)


@pytest.mark.parametrize("alpha", [0.01, 0.1, 0.2, 0.4, 0.8, 1.0, 1.7, 8.0, 100.0])
def test_weights_follow_numpys_beta_distribution(alpha):
    weight = draw(Mix(alpha, per="sample")).weight
    expected = np.random.RandomState(0).beta(alpha, alpha, N)
    # In the steps of float32 around 1: next to 0 there are finer numbers, which weigh nothing and are not drawn.
    weight, expected = (np.round(x.astype(np.float64) * 2**24) for x in (weight, expected))
    assert distance_between(weight, expected) < 1.95 * math.sqrt(2 / N)


@pytest.mark.parametrize("words", list(itertools.product([0, 1, 2**30, 2**31 - 1, 2**31, 2**32 - 1], repeat=2)))
@pytest.mark.parametrize("alpha", [5e-324, 1e-300, 1e-3, 0.5, 1.0, 100, 1.7e308])
def test_weights_at_the_ends_of_the_random_numbers(alpha, words):
    with np.errstate(all="raise"):
        u, v = np.array(words) * 2.0**-32
        weight = mix_module._symmetric_beta(np.array([alpha]), np.array([u]), np.array([v]))[0]
    assert 0 <= weight <= 1  # so not NaN either
    if alpha == 100:  # nor far beyond what so many numbers reach
        assert abs(weight - 0.5) < 0.5 * math.sqrt(1 - 2 ** (-33 / alpha)) + 1e-12


@pytest.mark.parametrize("mix", [Mix(1.0), Mix(cutmix=1.0)])
def test_draws_of_batches_are_as_those_of_samples(mix):
    # What decides for a whole batch, in images so large that the boxes are fine enough.
    per_batch = np.array([draw(mix, 1, 4096, 4096, batch=batch).lam[0] for batch in range(1000)])
    per_sample = draw(Mix(mix.mixup, mix.cutmix, per="sample"), height=4096, width=4096).lam
    assert distance_between(per_batch, per_sample) < 1.95 * math.sqrt(1 / 1000 + 1 / N)


# --- The boxes ----------------------------------------------------------------------------------------------


def boxes_by_the_rule(lam, row, column, height, width):
    """One box by CutMix's rule, pixel by pixel: how far each side of the centre is, what of it is in the image."""
    half_height = math.trunc(0.5 * math.sqrt(1.0 - lam) * height)
    half_width = math.trunc(0.5 * math.sqrt(1.0 - lam) * width)
    rows = [y for y in range(row - half_height, row + half_height) if 0 <= y < height]
    columns = [x for x in range(column - half_width, column + half_width) if 0 <= x < width]
    if not rows or not columns:
        return (0, 0, 0, 0), 1.0
    return (rows[0], columns[0], len(rows), len(columns)), 1 - len(rows) * len(columns) / (height * width)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (2, 2), (3, 17), (33, 65), (224, 224), (97, 5)])
@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_boxes_follow_the_rule(height, width, alpha, monkeypatch):
    drawn = []
    boxes = mix_module._cutmix_boxes

    def recorded(lam, u, v, *size):
        drawn.append((lam, u, v))
        return boxes(lam, u, v, *size)

    monkeypatch.setattr(mix_module, "_cutmix_boxes", recorded)
    p = draw(Mix(cutmix=alpha, per="sample"), 300, height, width)
    for i, (lam, u, v) in enumerate(zip(*drawn[0], strict=True)):
        box, corrected = boxes_by_the_rule(lam, int(u * height), int(v * width), height, width)
        assert tuple(p.box[i]) == box
        assert p.lam[i] == np.float32(corrected)
    assert (p.weight == 1).all()


@pytest.mark.parametrize(("lam", "row", "column", "box"), [
    (0.75, 50, 50, (25, 30, 50, 40)),  # a quarter of the area: half of each side
    (0.75, 0, 79, (0, 59, 25, 21)),  # clipped at the top and on the right
    (0.0, 50, 40, (0, 0, 100, 80)),
    (0.0, 0, 0, (0, 0, 50, 40)),
    (1.0, 50, 40, (0, 0, 0, 0)),
    (0.9999, 50, 40, (0, 0, 0, 0)),  # half sides of 0.5 and 0.4
    (0.9996, 50, 40, (0, 0, 0, 0)),  # of 1.0 and 0.8: a box without width is none
    (0.999, 50, 40, (49, 39, 2, 2)),  # of 1.58 and 1.26
])  # fmt: skip
def test_boxes_by_hand(lam, row, column, box):
    got = mix_module._cutmix_boxes(
        np.array([lam]), np.array([(row + 0.5) / 100]), np.array([(column + 0.5) / 80]), 100, 80
    )
    assert tuple(got[0]) == box


def test_centres_of_the_boxes_are_uniform_over_the_pixels(monkeypatch):
    # Boxes of half sides 1: the centre is the pixel after the top left one, or the first.
    monkeypatch.setattr(mix_module, "_symmetric_beta", lambda alpha, u, v: np.full(len(u), 1 - 0.25))
    p = draw(Mix(cutmix=1.0, per="sample"), height=4, width=5)
    assert set(map(tuple, p.box[:, 2:])) == {(1, 1), (1, 2), (2, 1), (2, 2)}
    centres = p.box[:, :2] + (p.box[:, 2:] == 2)
    centres[p.box[:, 2] == 1, 0], centres[p.box[:, 3] == 1, 1] = 0, 0
    counts = np.bincount(centres @ [5, 1], minlength=20)
    chi_squared = ((counts - N / 20) ** 2 / (N / 20)).sum()
    assert chi_squared < 43.8  # 19 degrees of freedom, one time in a thousand


# --- Which samples, and how -----------------------------------------------------------------------------------


def kinds(p):
    """The share of samples mixed by mixup, and by cutmix."""
    return (p.weight < 1).mean(), (p.box[:, 2] > 0).mean()


@pytest.mark.parametrize(("mix", "mixup", "cutmix"), [
    (Mix(1.0, per="sample"), 1, 0),
    (Mix(cutmix=1.0, per="sample"), 0, 1),
    (Mix(1.0, 1.0, per="sample"), 0.5, 0.5),
    (Mix(1.0, 1.0, per="sample", probability=0.3), 0.15, 0.15),
    (Mix(1.0, per="sample", probability=0.9), 0.9, 0),
    (Mix(cutmix=1.0, per="sample", probability=0.1), 0, 0.1),
    (Mix(1.0, 1.0, per="sample", probability=0.0), 0, 0),
])  # fmt: skip
def test_share_of_each_kind(mix, mixup, cutmix):
    # Of an image of 4096 x 4096 every box has an area, but one in 10**7.
    p = draw(mix, height=4096, width=4096)
    for got, expected in zip(kinds(p), (mixup, cutmix), strict=True):
        assert abs(got - expected) <= 4 * math.sqrt(expected * (1 - expected) / N)
    assert not ((p.weight < 1) & (p.box[:, 2] > 0)).any()


def test_each_kind_draws_from_its_own_alpha():
    p = draw(Mix(100.0, 0.01, per="sample"))
    mixup = p.weight < 1
    assert np.abs(p.weight[mixup] - 0.5).max() < 0.25
    assert ((p.lam[~mixup] < 0.01) | (p.lam[~mixup] > 0.2)).mean() > 0.9
    p = draw(Mix(0.01, 100.0, per="sample"))
    assert np.quantile(np.abs(p.weight[p.weight < 1] - 0.5), 0.1) > 0.49


@pytest.mark.parametrize("mix", [Mix(0.4, 1.0), Mix(0.4, 1.0, probability=0.5)])
def test_a_batch_is_mixed_in_one_way(mix):
    seen = set()
    for batch in range(60):
        p = draw(mix, 7, batch=batch)
        for values in (p.weight, p.box, p.lam):
            assert (values == values[0]).all()
        seen.add((p.weight[0] < 1, p.box[0, 2] > 0))
    unmixed = {(False, False)} if mix.probability < 1 else set()
    assert seen == {(True, False), (False, True)} | unmixed


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_what_is_not_mixed_needs_no_partner(per):
    for batch in range(20):
        p = draw(Mix(0.4, 1.0, probability=0.5, per=per), 50, 8, 8, batch=batch)
        none = (p.weight == 1) & (p.box == 0).all(axis=1)
        assert np.array_equal(none, p.lam == 1)
        assert np.array_equal((p.box == 0).all(axis=1), p.box[:, 2] * p.box[:, 3] == 0)
        assert np.array_equal(p.lam[p.weight < 1], p.weight[p.weight < 1])


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("batch_size", [0, 1, 2, 3, 7, 8, 257])
def test_shapes_dtypes_and_partners(batch_size, per):
    p = draw(Mix(1.0, 1.0, per=per), batch_size)
    for values, shape, dtype in (
        (p.partner, (batch_size,), np.int64),
        (p.weight, (batch_size,), np.float32),
        (p.box, (batch_size, 4), np.int32),
        (p.lam, (batch_size,), np.float32),
    ):
        assert values.shape == shape
        assert values.dtype == dtype
        assert values.flags.c_contiguous
        assert values.flags.writeable  # torch.from_numpy warns of others
    assert is_permutation(p.partner)
    assert batch_size == 1 or (p.partner != np.arange(batch_size)).all()


def test_partners_form_one_ring_and_every_ring_is_equally_likely():
    # Of four samples there are 3! rings; the partners of a batch decide which.
    count = 6000
    rings = {}
    for batch in range(count):
        partner = draw(Mix(1.0), 4, 8, 8, batch=batch).partner
        ring = [0]
        while len(ring) < 4:
            ring.append(partner[ring[-1]])
        assert sorted(ring) == [0, 1, 2, 3]
        rings[tuple(ring)] = rings.get(tuple(ring), 0) + 1
    assert len(rings) == 6
    assert sum((seen - count / 6) ** 2 / (count / 6) for seen in rings.values()) < 20.5  # 5 degrees, one in a thousand


# --- Purity ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per", ["batch", "sample"])
def test_the_same_arguments_give_the_same_draws(per):
    mix = Mix(0.4, 1.0, probability=0.8, per=per)
    np.random.seed(1)
    first = draw(mix, 33)
    np.random.seed(2)
    draw(mix, 5, batch=9)
    for a, b in zip(vars(first).values(), vars(draw(mix, 33)).values(), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("per", ["batch", "sample"])
@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 3}, {"batch": 4}, {"seed": 5 + 2**40}])
def test_seed_epoch_and_batch_each_change_the_draws(change, per):
    a, b = draw(Mix(1.0, per=per), 100), draw(Mix(1.0, per=per), 100, **change)
    assert (a.weight != b.weight).all()
    assert (a.partner != b.partner).any()


def test_a_position_does_not_depend_on_the_size_of_the_batch():
    mix = Mix(0.4, 1.0, probability=0.8, per="sample")
    whole = draw(mix, 100)
    for size in (1, 2, 37, 99):
        part = draw(mix, size)
        for name in ("weight", "box", "lam"):
            np.testing.assert_array_equal(getattr(part, name), getattr(whole, name)[:size])
    for size in (1, 2, 37, 100):  # and per batch nothing but the partners does
        one = draw(Mix(0.4, 1.0), size)
        assert one.lam[0] == draw(Mix(0.4, 1.0), 1).lam[0]


def test_positions_batches_and_epochs_are_independent():
    mix = Mix(1.0, per="sample")
    weight = draw(mix).weight
    limit = 4 / math.sqrt(N)  # standard deviation of a correlation: 1 / sqrt(N)
    for other in (draw(mix, batch=4).weight, draw(mix, epoch=3).weight, draw(mix, seed=6).weight, np.roll(weight, 1)):
        assert abs(np.corrcoef(weight, other)[0, 1]) < limit
    p = draw(Mix(1.0, 1.0, probability=0.5, per="sample"))
    mixed, cut = p.lam < 1, p.box[:, 2] > 0
    top, left = p.box[cut, 0] + p.box[cut, 2] / 2, p.box[cut, 1] + p.box[cut, 3] / 2
    for a, b in ((top, left), (top, p.lam[cut]), (mixed[:-1], mixed[1:]), (p.partner, p.lam)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))


def test_no_draws_are_shared_with_the_plan_and_the_order(monkeypatch):
    counters = {}

    def recorder(name, philox):
        def recorded(key, counter):
            counters.setdefault(name, []).extend(map(tuple, counter.reshape(-1, 4).tolist()))
            return philox(key, counter)

        return recorded

    for module in (mix_module, plan, augment):
        monkeypatch.setattr(module, "philox", recorder(module.__name__, module.philox))
    for batch in range(3):
        draw(Mix(1.0, 1.0, per="sample"), 40, epoch=0, batch=batch)
        draw(Mix(1.0, 1.0), 40, epoch=1, batch=batch)
        copies = np.full(40, batch)  # which stand where a batch does
        transform = transforms.train(8, augment=["rand", transforms.ColorJitter(0.5)], erase=0.5)
        for epoch in range(2):
            size = np.full((40, 2), 50)
            made = plan.make_plan(transform, size, np.arange(40), copies, seed=5, epoch=epoch)
            plan.draw_augmentations(transform, made, np.arange(40), copies, seed=5, epoch=epoch, size=(8, 8))
    mix_counters = counters[mix_module.__name__]
    plan_counters = counters[plan.__name__] + counters[augment.__name__]
    assert not set(counters[plan.__name__]) & set(counters[augment.__name__])
    assert len(set(mix_counters)) == len(mix_counters) == 2 * 3 * 40 * 3
    assert not set(mix_counters) & set(plan_counters)
    # The last word of the order's counters, which are drawn in C++; test_order.py and test_samplers.py hold it to that.
    assert 0x6F726473 not in {counter[3] for counter in mix_counters + plan_counters}
