"""The range test itself: its curve, suggestion, picture and errors. What it puts back: test_lr_find_restores.py."""

import math
import sys

import numpy as np
import pytest
import torch
from torch import nn

from fastfeed import MixedTarget, functional
from fastfeed.optim import AdamW, LRFindResult, lr_find

module = sys.modules["fastfeed.optim.lr_find"]  # the package has the function under this name


class Images:
    """Four patterns in noise, without end: other batches in every epoch, the same ones from every such object."""

    def __init__(self, count=1000):
        self.generator = torch.Generator().manual_seed(0)
        self.patterns = nn.functional.avg_pool2d(torch.randn(4, 3, 16, 16, generator=self.generator), 5, 1, 2) * 3
        self.count = count

    def __iter__(self):
        for _ in range(self.count):
            target = torch.randint(4, (32,), generator=self.generator)
            noise = torch.randn(32, 3, 16, 16, generator=self.generator)
            yield self.patterns[target] + noise, target


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    )


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def scripted(losses, **options):
    """The result where steps have these losses, whatever is learnt."""
    model = nn.Linear(1, 1)
    remaining = iter(losses)

    def loss_fn(output, target):
        return output.sum() * 0 + next(remaining)

    batches = [(torch.ones(1, 1), None)]
    return lr_find(model, sgd(model), batches, loss_fn, **{"start": 1e-4, "end": 1.0, "steps": len(losses), **options})


def test_suggestion_trains_and_a_hundred_times_it_does_not():
    model = network()
    result = lr_find(model, sgd(model), Images(), nn.functional.cross_entropy)
    again = network()
    assert lr_find(again, sgd(again), Images(), nn.functional.cross_entropy) == result
    assert result.reason is None
    assert len(result.lrs) == len(result.losses) == len(result.smoothed) <= 100
    np.testing.assert_allclose(result.lrs, np.geomspace(1e-7, 10, 100)[: len(result.lrs)], rtol=1e-12)

    def train(lr):
        model = network()
        optimizer = sgd(model, lr)
        losses = []
        for images, target in Images(60):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), target)
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        return np.mean(losses[-10:])

    guessing = math.log(4)
    assert train(result.suggestion) < 0.1 * guessing
    assert train(result.suggestion / 100) > 0.5 * guessing  # so the test can tell
    assert train(result.suggestion * 100) > 2 * guessing


def test_smoothed_is_the_unbiased_moving_average():
    losses = np.random.default_rng(0).uniform(1, 2, 20)
    result = scripted(losses, smoothing=0.7)
    for i, smoothed in enumerate(result.smoothed):
        weights = 0.7 ** np.arange(i, -1, -1)
        assert smoothed == pytest.approx(np.average(losses[: i + 1], weights=weights), rel=1e-6)
    np.testing.assert_allclose(result.losses, losses, rtol=1e-6)
    assert scripted(losses, smoothing=0).smoothed == pytest.approx(losses)


FLAT = [2.0] * 20


@pytest.mark.parametrize(
    ("losses", "suggestion"),
    [
        # 101 steps, 25 to a factor of 10. Steepest after 23 steps, long before the lowest:
        (
            [*FLAT, *[1.9, 1.7, 1.2, 1.0, 0.9], *np.linspace(0.89, 0.5, 51), *np.linspace(0.5, 1, 25)],
            10 ** (-4 + 22 / 25),
        ),
        # Steepest just before the lowest, which has 10 ** -2:
        (
            [*FLAT, *np.linspace(2, 1.5, 27)[1:], *[1.3, 1.1, 0.7, 0.4], *np.linspace(0.5, 1, 51)],
            10 ** (-4 + 49 / 25 - 1),
        ),
    ],
    ids=["steepest", "a tenth of the lowest"],
)
def test_suggests(losses, suggestion):
    assert len(losses) == 101
    result = scripted(losses, smoothing=0, early_stop_threshold=None)
    assert result.suggestion == pytest.approx(suggestion, rel=1e-6)
    assert result.reason is None


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        (np.linspace(1, 2, 50), "does not fall, between learning rates of 0.0001 and 1, by more than"),
        ([2.0] * 50, "does not fall"),
        (2 + 0.1 * np.random.default_rng(0).standard_normal(50), "does not fall"),  # noise does, a little
        ([*[2.0] * 3, math.nan, *[2.0] * 10], "after 3 steps: lower start"),
        ([math.inf, *[2.0] * 10], "after 0 steps.*no learning rate is at fault"),
    ],
)
def test_says_why_it_suggests_nothing(losses, reason):
    result = scripted(losses)
    assert result.suggestion is None
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(result.reason)


