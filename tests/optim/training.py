"""The same short training for any optimizer, on parameters and gradients that are awkward in every way."""

import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
# Around the kernel's vectors, blocks of 1024 and chunks of 4096, with empty tensors between them.
ALL_SIZES = [0, 1, 3, 127, 128, 0, 0, 1023, 1024, 1025, 4096, 4097, 9001, 0]
SIZES = [0, 3, 128, 1025]

EXACT = {"rtol": 0, "atol": 0}
CLOSE = {"rtol": 2e-6, "atol": 5e-7}


def parameters(dtype=torch.float32, device=DEVICE, sizes=SIZES):
    """The same values at every call, in awkward sizes and memory orders."""
    generator = torch.Generator().manual_seed(0)

    def rand(*shape):
        return torch.randn(shape, generator=generator).to(device, dtype)

    tensors = [
        *(rand(size) for size in sizes),
        rand(),
        rand(130)[1:],  # not aligned to 16 bytes
        rand(4, 3, 3, 3).to(memory_format=torch.channels_last),
        rand(9, 13).t(),
        rand(5, 1, 7).as_strided((5, 1, 7), (7, 999, 1)),
        rand(10, 6)[:, ::2],  # holes; the last, so that it is easily left out
    ]
    return [torch.nn.Parameter(t) for t in tensors]


def copies(params):
    """Parameters of the same values, strides and alignment as `params`, which come from parameters()."""
    fresh = parameters()
    with torch.no_grad():
        torch._foreach_copy_(fresh, params)
    return fresh


def set_gradients(params, step):
    """Set gradients, missing at some steps and at the first, in the memory order of the parameter."""
    generator = torch.Generator().manual_seed(step + 1)
    for i, p in enumerate(params):
        values = torch.randn(p.shape, generator=generator)
        p.grad = torch.empty_like(p).copy_(values) if (i + step) % 4 else None


def train(optimizer, steps=range(4)):
    params = [p for group in optimizer.param_groups for p in group["params"]]
    for step in steps:
        set_gradients(params, step)
        optimizer.step()
    return params


def assert_same(ours, theirs, **tolerance):
    """Parameters and states of two optimizers are close, or with rtol=atol=0 equal."""
    for group, other_group in zip(ours.param_groups, theirs.param_groups, strict=True):
        for p, q in zip(group["params"], other_group["params"], strict=True):
            torch.testing.assert_close(p, q, **tolerance)
            assert ours.state[p].keys() == theirs.state[q].keys()
            for name, value in ours.state[p].items():
                torch.testing.assert_close(value, theirs.state[q][name], check_device=False, **tolerance)
