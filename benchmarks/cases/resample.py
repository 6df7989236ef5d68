"""Windows of photographs resized to one size, as the loader does it on the CPU."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import PIL
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from benchmarks.case import Case, Options, largest_error
from benchmarks.peers import Absent
from benchmarks.timing import Run
from fastfeed._extension import extension
from fastfeed.data.plan import make_plan
from fastfeed.data.transforms import RandomResizedCrop, Transform

PHOTOGRAPH = (375, 500)  # height and width: the most common ones of ImageNet
# Before Pillow 13 the horizontal pass always came first, where now the vertical one does if that saves much.
SAME_ORDER = int(PIL.__version__.split(".")[0]) >= 13


def resample(windows: list[Tensor], out: Tensor, pool: Any) -> None:
    """Resize windows as the loader does.

    Args:
        windows: N of [h, w, 3] uint8, contiguous.
        out: [N, H, W, 3] uint8, contiguous.
        pool: of the extension.
    """
    sizes = np.array([window.shape[:2] for window in windows], np.int64)
    extension().resample(
        pool,
        np.array([window.data_ptr() for window in windows], np.int64),
        sizes,
        3 * sizes[:, 1],
        np.concatenate([np.zeros(sizes.shape), sizes], axis=1),
        out.data_ptr(),
        tuple(out.shape[1:3]),
        np.full(len(windows), Image.Resampling.BILINEAR, np.int64),
        None,
    )


class ResampleCase(Case):
    """Bilinear, antialiased, in bytes: random windows of photographs, as they lie after decoding, into one batch.

    Pillow and PyTorch's kernel, which both let go of the interpreter's lock, take one image at a time in each of as
    many threads as ours has. Their results are copied into the batch, which ours writes. On a GPU DALI resizes.
    """

    name = "resample"
    direction = "forward"
    baseline = "pillow"
    packages: ClassVar = {"pillow": "pillow"}

    @classmethod
    def parameters(cls, options: Options) -> list[dict[str, Any]]:
        """A batch of ImageNet's usual size."""
        return [{"shape": (64, 224, 224, 3), "dtype": torch.uint8}]

    def __init__(self, options: Options, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
        if options.device.type == "cuda":
            raise Absent("for CPUs: on a GPU DALI resizes, in the graph that decodes")
        batch, height, width, _ = shape
        crop = RandomResizedCrop((height, width))
        plan = make_plan(Transform(crop), np.tile(np.array(PHOTOGRAPH), (batch, 1)), np.arange(batch), seed=0, epoch=0)
        generator = torch.Generator().manual_seed(0)
        self.windows = [torch.randint(256, (h, w, 3), dtype=dtype, generator=generator) for h, w in plan.shape.tolist()]
        self.out = torch.empty(shape, dtype=dtype)
        self.threads = options.threads
        self._executor = ThreadPoolExecutor(options.threads)
        # Reads every window once, and writes every value of the output once.
        self.bytes_per_run = sum(window.numel() for window in self.windows) + self.out.numel()

    def close(self) -> None:
        """End the threads."""
        self._executor.shutdown()

    def check(self, provider: str) -> float:
        """Compare with Pillow's results: ours bit for bit, PyTorch's within a level.

        Returns:
            The largest difference, in levels of 255.
        """
        expected = self.providers[self.baseline](self)().clone()
        self.out.zero_()
        actual = self.providers[provider](self)()
        assert actual.shape == expected.shape, f"the batch is {list(actual.shape)}, not {list(expected.shape)}"
        exact = provider == "pillow" or (provider == "fastfeed" and SAME_ORDER)
        torch.testing.assert_close(actual, expected, rtol=0, atol=0 if exact else 1)
        return largest_error(actual, expected)

    def _one_by_one(self, images: list[Any], resize: Any) -> Run:
        def into(image: Any, out: Tensor) -> None:
            out.copy_(resize(image))

        def run() -> Tensor:
            list(self._executor.map(into, images, self.out))
            return self.out

        return run

    def _pillow(self) -> Run:
        height, width = self.out.shape[1:3]

        def resize(image: Image.Image) -> Tensor:
            return torch.from_numpy(np.array(image.resize((width, height), Image.Resampling.BILINEAR)))

        return self._one_by_one([Image.fromarray(window.numpy()) for window in self.windows], resize)

    def _torch(self) -> Run:
        size = tuple(self.out.shape[1:3])

        def resize(image: Tensor) -> Tensor:
            return F.interpolate(image, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)

        # Channels-last, as decoded: PyTorch has a kernel for that.
        return self._one_by_one([window.permute(2, 0, 1)[None] for window in self.windows], resize)

    def _fastfeed(self) -> Run:
        pool = extension().Pool(self.threads)

        def run() -> Tensor:
            resample(self.windows, self.out, pool)
            return self.out

        return run

    providers: ClassVar = {"pillow": _pillow, "torch": _torch, "fastfeed": _fastfeed}
