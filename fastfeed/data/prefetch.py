"""Prefetcher: the last pass for any loader."""

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fastfeed.data.arguments import check_whole, choose_device, choose_threads
from fastfeed.data.finish import Finish, SampleParameters, check_storage
from fastfeed.data.mix import Mix, as_declared, check_addresses, draw_mix, mix_target
from fastfeed.data.ring import Done, Rings, Work, is_strided
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from fastfeed.data.tree import Path, leaves, path_name, replace_leaves, resolved


class Prefetcher:
    """Wraps a loader: its batches, with the images finished, on the device, some of them ahead of the training.

    The loader gives images as bytes, which is four times less to move than float32, and this does what is usually left
    to slow single operations: mixup or cutmix, (pixel / 255 - mean) / std, the cast, and channels-last memory, in one
    pass. On a GPU batches are copied on a side stream while the GPU works on others; on the CPU the pass runs in
    background threads. What is not the image is passed through, its tensors moved to the device.

    Args:
        loader: any iterable of batches; a `torch.utils.data.DataLoader`, say. A batch may be a tensor, a tuple, list,
            mapping or dataclass, nested as you like. Iterated over in your own thread. It must not change the tensors
            of a batch after giving it.
        device: where the batches go. By default the current GPU, if there is one that PyTorch and the extension can
            use, else the CPU.
        dtype: of the images: torch.float32, torch.float16 or torch.bfloat16.
        mean: one value per channel, in units of pixel / 255.
        std: likewise, positive.
        memory_format: of the images: torch.channels_last or torch.contiguous_format.
        mix: mixup, cutmix or both; class indices become a `fastfeed.MixedTarget`, floating point targets are mixed as
            they are. Not for floating point images.
        depth: how many batches are on their way while you work on one, at least 1.
        image: where the image is in a batch: an index, key or field, or a tuple of them; as 0, "pixel_values" or
            ("inputs", -1). By default it is found: the only uint8 tensor or array of four dimensions with as many
            channels as `mean`, or, if there is none, the only floating point one.
        target: likewise, class indices, [N] int64, or floating point rows, [N, ...], which only `mix` needs. By default
            the only tensor of class indices.
        layout: "NHWC" or "NCHW", of the images as the loader gives them. By default it is seen from their shape.
        stable_addresses: put every batch's tensors at the addresses of the first batch's, for steps captured in a CUDA
            graph. A batch is then overwritten by the next one, and all must have one shape.
        num_threads: CPU threads; 0 is one per core, shared among torchrun's processes on a machine.
        seed: 64 bits; with the epoch and the batch's number (and the rank, where torch.distributed is initialised) it
            decides every draw of `mix`.

    Yields:
        Batches as the loader's, in which the image is [N, C, H, W] of `dtype` and `memory_format`: uint8 images are
        normalised as above; floating point ones, taken to lie in 0 to 1, as (image - mean) / std.

    Attributes:
        loader: the wrapped one. Its other attributes (dataset, sampler, batch_size, ...) are those of this object too.
        epoch: the epoch that the next `iter()` runs; each `iter()` adds one. `set_epoch` sets it, and that of
            the loader or its parts.

    If the loader has `state_dict`, this has it too: the state after the batch that was given last, not after those that
    are on their way. `load_state_dict` takes it back.

    Raises:
        TypeError, ValueError: for an argument of another type, or out of range.
        RuntimeError: for a GPU that is not there, or an extension built without CUDA asked to use one.

    While iterating: ValueError or KeyError for a batch in which the image or the target is not to be found or of
    another shape or dtype; and what the loader raises, after the batches before it.
    """

    def __init__(
        self,
        loader: Any,
        device: str | int | torch.device | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        memory_format: torch.memory_format = torch.channels_last,
        mix: Mix | None = None,
        depth: int = 2,
        image: Any = None,
        target: Any = None,
        layout: str | None = None,
        stable_addresses: bool = False,
        num_threads: int = 0,
        seed: int = 0,
    ) -> None:
        if not hasattr(loader, "__iter__") or isinstance(loader, str | bytes):
            raise TypeError(
                f"loader is {type(loader).__name__}; expected an iterable of batches: put a dataset into a "
                "torch.utils.data.DataLoader first, and give a folder of files to fastfeed.DataLoader"
            )
        check_whole("depth", depth, 1)
        num_threads = choose_threads("num_threads", num_threads)
        check_whole("seed", seed, 0)
        if seed >= 2**64:
            raise ValueError(f"seed is {seed}; expected at most 2**64 - 1")
        if mix is not None and not isinstance(mix, Mix):
            raise TypeError(f"mix is {type(mix).__name__}; expected a fastfeed.Mix, as fastfeed.Mix(mixup=0.2)")
        check_addresses(mix, stable_addresses)
        if layout not in (None, "NHWC", "NCHW"):
            raise ValueError(f"layout is {layout!r}; expected 'NHWC', 'NCHW', or None to see it from the shape")
        if target is not None and mix is None:
            raise ValueError(f"target is {target!r}, but without mix nothing is done to it. Leave it out, or give mix")
        self.loader = loader
        self.device = choose_device(device)
        self.mix = mix
        self.depth = depth
        self.seed = seed
        self.epoch = 0
        self._image = _as_path(image)
        self._target = _as_path(target)
        self._layout = layout
        self._finish = Finish(mean, std, dtype, memory_format, threads=num_threads, spare_outputs=depth + 2)
        self._rings = Rings(self._finish, self.device, depth, stable_addresses)
        # Epoch, batches given, and the loader's state then; None between epochs.
        self._progress: tuple[int, int, Any] | None = None
        self._resume_at = 0  # batches given before the next `iter()`

    def __len__(self) -> int:
        """Batches per epoch, as the loader says."""
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # Called for what is not found otherwise.
        if name.startswith("__") or "loader" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self.loader, name)
        return {"state_dict": self._state_dict, "load_state_dict": self._load_state_dict}.get(name, value)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that the next `iter()` runs: here, and in the loader or, if it has no `set_epoch`, in its
        sampler, batch sampler and dataset.
        """
        self.epoch = epoch
        if hasattr(self.loader, "set_epoch"):
            self.loader.set_epoch(epoch)
            return
        parts = [getattr(self.loader, name, None) for name in ("sampler", "batch_sampler", "dataset")]
        parts.append(getattr(parts[1], "sampler", None))
        for part in {id(part): part for part in parts}.values():
            if part is not None and hasattr(part, "set_epoch"):
                part.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        batches = iter(self.loader)
        epoch = self.epoch
        self.epoch += 1
        first, self._resume_at = self._resume_at, 0
        self._progress = epoch, first, self._state_of_loader()
        return self._run(batches, epoch, first)

    def _run(self, batches: Iterator[Any], epoch: int, first: int) -> Iterator[Any]:
        # `map`, which keeps no reference to what it gives: the batch is the consumer's.
        yield from map(self._give, self._rings.run(self._work(batches, epoch, first)))
        self._progress = None

    def _work(self, batches: Iterator[Any], epoch: int, first: int) -> Iterator[Work]:
        for position, batch in enumerate(batches, first):
            yield self._prepare(batch, epoch, position)

    def _give(self, done: Done) -> Any:
        batch, image_path, self._progress = done.tag
        return as_declared(_rebuild(batch, image_path, done), self.mix)

    def _prepare(self, batch: Any, epoch: int, position: int) -> Work:
        image_path = _find_image(batch, len(self._finish.mean)) if self._image is None else resolved(batch, self._image)
        images = _as_tensor(_at(batch, image_path))
        self._check_images(images, image_path)
        parameters = None
        nhwc = self._is_nhwc(images, image_path)
        if images.dtype != torch.uint8:
            images = images.permute(0, 3, 1, 2) if nhwc else images
            if self.mix is not None:
                raise ValueError(
                    f"{path_name(image_path)} is {images.dtype}, and mix needs uint8 images: leave ToTensor and "
                    "Normalize out of the dataset's transform"
                )
        else:
            images = images if nhwc else images.permute(0, 2, 3, 1)
        if self.mix is not None:
            batch, parameters = self._mixed(self.mix, batch, images, image_path, epoch, position)
        rest = [leaf for path, leaf in leaves(batch) if isinstance(leaf, torch.Tensor) and path != image_path]
        progress = epoch, position + 1, self._state_of_loader()
        return Work(images, parameters, rest, (batch, image_path, progress))

    def _mixed(
        self, mix: Mix, batch: Any, images: torch.Tensor, image_path: Path, epoch: int, position: int
    ) -> tuple[Any, SampleParameters]:
        n, height, width, _ = images.shape
        target_path = _find_target(batch, n, image_path) if self._target is None else resolved(batch, self._target)
        target = _at(batch, target_path)
        rank, world_size = 0, 1
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            rank, world_size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        number = position * world_size + rank  # ranks draw apart
        plan = draw_mix(mix, n, height, width, seed=self.seed, epoch=epoch, batch=number)
        try:
            mixed = mix_target(target, plan)
        except ValueError as error:
            raise ValueError(f"{path_name(target_path)}: {error}") from error
        batch = replace_leaves(batch, lambda path, leaf: mixed if path == target_path else leaf)
        return batch, SampleParameters(n, partner=plan.partner, weight=plan.weight, cut=plan.box)

    def _check_images(self, images: Any, path: Path) -> None:
        expected = f"expected uint8 or floating point, [N, H, W, {len(self._finish.mean)}] or [N, C, H, W]"
        if not isinstance(images, torch.Tensor):
            raise ValueError(f"{path_name(path)} is {_kind(images)}; {expected}")
        supported = images.dtype == torch.uint8 or images.is_floating_point()
        if not supported or images.dim() != 4 or not is_strided(images):
            raise ValueError(f"{path_name(path)} is {_kind(images)}; {expected}")
        if images.device.type not in ("cpu", "cuda"):
            raise ValueError(f"{path_name(path)} is on {images.device}; expected a CPU or CUDA tensor")
        check_storage(path_name(path), images)

    def _is_nhwc(self, images: torch.Tensor, path: Path) -> bool:
        """Return whether images are [N, H, W, C], else they are [N, C, H, W]."""
        channels = len(self._finish.mean)
        last, second = images.shape[3] == channels, images.shape[1] == channels
        nhwc = self._layout == "NHWC" if self._layout is not None else last
        if self._layout is None and last and second:
            raise ValueError(
                f"{path_name(path)} is {list(images.shape)}, which may be [N, H, W, {channels}] or [N, {channels}, H, "
                "W]. Say which with layout='NHWC' or layout='NCHW'"
            )
        if not (last if nhwc else second):
            raise ValueError(
                f"{path_name(path)} is {list(images.shape)}, but mean has {channels} values; expected "
                f"{self._layout or 'NHWC or NCHW'} with {channels} channels"
            )
        return nhwc

    def _state_of_loader(self) -> Any:
        # A copy, for the loader goes on, and what it gives may be its own.
        return copy.deepcopy(self.loader.state_dict()) if hasattr(self.loader, "state_dict") else None

    def _state_dict(self) -> dict[str, Any]:
        """Return where the iteration is: after the batch that was given last."""
        epoch, batch, loader = self._progress or (self.epoch, 0, self._state_of_loader())
        return {"loader": loader, "epoch": epoch, "batch": batch}

    def _load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, with the next `iter()`, from a state."""
        self.loader.load_state_dict(state["loader"])
        self.epoch, self._resume_at = state["epoch"], state["batch"]
        self._progress = (state["epoch"], state["batch"], state["loader"]) if state["batch"] else None


