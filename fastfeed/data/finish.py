"""The last pass: uint8 [N, H, W, C] -> flip, normalise, erase, mix, cast -> channels-last, in one kernel."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fastfeed._extension import extension
from fastfeed.data.philox import philox, standard_normal

DTYPES = (torch.float32, torch.float16, torch.bfloat16)

# csrc/finish.h's SampleParameters.
_PARAMETERS = np.dtype(
    [
        ("flip", np.int32),
        ("noise", np.int32),
        ("noise_key", np.uint64),
        ("erase", np.int32, 4),
        ("cut", np.int32, 4),
        ("partner", np.int32),
        ("weight", np.float32),
        ("reserved", np.int32, 2),
    ]
)
_LARGEST = float(np.finfo(np.float32).max)


class SampleParameters:
    """What the last pass does to each of N samples, in this order: flip, normalise, erase, mix.

    That is torchvision's order. The partner that a sample is mixed with is flipped and erased by its own parameters.
    Rectangles are (top, left, height, width) in pixels of the output; they may reach over its edges, and one without
    area does nothing.

    Args:
        batch_size: N.
        flip: [N] bool, mirror left to right.
        vertical_flip: [N] bool, mirror top to bottom.
        erase: [N, 4] int, the rectangle to erase (torchvision.transforms.RandomErasing).
        noise_key: [N] uint64. With it erased pixels become standard normal noise, from the words that Philox-4x32-10
            makes with this key of the counter (x, y, 0, 0), one word per channel. Without it they become `Finish.fill`.
        partner: [N] int, the sample that each is mixed with, in [0, N).
        weight: [N] float in [0, 1], mixup's share of the sample itself: weight * own + (1 - weight) * partner.
        cut: [N, 4] int, cutmix's rectangle: what lies in it is the partner's alone.

    Raises:
        ValueError: for an array of another shape or kind of numbers, a partner that is not in the batch, a weight
            outside [0, 1], or a weight or rectangle to mix by without partners.
    """

    def __init__(
        self,
        batch_size: int,
        *,
        flip: npt.ArrayLike | None = None,
        vertical_flip: npt.ArrayLike | None = None,
        erase: npt.ArrayLike | None = None,
        noise_key: npt.ArrayLike | None = None,
        partner: npt.ArrayLike | None = None,
        weight: npt.ArrayLike | None = None,
        cut: npt.ArrayLike | None = None,
    ) -> None:
        self.batch_size = batch_size
        block = np.zeros(batch_size, _PARAMETERS)
        block["weight"] = 1
        block["partner"] = np.arange(batch_size)

        def flags(name: str, values: npt.ArrayLike) -> npt.NDArray[np.bool_]:
            array = given(name, values)
            if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
                raise ValueError(f"{name} is {array.tolist()}; expected booleans")
            return array.astype(np.bool_)

        def given(name: str, values: npt.ArrayLike, *shape: int) -> npt.NDArray[Any]:
            array = np.asarray(values)
            if array.shape != (batch_size, *shape):
                raise ValueError(f"{name} has shape {list(array.shape)}; expected {[batch_size, *shape]}")
            return array

        def integers(name: str, values: npt.ArrayLike, *shape: int) -> npt.NDArray[Any]:
            array, limits = given(name, values, *shape), np.iinfo(block.dtype[name].base)
            if array.size and array.dtype.kind not in "iu":
                raise ValueError(f"{name} is of {array.dtype}; expected integers")
            if array.size and not limits.min <= int(array.min()) <= int(array.max()) <= limits.max:
                raise ValueError(f"{name} is {array.tolist()}; expected values from {limits.min} to {limits.max}")
            return array

        if flip is not None:
            block["flip"] |= flags("flip", flip)
        if vertical_flip is not None:
            block["flip"] |= flags("vertical_flip", vertical_flip) * np.int32(2)
        if erase is not None:
            block["erase"] = integers("erase", erase, 4)
        if noise_key is not None:
            block["noise"] = 1
            block["noise_key"] = integers("noise_key", noise_key)
        if partner is None and (weight is not None or cut is not None):
            raise ValueError("weight and cut mix samples with their partners, and partner is None")
        if partner is not None:
            partners = integers("partner", partner)
            if ((partners < 0) | (partners >= batch_size)).any():
                raise ValueError(f"partner is {partners.tolist()}; expected samples, 0 to {batch_size - 1}")
            block["partner"] = partners
        if weight is not None:
            weights = given("weight", weight)
            if not ((weights >= 0) & (weights <= 1)).all():
                raise ValueError(f"weight is {weights.tolist()}; expected values from 0 to 1")
            block["weight"] = weights
        if cut is not None:
            block["cut"] = integers("cut", cut, 4)
        # Both of the same memory; what is changed in it afterwards would not be checked.
        self._bytes = torch.from_numpy(block.view(np.uint8).reshape(batch_size, _PARAMETERS.itemsize))
        self._block = block
        self._block.flags.writeable = False
        self._kept: torch.Tensor | None = None

    def keep_on(self, device: torch.device) -> torch.Tensor:
        """Return the parameters as [N, 64] bytes on a device, and keep them there for all later passes.

        To a GPU they go once, on the current stream; passes on other streams must wait for it. A pass that is captured
        in a CUDA graph needs them to be there before.
        """
        self._kept = self.on(device)
        return self._kept

    def on(self, device: torch.device) -> torch.Tensor:
        """Return the parameters as [N, 64] bytes on a device; to a GPU they go on the current stream.

        Raises:
            RuntimeError: while the stream is being captured in a CUDA graph, which could not repeat that copy.
        """
        if self._kept is not None and self._kept.device == device:
            return self._kept
        if device.type == "cpu":
            return self._bytes
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "the parameters are not on the GPU, and a CUDA graph cannot hold their copy: call "
                "parameters.keep_on(images.device) before the capture"
            )
        # Pinned memory is given back only when the copy from it is done.
        return self._bytes.pin_memory().to(device, non_blocking=True)

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        """Return a field, read-only: flip (1 left to right, 2 top to bottom), noise, noise_key, erase, cut, partner or
        weight.
        """
        return self._block[name]


def finish_reference(
    images: torch.Tensor,
    parameters: SampleParameters | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
    fill: Sequence[float] | None = None,
    factor: float | None = None,
) -> torch.Tensor:
    """What `Finish` computes, in eager PyTorch; `fill` has a value per channel."""
    n, h, w, c = images.shape
    p = parameters if parameters is not None else SampleParameters(n)

    def tensor(values: npt.ArrayLike) -> torch.Tensor:
        return torch.from_numpy(np.array(values, np.float32)).to(images.device)

    def inside(rectangles: npt.NDArray[np.int32]) -> torch.Tensor:  # [N, H, W, 1]
        top, left, height, width = rectangles.astype(np.int64).T[:, :, None]
        y, x = np.arange(h), np.arange(w)
        rows, columns = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
        return torch.from_numpy(rows[:, :, None, None] & columns[:, None, :, None]).to(images.device)

    def where(condition: npt.NDArray[np.bool_], yes: torch.Tensor, no: torch.Tensor) -> torch.Tensor:
        return torch.where(torch.from_numpy(condition).to(images.device)[:, None, None, None], yes, no)

    x = where(p["flip"] & 1 > 0, images.flip(2), images)
    x = where(p["flip"] & 2 > 0, x.flip(1), x)
    x = x.float()
    x = x.div(255) if factor is None else x.mul(factor)
    x = x.sub(tensor(mean)).div(tensor(std))
    erased = tensor([0.0] * c if fill is None else fill).expand_as(x)
    if p["noise"].any():
        erased = tensor(np.stack([_noise(int(key), h, w, c) for key in p["noise_key"]]))
    x = torch.where(inside(p["erase"]), erased, x)
    partner, weight = x[torch.from_numpy(p["partner"].astype(np.int64))], tensor(p["weight"])[:, None, None, None]
    x = where(p["weight"] != 1, x * weight + partner * (1 - weight), x)
    x = torch.where(inside(p["cut"]), partner, x)
    return x.permute(0, 3, 1, 2).to(dtype).contiguous(memory_format=memory_format)


def _noise(key: int, h: int, w: int, c: int) -> npt.NDArray[np.float32]:
    counter = np.zeros((h, w, 4), np.uint32)
    counter[..., 0], counter[..., 1] = np.arange(w), np.arange(h)[:, None]
    return standard_normal(philox(key, counter))[..., :c]


class Finish:
    """The last pass as a function of a batch.

    It reads each pixel, and each partner's, once, and writes each value once. The mathematics is done in fp32, as
    (byte / 255 - mean) / std, and rounded once, to nearest even. Results are bit for bit those of the same steps in
    eager PyTorch on the CPU, wherever they are made.

    Args:
        mean: one value per channel, in units of pixel / 255.
        std: likewise, positive.
        dtype: torch.float32, torch.float16 or torch.bfloat16.
        memory_format: torch.channels_last or torch.contiguous_format.
        fill: what erased pixels become, a value for each channel or one for all, in units of the output: 0, the
            default, is the mean.
        factor: what bytes are multiplied by, rounded to fp32; mean and std are in units of the product then. 1 / 255
            is what torchvision's transforms of version 2 do: half of the bytes differ in the last bit from those of
            version 1, and of the default, None, which divides by 255. 1 leaves levels from 0 to 255.
        threads: CPU threads; 0 is one per core.
        spare_outputs: on the CPU, how many outputs' memory is kept, once they are freed, for the next ones.

    Raises:
        ValueError: for another dtype or memory format; for means and stds of different lengths, or that are not
            finite in fp32, or stds that are not positive or so small that values overflow; for a fill that is not
            finite, or a factor outside 1e-30 to 1; for negative threads or spare_outputs.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
        *,
        fill: float | Sequence[float] = 0.0,
        factor: float | None = None,
        threads: int = 0,
        spare_outputs: int = 2,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(map(str, DTYPES))}")
        if memory_format not in (torch.channels_last, torch.contiguous_format):
            raise ValueError(
                f"memory_format is {memory_format!r}; expected torch.channels_last or torch.contiguous_format"
            )
        if factor is not None and not 1e-30 <= factor <= 1:  # with room for what fp32 computes of it
            raise ValueError(f"factor is {factor}; expected a number from 1e-30 to 1, or None to divide by 255")
        check_mean_std(mean, std, factor)
        fill = [fill] * len(mean) if isinstance(fill, int | float | np.floating) else list(fill)
        if len(fill) != len(mean) or not all(abs(value) <= 1e38 for value in fill):
            raise ValueError(
                f"fill is {fill}; expected one value, or one for each of {len(mean)} channels, finite in fp32"
            )
        if threads < 0 or spare_outputs < 0:
            raise ValueError(f"threads is {threads} and spare_outputs is {spare_outputs}; expected 0 or more of each")
        self.mean, self.std, self.fill = tuple(mean), tuple(std), tuple(fill)
        self.dtype = dtype
        self.memory_format = memory_format
        self.factor = factor
        self._resources = (threads, spare_outputs)
        self._mean_std = torch.tensor((self.mean, self.std), dtype=torch.float32, device="cpu")[..., None, None]
        self._acquire()

    def _acquire(self) -> None:
        self._on_gpu: dict[torch.device, tuple[torch.Tensor, torch.cuda.Event]] = {}  # mean and std
        self._normalizer = extension().Normalizer(self.mean, self.std, self.factor or 0.0)
        self.close()

    def close(self) -> None:
        """Give back the threads, and the memory of outputs that nobody holds; the next batch takes new ones."""
        threads, spare_outputs = self._resources
        self.pool = extension().Pool(threads)
        self._recycler = extension().Recycler(spare_outputs)

    def __getstate__(self) -> dict[str, Any]:
        own = ("_normalizer", "pool", "_recycler", "_on_gpu")  # threads and memory, which no copy can share
        return {name: value for name, value in self.__dict__.items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._acquire()

    def __call__(
        self, images: torch.Tensor, parameters: SampleParameters | None = None, *, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Finish a batch, on the device it is on and, on a GPU, on the current stream.

        Args:
            images: [N, H, W, C] uint8, of any strides. On a GPU it is fastest for contiguous images whose width is a
                multiple of 8, at an address that is one too.
            parameters: what to do to each sample; None: nothing but normalise.
            out: the tensor to write to: [N, C, H, W] of this dtype, memory format and the images' device.

        Returns:
            [N, C, H, W] of the dtype and memory format asked for.

        Raises:
            ValueError: for a tensor of another shape, dtype, layout or device.
            RuntimeError: on a GPU, if the extension was built without CUDA.
        """
        out = self._output(images, parameters, out)
        arguments = self._arguments(images, out)
        device = images.device
        block = None if parameters is None else parameters.on(device)
        address = 0 if block is None else block.data_ptr()
        if device.type == "cpu":
            extension().finish_cpu(self.pool, *arguments, address, self._normalizer, self._fill(), None)
        else:
            # `block` may be freed when this returns: the allocator reuses its memory in stream order only.
            stream = torch.cuda.current_stream(device).cuda_stream
            with torch.cuda.device(device):
                extension().finish_cuda(*arguments, address, self._normalizer, self._fill(), stream)
        return out

    def submit(self, images: torch.Tensor, parameters: SampleParameters | None = None) -> tuple[torch.Tensor, Any]:
        """Begin to finish a batch on the CPU, in background threads.

        Args:
            images: as in a call; they may not change until the work is done.
            parameters: likewise.

        Returns:
            (output, ticket): [N, C, H, W], to be read after `ticket.wait()`. The ticket keeps all memory alive.
        """
        out = self._output(images, parameters, None)
        block = None if parameters is None else parameters.on(images.device)
        ticket = extension().finish_cpu(
            self.pool,
            *self._arguments(images, out),
            0 if block is None else block.data_ptr(),
            self._normalizer,
            self._fill(),
            (images, out, block),
        )
        return out, ticket

    def normalize(self, images: torch.Tensor, *, out: torch.Tensor | None = None) -> torch.Tensor:
        """Normalise and cast a batch that has values already, with PyTorch: (images - mean) / std.

        Args:
            images: [N, C, H, W] of a floating dtype, 0 to 1.
            out: as in a call.

        Returns:
            [N, C, H, W] of the dtype and memory format asked for.

        Raises:
            ValueError: for a tensor of another shape or dtype.
        """
        channels = len(self.mean)
        if not images.is_floating_point() or images.dim() != 4 or images.shape[1] != channels:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; expected a floating dtype and [N, {channels}, H, W]"
            )
        mean, std = self._mean_std_on(images.device)
        normalized = images.float().sub(mean).div_(std)
        if out is None:
            # `to` keeps strides where the dtype stays.
            return normalized.to(self.dtype).contiguous(memory_format=self.memory_format)
        self._check_out(out, images.shape, images.device)
        return out.copy_(normalized)

    def _mean_std_on(self, device: torch.device) -> torch.Tensor:
        if device.type != "cuda":
            return self._mean_std.to(device)
        stream = torch.cuda.current_stream(device)
        if device not in self._on_gpu:
            if torch.cuda.is_current_stream_capturing():
                raise RuntimeError(
                    "mean and std are not on the GPU, and a CUDA graph cannot hold their copy: normalize one batch "
                    "before the capture"
                )
            # Once, for the copy would wait behind those of whole batches. From pinned memory: the host need not wait.
            values = self._mean_std.pin_memory().to(device, non_blocking=True)
            copied = torch.cuda.Event()
            copied.record(stream)
            self._on_gpu[device] = values, copied
        values, copied = self._on_gpu[device]
        if not torch.cuda.is_current_stream_capturing():  # which may not wait for what is outside of the graph
            stream.wait_event(copied)
            values.record_stream(stream)
        return values

    def _fill(self) -> tuple[float, ...]:
        return self.fill + (0.0,) * (4 - len(self.fill))

    def _arguments(self, images: torch.Tensor, out: torch.Tensor) -> tuple[Any, ...]:
        return (
            images.data_ptr(),
            tuple(images.shape),
            images.stride(),
            out.data_ptr(),
            DTYPES.index(self.dtype),
            self.memory_format is torch.channels_last,
        )

    def _output(
        self, images: torch.Tensor, parameters: SampleParameters | None, out: torch.Tensor | None
    ) -> torch.Tensor:
        """Check the arguments, and return the tensor to write to."""
        channels = len(self.mean)
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != channels:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; expected torch.uint8 [N, H, W, {channels}]"
            )
        if images.device.type not in ("cpu", "cuda"):
            raise ValueError(f"images are on {images.device}; expected a CPU or CUDA tensor")
        check_storage("images", images)
        if images.device.type == "cuda":
            require_cuda()
        n, h, w, c = images.shape
        if parameters is not None and parameters.batch_size != n:
            raise ValueError(f"parameters are for {parameters.batch_size} samples, but there are {n} images")
        if out is None:
            return self._new_output((n, c, h, w), images.device)
        self._check_out(out, (n, c, h, w), images.device)
        if not out.is_inference():
            torch.autograd.graph.increment_version(out)  # it is written to where autograd does not see it
        return out

    def _check_out(self, out: torch.Tensor, shape: Sequence[int], device: torch.device) -> None:
        contiguous = out.dim() == 4 and out.is_contiguous(memory_format=self.memory_format)
        if not contiguous or list(out.shape) != list(shape) or out.dtype != self.dtype or out.device != device:
            raise ValueError(
                f"out is {out.dtype} {list(out.shape)} with strides {out.stride()} on {out.device}; expected "
                f"{self.dtype} {list(shape)} in {self.memory_format} on {device}"
            )
        check_storage("out", out)

    def _new_output(self, shape: tuple[int, int, int, int], device: torch.device) -> torch.Tensor:
        if device.type != "cpu":
            return torch.empty(shape, dtype=self.dtype, device=device, memory_format=self.memory_format)
        n, c, h, w = shape
        memory = torch.from_numpy(self._recycler.take(n * c * h * w * self.dtype.itemsize))
        strides = (h * w * c, 1, w * c, c) if self.memory_format is torch.channels_last else (c * h * w, h * w, w, 1)
        # `set_` and not a view: the tensor is nobody's part, so that it may be saved and changed in place.
        return torch.empty(0, dtype=self.dtype, device=device).set_(memory.untyped_storage(), 0, shape, strides)


def check_mean_std(mean: Sequence[float], std: Sequence[float], factor: float | None = None) -> None:
    """Raise ValueError unless mean and std are fit for normalising 1, 3 or 4 channels of bytes times `factor`."""
    for name, values in (("mean", mean), ("std", std)):
        if not hasattr(values, "__len__"):
            raise TypeError(f"{name} is {values!r}; expected a sequence with one value per channel, as (0.5, 0.5, 0.5)")
    if len(mean) != len(std) or len(mean) not in (1, 3, 4):
        raise ValueError(f"mean and std have {len(mean)} and {len(std)} values; expected 1, 3 or 4 of each")
    if not _finite(mean):
        raise ValueError(f"mean is {tuple(mean)}; expected finite values")
    if not _finite(std) or min(std) <= 0:
        raise ValueError(f"std is {tuple(std)}; expected positive, finite values")
    white, unit = (1.0, "pixel / 255") if factor is None else (255 * factor, f"pixel * {factor:.4g}")
    for m, s in zip(mean, std, strict=True):
        # Twice the largest value must be finite in fp32, so that no step of the pass can overflow.
        if np.float32(s) < np.finfo(np.float32).tiny or max(abs(m), abs(white - m)) / s > 1e38:
            raise ValueError(f"std is {tuple(std)}, so small that values overflow; is it in units of {unit}?")


def _finite(values: Sequence[float]) -> bool:
    """Whether all values are finite in fp32."""
    return all(abs(value) <= _LARGEST for value in values)


def check_storage(name: str, tensor: torch.Tensor) -> None:
    """Raise ValueError unless a strided tensor's memory holds it: a storage can be resized under its tensors."""
    last = tensor.storage_offset() + sum(s * (n - 1) for s, n in zip(tensor.stride(), tensor.shape, strict=True))
    if tensor.numel() and (last + 1) * tensor.itemsize > tensor.untyped_storage().nbytes():
        raise ValueError(
            f"{name} is {tensor.dtype} {list(tensor.shape)}, but its storage has been resized and does not hold it"
        )
    if tensor.numel() and tensor.data_ptr() == 0:
        raise ValueError(f"{name} is {tensor.dtype} {list(tensor.shape)} without memory: a fake tensor")


def require_cuda() -> None:
    """Raise RuntimeError if the extension was built without CUDA."""
    if extension().build_info()["cuda"] is None:
        raise RuntimeError(
            "fastfeed's extension was built without CUDA, so it cannot work on a GPU. Install the CUDA toolkit (nvcc) "
            "and reinstall with FASTFEED_CUDA=1, or use device='cpu'"
        )
