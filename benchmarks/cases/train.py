"""Whole training steps, from JPEG files to updated parameters."""

import copy
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import fastfeed
import fastfeed.functional
import fastfeed.optim
from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import need
from benchmarks.steps import END, FIRST, Begin, Steps, record_steps
from benchmarks.torchvision_ops import import_torchvision
from fastfeed.data.dali import dali_install_line
from fastfeed.demo.baseline import PillowFolder
from fastfeed.demo.draw import draw_dataset
from fastfeed.demo.network import SmallResNet

Batch = tuple[Tensor, Tensor]  # images [N, 3, size, size], target [N]


def timm_network(name: str) -> Callable[[int, int], nn.Module]:
    """Return a function that makes one of timm's networks, without trained weights."""

    def make(classes: int, size: int) -> nn.Module:
        options = {"img_size": size} if name.startswith("vit") else {}  # which learns an embedding of each place
        with suppress(ModuleNotFoundError):
            import_torchvision()  # which timm imports, whether or not its compiled part loads: networks do without
        return need("timm.models").create_model(name, num_classes=classes, **options)

    return make


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {  # of the number of classes and the size of the images
    "small-resnet": lambda classes, size: SmallResNet(classes),
    "small-resnet-w64": lambda classes, size: SmallResNet(classes, width=64),
    "resnet50": timm_network("resnet50"),
    "vit-s16": timm_network("vit_small_patch16_224"),
}
SMOOTHING = 0.1
CHECKED_STEPS = 4
MOST_WORKERS = 16  # a run has as many steps for each of them
TORCH_OPS = (F.cross_entropy, torch.optim.AdamW)
FASTFEED_OPS = (fastfeed.functional.cross_entropy, fastfeed.optim.AdamW)


class Feed:
    """The batches of a loader, run by run, as if it were in the middle of a long epoch.

    A loader that simply went on would make batches while other providers are timed, and have them ready, for free,
    when its next run begins. So a run takes one epoch from it, neither more nor less: it first trains on what the run
    before has left, while the loader gets going, and in the end leaves as many, for which it waits. Thus it pays for
    as many batches as it trains on, and when it is over the loader is idle. (PyTorch's workers get going at once, our
    loader when it is first asked: what that costs, less than the making of one batch a run, is to our disadvantage.)

    Args:
        loader: gives the same number of batches, `len(loader)`, in every epoch.
        ahead: batches left ready for the next run: as many as the loader makes ahead.
        device: where the batches go.
    """

    def __init__(self, loader: Any, ahead: int, device: torch.device) -> None:
        self._loader = loader
        self._device = device
        # An epoch to start with, which starts workers and fills the page cache.
        self._ready = list(deque(loader, maxlen=ahead))

    def __iter__(self) -> Iterator[Batch]:
        epoch = iter(self._loader)  # with which PyTorch's workers begin
        yield from map(self._bring, self._ready)
        yield from map(self._bring, islice(epoch, len(self._loader) - len(self._ready)))
        self._ready = list(epoch)  # as the loader gave them: they need no memory of the device until their turn comes

    def _bring(self, batch: Batch) -> Batch:
        images, target = batch
        images = images.to(self._device, non_blocking=True, memory_format=torch.channels_last)
        return images, target.to(self._device, non_blocking=True)

    def close(self) -> None:
        """Drop the loader and the batches; PyTorch ends a loader's workers when nothing refers to it."""
        self._loader, self._ready = [], []


