"""timm's training loop with our loader: what its script asks of a loader, with timm's own parts around it."""

import pytest
import torch

from fastfeed import DataLoader, Mix, transforms
from tests.images import write_folder
from tests.torch_loaders import Mapped

timm_utils = pytest.importorskip("timm.utils", reason="needs the package timm, which is not installed")
timm_data = pytest.importorskip("timm.data")
timm_loss = pytest.importorskip("timm.loss")

CLASSES = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("timm") / "data", {"cat": 5, "dog": 4, "owl": 2})


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(12, CLASSES))


def train_one_epoch(epoch, model, loader, optimizer, mixup_off_epoch, mixup_fn=None):
    """Do what the script's function of this name does with a loader; return the kinds of targets, and the updates."""
    if epoch >= mixup_off_epoch:
        if loader.mixup_enabled:
            loader.mixup_enabled = False
        elif mixup_fn is not None:
            mixup_fn.mixup_enabled = False
    losses, kinds = timm_utils.AverageMeter(), []
    last, updates = len(loader) - 1, epoch * len(loader)
    for i, (images, target) in enumerate(loader):
        if mixup_fn is not None:
            images, target = mixup_fn(images, target)
        kinds.append("rows" if target.is_floating_point() else "class indices")
        loss_fn = timm_loss.SoftTargetCrossEntropy() if kinds[-1] == "rows" else torch.nn.CrossEntropyLoss()
        loss = loss_fn(model(images), target)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), len(images))
        updates += 1
        assert (i == last) == (updates == (epoch + 1) * len(loader))
    assert losses.count == len(loader.sampler)
    return kinds, updates


def validate(model, loader):
    """Likewise: return the share of right answers in percent."""
    right = timm_utils.AverageMeter()
    with torch.inference_mode():
        for images, target in loader:
            (share,) = timm_utils.accuracy(model(images), target, topk=(1,))
            right.update(share.item(), len(target))
    assert right.count == len(loader.dataset)
    return right.avg


@pytest.mark.dali
def test_a_folder_with_the_loaders_own_mix(folder):
    mix = Mix(mixup=0.4, cutmix=1.0, num_classes=CLASSES)
    train = DataLoader(folder, 4, True, transform=transforms.train(16), mix=mix, device="cpu")
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(3):
        train.sampler.set_epoch(epoch)
        kinds, updates = train_one_epoch(epoch, model, train, optimizer, mixup_off_epoch=2)
        assert kinds == ["rows"] * 3  # also without mixing: the loss is for them
        assert updates == (epoch + 1) * 3
    assert (train.epoch, train.mixup_enabled) == (3, False)
    assert train.dataset.classes == ["cat", "dog", "owl"]
    assert 0 <= validate(model, DataLoader(folder, 4, transform=transforms.eval(16), device="cpu")) <= 100


@pytest.mark.parametrize("distributed", [False, True])
def test_rows_with_timms_mixup(distributed):
    dataset = Mapped(8, lambda i: (torch.full((3, 8, 8), float(i)), i % CLASSES))
    options = {"sampler": torch.utils.data.DistributedSampler(dataset, 1, 0)} if distributed else {"shuffle": True}
    train = DataLoader(dataset, 4, device="cpu", **options)
    mixup = timm_data.Mixup(mixup_alpha=0.4, num_classes=CLASSES, label_smoothing=0)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for epoch in range(2):
        train.sampler.set_epoch(epoch)  # as the script does where it is there
        kinds, updates = train_one_epoch(epoch, model, train, optimizer, 1, mixup)
        assert (kinds, updates) == (["rows"] * 2, 2 * (epoch + 1))
        assert train.sampler.epoch == epoch + (not distributed)
    assert not mixup.mixup_enabled
    assert 0 <= validate(model, DataLoader(dataset, 4, device="cpu")) <= 100


def test_orders_of_timms_samplers():
    sampler = timm_data.distributed_sampler.OrderedDistributedSampler(range(9), 2, 1)
    assert [batch.tolist() for batch in DataLoader(range(9), 4, sampler=sampler, device="cpu")] == [[1, 3, 5, 7], [0]]
    repeated = timm_data.distributed_sampler.RepeatAugSampler(range(512), 2, 1)
    ours = DataLoader(range(512), None, sampler=repeated, device="cpu")
    for epoch in range(2):
        ours.sampler.set_epoch(epoch)
        got = list(ours)
        repeated.set_epoch(epoch)
        assert got == list(repeated)
