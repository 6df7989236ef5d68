"""What the tests of the cross-entropy of labels share: the function, through kernels or reference, inputs, checks."""

import torch
import torch.nn.functional as F

import fastfeed.functional
import fastfeed.ops.cross_entropy as op

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# (rtol, atol) against float64 of the same rounded logits: what one rounding of the result and fp32 arithmetic allow
TOLERANCE = {
    torch.float64: (1e-12, 1e-12),
    torch.float32: (2e-6, 2e-6),
    torch.float16: (1e-3, 1e-5),
    torch.bfloat16: (8e-3, 1e-5),
}


function = fastfeed.functional.cross_entropy  # or what `path` puts here


def cross_entropy(*arguments, **options):
    """Return the loss, by what is tested."""
    return function(*arguments, **options)


def through_reference(input, target, weight=None, ignore_index=-100, reduction="mean", label_smoothing=0.0):
    return op.label_loss(input, target, weight, ignore_index, reduction, label_smoothing)


def make(n, c, dtype=torch.float32, scale=3.0, ignored=True, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(n, c, generator=generator) * scale).to(dtype).to(DEVICE)
    target = torch.randint(0, c, (n,), generator=generator)
    if ignored and n > 2:
        target[1] = -100
    return logits, target.to(DEVICE)


def gradients(function, logits, target, grad, **options):
    """Return (loss, gradient of the logits), for upstream gradient `grad` of the loss."""
    x = logits.detach().clone().requires_grad_()
    loss = function(x, target, **options)
    loss.backward(grad.to(loss.dtype).expand(loss.shape))
    return loss.detach(), x.grad


def check(logits, target, grad=1.0, **options):
    grad = torch.as_tensor(grad, device=logits.device)
    loss, dx = gradients(cross_entropy, logits, target, grad, **options)
    # the upstream gradient as the loss's own dtype holds it, so that only our rounding is judged
    options = {name: value.double() if name == "weight" else value for name, value in options.items()}
    true_loss, true_dx = gradients(F.cross_entropy, logits.double(), target, grad.to(loss.dtype).double(), **options)
    rtol, atol = TOLERANCE[logits.dtype]
    assert loss.dtype == dx.dtype == logits.dtype
    torch.testing.assert_close(loss.double(), true_loss, rtol=rtol, atol=atol, equal_nan=True)
    torch.testing.assert_close(dx.double(), true_dx, rtol=rtol, atol=atol)


def draw(shape, classes, dtype=torch.float32, seed=0):
    """Return logits [N, C, ...] for targets of a shape, the targets, some of which are ignored, and weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = (torch.randn(shape[0], classes, *shape[1:], generator=generator) * 3).to(dtype)
    target = torch.randint(0, classes, shape, generator=generator)
    if target.numel() > 2:
        target.view(-1)[1] = -100
    weight = (torch.rand(classes, generator=generator) + 0.5).to(dtype)
    return logits.to(DEVICE), target.to(DEVICE), weight.to(DEVICE)


def target_of_truth(target, classes):
    """Return the probabilities of two labels in float64; those of an ignored label are missing."""
    n = len(target.a)
    lam = target.lam.double().expand(n) if target.lam.numel() == 1 else target.lam.double()
    lam = lam.reshape(n, *[1] * (target.a.dim() - 1))
    return sum(
        (F.one_hot(y.clamp(min=0), classes) * ((y >= 0) * share)[..., None]).movedim(-1, 1)
        for y, share in ((target.a, lam), (target.b, 1 - lam))
    )