def _as_path(place: Any) -> Path | None:
    return place if place is None or isinstance(place, tuple) else (place,)


def _place(path: Path) -> str:
    """Return a path as a user writes it."""
    simple = len(path) == 1 and path[0] is not None and not isinstance(path[0], tuple)
    return repr(path[0] if simple else path)


def _at(batch: Any, path: Path) -> Any:
    for at, leaf in leaves(batch):
        if at == path:
            return leaf
    places = ", ".join(path_name(at) for at, _ in leaves(batch))
    raise KeyError(f"there is no {path_name(path)}; the batch has {places or 'nothing'}")


def _as_tensor(images: Any) -> Any:
    """Turn an array into a tensor, without a copy if its strides allow."""
    if not isinstance(images, np.ndarray):
        return images
    if not images.flags.writeable or any(stride < 0 for stride in images.strides):
        images = images.copy()
    try:
        return torch.from_numpy(images)
    except (TypeError, ValueError):  # of a dtype that PyTorch does not have: `_check_images` says what is expected
        return images


def _find_image(batch: Any, channels: int) -> Path:
    def is_image(leaf: Any) -> bool:
        dense = is_strided(leaf) if isinstance(leaf, torch.Tensor) else isinstance(leaf, np.ndarray)
        return dense and leaf.ndim == 4 and channels in leaf.shape[1::2]

    found = [(path, leaf) for path, leaf in leaves(batch) if is_image(leaf)]
    of_bytes = [path for path, leaf in found if leaf.dtype in (torch.uint8, np.uint8)]
    floating = [path for path, leaf in found if _is_floating(leaf)]
    candidates = of_bytes or floating
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(path_name(path) for path in candidates)
        raise ValueError(f"the batch has several images: {names}. Say which is meant, as image={_place(candidates[0])}")
    raise ValueError(
        f"no image in the batch, which has {_describe(batch)}; expected one uint8 or floating point tensor "
        f"[N, H, W, {channels}] or [N, {channels}, H, W], as many channels as mean has values"
    )


