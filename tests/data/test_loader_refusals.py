"""What the loader says of arguments, datasets and machines that do not do."""

import subprocess
import sys

import numpy as np
import pytest
import torch

import fastfeed
from fastfeed import DataLoader, Mix, transforms
from tests.images import write_folder
from tests.torchvision_ops import torchvision_or_skip

pytestmark = pytest.mark.dali


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("loader") / "data", {"cat": 3, "dog": 2})


def loader(folder, batch_size=4, **options):
    return DataLoader(folder, batch_size, **{"transform": transforms.train(32), "device": "cpu", **options})


@pytest.mark.parametrize(("options", "error", "message"), [
    ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ({"batch_size": 2.0}, ValueError, "batch_size is 2.0"),
    ({"num_workers": -1}, ValueError, "num_workers is -1"),
    ({"prefetch_factor": 0}, ValueError, "prefetch_factor is 0"),
    ({"seed": -1}, ValueError, "seed is -1"),
    ({"transform": lambda x: x}, TypeError, "transform is function; expected a Transform"),
    ({"dtype": torch.int8}, ValueError, "dtype is torch.int8"),
    ({"device": "mps"}, ValueError, "device is 'mps'; expected 'cpu', 'cuda'"),
    ({"device": "gpu"}, RuntimeError, "device is 'gpu', which is none; expected 'cpu', 'cuda' or"),
    ({"device": ""}, RuntimeError, "device is '', which is none"),
    ({"stable_addresses": True, "on_error": "drop"}, ValueError, "on_error='replace' or 'raise', not 'drop'"),
    ({"on_error": "skip"}, ValueError, "on_error is 'skip'"),
    ({"max_pixels": 0}, ValueError, "max_pixels is 0"),
    ({"shuffle": True, "sampler": range(3)}, ValueError, "sampler goes with shuffle=False"),
    ({"batch_sampler": [[0]]}, ValueError, "batch_sampler goes with no batch_size"),
    ({"sampler": 3}, TypeError, "sampler is int; expected an iterable"),
    ({"size": 224}, TypeError, "size is 224; expected a function"),
    ({"rank": 4, "world_size": 4}, ValueError, "rank is 4; expected 0 to 3"),
    ({"rank": 1}, ValueError, "rank is 1 and world_size is None"),
    ({"seed": 2**64}, ValueError, "seed is 18446744073709551616"),
    ({"shufle": True}, TypeError, "shufle"),
])  # fmt: skip
def test_bad_arguments(folder, options, error, message):
    with pytest.raises(error, match=message):
        loader(folder, **options)


def test_bad_datasets(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        loader(tmp_path / "absent")
    with pytest.raises(TypeError, match="dataset is int; expected the path of a folder"):
        loader(3)


def test_a_size_schedule_that_gives_nonsense_is_named(folder):
    with pytest.raises(TypeError, match=r"size\(epoch=0, step=1\) gave 'x'"):
        list(loader(folder, size=lambda epoch, step: 24 if step == 0 else "x"))


def test_numpys_integers_are_whole_numbers(folder):
    sizes = np.array([16, 24])
    images, _ = next(iter(loader(folder, np.int64(3), size=lambda epoch, step: sizes[step])))
    assert images.shape == (3, 3, 16, 16)


def test_a_gpu_asked_for_where_there_is_none(folder):
    with pytest.raises(RuntimeError, match=r"device is 'cuda:1', but PyTorch sees no NVIDIA GPU.*fastfeed info"):
        loader(folder, device="cuda:1")


def test_a_gpu_that_is_not_there_beside_one_that_is(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(RuntimeError, match="device is 'cuda:2', but there are 2 GPUs"):
        loader(folder, device="cuda:2")


@pytest.mark.parametrize(("cuda", "package"), [("12.9", "cuda120"), ("13.0", "cuda130"), (None, "cuda130")])
def test_install_line_is_for_the_cuda_of_pytorch(monkeypatch, cuda, package):
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert f"nvidia-dali-{package}>" in fastfeed.data.dali.dali_install_line()


def test_an_extension_without_cuda_asked_to_use_it(folder, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(fastfeed.data.finish.extension(), "build_info", lambda: {"cuda": None})
    with pytest.raises(RuntimeError, match="built without CUDA.*FASTFEED_CUDA=1"):
        loader(folder, device="cuda:0")
    with pytest.warns(UserWarning, match="there is a GPU, but .* built without CUDA"):
        assert loader(folder, device=None).device.type == "cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_by_its_number_where_there_is_none(folder):
    with pytest.raises(RuntimeError, match="device is 0, but PyTorch sees no NVIDIA GPU"):
        loader(folder, device=0)


def test_without_dali_the_error_gives_the_pip_line(folder):
    script = f"""
import sys
sys.modules["nvidia.dali"] = None  # as if it were not installed
import fastfeed
fastfeed.DataLoader({str(folder)!r})
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert 'pip install "nvidia-dali-cuda1' in result.stderr.splitlines()[-1]


def test_without_dali_datasets_go_through_pytorchs_workers(caplog, monkeypatch):
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)
    pictures = torchvision_or_skip("torchvision.datasets").FakeData(
        6, (3, 8, 9), transform=torchvision_or_skip("torchvision.transforms").ToTensor()
    )
    encoded = Encoded()
    with caplog.at_level("INFO", logger="fastfeed"):
        for dataset in (pictures, encoded):
            data = DataLoader(dataset, 4, device="cpu")
            assert data.backend == "torch"
            assert len(next(iter(data))[0]) == 4
    assert "NVIDIA DALI is not installed (pip install" in caplog.text
    with pytest.raises(ImportError, match="pip install"):
        DataLoader(encoded, backend="dali", device="cpu")
    with pytest.raises(ValueError, match=r"mix: only for images that DALI decodes, .*NVIDIA DALI is not installed"):
        DataLoader(encoded, mix=Mix(0.2), device="cpu")


class Encoded(torch.utils.data.Dataset):
    """What DALI could decode, and PyTorch's loader take."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return torch.zeros(3, 4, 4), index

    def get_encoded(self, index):
        return b"", index


@pytest.mark.parametrize("state", [None, [1, 2], "state"])
def test_a_state_that_is_none(folder, state):
    with pytest.raises(TypeError, match=f"the state is {type(state).__name__}; expected what DataLoader.state_dict"):
        loader(folder).load_state_dict(state)


def test_images_for_which_there_is_no_memory(folder):
    data = loader(folder, 2, transform=transforms.train(2**20))
    with pytest.raises(MemoryError, match="no memory for 2 images of 1048576 x 1048576 pixels: 6144.0 GiB"):
        next(iter(data))


class Endless(torch.utils.data.Sampler):
    def __iter__(self):
        yield from range(5)

    def __len__(self):
        raise NotImplementedError


def test_a_sampler_that_does_not_implement_its_length(folder):
    data = loader(folder, 2, sampler=Endless())
    assert [len(target) for _, target in data] == [2, 2, 1]
    with pytest.raises(TypeError, match="Endless has no length"):
        len(data)
