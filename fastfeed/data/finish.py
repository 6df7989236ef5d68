"""The last pass: uint8 [N, H, W, C] -> horizontal flip, normalise, cast -> channels-last, in one kernel."""

from collections.abc import Sequence

import torch

from fastfeed._extension import extension

DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def normalize_table(mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> torch.Tensor:
    """Return what each byte becomes: [256, C] of (byte / 255 - mean) / std, computed in fp32, rounded to `dtype`."""
    # Named, because torch.set_default_device may say otherwise and C++ reads the result.
    cpu = torch.device("cpu")
    levels = torch.arange(256, dtype=torch.float32, device=cpu).div(255)[:, None]
    mean_, std_ = (torch.tensor(values, dtype=torch.float32, device=cpu) for values in (mean, std))
    return levels.sub(mean_).div(std_).to(dtype)


def finish_reference(
    images: torch.Tensor,
    flip: torch.Tensor | None,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.channels_last,
) -> torch.Tensor:
    """What `Finish` computes, in eager PyTorch."""
    if flip is not None:
        images = torch.where(flip.to(images.device, torch.bool)[:, None, None, None], images.flip(2), images)
    mean_, std_ = (torch.tensor(v, dtype=torch.float32, device=images.device) for v in (mean, std))
    return (
        images.float()
        .div(255)
        .sub(mean_)
        .div(std_)
        .permute(0, 3, 1, 2)
        .to(dtype)
        .contiguous(memory_format=memory_format)
    )


class Finish:
    """The last pass as a function of a batch.

    Every result is bit for bit that of `finish_reference` on the CPU, wherever it is made: a byte has 256 values, so
    the pass looks up a table made by the eager formula, and reads and writes each pixel once.

    Args:
        mean: one value per channel, in units of pixel / 255.
        std: likewise, positive.
        dtype: torch.float32, torch.float16 or torch.bfloat16.
        memory_format: torch.channels_last or torch.contiguous_format.
        threads: CPU threads; 0 is one per core.

    Raises:
        ValueError: for another dtype or memory format, for a number of channels other than 1, 3 or 4, or means
            and stds of different lengths.
    """

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        memory_format: torch.memory_format = torch.channels_last,
        threads: int = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}; expected one of {', '.join(map(str, DTYPES))}")
        if memory_format not in (torch.channels_last, torch.contiguous_format):
            raise ValueError(
                f"memory_format is {memory_format!r}; expected torch.channels_last or torch.contiguous_format"
            )
        if len(mean) != len(std) or len(mean) not in (1, 3, 4):
            raise ValueError(f"mean and std have {len(mean)} and {len(std)} values; expected 1, 3 or 4 of each")
        self.dtype = dtype
        self.memory_format = memory_format
        self.threads = threads
        self._tables = {torch.device("cpu"): normalize_table(mean, std, dtype)}

    def __call__(self, images: torch.Tensor, flip: torch.Tensor | None = None) -> torch.Tensor:
        """Finish a batch, on the device it is on and, on a GPU, on the current stream.

        Args:
            images: [N, H, W, C] uint8, contiguous.
            flip: [N] bool; on a GPU it may lie in (pinned) host memory.

        Returns:
            [N, C, H, W] of the dtype and memory format asked for.

        Raises:
            ValueError: for a tensor of another shape, dtype, layout or device.
            RuntimeError: on a GPU, if the extension was built without CUDA.
        """
        self._check(images, flip)
        device = images.device
        n, h, w, c = images.shape
        output = torch.empty((n, c, h, w), dtype=self.dtype, device=device, memory_format=self.memory_format)
        table = self._table(device)
        if flip is not None:
            flip = flip.to(device, non_blocking=True)
        arguments = (
            images.data_ptr(),
            output.data_ptr(),
            0 if flip is None else flip.data_ptr(),
            table.data_ptr(),
            (n, h, w, c),
            output.element_size(),
            self.memory_format is torch.channels_last,
        )
        if device.type == "cpu":
            extension().finish_cpu(*arguments, self.threads)
        else:
            # `flip` and `images` may be freed when this returns: the allocator reuses them in stream order only.
            extension().finish_cuda(*arguments, device.index, torch.cuda.current_stream(device).cuda_stream)
        return output

    def _table(self, device: torch.device) -> torch.Tensor:
        if device not in self._tables:
            self._tables[device] = self._tables[torch.device("cpu")].to(device)
        return self._tables[device]

    def _check(self, images: torch.Tensor, flip: torch.Tensor | None) -> None:
        channels = self._tables[torch.device("cpu")].shape[1]
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[3] != channels:
            raise ValueError(
                f"images are {images.dtype} {list(images.shape)}; expected torch.uint8 [N, H, W, {channels}]"
            )
        if not images.is_contiguous():
            raise ValueError(f"images have strides {images.stride()}; expected contiguous: call images.contiguous()")
        if flip is not None and (
            flip.dtype != torch.bool or flip.shape != images.shape[:1] or not flip.is_contiguous()
        ):
            raise ValueError(f"flip is {flip.dtype} {list(flip.shape)}; expected torch.bool [{images.shape[0]}]")
        if images.device.type not in ("cpu", "cuda"):
            raise ValueError(f"images are on {images.device}; expected a CPU or CUDA tensor")
        if images.device.type == "cuda":
            require_cuda()


def require_cuda() -> None:
    """Raise RuntimeError if the extension was built without CUDA."""
    if extension().build_info()["cuda"] is None:
        raise RuntimeError(
            "fastfeed's extension was built without CUDA, so it cannot work on a GPU. Install the CUDA toolkit (nvcc) "
            "and reinstall with FASTFEED_CUDA=1, or use device='cpu'"
        )
