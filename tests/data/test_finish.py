import numpy as np
import pytest
import torch

from fastfeed.data.finish import DTYPES, Finish, SampleParameters, check_mean_std, finish_reference
from fastfeed.data.philox import philox
from fastfeed.data.transforms import IMAGENET_MEAN, IMAGENET_STD

MEANS = {1: (0.5,), 3: IMAGENET_MEAN, 4: (0.1, 0.2, 0.3, 0.4)}
STDS = {1: (0.25,), 3: IMAGENET_STD, 4: (0.5, 1.0, 0.3, 2.0)}
FILLS = {1: (0.75,), 3: (-1.5, 0.0, 2.25), 4: (1.0, 2.0, 3.0, 70000.0)}
FORMATS = (torch.channels_last, torch.contiguous_format)
DEVICES = ("cpu", pytest.param("cuda", marks=pytest.mark.gpu))

# The arguments of SampleParameters that each name stands for.
FEATURES = {
    "nothing": (),
    "flip": ("flip",),
    "vertical_flip": ("vertical_flip",),
    "erase": ("erase",),
    "noise": ("erase", "noise_key"),
    "mixup": ("partner", "weight"),
    "cutmix": ("partner", "cut"),
    "filled": ("flip", "vertical_flip", "erase", "partner", "weight", "cut"),
    "all": ("flip", "vertical_flip", "erase", "noise_key", "partner", "weight", "cut"),
}

# Images of the same values in other places of memory, or some of them again and again.
STRIDES = {
    "contiguous": lambda images: images,
    "NCHW": lambda images: images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1),
    "NWHC": lambda images: images.transpose(1, 2).contiguous().transpose(1, 2),
    "HWCN": lambda images: images.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2),
    "every second": lambda images: images.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, ::2, 1::2],
    "every second channel": lambda images: images.repeat_interleave(2, 3)[..., ::2],
    "window": lambda images: torch.nn.functional.pad(images, (0, 0, 3, 5, 2, 1))[:, 2:-1, 3:-5],
    "rows with a gap of 8": lambda images: torch.nn.functional.pad(images, (0, 0, 0, 8))[:, :, :-8],
    "one sample": lambda images: images[:1].expand_as(images),
    "one row": lambda images: images[:, :1].expand_as(images),
    "one pixel": lambda images: images[:, :1, :1].expand_as(images),
    "grey": lambda images: images[..., :1].expand_as(images),
    "at an odd address": lambda images: torch.cat([images.new_zeros(1), images.flatten()])[1:].view(images.shape),
    "overlapping": lambda images: images.flatten().as_strided(images.shape, (5, 3, 1, 1)),
}


def random_images(*shape, device="cpu"):
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).to(device)


def random_parameters(features, n, h, w, seed=0):
    rng = np.random.default_rng(seed)

    def rectangles():  # most reach over an edge, some have no area, one is everything
        sides = rng.integers([-h - 2, -w - 2, -1, -1], [h + 2, w + 2, 2 * h + 2, 2 * w + 2], (n, 4))
        sides[:1] = (0, 0, h, w)
        return rng.permutation(sides)

    arguments = {
        "flip": rng.random(n) < 0.5,
        "vertical_flip": rng.random(n) < 0.5,
        "erase": rectangles(),
        "noise_key": rng.integers(0, 2**64, n, dtype=np.uint64),
        "partner": rng.integers(0, max(n, 1), n),
        "weight": rng.choice([0.0, 1.0, 0.3, 1e-30, rng.random()], n),
        "cut": rectangles(),
    }
    return SampleParameters(n, **{name: arguments[name] for name in FEATURES[features]})