def _is_floating(leaf: torch.Tensor | np.ndarray[Any, Any]) -> bool:
    return leaf.is_floating_point() if isinstance(leaf, torch.Tensor) else leaf.dtype.kind == "f"


def _find_target(batch: Any, n: int, image_path: Path) -> Path:
    def is_target(leaf: Any) -> bool:
        dense = isinstance(leaf, torch.Tensor) and is_strided(leaf)
        return dense and leaf.dtype == torch.int64 and leaf.shape == (n,)

    candidates = [path for path, leaf in leaves(batch) if path != image_path and is_target(leaf)]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(path_name(path) for path in candidates)
        raise ValueError(f"mix finds several targets: {names}. Say which is meant, as target={_place(candidates[0])}")
    raise ValueError(
        f"mix needs class indices, a tensor of int64 [{n}], and the batch has {_describe(batch)}. For a floating point "
        "target say where it is, as target=1"
    )


def _describe(batch: Any) -> str:
    return ", ".join(f"{path_name(path)}: {_kind(leaf)}" for path, leaf in leaves(batch)) or "nothing"


def _kind(leaf: Any) -> str:
    if isinstance(leaf, torch.Tensor) and not is_strided(leaf):
        return f"{leaf.dtype}, {'nested' if leaf.is_nested else leaf.layout}"
    array = isinstance(leaf, torch.Tensor | np.ndarray)
    return f"{leaf.dtype} {list(leaf.shape)}" if array else type(leaf).__name__


def _rebuild(batch: Any, image_path: Path, done: Done) -> Any:
    rest = iter(done.rest)

    def new_leaf(path: Path, leaf: Any) -> Any:
        if path == image_path:
            return done.images
        return next(rest) if isinstance(leaf, torch.Tensor) else leaf

    return replace_leaves(batch, new_leaf)
