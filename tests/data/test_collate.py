"""PIL is imported here, as whoever has PIL images has done."""

import collections
import dataclasses
import io
import pickle
import subprocess
import sys

import numpy as np
import PIL
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, default_collate

from fastfeed._extension import extension
from fastfeed.data import collate_uint8
from tests.images import picture

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (3, 5), (13, 17), (64, 33), (224, 224)]
Pair = collections.namedtuple("Pair", ["image", "target"])


@dataclasses.dataclass(frozen=True)
class Sample:
    image: Image.Image
    target: int
    area: int = dataclasses.field(init=False, default=0)

    def __post_init__(self):
        object.__setattr__(self, "area", self.image.width * self.image.height)


def random_array(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def random_image(mode, height, width, seed=0):
    channels = {"L": (), "RGB": (3,), "RGBA": (4,)}[mode]
    return Image.fromarray(random_array(height, width, *channels, seed=seed), mode)


def check(samples, expected):
    got = collate_uint8(samples)
    assert got.dtype == torch.uint8
    assert got.is_contiguous()
    assert got.device.type == "cpu"
    np.testing.assert_array_equal(got.numpy(), expected)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_pil_images(mode, size):
    images = [random_image(mode, *size, seed=i) for i in range(5)]
    # copy() moves the pixels into memory of Pillow's own.
    expected = np.stack([np.asarray(image) for image in images]).reshape(5, *size, len(mode))
    check(images, expected)
    check([image.copy() for image in images], expected)


@pytest.mark.parametrize("size", [(0, 0), (0, 3), (3, 0)])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_images_without_pixels(mode, size):
    height, width = size
    check([Image.new(mode, (width, height))] * 2, np.zeros((2, height, width, len(mode)), np.uint8))
    check([np.zeros((height, width, 3), np.uint8)] * 2, np.zeros((2, height, width, 3), np.uint8))


@pytest.mark.parametrize("suffix", ["bmp", "jpg", "pgm", "png", "tif"])
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_files_that_are_not_loaded_yet(tmp_path, mode, suffix):
    paths = [tmp_path / f"{i}.{suffix}" for i in range(3)]
    for i, path in enumerate(paths):
        picture(21, 35, seed=i).convert(mode).save(path)
    expected = np.stack([np.asarray(Image.open(path)) for path in paths]).reshape(3, 21, 35, len(mode))
    check([Image.open(path) for path in paths], expected)


def test_an_image_in_several_pieces_of_memory():
    # More than Pillow's block of 16 MB, so that it is not exported, beside one that is.
    image = random_image("RGB", 2100, 2100).copy()
    other = Image.fromarray(np.ascontiguousarray(np.asarray(image)[::-1]))
    check([image, other], np.stack([np.asarray(image), np.asarray(other)]))


def test_rows_with_gaps_between_them():
    source = random_image("RGB", 21, 33)
    Image.core.set_alignment(64)
    try:
        image = source.copy()
        check([image], np.asarray(image)[None])
    finally:
        Image.core.set_alignment(1)


@pytest.mark.parametrize("version", ["10.0.0", "12.3.0", "9.5.0.post2"])
def test_earlier_pillow_is_not_asked_to_export(monkeypatch, version):
    monkeypatch.setattr("PIL.__version__", version)
    monkeypatch.delattr(Image.Image, "__arrow_c_array__", raising=False)
    images = [random_image("RGB", 5, 9, seed=i) for i in range(3)]
    check(images, np.stack([np.asarray(image) for image in images]))


ARRAYS = {
    "contiguous": lambda a: a,
    "flipped": lambda a: a[:, ::-1],
    "upside down": lambda a: a[::-1],
    "channels reversed": lambda a: a[..., ::-1],
    "crop": lambda a: a[2:-1, 1:-2],
    "every other pixel": lambda a: a[::2, ::2],
    "three of four channels": lambda a: np.concatenate([a, a], axis=2)[..., :3],
    "one channel": lambda a: a[..., :1],
    "grey": lambda a: a[..., 0],
    "Fortran": np.asfortranarray,
    "transposed": lambda a: a.transpose(1, 0, 2),
    "[C, H, W]": lambda a: a.transpose(2, 0, 1),
    "[C, H, W] contiguous": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)),
    "[C, H, W] crop": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1))[:, 1:-3, 2:-1],
    "[C, H, W] flipped": lambda a: np.ascontiguousarray(a.transpose(2, 0, 1))[:, :, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:1, :1], a.shape),
    "five channels": lambda a: np.concatenate([a, a], axis=2)[..., :5],
}


