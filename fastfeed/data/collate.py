"""A collate_fn for `torch.utils.data.DataLoader` that leaves images as bytes."""

import copy
import dataclasses
import math
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import default_collate, get_worker_info

from fastfeed._extension import extension
from fastfeed.data.finish import check_storage

PIL_CHANNELS = {"L": 1, "RGB": 3, "RGBA": 4}


def collate_uint8(batch: Sequence[Any]) -> Any:
    """Collate samples as `torch.utils.data.default_collate`, with images stacked into uint8 tensors.

    For datasets whose transform ends before ``ToTensor``; the batches are what `fastfeed.Prefetcher` takes::

        DataLoader(dataset, batch_size=64, num_workers=8, collate_fn=fastfeed.data.collate_uint8)

    An image is one of these, of one shape in the whole batch:

    - a PIL image of mode L, RGB or RGBA, which becomes [N, H, W, C] with C = 1, 3 or 4;
    - a uint8 array [H, W], which becomes [N, H, W, 1];
    - a uint8 array or CPU tensor of three dimensions, which are kept in their order: [H, W, C] becomes [N, H, W, C],
      and [C, H, W], as of torchvision's ``PILToTensor``, becomes [N, C, H, W]. Read the last dimension as C if it is
      1, 3 or 4, else the first.

    Arrays may have any strides, and pixels keep their values. Images may stand anywhere in a sample: alone, or in
    tuples, lists, named tuples, mappings and dataclasses, nested as you like. Tuples, lists and other sequences become
    lists; the others keep their type, and of a dataclass neither ``__init__`` nor ``__post_init__`` is called.
    Everything else goes through `default_collate`, field by field.

    In a DataLoader's worker process the images are put into shared memory, where the main process reads them; in the
    main process into pinned memory, if there is a GPU.

    Args:
        batch: N samples of the same structure, N at least 1.

    Raises:
        ValueError: for an empty batch, images of different shapes, PIL images of other modes.
        TypeError, KeyError, RuntimeError: for samples of different structure, or what `default_collate` refuses.
        OSError: for a PIL image that cannot be loaded, from a truncated file, say.
    """
    if not isinstance(batch, Sequence):
        raise TypeError(
            f"batch is {_describe(batch)}; expected a list of samples. A DataLoader with batch_size=None makes no "
            "batches: leave out collate_fn"
        )
    if not batch:
        raise ValueError("batch is empty; expected at least one sample. Does the batch sampler yield empty lists?")
    return _collate(batch, "")


def _collate(samples: Any, field: str) -> Any:
    """Collate a list or tuple of what stands at `field`, such as "[0].image", in each sample."""
    first = samples[0]
    if _is_image(first):
        return _stack(samples, field)
    if isinstance(first, Mapping):
        return _collate_mappings(samples, field)
    if dataclasses.is_dataclass(first):
        _check_types(samples, type(first), field)
        result = copy.copy(first)
        for name in (f.name for f in dataclasses.fields(first)):
            # Frozen ones refuse setattr.
            object.__setattr__(result, name, _collate([getattr(s, name) for s in samples], f"{field}.{name}"))
        return result
    if isinstance(first, Sequence) and not isinstance(first, (str, bytes)):
        return _collate_sequences(samples, field)
    try:
        return default_collate(samples)
    except (TypeError, RuntimeError) as error:
        kind = TypeError if isinstance(error, TypeError) else RuntimeError
        raise kind(f"batch[:]{field}: {error}") from error


def _collate_mappings(samples: Sequence[Any], field: str) -> Any:
    _check_types(samples, Mapping, field)
    first = samples[0]
    for i, sample in enumerate(samples):
        if sample.keys() != first.keys():
            raise KeyError(f"{_name(i, field)} has keys {list(sample)}, but {_name(0, field)} has {list(first)}")
    columns = {key: _collate([sample[key] for sample in samples], f"{field}[{key!r}]") for key in first}
    if isinstance(first, MutableMapping) and type(first) is not dict:
        try:
            result = copy.copy(first)
            result.update(columns)
            return result
        except TypeError:
            pass  # it cannot be copied or updated
    return columns


def _collate_sequences(samples: Sequence[Any], field: str) -> Any:
    _check_types(samples, Sequence, field)
    first = samples[0]
    for i, sample in enumerate(samples):
        if len(sample) != len(first):
            raise RuntimeError(f"{_name(i, field)} has {len(sample)} elements, but {_name(0, field)} has {len(first)}")
    named = getattr(first, "_fields", None) if isinstance(first, tuple) else None
    columns = [
        _collate(column, f"{field}.{named[j]}" if named else f"{field}[{j}]")
        for j, column in enumerate(zip(*samples, strict=True))
    ]
    return type(first)(*columns) if named else columns


