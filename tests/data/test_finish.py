import pytest
import torch

from fastfeed.data.finish import DTYPES, Finish, SampleParameters, finish_reference
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

MEANS = {1: (0.5,), 3: IMAGENET_MEAN, 4: (0.1, 0.2, 0.3, 0.4)}
STDS = {1: (0.25,), 3: IMAGENET_STD, 4: (0.5, 1.0, 0.3, 2.0)}
FORMATS = (torch.channels_last, torch.contiguous_format)


def random_images(*shape, device="cpu"):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def check(images, parameters, dtype, memory_format, threads=0):
    channels = images.shape[3]
    got = Finish(MEANS[channels], STDS[channels], dtype, memory_format, threads=threads)(images, parameters)
    expected = finish_reference(images.cpu(), parameters, MEANS[channels], STDS[channels], dtype)
    assert got.dtype == dtype
    assert got.is_contiguous(memory_format=memory_format)
    assert got.device == images.device
    # bit for bit, the sign of zero included
    bits = torch.int32 if dtype == torch.float32 else torch.int16
    assert torch.equal(got.cpu().contiguous().view(bits), expected.contiguous().view(bits))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_equals_eager_pytorch_bit_for_bit(channels, dtype, memory_format):
    images = random_images(5, 13, 17, channels)
    check(images, SampleParameters(5, flip=[True, False, True, True, False]), dtype, memory_format)
    check(images, None, dtype, memory_format)


def test_every_byte_value():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1).expand(1, 16, 16, 3).contiguous()
    for dtype in DTYPES:
        check(images, None, dtype, torch.channels_last)


def test_normalises_as_torchvision_defines_it():
    # By hand, in float64: (byte / 255 - mean) / std.
    images = random_images(2, 6, 7, 3)
    expected = (images.double() / 255 - torch.tensor(IMAGENET_MEAN).double()) / torch.tensor(IMAGENET_STD).double()
    got = Finish(IMAGENET_MEAN, IMAGENET_STD)(images).permute(0, 2, 3, 1)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dtype": torch.float64}, "dtype is torch.float64; expected one of torch.float32"),
    ({"dtype": "float16"}, "dtype is 'float16'"),
    ({"memory_format": torch.channels_last_3d}, "memory_format is torch.channels_last_3d"),
    ({"mean": (0.5, 0.5), "std": (1, 1)}, "have 2 and 2 values"),
    ({"mean": (0.5,)}, "have 1 and 3 values"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Finish(**{"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **arguments})


@pytest.mark.parametrize(("images", "message"), [
    (torch.zeros(2, 4, 4, 3), r"images are torch.float32 \[2, 4, 4, 3\]"),
    (torch.zeros(4, 4, 3, dtype=torch.uint8), r"images are torch.uint8 \[4, 4, 3\]"),
    (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), r"expected torch.uint8 \[N, H, W, 3\]"),
    (torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta"), "images are on meta"),
])  # fmt: skip
def test_bad_tensors(images, message):
    with pytest.raises(ValueError, match=message):
        Finish(IMAGENET_MEAN, IMAGENET_STD)(images)


@pytest.mark.gpu
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4, 4, 3), (1, 1, 1, 1), (5, 13, 17, 3), (3, 224, 224, 3), (2, 33, 65, 4)])
def test_gpu_equals_eager_pytorch_bit_for_bit(shape, dtype, memory_format):
    parameters = SampleParameters(shape[0], flip=torch.arange(shape[0]) % 2 == 0)
    check(random_images(*shape, device="cuda"), parameters, dtype, memory_format)


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    images, finish = random_images(4, 64, 64, 3, device="cuda"), Finish(IMAGENET_MEAN, IMAGENET_STD)
    finish(images)  # the table is on the device
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        copy = images.clone()
        got = finish(copy)
    stream.synchronize()
    assert torch.equal(got.cpu(), finish(images.cpu()))