@pytest.mark.parametrize("view", ARRAYS.values(), ids=ARRAYS)
def test_arrays_and_tensors_of_any_strides(view):
    arrays = [view(random_array(25, 39, 3, seed=i)) for i in range(4)]
    for array in arrays:
        array.flags.writeable = False
    expected = np.stack(arrays)
    check(arrays, expected[..., None] if expected.ndim == 3 else expected)
    if expected.ndim == 4 and all(stride >= 0 for stride in arrays[0].strides):
        # from_numpy warns of arrays that are not writeable
        arrays = [view(random_array(25, 39, 3, seed=i)) for i in range(4)]
        if all(array.flags.writeable for array in arrays):
            check([torch.from_numpy(array) for array in arrays], expected)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_number_of_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        # Pieces of work end in the middle of images.
        images = [random_image("RGB", 301, 407, seed=i).copy() for i in range(5)]
        check(images, np.stack([np.asarray(image) for image in images]))
        arrays = [random_array(301, 407, 3, seed=i) for i in range(5)]
        check(arrays, np.stack(arrays))
        check([a[:, ::-1] for a in arrays], np.stack(arrays)[:, :, ::-1])
    finally:
        torch.set_num_threads(before)


def test_other_uint8_is_left_to_default_collate():
    for samples in (
        [random_array(7, seed=i) for i in range(3)],
        [random_array(2, 3, 4, 3, seed=i) for i in range(3)],
        [torch.from_numpy(random_array(4, 5, seed=i)) for i in range(3)],
    ):
        assert torch.equal(collate_uint8(samples), default_collate(samples))


def test_kinds_of_images_can_be_mixed():
    array = random_array(5, 6, 3)
    check([Image.fromarray(array), array, torch.from_numpy(array)], np.stack([array] * 3))


def nested_samples():
    images = [random_image("RGB", 6, 5, seed=i) for i in range(3)]
    return images, torch.from_numpy(np.stack([np.asarray(image) for image in images]))


def test_tuples_and_lists_become_lists():
    images, expected = nested_samples()
    for kind in (tuple, list):
        got = collate_uint8([kind((image, i, f"name{i}", 0.5 * i)) for i, image in enumerate(images)])
        assert type(got) is list
        assert torch.equal(got[0], expected)
        assert torch.equal(got[1], torch.tensor([0, 1, 2]))
        assert got[2] == ("name0", "name1", "name2")
        assert torch.equal(got[3], torch.tensor([0, 0.5, 1.0], dtype=torch.float64))
    assert collate_uint8([(), ()]) == []


def test_named_tuples_mappings_and_dataclasses_keep_their_type():
    images, expected = nested_samples()
    got = collate_uint8([Pair(image, i) for i, image in enumerate(images)])
    assert type(got) is Pair
    assert torch.equal(got.image, expected)

    for kind in (dict, collections.OrderedDict, collections.UserDict):
        got = collate_uint8([kind({"image": image, 7: i}) for i, image in enumerate(images)])
        assert type(got) is kind
        assert list(got) == ["image", 7]
        assert torch.equal(got["image"], expected)
        assert torch.equal(got[7], torch.tensor([0, 1, 2]))

    samples = [Sample(image, i) for i, image in enumerate(images)]
    got = collate_uint8(samples)
    assert type(got) is Sample
    assert torch.equal(got.image, expected)
    assert torch.equal(got.target, torch.tensor([0, 1, 2]))
    assert torch.equal(got.area, torch.tensor([30, 30, 30]))
    assert samples[0].image is images[0]


def test_nesting():
    images, expected = nested_samples()
    got = collate_uint8([{"views": [image, (image, {"again": Sample(image, i)})]} for i, image in enumerate(images)])
    assert torch.equal(got["views"][0], expected)
    assert torch.equal(got["views"][1][0], expected)
    assert torch.equal(got["views"][1][1]["again"].image, expected)


def test_what_holds_no_images_is_default_collates():
    samples = [{"a": (i, [float(i), "x"]), "b": torch.full((2,), i), "c": np.float32(i)} for i in range(3)]
    got, expected = collate_uint8(samples), default_collate(samples)
    assert list(got) == list(expected) == ["a", "b", "c"]
    assert got["a"][1][1] == expected["a"][1][1] == ("x", "x", "x")
    for path in (lambda d: d["a"][0], lambda d: d["a"][1][0], lambda d: d["b"], lambda d: d["c"]):
        torch.testing.assert_close(path(got), path(expected), rtol=0, atol=0)