@dataclass(frozen=True)
class Trainer:
    """A run: a training step on each of `batches`. All of it runs in bf16 where autocast allows, or all in fp32.

    Attributes:
        network: images -> logits, channels-last.
        cross_entropy: of (logits, target, label_smoothing=...).
        optimizer: of the network's parameters.
        batches: those of one run, on the network's device.
        dtype: torch.bfloat16 or torch.float32.
    """

    network: nn.Module
    cross_entropy: Callable[..., Tensor]
    optimizer: torch.optim.Optimizer
    batches: Iterable[Batch]
    dtype: torch.dtype

    def __call__(self) -> Tensor:
        """Train for a run and return the losses, [steps]."""
        return self.train(self.batches)

    def train(self, batches: Iterable[Batch], begin: Begin = lambda phase: None) -> Tensor:
        """Take a step on each of `batches`, telling `begin` of its phases, and return the losses, [steps].

        The last phase is a wait too: for the batches that a `Feed` leaves to the next run.
        """
        losses = []
        begin(FIRST)
        for images, target in batches:
            begin("forward")
            with torch.autocast(images.device.type, torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                loss = self.cross_entropy(self.network(images), target, label_smoothing=SMOOTHING)
            begin("backward")
            loss.backward()
            begin("optimizer")
            self.optimizer.step()
            self.optimizer.zero_grad()
            losses.append(loss.detach())
            begin(FIRST)
        begin(END)
        return torch.stack(losses)


class TrainCase(Case):
    """Our loader, loss and optimizer against PyTorch's with Pillow, together and apart, around the same network.

    "fastfeed loader" has our loader and PyTorch's loss and optimizer, "fastfeed ops" the reverse. "synthetic" trains
    with PyTorch on one batch that is on the device already, "synthetic, fastfeed ops" with our loss and optimizer: what
    the steps take by themselves.
    """

    name = "train"
    direction = "epoch"
    baseline = "torch"
    wall_clock = True
    packages: ClassVar = dict.fromkeys(("fastfeed loader", "fastfeed ops", "synthetic, fastfeed ops"), "fastfeed")
    no_peers = frozenset({"fastfeed loader", "fastfeed ops", "synthetic", "synthetic, fastfeed ops"})
    providers: ClassVar = {
        "torch": lambda case: case.trainer(case.torch_batches, *TORCH_OPS),
        "fastfeed": lambda case: case.trainer(case.fastfeed_batches, *FASTFEED_OPS),
        "fastfeed loader": lambda case: case.trainer(case.fastfeed_batches, *TORCH_OPS),
        "fastfeed ops": lambda case: case.trainer(case.torch_batches, *FASTFEED_OPS),
        "synthetic": lambda case: case.trainer(case.synthetic_batches, *TORCH_OPS),
        "synthetic, fastfeed ops": lambda case: case.trainer(case.synthetic_batches, *FASTFEED_OPS),
    }

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """Networks and batches; for the CPU one, of a size that two cores train on in a minute or two."""
        if options.device.type == "cuda":
            shapes = ["resnet50-64x3x224x224", "small-resnet-w64-64x3x224x224"]
            if not options.quick:
                shapes += ["resnet50-256x3x224x224", "vit-s16-256x3x224x224"]
            return [{"shape": shape, "dtype": torch.bfloat16} for shape in shapes]
        images = "16x3x224x224" if options.data else "64x3x64x64"
        return [{"shape": f"small-resnet-{images}", "dtype": torch.float32}]

    def __init__(self, options: Options, shape: str, dtype: torch.dtype) -> None:
        name, _, images = shape.rpartition("-")
        self.batch_size, _, self.size, _ = self._shape = tuple(map(int, images.split("x")))
        self.device = options.device
        self.dtype = dtype
        self.workers = min(options.threads, MOST_WORKERS)
        # The same number for each of PyTorch's workers, which make whole batches: so none idles at the end of a run.
        self.steps = self.workers * (4 if options.quick or self.device.type == "cuda" else 16)
        self._resources = ExitStack()

        folder = options.data
        if folder is None:
            root = Path(self._resources.enter_context(tempfile.TemporaryDirectory()), "drawn")
            draw_dataset(root, train_per_class=16 if options.quick else 64, val_per_class=1)
            folder = root / "train"
        source = fastfeed.FolderSource(folder)
        self.images_per_run = self.steps * self.batch_size
        self.source = source.subset([i * len(source) // self.images_per_run for i in range(self.images_per_run)])

        self.classes = len(source.classes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = NETWORKS[name](self.classes, self.size)
        self.flops_per_run = self.steps * training_flops(network, self._shape)
        self.network = network.to(self.device, memory_format=torch.channels_last)

    def close(self) -> None:
        """End the loaders' workers and remove the drawn images."""
        self._resources.close()

    def trainer(
        self,
        batches: Iterable[Batch],
        cross_entropy: Callable[..., Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
    ) -> Trainer:
        """Return a run over `batches` with weights of its own, the same for all."""
        network = copy.deepcopy(self.network)
        return Trainer(network, cross_entropy, optimizer(network.parameters()), batches, self.dtype)

    # The providers take turns, so they can share loaders, of which each has its workers.

    @cached_property
    def torch_batches(self) -> Feed:
        """Batches as people make them today: Pillow in PyTorch's workers."""
        loader = torch.utils.data.DataLoader(
            PillowFolder(self.source.samples, self.size),
            self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            persistent_workers=True,
            pin_memory=self.device.type == "cuda",
            # A fork would copy this process in the middle of whatever DALI's threads do.
            multiprocessing_context="forkserver",
        )
        return self._feed(loader, self.workers * loader.prefetch_factor)

    @cached_property
    def fastfeed_batches(self) -> Feed:
        """Batches of our loader, in the dtype that the network computes in."""
        need("nvidia.dali", dali_install_line())
        loader = fastfeed.DataLoader(
            self.source,
            self.batch_size,
            shuffle=True,
            num_workers=self.workers,
            transform=fastfeed.transforms.train(self.size),
            device=self.device,
            dtype=self.dtype,
        )
        return self._feed(loader, loader.prefetch_factor)

    def _feed(self, loader: Any, ahead: int) -> Feed:
        feed = Feed(loader, ahead, self.device)
        self._resources.callback(feed.close)
        return feed

    @cached_property
    def synthetic_batches(self) -> list[Batch]:
        """One batch of noise, in every step."""
        generator = torch.Generator(self.device).manual_seed(0)
        images = torch.randn(self._shape, device=self.device, generator=generator)
        target = torch.randint(self.classes, (self.batch_size,), device=self.device, generator=generator)
        return [(images.contiguous(memory_format=torch.channels_last), target)] * self.steps

    def check(self, provider: str) -> float:
        """Compare the first steps on the same batches with the baseline's, and then the batches of a whole run.

        The parts have their own cases, which see smaller mistakes.

        Returns:
            The largest absolute difference of a loss.
        """
        trainer = self.providers[provider](self)
        error = self._check_steps(trainer)
        if trainer.batches is not self.synthetic_batches:
            self._check_batches(trainer)
        return error

    def _check_steps(self, trainer: Trainer) -> float:
        expected_losses, expected_way = self._expected_steps
        losses, way = self._first_steps(trainer)
        # Rounding to bf16 stays 3 times closer than this; a learning rate that is a tenth off, or a smoothing that is a
        # fifth off, goes 2 times farther. Adam's first steps go by the sign of the gradient, which a rounding can turn
        # where it is near 0: so the median parameter tells, and the farthest does not.
        rtol = 1e-3 if self.dtype == torch.float32 else 5e-3
        torch.testing.assert_close(losses, expected_losses, rtol=rtol, atol=0)
        off = ((way - expected_way).abs().median() / expected_way.abs().median()).item()
        assert off < 10 * rtol, f"in {CHECKED_STEPS} steps the median parameter went {off:.2%} off the baseline's way"
        return largest_error(losses, expected_losses)

    @cached_property
    def _expected_steps(self) -> tuple[Tensor, Tensor]:
        return self._first_steps(self.trainer((), *TORCH_OPS))

    def _first_steps(self, trainer: Trainer) -> tuple[Tensor, Tensor]:
        """Return the losses of the first steps of a trainer, and how far they move each parameter."""
        losses = trainer.train(self.synthetic_batches[:CHECKED_STEPS])
        pairs = zip(trainer.network.parameters(), self.network.parameters(), strict=True)
        return losses, torch.cat([(after - before).detach().flatten() for after, before in pairs])

    def _check_batches(self, trainer: Trainer) -> None:
        # Crops are random, but a hundred of them differ by some 0.1. Contrast is about 1, and a quarter of that where
        # pixels are not normalised.
        torch.testing.assert_close(self._statistics(trainer), self._expected_statistics, rtol=0, atol=0.4)

    @cached_property
    def _expected_statistics(self) -> Tensor:
        return self._statistics(self.trainer(self.torch_batches, *TORCH_OPS))

    def _statistics(self, trainer: Trainer) -> Tensor:
        """Train for a run, and return what describes its images, [3, 3]: brightness, its spread, and contrast, by RGB.

        Raises:
            AssertionError: there is something wrong with a batch by itself, with their number, or with a loss.
        """
        means, stds = [], []

        def look() -> Iterator[Batch]:
            for images, target in trainer.batches:
                assert images.shape == self._shape, f"a batch is {list(images.shape)}, not {list(self._shape)}"
                assert images.is_contiguous(memory_format=torch.channels_last), "a batch is not channels-last"
                in_range = target.shape == images.shape[:1] and target.min() >= 0 and target.max() < self.classes
                assert in_range, f"a batch's targets are {target.tolist()}; expected a class of {self.classes} each"
                means.append(images.float().mean((2, 3)))
                stds.append(images.float().std((2, 3)))
                yield images, target

        losses = trainer.train(look())
        assert len(means) == self.steps, f"a run has {len(means)} batches; expected {self.steps}"
        assert losses.isfinite().all(), f"losses of a run are {losses.tolist()}"
        brightness, contrast = torch.cat(means), torch.cat(stds)
        return torch.stack((brightness.mean(0), brightness.std(0), contrast.mean(0)))

    def record(self, provider: str) -> Steps:
        """Record the steps of one more run."""
        trainer = self.providers[provider](self)
        gpu = torch.cuda if self.device.type == "cuda" else None
        return record_steps(lambda begin: trainer.train(trainer.batches, begin), gpu)


def training_flops(network: nn.Module, shape: Sequence[int]) -> int:
    """Return the floating-point operations of convolutions and matrix products, forward and backward, on a batch."""
    network = copy.deepcopy(network).to("meta")  # where tensors have no values, and nothing is computed
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device="meta")).sum().backward()
    return counter.get_total_flops()