@pytest.mark.parametrize("every", [1, 3, 8])
@pytest.mark.parametrize(
    ("losses", "threshold", "length"),
    [
        ([2.0] * 9 + [7.9] + [8.1] + [2.0] * 9, 4.0, 11),
        ([2.0] * 9 + [7.9] + [8.1] + [2.0] * 9, 3.0, 10),
        ([2.0] * 9 + [7.9] + [8.1] + [2.0] * 9, None, 20),
        ([2.0] * 9 + [7.9] + [math.nan] + [2.0] * 9, None, 10),
        ([-1.0] * 9 + [1.9] + [2.1] + [0.0] * 9, 4.0, 11),  # as far above the best as 4 would be from 1
        ([0.0, *[-2.0] * 19], 4.0, 20),
    ],
)
def test_stops_where_it_diverges(losses, threshold, length, every, monkeypatch):
    monkeypatch.setattr(module, "_read_every", lambda device: every)
    result = scripted(losses, smoothing=0, early_stop_threshold=threshold)
    assert result.losses == pytest.approx(losses[:length])
    assert len(result.lrs) == len(result.smoothed) == length


def test_reads_losses_of_a_gpu_seldom():
    assert module._read_every(torch.device("cpu")) == 1
    assert module._read_every(torch.device("cuda", 0)) == 8


@pytest.mark.parametrize("tensors", [False, True])
def test_groups_keep_their_ratios(tensors):
    a, b, c = (nn.Parameter(torch.ones(1)) for _ in range(3))
    lrs = [torch.tensor(lr) if tensors else lr for lr in (0.01, 0.1, 0.0)]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip((a, b, c), lrs, strict=True)])
    seen = []

    def look(*_):
        seen.append([float(group["lr"]) for group in optimizer.param_groups])
        assert not tensors or all(group["lr"] is lr for group, lr in zip(optimizer.param_groups, lrs, strict=True))

    optimizer.register_step_pre_hook(look)
    result = lr_find(
        nn.Identity(), optimizer, [(1.0, 0.0)], lambda x, t: (a + b + c).sum() * x + t, start=1e-5, end=1e-3, steps=12
    )
    expected = [[0.1 * lr, lr, 0.0] for lr in np.geomspace(1e-5, 1e-3, 12)]
    np.testing.assert_allclose(seen, expected, rtol=1e-6)
    np.testing.assert_allclose(result.lrs, [lr for _, lr, _ in expected])


def test_groups_whose_learning_rates_are_all_zero():
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD([{"params": [p], "lr": 0.0} for p in model.parameters()])
    seen = []
    optimizer.register_step_pre_hook(lambda *_: seen.append([group["lr"] for group in optimizer.param_groups]))
    lr_find(model, optimizer, [(torch.ones(1, 1), None)], lambda y, _: y.sum(), steps=10)
    np.testing.assert_allclose(seen, [[lr, lr] for lr in np.geomspace(1e-7, 10, 10)])


def test_a_mixed_target_reaches_the_loss(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)  # interpreted kernels have tests of their own
    model = network()
    mixed = MixedTarget(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0.3, 1.0]))
    images = torch.randn(2, 3, 32, 32)
    result = lr_find(model, AdamW(model.parameters()), [(images, mixed)], functional.cross_entropy, steps=10)
    expected = functional.cross_entropy(network()(images), mixed)
    assert result.losses[0] == pytest.approx(float(expected.detach()), rel=1e-6)


def test_a_short_loader_begins_anew_and_more_than_images_and_target_is_left_out():
    begun, asked = [], []

    class Loader:
        def __iter__(self):
            begun.append(True)
            for i in range(4):
                asked.append(i)
                yield [torch.full((1, 1), float(i)), torch.tensor(i), {"path": "a.jpg"}]

    seen = []
    model = nn.Linear(1, 1)

    def loss_fn(output, target):
        seen.append(int(target))
        return output.sum()

    lr_find(model, sgd(model), Loader(), loss_fn, steps=10, early_stop_threshold=None, end=1e-3)
    assert seen == asked == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1]
    assert len(begun) == 3


def test_trees_of_images_and_targets():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(1, 1)

        def forward(self, views):
            return self.linear(views["a"]) + self.linear(views["b"][0])

    model = Two()
    batch = ({"a": torch.ones(1, 1), "b": [torch.ones(1, 1)]}, (torch.zeros(1), "cat"))
    result = lr_find(model, sgd(model), [batch], lambda y, t: (y - t[0]).square().mean(), steps=10)
    assert len(result.losses) > 1


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_autocast(dtype):
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)).requires_grad_(True)
    dtypes, largest = set(), []

    def loss_fn(output, target):
        dtypes.add(output.dtype)
        return (output - target).float().square().mean() * 1e-3

    optimizer = sgd(model)
    # What the optimizer gets is not scaled, where the scale would be 65536.
    optimizer.register_step_pre_hook(
        lambda *_: largest.append(max(float(p.grad.abs().max()) for p in model.parameters()))
    )
    batches = [(torch.ones(8, 4), torch.ones(8, 1))]
    lr_find(model, optimizer, batches, loss_fn, steps=10, autocast=dtype, end=1e-2)
    assert dtypes == {dtype or torch.float32}
    assert 0 < max(largest) < 0.1


def test_half_precision_gradients_do_not_underflow():
    model = nn.Linear(1, 1)
    gradients = []
    optimizer = sgd(model)
    optimizer.register_step_pre_hook(lambda *_: gradients.append(float(model.weight.grad)))
    # 1e-9 is none of float16, which the backward pass goes through.
    lr_find(
        model,
        optimizer,
        [(torch.ones(1, 1), None)],
        lambda y, _: y.float().sum() * 1e-9,
        steps=10,
        autocast=torch.float16,
    )
    assert gradients == pytest.approx([1e-9] * 10, rel=1e-2)