def new(mode, width=4, height=5):
    return Image.new(mode, (width, height))


def truncated():
    stream = io.BytesIO()
    picture(40, 40).save(stream, "JPEG")
    return Image.open(io.BytesIO(stream.getvalue()[:-200]))


def closed():
    image = new("RGB")
    image.close()
    return image


def without_storage():
    tensor = torch.zeros(5, 4, 3, dtype=torch.uint8)
    tensor.untyped_storage().resize_(0)
    return tensor


@pytest.mark.parametrize(("samples", "error", "message"), [
    ([], ValueError, "batch is empty"),
    (new("RGB"), TypeError, "batch is of type Image; expected a list of samples.*batch_size=None"),
    ([new("RGB"), new("RGB", 7, 9)], ValueError,
     r"batch\[1\] is an image of shape \[9, 7, 3\], but batch\[0\] is one of \[5, 4, 3\].*RandomResizedCrop"),
    ([(new("RGB"), 0), (new("RGB"), 0), (new("L"), 0)], ValueError,
     r"batch\[2\]\[0\] is an image of shape \[5, 4, 1\], but batch\[0\]\[0\] .*number of channels"),
    ([random_array(5, 4, 3), random_array(5, 5, 3)], ValueError, r"batch\[1\] .* \[5, 5, 3\], .* \[5, 4, 3\]"),
    ([new("RGB"), new("P")], ValueError, r"batch\[1\] is a PIL image of mode 'P'.*image.convert\(\"RGB\"\)"),
    ([{"x": new("CMYK")}], ValueError, r"batch\[0\]\['x'\] is a PIL image of mode 'CMYK'"),
    ([new("I;16")], ValueError, "mode 'I;16'"),
    ([{"x": [truncated()]}], OSError, r"batch\[0\]\['x'\]\[0\] is a PIL image that cannot be loaded: .*trunc"),
    ([closed()], OSError, r"batch\[0\] is a PIL image that cannot be loaded"),
    ([torch.zeros(5, 4, 3, dtype=torch.uint8), without_storage()], ValueError, r"batch\[1\] is torch.uint8 .*storage"),
    ([new("RGB"), None], TypeError, r"batch\[1\] is None; expected an image"),
    ([new("RGB"), np.zeros((5, 4, 3))], TypeError, r"batch\[1\] is ndarray float64 \[5, 4, 3\]; expected an image"),
    ([(new("RGB"), 0), None], TypeError, r"batch\[1\] is None, but batch\[0\] is of type tuple"),
    ([{"x": 0}, [0]], TypeError, r"batch\[1\] is of type list, but batch\[0\] is of type dict"),
    ([Sample(new("RGB"), 0), 5], TypeError, r"batch\[1\] is of type int, but batch\[0\] is of type Sample"),
    ([{"x": 0, "y": 1}, {"x": 0}], KeyError, r"batch\[1\] has keys \['x'\], but batch\[0\] has \['x', 'y'\]"),
    ([{"x": 0}, {"x": 0, "y": 1}], KeyError, r"batch\[1\] has keys \['x', 'y'\]"),
    ([[[0, 1]], [[0]]], RuntimeError, r"batch\[1\]\[0\] has 1 elements, but batch\[0\]\[0\] has 2"),
    ([Pair(0, None)], TypeError, r"batch\[:\]\.target: default_collate: .*NoneType"),
    ([{"x": torch.zeros(2)}, {"x": torch.zeros(3)}], RuntimeError, r"batch\[:\]\['x'\]: stack expects"),
    ([None], TypeError, r"^batch\[:\]: default_collate: "),
])  # fmt: skip
def test_errors_say_which_sample_and_field(samples, error, message):
    with pytest.raises(error, match=message):
        collate_uint8(samples)


