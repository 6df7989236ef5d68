import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from fastfeed.demo.network import SmallResNet


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [(48, 48), (64, 64), (65, 97), (224, 224)])
@pytest.mark.parametrize(("num_classes", "width"), [(8, 32), (3, 16)])
def test_logits(size, num_classes, width):
    logits = SmallResNet(num_classes, width)(torch.randn(2, 3, *size))
    assert logits.shape == (2, num_classes)
    assert logits.isfinite().all()


def test_gradient_reaches_every_parameter():
    model = SmallResNet(8)
    F.cross_entropy(model(torch.randn(4, 3, 64, 64)), torch.arange(4)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("train", [True, False])
def test_channels_last_changes_speed_only(train):
    model = SmallResNet(8).train(train)
    images = torch.randn(4, 3, 64, 64)
    expected = model(images)
    model.to(memory_format=torch.channels_last)
    seen = []
    for layer in list(model)[:7]:
        layer.register_forward_hook(
            lambda _module, _input, output: seen.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    torch.testing.assert_close(model(images.to(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-4)
    assert seen == [True] * 7


def test_cost_is_what_the_docstring_says():
    model = SmallResNet(8).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 64, 64))
    assert counter.get_total_flops() == pytest.approx(34e6, rel=0.02)
    assert sum(parameter.numel() for parameter in model.parameters()) == pytest.approx(0.31e6, rel=0.02)


def test_learns_a_batch_by_heart():
    model = SmallResNet(8)
    images, target = torch.randn(16, 3, 48, 48), torch.arange(16) % 8
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(25):
        loss = F.cross_entropy(model(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