GOOD = [(torch.ones(1, 1), None)]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"steps": 9}, ValueError, "steps is 9; expected a whole number, 10 or more"),
        ({"steps": 20.0}, ValueError, "steps is 20.0; expected a whole number"),
        ({"start": 0.0}, ValueError, "start is 0.0 and end is 10.0; expected learning rates with 0 < start < end"),
        ({"start": 20.0}, ValueError, "start is 20.0 and end is 10.0"),
        ({"end": math.inf}, ValueError, "end is inf"),
        ({"end": math.nan}, ValueError, "end is nan"),
        ({"smoothing": 1.0}, ValueError, "smoothing is 1.0; expected 0"),
        ({"smoothing": -0.1}, ValueError, "smoothing is -0.1"),
        (
            {"early_stop_threshold": 1.0},
            ValueError,
            "early_stop_threshold is 1.0; expected a factor on the lowest loss",
        ),
        ({"autocast": torch.int8}, ValueError, "autocast is torch.int8; expected torch.bfloat16"),
        ({"loss_fn": GOOD, "loader": lambda y, t: y}, TypeError, "loss_fn is of type list; expected a function"),
        ({"optimizer": None}, TypeError, "optimizer is of type NoneType; expected a torch.optim.Optimizer"),
        ({"loader": []}, ValueError, "the loader gave no batches"),
        (
            {"loader": iter(GOOD * 11)},
            ValueError,
            "gave 11 batches, and then none when it was begun anew; expected 100",
        ),
        (
            {"loader": [torch.ones(1, 1)]},
            TypeError,
            "batch of type Tensor; expected a tuple or list of images and target",
        ),
        ({"loader": [(torch.ones(1, 1),)]}, TypeError, "batch of type tuple; expected a tuple or list of images and"),
        ({"loss_fn": lambda y, t: y}, ValueError, r"a tensor of shape \[1, 1\]; expected a scalar"),
        ({"loss_fn": lambda y, t: 1.0}, TypeError, "an object of type float; expected a tensor"),
    ],
)
def test_errors(arguments, error, message):
    model = nn.Linear(1, 1)
    given = {"optimizer": sgd(model), "loader": GOOD, "loss_fn": lambda y, t: y.sum(), **arguments}
    with pytest.raises(error, match=message):
        lr_find(model, **given)


def test_a_group_without_a_learning_rate():
    model = nn.Linear(1, 1)
    optimizer = sgd(model)
    del optimizer.param_groups[0]["lr"]
    with pytest.raises(ValueError, match="parameter group 0 of the optimizer has no lr"):
        lr_find(model, optimizer, GOOD, lambda y, t: y.sum())


FOUND = LRFindResult(
    tuple(np.geomspace(1e-4, 1, 9)), (3, 2, 3, 2, 1, 1, 0.5, 4, 900), (3, 3, 3, 2.5, 2, 1.5, 1, 2, 90), 1e-2, None
)


@pytest.fixture
def figure():
    pytest.importorskip("matplotlib", reason="needs the package matplotlib, which is not installed")
    from matplotlib.figure import Figure

    return Figure()


@pytest.mark.parametrize("as_path", [True, False])
def test_plot_writes_a_file_and_leaves_no_figure_open(as_path, tmp_path, figure):
    path = tmp_path / "curve.png"
    had_pyplot = "matplotlib.pyplot" in sys.modules
    FOUND.plot(path if as_path else str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert path.stat().st_size > 10_000
    assert had_pyplot or "matplotlib.pyplot" not in sys.modules


def test_plot_shows_the_curve_and_the_suggestion(figure):
    axes = figure.subplots()
    assert FOUND.plot(axes) is axes
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", "learning rate", "training loss")
    assert axes.get_title()
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["loss of the batch"] == [list(point) for point in zip(FOUND.lrs, FOUND.losses, strict=True)]
    assert lines["smoothed"] == [list(point) for point in zip(FOUND.lrs, FOUND.smoothed, strict=True)]
    assert lines["suggestion: 0.01"] == [[1e-2, pytest.approx(2)]]
    assert len(axes.get_legend().get_texts()) == 3
    low, high = axes.get_ylim()
    assert low < 0.5
    assert 3 < high < 5  # of what comes before the lowest loss


def test_plot_without_a_suggestion(figure):
    axes = LRFindResult((1e-3, 1e-2), (1.0, 2.0), (1.0, 1.5), None, "none").plot(figure.subplots())
    assert axes.get_title().endswith("no suggestion")
    assert len(axes.get_legend().get_texts()) == 2


def test_plot_of_nothing(figure):
    LRFindResult((), (), (), None, "none").plot(figure.subplots())


def test_plot_of_something_else(figure):
    with pytest.raises(TypeError, match="path_or_ax is 3; expected a path, or the axes"):
        FOUND.plot(3)


def test_plot_without_matplotlib(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "matplotlib.axes", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        FOUND.plot(tmp_path / "curve.png")