@pytest.mark.parametrize("bad", [
    random_array(5, 4, 4), random_array(5, 4), random_array(4, 5, 3), np.zeros((5, 4, 3), np.float32), b"bytes", 7,
])  # fmt: skip
def test_the_extension_refuses_what_it_cannot_read(bad):
    output = torch.zeros(2, 5, 4, 3, dtype=torch.uint8)
    with pytest.raises((ValueError, TypeError)):
        extension().stack((random_array(5, 4, 3), bad), (5, 4, 3), output.data_ptr(), 1)
    assert not output.any()


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="this Pillow does not export images safely")
def test_the_extension_reads_capsules_of_the_right_shape_only():
    images = {mode: random_image(mode, 5, 4).copy() for mode in ("L", "RGB", "RGBA")}
    output = torch.zeros(5, 4, 5, dtype=torch.uint8)
    for mode, image in images.items():
        schema, array = image.__arrow_c_array__()
        extension().stack((array,), (5, 4, len(mode)), output.data_ptr(), 1)
        np.testing.assert_array_equal(output.flatten()[: 20 * len(mode)], np.asarray(image).flatten())
        for bad, shape in (
            (array, (5, 5, len(mode))),
            (array, (5, 4, 3 if mode == "L" else 1)),
            (array, (5, 4, 2)),
            (array, (5, 4, 5)),
            (schema, (5, 4, len(mode))),
        ):
            with pytest.raises(ValueError):
                extension().stack((bad,), shape, output.data_ptr(), 1)


class Images(Dataset):
    def __len__(self):
        return 10

    def __getitem__(self, index):
        return random_image("RGB", 17, 23, seed=index), {"index": index, "grey": random_array(8, 9, seed=index)}


class Broken(Images):
    def __getitem__(self, index):
        return Image.new("RGB", (5 + index, 5)), index


@pytest.mark.parametrize("workers", [0, 2])
def test_in_a_data_loader(workers):
    dataset = Images()
    seen = []
    for images, rest in DataLoader(dataset, batch_size=4, num_workers=workers, collate_fn=collate_uint8):
        indices = rest["index"].tolist()
        seen += indices
        np.testing.assert_array_equal(images, np.stack([np.asarray(dataset[i][0]) for i in indices]))
        np.testing.assert_array_equal(rest["grey"][..., 0], np.stack([dataset[i][1]["grey"] for i in indices]))
        # Written there by the worker, and not copied on the way.
        assert images.is_shared() == (workers > 0)
    assert seen == list(range(10))


def test_workers_that_are_spawned_can_be_sent_it():
    assert pickle.loads(pickle.dumps(collate_uint8)) is collate_uint8


def test_errors_come_out_of_worker_processes():
    batches = iter(DataLoader(Broken(), batch_size=10, num_workers=1, collate_fn=collate_uint8))
    with pytest.raises(ValueError, match=r"batch\[1\]\[0\] is an image of shape \[5, 6, 3\]"):
        next(batches)
    # To the end: PyTorch waits five seconds for a worker that is dropped with batches on their way.
    assert list(batches) == []


def test_pil_is_not_imported_without_pil_images():
    code = """
        import sys
        import numpy as np
        import fastfeed.data
        assert "torch" not in sys.modules and "fastfeed.data.collate" not in sys.modules
        batch = fastfeed.data.collate_uint8([(np.zeros((2, 3, 3), np.uint8), 1)])
        assert batch[0].shape == (1, 2, 3, 3)
        assert "PIL" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", code.replace("\n        ", "\n")], check=True)


def test_the_memory_of_images_is_given_back():
    array = random_array(30, 40, 3)
    image = Image.fromarray(array).copy()
    before = sys.getrefcount(array), sys.getrefcount(image)
    for _ in range(10):
        collate_uint8([image, array])
    assert (sys.getrefcount(array), sys.getrefcount(image)) == before
    array.resize((40, 40, 3), refcheck=True)  # refused while a buffer of it is exported


@pytest.mark.gpu
def test_gpu_batches_of_the_main_process_are_pinned():
    images = [random_image("RGB", 17, 23, seed=i) for i in range(4)]
    got = collate_uint8([(image, i) for i, image in enumerate(images)])
    assert got[0].is_pinned()
    expected = np.stack([np.asarray(image) for image in images])
    np.testing.assert_array_equal(got[0].to("cuda", non_blocking=True).cpu(), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_gpu_workers_leave_cuda_alone(start):
    torch.zeros(1, device="cuda")
    loader = DataLoader(
        Images(), 4, num_workers=2, collate_fn=collate_uint8, pin_memory=True, multiprocessing_context=start
    )
    for images, rest in loader:
        assert images.is_pinned()
        expected = np.stack([np.asarray(Images()[i][0]) for i in rest["index"].tolist()])
        np.testing.assert_array_equal(images, expected)