def same_bits(a, b):
    """Whether two tensors are equal, the sign of zero included."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return a.dtype == b.dtype and torch.equal(a.cpu().contiguous().view(bits), b.cpu().contiguous().view(bits))


def check(images, parameters, dtype, memory_format, threads=0, mean=None, std=None, factor=None):
    channels = images.shape[3]
    mean, std, fill = mean or MEANS[channels], std or STDS[channels], FILLS[channels]
    options = {"fill": fill, "factor": factor}
    got = Finish(mean, std, dtype, memory_format, threads=threads, **options)(images, parameters)
    expected = finish_reference(images.cpu(), parameters, mean, std, dtype, **options)
    assert got.is_contiguous(memory_format=memory_format)
    assert got.device == images.device
    assert got.shape == expected.shape
    assert same_bits(got, expected)


# ------------------------------------------------------------------------------------- what is computed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("features", FEATURES)
def test_equals_eager_pytorch_bit_for_bit(features, channels, dtype, memory_format, device):
    for h, w in ((13, 17), (6, 56)):
        images = random_images(7, h, w, channels, device=device)
        check(images, random_parameters(features, 7, h, w), dtype, memory_format)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [
    *((0, 4, 4, 3), (2, 0, 4, 3), (2, 4, 0, 3), (1, 1, 1, 1), (3, 1, 1, 4), (5, 7, 1, 3), (5, 1, 7, 3)),
    *((3, 33, 65, 4), (2, 64, 64, 3), (3, 3, 48, 1), (3, 3, 49, 3), (2, 9, 264, 3), (700, 1, 1, 3)),
    (2, 2, 2**16 + 1, 3),
], ids=str)  # fmt: skip
def test_sizes(shape, dtype, memory_format, device):
    images = random_images(*shape, device=device)
    check(images, random_parameters("all", *shape[:3]), dtype, memory_format)
    check(images, None, dtype, memory_format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [160, 171])  # rows that begin at multiples of 64 bytes, and that do not
def test_outputs_that_are_written_past_the_caches(width, dtype):
    images = random_images(50, 176, width, 3)
    for features in ("nothing", "mixup"):
        check(images, random_parameters(features, *images.shape[:3]), dtype, torch.channels_last)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("strides", STRIDES)
def test_strides(strides, channels, memory_format, device):
    for w in (11, 16):
        images = STRIDES[strides](random_images(4, 9, w, channels, device=device))
        for features in ("all", "filled"):
            check(images, random_parameters(features, 4, 9, w), torch.bfloat16, memory_format)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("mean", "std"), [
    (0.5, 0.25), (0.0, 1.0), (1.0, 0.001), (-3.0, 7.0), (100 / 255, 0.2),
    (0.5, 1e-5), (0.5, 1e-37), (0.5, 1e5), (0.5, 3e38), (1e38, 10.0),
    # Found by a search: these need the division, as one in millions does.
    (0.24, 0.0075), (0.44, 0.06), (0.88, 0.12), (0.2446, 0.8489),
])  # fmt: skip
def test_every_byte_with_any_mean_and_std(mean, std, dtype, device):
    images = torch.arange(256, dtype=torch.uint8, device=device).reshape(2, 8, 16, 1)
    check(images, None, dtype, torch.channels_last, mean=(mean,), std=(std,))
    check(images, random_parameters("all", 2, 8, 16), dtype, torch.channels_last, mean=(mean,), std=(std,))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("factor", [1 / 255, 1.0])
def test_every_byte_multiplied(factor, dtype, memory_format, device):
    images = torch.arange(256, dtype=torch.uint8, device=device)[:, None].expand(256, 3).reshape(2, 8, 16, 3)
    for features in ("nothing", "all"):
        parameters = random_parameters(features, 2, 8, 16)
        check(images, parameters, dtype, memory_format, factor=factor)
        check(images, parameters, dtype, memory_format, mean=(0.0,) * 3, std=(1.0,) * 3, factor=factor)


def test_which_bytes_a_factor_changes():
    images = torch.arange(256, dtype=torch.uint8).reshape(2, 8, 16, 1)
    divided, multiplied, left = (Finish((0.0,), (1.0,), factor=factor)(images) for factor in (None, 1 / 255, 1.0))
    assert int((divided != multiplied).sum()) == 126
    assert torch.equal(left, images.permute(0, 3, 1, 2).float())


def test_which_means_and_stds_need_divisions():
    assert Finish(IMAGENET_MEAN, IMAGENET_STD)._normalizer.fused
    assert Finish(IMAGENET_MEAN, IMAGENET_STD, factor=1 / 255)._normalizer.fused
    assert Finish([255 * m for m in IMAGENET_MEAN], [255 * s for s in IMAGENET_STD], factor=1)._normalizer.fused
    assert Finish((0.0,), (1.0,), factor=1)._normalizer.fused
    assert not Finish((0.24,), (0.0075,))._normalizer.fused
    assert not Finish((0.5, 0.44, 0.5), (0.5, 0.06, 0.5))._normalizer.fused


def step_by_step(images, parameters, mean, std, fill):
    """The same in float64 and sample by sample, each step as torchvision does it: horizontal_flip, vertical_flip,
    to_tensor, normalize, erase; then MixUp's and CutMix's formulas."""
    n, h, w, _ = images.shape
    mean, std, fill = (np.array(values)[:, None, None] for values in (mean, std, fill))

    def window(rectangle):  # what of it lies in the image
        top, left, height, width = (int(side) for side in rectangle)
        rows, columns = slice(max(top, 0), max(top + height, 0)), slice(max(left, 0), max(left + width, 0))
        return (..., rows, columns) if height > 0 and width > 0 else (..., slice(0), slice(0))

    finished = []
    for i in range(n):
        x = images[i].numpy().transpose(2, 0, 1)
        x = x[..., ::-1] if parameters["flip"][i] in (1, 3) else x
        x = x[..., ::-1, :] if parameters["flip"][i] in (2, 3) else x
        x = (x / 255.0 - mean) / std
        value = np.broadcast_to(fill, x.shape)
        if parameters["noise"][i]:
            counters = np.array([[(column, row, 0, 0) for column in range(w)] for row in range(h)], np.uint32)
            words = philox(int(parameters["noise_key"][i]), counters.reshape(h, w, 4))[..., : len(mean)]
            middles = torch.from_numpy((words >> 8) * 2.0**-24 + 2.0**-25)
            value = torch.special.ndtri(middles).numpy().transpose(2, 0, 1)
        x[window(parameters["erase"][i])] = value[window(parameters["erase"][i])]
        finished.append(x)
    mixed = []
    for i in range(n):
        partner, weight = finished[parameters["partner"][i]], float(parameters["weight"][i])
        x = weight * finished[i] + (1 - weight) * partner
        cut = window(parameters["cut"][i])
        x[cut] = partner[cut]
        mixed.append(x)
    return torch.from_numpy(np.stack(mixed))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("features", FEATURES)
def test_steps_are_those_of_torchvision(features, channels, seed):
    images, parameters = random_images(6, 9, 11, channels), random_parameters(features, 6, 9, 11, seed)
    mean, std, fill = MEANS[channels], STDS[channels], FILLS[channels]
    expected = step_by_step(images, parameters, mean, std, fill)
    got = finish_reference(images, parameters, mean, std, fill=fill)
    torch.testing.assert_close(got.double(), expected, rtol=1e-6, atol=2e-6)
    # Each dtype is that rounded once: half a unit in the last place, and what fp32 itself lacks.
    for dtype, digits in ((torch.float16, 11), (torch.bfloat16, 8)):
        limit = torch.finfo(dtype).max
        got = Finish(mean, std, dtype, fill=fill)(images, parameters).double()
        inside = expected.abs() < limit
        torch.testing.assert_close(got[inside], expected[inside], rtol=2.0**-digits + 1e-6, atol=3e-6)


# ------------------------------------------------------------------------------------------------ noise


def noise(keys, h, w, channels, **arguments):
    n = len(keys)
    parameters = SampleParameters(n, erase=[(0, 0, h, w)] * n, noise_key=np.array(keys, np.uint64), **arguments)
    return Finish(MEANS[channels], STDS[channels])(random_images(n, h, w, channels), parameters)


def test_noise_is_standard_normal_and_independent():
    x = noise(range(8), 96, 100, 4).double()
    count = x.numel()
    assert abs(x.mean()) < 4 / count**0.5
    assert abs(x.std() - 1) < 4 / (2 * count) ** 0.5
    assert abs((x**4).mean() - 3) < 4 * (96 / count) ** 0.5
    # Kolmogorov and Smirnov: a distance of 2 / sqrt(n) is exceeded once in 1500 times.
    steps = torch.arange(count + 1) / count
    distribution = torch.special.ndtr(x.flatten().sort().values)
    assert max((distribution - steps[:-1]).abs().max(), (distribution - steps[1:]).abs().max()) < 2 / count**0.5
    # between neighbours, rows, channels and samples
    for a, b in (
        *((x[..., 1:], x[..., :-1]), (x[..., 1:, :], x[..., :-1, :])),
        *((x[:, 1:], x[:, :-1]), (x[1:], x[:-1])),
    ):
        assert abs((a * b).mean()) < 4 / a.numel() ** 0.5


def test_noise_depends_on_key_place_and_channel_alone():
    x = noise([5, 2**64 - 1, 5], 20, 30, 3, flip=[False, True, True], vertical_flip=[False, True, True])
    assert torch.equal(x[0], x[2])  # whatever the image, the flips and the place in the batch
    assert not torch.equal(x[0], x[1])
    assert torch.equal(noise([2**64 - 1], 7, 40, 4)[0, :3, :, :30], x[1, :, :7])  # and the size and channels
    other = SampleParameters(1, erase=[(3, 4, 5, 6)], noise_key=[5])
    y = Finish((0.1, 0.2, 0.3), (2, 3, 4), torch.bfloat16, fill=9)(random_images(1, 20, 30, 3), other)
    assert torch.equal(y[0, :, 3:8, 4:10], x[0, :, 3:8, 4:10].bfloat16())
    plain = Finish((0.1, 0.2, 0.3), (2, 3, 4), torch.bfloat16)(random_images(1, 20, 30, 3))
    y[:, :, 3:8, 4:10] = plain[:, :, 3:8, 4:10]
    assert torch.equal(y, plain)  # nothing else was touched


# --------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(("arguments", "message"), [
    ({"dtype": torch.float64}, "dtype is torch.float64; expected one of torch.float32"),
    ({"dtype": "float16"}, "dtype is 'float16'"),
    ({"memory_format": torch.channels_last_3d}, "memory_format is torch.channels_last_3d"),
    ({"fill": (1.0, 2.0)}, r"fill is \[1.0, 2.0\]; expected one value, or one for each of 3 channels, finite in fp32"),
    ({"fill": float("nan")}, r"fill is \[nan, nan, nan\]"),
    ({"fill": (0, 0, 1e39)}, r"fill is \[0, 0, 1e\+39\]"),
    ({"threads": -1}, "threads is -1 and spare_outputs is 2; expected 0 or more"),
    ({"spare_outputs": -1}, "threads is 0 and spare_outputs is -1; expected 0 or more"),
    ({"std": (0.2, 0, 0.2)}, "expected positive, finite values"),
])  # fmt: skip
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        Finish(**{"mean": IMAGENET_MEAN, "std": IMAGENET_STD, **arguments})


@pytest.mark.parametrize(("mean", "std", "message"), [
    ((0.5, 0.5), (1, 1), "have 2 and 2 values; expected 1, 3 or 4"),
    ((0.5,), (1, 1, 1), "have 1 and 3 values"),
    ((), (), "have 0 and 0 values"),
    ((float("nan"),), (1,), r"mean is \(nan,\); expected finite values"),
    ((float("-inf"),), (1,), r"mean is \(-inf,\)"),
    ((1e39,), (1e30,), r"mean is \(1e\+39,\)"),  # not finite in fp32
    ((0.5,), (float("nan"),), r"std is \(nan,\); expected positive, finite values"),
    ((0.5,), (float("inf"),), r"std is \(inf,\)"),
    ((0.5,), (1e39,), r"std is \(1e\+39,\)"),
    ((0.5,), (0.0,), r"std is \(0.0,\); expected positive"),
    ((0.5,), (-0.2,), r"std is \(-0.2,\); expected positive"),
    ((0.5,), (1e-40,), r"std is \(1e-40,\), so small that values overflow"),  # subnormal in fp32
    ((1e5,), (1e-34,), "so small that values overflow"),
    ((123.7, 116.3, 103.5), (1e-37,) * 3, r"is it in units of pixel / 255\?"),
])  # fmt: skip
def test_bad_mean_and_std(mean, std, message):
    with pytest.raises(ValueError, match=message):
        check_mean_std(mean, std)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"flip": [True]}, r"flip has shape \[1\]; expected \[2\]"),
    ({"vertical_flip": True}, r"vertical_flip has shape \[\]; expected \[2\]"),
    ({"erase": [0, 0, 1, 1]}, r"erase has shape \[4\]; expected \[2, 4\]"),
    ({"erase": [(0, 0, 2**32 + 1, 1)] * 2}, r"erase is .*4294967297.*; expected values from -2147483648 to 2147483647"),
    ({"erase": [(0, 0, 1.5, 1)] * 2}, "erase is of float64; expected integers"),
    ({"cut": [(0, 0, float("nan"), 1)] * 2, "partner": [0, 1]}, "cut is of float64; expected integers"),
    ({"noise_key": [1.0, 2.0]}, "noise_key is of float64; expected integers"),
    ({"noise_key": [-1, 2]}, r"noise_key is \[-1, 2\]; expected values from 0 to 18446744073709551615"),
    ({"noise_key": [2**64, 0]}, "noise_key is of object; expected integers"),
    ({"partner": [0, 2]}, r"partner is \[0, 2\]; expected samples, 0 to 1"),
    ({"partner": [-1, 0]}, r"partner is \[-1, 0\]"),
    ({"partner": [2**40, 0]}, r"partner is \[1099511627776, 0\]"),
    ({"partner": [float("nan"), 0]}, "partner is of float64; expected integers"),
    ({"partner": [True, False]}, "partner is of bool; expected integers"),
    ({"weight": [0.5, 0.5]}, "partner is None"),
    ({"cut": [(0, 0, 1, 1)] * 2}, "partner is None"),
    ({"weight": [0.5, 1.1], "partner": [1, 0]}, r"weight is \[0.5, 1.1\]; expected values from 0 to 1"),
    ({"weight": [0.5, float("nan")], "partner": [1, 0]}, r"weight is \[0.5, nan\]"),
    ({"weight": [-1e-9, 0], "partner": [1, 0]}, "expected values from 0 to 1"),
])  # fmt: skip
def test_bad_parameters(arguments, message):
    with pytest.raises(ValueError, match=message):
        SampleParameters(2, **arguments)


def test_parameters_take_lists_arrays_and_tensors():
    for convert in (list, np.asarray, torch.as_tensor):
        p = SampleParameters(
            *(2,),
            flip=convert([True, False]),
            vertical_flip=convert([True, True]),
            erase=convert([[1, 2, 3, 4], [-(2**31), 0, 2**31 - 1, 0]]),
            noise_key=convert([7, 8]),
            partner=convert([1, 0]),
            weight=convert([0.25, 0.5]),
        )
        assert p["flip"].tolist() == [3, 2]
        assert p["erase"].tolist() == [[1, 2, 3, 4], [-(2**31), 0, 2**31 - 1, 0]]
        assert p["noise_key"].tolist() == [7, 8]
        assert p["weight"].tolist() == [0.25, 0.5]
    assert SampleParameters(0, flip=[], partner=[], weight=[], erase=np.zeros((0, 4)))["partner"].shape == (0,)
    with pytest.raises(ValueError, match="read-only"):
        p["partner"][0] = 1000  # would be read without a check


@pytest.mark.parametrize(("images", "message"), [
    (torch.zeros(2, 4, 4, 3), r"images are torch.float32 \[2, 4, 4, 3\]"),
    (torch.zeros(4, 4, 3, dtype=torch.uint8), r"images are torch.uint8 \[4, 4, 3\]"),
    (torch.zeros(2, 4, 4, 1, dtype=torch.uint8), r"expected torch.uint8 \[N, H, W, 3\]"),
    (torch.zeros(2, 4, 4, 3, dtype=torch.uint8, device="meta"), "images are on meta"),
])  # fmt: skip
def test_bad_images(images, message):
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD)
    for call in (finish, finish.submit):
        with pytest.raises(ValueError, match=message):
            call(images)


def test_parameters_of_another_batch():
    with pytest.raises(ValueError, match="parameters are for 3 samples, but there are 2 images"):
        Finish(IMAGENET_MEAN, IMAGENET_STD)(random_images(2, 4, 4, 3), SampleParameters(3))


# ------------------------------------------------------------------------------------------ out, streams


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_out(dtype, memory_format, device):
    images, parameters = random_images(3, 5, 16, 3, device=device), random_parameters("all", 3, 5, 16)
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, dtype, memory_format)
    whole = torch.full((5, 3, 5, 16), 7, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    out = whole[1:4]
    assert finish(images, parameters, out=out) is out
    assert same_bits(out, finish(images.cpu(), parameters))
    assert (whole[0] == 7).all()
    assert (whole[4] == 7).all()


def test_a_write_to_out_is_seen_by_autograd():
    finish, images = Finish(IMAGENET_MEAN, IMAGENET_STD), random_images(2, 4, 4, 3)
    out = finish(images)
    loss = (torch.ones(1, requires_grad=True) * out).sum()
    finish(images, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    with torch.inference_mode():
        assert torch.equal(finish(images, out=torch.empty_like(out)), out)


@pytest.mark.parametrize(("out", "message"), [
    (torch.empty(2, 3, 4, 5), r"\[2, 3, 4, 5\] with strides \(60, 20, 5, 1\) on cpu; expected torch.float16"),
    (torch.empty(2, 3, 4, 5, dtype=torch.float16), r"strides \(60, 20, 5, 1\)"),
    (torch.empty(2, 3, 4, 6, dtype=torch.float16, memory_format=torch.channels_last), r"\[2, 3, 4, 6\]"),
    (torch.empty(2, 3, 4, 5, dtype=torch.float16, device="meta", memory_format=torch.channels_last), "on meta"),
    (torch.empty(1, 3, 4, 5, dtype=torch.float16, memory_format=torch.channels_last).expand(2, 3, 4, 5), "strides"),
])  # fmt: skip
def test_bad_out(out, message):
    with pytest.raises(ValueError, match=message):
        Finish(IMAGENET_MEAN, IMAGENET_STD, torch.float16)(random_images(2, 4, 5, 3), out=out)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("given", [torch.float64, torch.float32, torch.float16])
def test_normalize(given, dtype, memory_format, device):
    images = torch.rand(3, 3, 5, 7, generator=torch.Generator().manual_seed(0)).to(device, given)
    kept = images.clone()
    finish = Finish(IMAGENET_MEAN, IMAGENET_STD, dtype, memory_format)
    mean, std = (torch.tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    expected = ((images.cpu().float() - mean) / std).to(dtype)
    for got in (
        finish.normalize(images),
        finish.normalize(images, out=finish(random_images(3, 5, 7, 3, device=device))),
    ):
        assert same_bits(got, expected)
        assert got.is_contiguous(memory_format=memory_format)
        assert got.device == images.device
    assert torch.equal(images, kept)


@pytest.mark.parametrize(("images", "message"), [
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), r"images are torch.uint8 \[2, 3, 4, 4\]; expected a floating dtype"),
    (torch.zeros(2, 4, 4, 3), r"images are torch.float32 \[2, 4, 4, 3\]; .*\[N, 3, H, W\]"),
    (torch.zeros(3, 4, 4), r"\[3, 4, 4\]"),
])  # fmt: skip
def test_normalize_with_bad_images(images, message):
    with pytest.raises(ValueError, match=message):
        Finish(IMAGENET_MEAN, IMAGENET_STD).normalize(images)


@pytest.mark.gpu
def test_gpu_runs_on_the_current_stream():
    images, finish = random_images(4, 64, 64, 3, device="cuda"), Finish(IMAGENET_MEAN, IMAGENET_STD)
    parameters = random_parameters("all", 4, 64, 64)
    expected = finish(images.cpu(), parameters)
    finish(images)  # the kernel is loaded
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        clone = images.clone()
        got = finish(clone, parameters)
    stream.synchronize()
    assert torch.equal(got.cpu(), expected)