def _stack(images: Sequence[Any], field: str) -> torch.Tensor:
    sources, shapes = zip(*(source_of(image, _name(i, field)) for i, image in enumerate(images)), strict=True)
    expected = shapes[0]
    for i, shape in enumerate(shapes):
        if shape != expected:
            if shape[:2] == expected[:2]:
                way_out = 'one number of channels in the dataset, with image.convert("RGB")'
            else:
                way_out = "one size in the dataset, with torchvision's Resize and CenterCrop or RandomResizedCrop"
            raise ValueError(
                f"{_name(i, field)} is an image of shape {list(shape)}, but {_name(0, field)} is one of "
                f"{list(expected)}. Give them {way_out}"
            )
    return stacked(sources, expected)


def stacked(sources: Sequence[Any], shape: tuple[int, ...]) -> torch.Tensor:
    """Return images in one uint8 tensor [N, *shape], which is in shared memory, if this is a worker.

    Args:
        sources: of `source_of`, all of this shape.
        shape: three dimensions.
    """
    output = _empty((len(sources), *shape))
    # In a worker process this is one thread, as PyTorch sets it.
    extension().stack(sources, shape, output.data_ptr(), torch.get_num_threads())
    return output


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    """Return an uninitialised tensor where the reader of the batch wants it."""
    # Asked first: in a forked worker CUDA must be left alone.
    if get_worker_info() is not None:
        # As default_collate does: any other tensor would be copied into shared memory on its way to the main process.
        storage = torch.UntypedStorage._new_shared(math.prod(shape), device="cpu")
        return torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).view(shape)
    return torch.empty(shape, dtype=torch.uint8, device="cpu", pin_memory=torch.cuda.is_available())


def source_of(image: Any, name: str = "the image") -> tuple[Any, tuple[int, ...]]:
    """Return what `_C.stack` reads of an image, and its shape.

    Raises:
        TypeError: for what is no image.
        ValueError: for a PIL image of another mode than L, RGB and RGBA.
        OSError: for one that cannot be loaded.
    """
    if not _is_image(image):
        raise TypeError(f"{name} is {_describe(image)}; expected an image (PIL, or uint8), as batch[0] has there")
    if isinstance(image, (np.ndarray, torch.Tensor)):
        if isinstance(image, torch.Tensor):
            check_storage(name, image)
        array = image.numpy() if isinstance(image, torch.Tensor) else np.asarray(image)
        array = array[..., None] if array.ndim == 2 else array
        return array, array.shape
    try:
        image.load()
    except Exception as error:  # whatever the file's decoder raises
        raise OSError(f"{name} is a PIL image that cannot be loaded: {error}") from error
    if image.mode not in PIL_CHANNELS:
        raise ValueError(
            f"{name} is a PIL image of mode {image.mode!r}; expected L, RGB or RGBA. Convert it in the dataset, with "
            'image.convert("RGB")'
        )
    shape = (image.height, image.width, PIL_CHANNELS[image.mode])
    # Pillow 11.3 to 12 can export images too, but do not check that their memory can be: in images that Image.fromarray
    # makes of arrays, and in mapped files, they read address 0.
    if int(sys.modules["PIL"].__version__.partition(".")[0]) >= 13:
        try:
            return image.__arrow_c_array__()[1], shape
        except ValueError:
            pass  # not in one piece, as large images are
    return np.asarray(image).reshape(shape), shape


def _is_image(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == np.uint8 and value.ndim in (2, 3)
    if isinstance(value, torch.Tensor):
        on_cpu = value.device.type == "cpu" and value.layout == torch.strided
        return value.dtype == torch.uint8 and value.dim() == 3 and on_cpu
    # Whoever made a PIL image has imported PIL.
    return isinstance(value, getattr(sys.modules.get("PIL.Image"), "Image", ()))


def _check_types(samples: Sequence[Any], kind: type, field: str) -> None:
    for i, sample in enumerate(samples):
        if not isinstance(sample, kind):
            raise TypeError(
                f"{_name(i, field)} is {_describe(sample)}, but {_name(0, field)} is {_describe(samples[0])}"
            )


def _name(index: int, field: str) -> str:
    return f"batch[{index}]{field}"


def _describe(value: Any) -> str:
    if isinstance(value, (np.ndarray, torch.Tensor)):
        return f"{type(value).__name__} {value.dtype} {list(value.shape)}"
    return "None" if value is None else f"of type {type(value).__name__}"
