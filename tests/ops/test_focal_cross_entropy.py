"""The focal loss against its formula in float64, through the kernels and the reference."""

import pytest
import torch
import torch.nn.functional as F

import fastfeed.ops.cross_entropy as op
from fastfeed import MixedTarget, nn
from fastfeed.functional import cross_entropy, focal_cross_entropy

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(params=["kernel", "reference"])
def path(request, monkeypatch):
    if request.param == "reference":
        monkeypatch.setattr(op, "kernel_takes", lambda *tensors: False)
    else:
        assert op.kernel_takes(torch.ones(1, device=DEVICE)), "the tests must reach the kernel"
    return request.param


def draw(shape, classes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(shape[0], classes, *shape[1:], generator=generator) * 3).to(dtype).to(DEVICE)
    target = torch.randint(0, classes, shape, generator=generator)
    target.view(-1)[1] = -100
    return logits, target.to(DEVICE), (torch.rand(classes, generator=generator) + 0.5).to(dtype).to(DEVICE)


def formula(logits, target, weight, gamma, reduction):
    p = logits.softmax(1)
    y = target.clamp(min=0)
    p_y = p.gather(1, y.unsqueeze(1)).squeeze(1)
    w = torch.ones_like(p_y) if weight is None else weight[y]
    w = w * (target != -100)
    loss = -w * (1 - p_y) ** gamma * p_y.log()
    return {"mean": loss.sum() / w.sum(), "sum": loss.sum(), "none": loss}[reduction]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("gamma", [0.5, 1, 2.0, 5.0])
@pytest.mark.parametrize(("shape", "classes"), [((9,), 7), ((3,), 300), ((2, 3, 4), 5)])
def test_the_formula(path, shape, classes, gamma, reduction):
    logits, target, weight = draw(shape, classes)
    for w in (None, weight):
        x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
        loss = focal_cross_entropy(x, target, w, gamma=gamma, reduction=reduction)
        truth = formula(y, target, None if w is None else w.double(), gamma, reduction)
        torch.testing.assert_close(loss.double(), truth, rtol=5e-6, atol=1e-6)
        loss.sum().backward()
        truth.sum().backward()
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("classes", [5, 300])
def test_two_labels(path, classes):
    logits, a, weight = draw((6,), classes)
    b = a.roll(1)
    lam = torch.rand(6, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    x, y = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = focal_cross_entropy(x, MixedTarget(a, b, lam), weight, reduction="sum")
    parts = (share * formula(y, label, weight.double(), 2, "none") for share, label in ((lam, a), (1 - lam, b)))
    truth = sum(parts).sum()
    torch.testing.assert_close(loss.double(), truth, rtol=5e-6, atol=0)
    loss.backward()
    truth.backward()
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-5, atol=1e-6)


def test_without_gamma_it_is_cross_entropy(path):
    logits, target, weight = draw((9,), 7)
    assert torch.equal(
        focal_cross_entropy(logits, target, weight, gamma=0), op.label_loss(logits, target, weight, -100, "mean")
    )
    torch.testing.assert_close(focal_cross_entropy(logits, target, gamma=0), cross_entropy(logits, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", [3, 200])
def test_a_loss_that_is_nan_is_not_hidden(path, classes, gamma):
    logits = torch.zeros(4, classes, device=DEVICE)
    logits[1, 2] = float("nan")
    logits[2] = -float("inf")
    loss = focal_cross_entropy(logits, torch.zeros(4, dtype=torch.int64, device=DEVICE), gamma=gamma, reduction="none")
    assert loss.isnan().tolist() == [False, True, True, False]


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("classes", [3, 200])
def test_certain_and_impossible_rows(path, classes, gamma):
    """Where p is 1, or 0, the loss and the gradient are their limits."""
    logits = torch.zeros(3, classes, device=DEVICE)
    logits[0, 0] = 200.0  # p = 1 of class 0
    logits[1, 1] = 200.0  # p = 0 of class 0
    logits[2, 0] = 12.0  # 1 - p is small
    target = torch.zeros(3, dtype=torch.int64, device=DEVICE)
    x = logits.clone().requires_grad_()
    loss = focal_cross_entropy(x, target, gamma=gamma, reduction="none")
    loss.sum().backward()
    assert loss[0] == 0
    assert loss[1] == 200
    assert x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[0], torch.zeros_like(x.grad[0]), rtol=0, atol=1e-30)
    torch.testing.assert_close(x.grad[1, :2].cpu(), torch.tensor([-1.0, 1.0]), rtol=1e-6, atol=0)
    y = logits[2:].double().requires_grad_()
    truth = formula(y, target[2:], None, gamma, "sum")
    truth.backward()
    # A cross-entropy near 0, as PyTorch's, has the error of 1 + 1e-5 in fp32.
    rtol = 1.5e-2 * (1 + gamma)
    torch.testing.assert_close(loss[2].double(), truth, rtol=rtol, atol=0)
    torch.testing.assert_close(x.grad[2].double(), y.grad[0], rtol=rtol, atol=1e-16)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
@pytest.mark.parametrize("classes", [3, 200])
def test_a_class_that_is_ruled_out(path, classes, gamma):
    """A logit of -inf gives an infinite loss, and the gradient of cross-entropy, whose factor has gone to 1."""
    logits, target, _ = draw((4,), classes)
    logits[0, target[0]] = -float("inf")
    grads = []
    for function, options in ((focal_cross_entropy, {"gamma": gamma}), (F.cross_entropy, {})):
        x = logits.clone().requires_grad_()
        loss = function(x, target, reduction="none", **options)
        loss.sum().backward()
        assert loss[0] == float("inf")
        assert x.grad.isfinite().all()
        grads.append(x.grad[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("gamma", [1.5, 2.0])
def test_gradcheck_of_the_reference(gamma):
    logits, target, weight = draw((3, 2), 4, torch.float64)

    def loss(x):
        return focal_cross_entropy(x, target, weight, gamma=gamma, reduction="none")

    assert torch.autograd.gradcheck(loss, logits.requires_grad_())
    assert torch.autograd.gradgradcheck(loss, logits)


def test_errors():
    logits, target, _ = draw((4,), 5)
    for gamma in (-1, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"gamma is {gamma}; expected a finite number"):
            focal_cross_entropy(logits, target, gamma=gamma)
    with pytest.raises(ValueError, match=r"target is \[3\]; expected \[4\]"):
        focal_cross_entropy(logits, target[:3])
    with pytest.raises(RuntimeError, match="target is torch.float32; expected class indices"):
        focal_cross_entropy(logits, torch.rand(4, device=DEVICE))


def test_module():
    logits, target, weight = draw((9,), 7)
    module = nn.FocalCrossEntropyLoss(weight, gamma=3.0)
    assert module(logits, target) == focal_cross_entropy(logits, target, weight, gamma=3.0)
    assert repr(module) == "FocalCrossEntropyLoss(gamma=3.0)"
    assert list(module.state_dict()) == ["weight"] == list(torch.nn.CrossEntropyLoss(weight).state_dict())


def test_the_loss_is_smaller_where_the_network_is_sure():
    logits, target, _ = draw((50,), 7)
    plain = F.cross_entropy(logits, target, reduction="none")
    assert (focal_cross_entropy(logits, target, reduction="none") <= plain).all()
