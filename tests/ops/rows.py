"""What the tests of losses over the rows of two matrices share."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

# (rows, columns): below, at and above a vector of 16 bytes, a tile, several rows a program and several tiles a row
SHAPES = [
    (1, 1),
    (37, 2),
    (37, 7),
    (130, 3),
    (37, 41),
    (1, 128),
    (3, 1000),
    (3, 1001),
    (2, 4096),
    (2, 4097),
    (1, 21843),
]

HALF_ROUNDING = {
    torch.float16: 2**-11,
    torch.bfloat16: 2**-9 if DEVICE == "cuda" else 2**-7,  # Triton's interpreter cuts off where GPUs round
}
FP32 = 1e-6  # of the largest value: some roundings of sums of thousands


def assert_close(actual, truth):
    """Compare with fp64, to what fp32 arithmetic and one rounding to the result's dtype leave."""
    assert actual.shape == truth.shape
    rounding = HALF_ROUNDING.get(actual.dtype, 0.0)
    # fp16 below 6e-5 has fewer digits
    smallest = 2**-24 if actual.dtype == torch.float16 else 0.0
    size = truth.abs().max().item() if truth.numel() else 0.0
    torch.testing.assert_close(actual.double(), truth, rtol=FP32 + rounding, atol=FP32 * size + smallest)


def error(actual, truth):
    """Return the largest error, as a part of the largest value."""
    return ((actual.double() - truth).abs().max() / truth.abs().max()).item()


def assert_no_worse(actual, eager, truth):
    """The error is at most 1.5 times eager's, and what rounding to the result's dtype must cost."""
    assert actual.dtype == eager.dtype
    rounding = HALF_ROUNDING.get(actual.dtype, 2**-24)
    assert error(actual, truth) <= 1.5 * error(eager, truth) + rounding


def derivatives(function, inputs, grad=1.0):
    """Return [loss, gradient of each of the inputs], all of which are made leaves; grad is that of the loss."""
    leaves = [tensor.detach().requires_grad_() for tensor in inputs]
    loss = function(*leaves)
    if not isinstance(grad, torch.Tensor):
        grad = torch.full((), grad, device=loss.device)  # in a CUDA graph nothing can be copied from the host
    grad = grad.to(loss.dtype).expand(loss.shape)
    return [loss.detach(), *torch.autograd.grad(loss, leaves, grad)]
