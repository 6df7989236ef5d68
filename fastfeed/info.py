"""What this installation is made of, what it can use, and what to do about anything missing."""

import platform
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata, util

import torch

from fastfeed._extension import extension
from fastfeed._version import __version__
from fastfeed.data.dali import dali_install_line, import_dali


@dataclass(frozen=True)
class Info:
    """The lines of `fastfeed info`.

    Attributes:
        rows: (name, value) pairs.
        advice: what to do about anything missing, a sentence each.
        usable: whether a DataLoader can work here.
    """

    rows: list[tuple[str, str]]
    advice: list[str]
    usable: bool

    def text(self) -> str:
        """Format the lines for a terminal."""
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{name:<{width}}  {value}" for name, value in self.rows]
        return "\n".join([*lines, "", *(f"- {line}" for line in self.advice or ["Nothing is missing."])])


def collect() -> Info:
    """Look at the versions, the extension, the device and DALI."""
    rows = [
        ("fastfeed", __version__),
        ("python", f"{platform.python_version()}, {sys.executable}"),
        ("system", f"{platform.system()} {platform.machine()}"),
        ("torch", f"{torch.__version__}, CUDA {torch.version.cuda or 'none'}"),
    ]
    rows += [(name, _version(name) or "not installed") for name in ("triton", "numpy", "pillow")]
    advice: list[str] = []
    if util.find_spec("triton") is None:
        advice.append(
            "Triton is not installed, so the fused ops run as eager PyTorch. Install it with: pip install triton"
        )
    has_gpu = _device(rows, advice)
    has_extension = _extension(rows, advice, has_gpu)
    has_dali = _dali(rows, advice, has_gpu)
    _torchvision(rows, advice)
    return Info(rows, advice, usable=has_extension and has_dali)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _device(rows: list[tuple[str, str]], advice: list[str]) -> bool:
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(i)
            size = f"{properties.total_memory / 2**30:.0f} GiB"
            rows.append((f"device cuda:{i}", f"{properties.name}, sm_{properties.major}{properties.minor}, {size}"))
        return True
    rows.append(("device", "CPU; no NVIDIA GPU that PyTorch can use"))
    if torch.version.cuda is None:
        advice.append(
            "This PyTorch is built for the CPU alone. For a GPU install one built for CUDA: pip install torch"
        )
    else:
        advice.append("PyTorch is built for CUDA but sees no GPU. If there is one, check the driver with: nvidia-smi")
    return False


def _extension(rows: list[tuple[str, str]], advice: list[str], has_gpu: bool) -> bool:
    try:
        built = extension()
    except ImportError as error:
        rows.append(("extension", "not built"))
        advice.append(str(error))
        return False
    info = built.build_info()
    cuda = f"CUDA {info['cuda']} ({info['cuda_arch']})" if info["cuda"] else "C++ alone, no CUDA"
    rows.append(("extension", f"{info['version']}, compiler {info['compiler']}, {cuda}"))
    rows.append(("extension's SIMD", built.simd()))
    if has_gpu and not info["cuda"]:
        advice.append(
            "The extension was built without CUDA, so batches are made on the CPU. Install the CUDA toolkit (nvcc) and "
            "reinstall with FASTFEED_CUDA=1"
        )
    return True


def _dali(rows: list[tuple[str, str]], advice: list[str], has_gpu: bool) -> bool:
    try:
        dali = import_dali()
    except ImportError as error:
        rows.append(("nvidia-dali", "not installed"))
        advice.append(str(error))
        return False
    if not has_gpu:
        rows.append(("nvidia-dali", f"{dali.__version__}, CPU backend; there is no GPU for it to use"))
        return True
    try:
        pipeline = dali.Pipeline(1, num_threads=1, device_id=0, prefetch_queue_depth=1)
        with pipeline:
            pipeline.set_outputs(dali.fn.constant(idata=[0], device="gpu"))
        pipeline.run()
    except RuntimeError as error:
        rows.append(("nvidia-dali", f"{dali.__version__}, cannot use the GPU: {str(error).splitlines()[0]}"))
        advice.append(f"DALI cannot use the GPU; the package may be for another CUDA. Try: {dali_install_line()}")
        return True
    rows.append(("nvidia-dali", f"{dali.__version__}, CPU and GPU backends, can use the GPU"))
    return True


def _torchvision(rows: list[tuple[str, str]], advice: list[str]) -> None:
    version = _version("torchvision")
    if version is None:
        rows.append(("torchvision", "not installed; nothing needs it but its own datasets, transforms and models"))
        return
    # In a process of its own: an import that fails half-way cannot be tried again by others.
    tried = subprocess.run([sys.executable, "-P", "-c", "import torchvision"], capture_output=True, text=True)
    if tried.returncode == 0:
        rows.append(("torchvision", version))
        return
    rows.append(("torchvision", f"{version}, cannot be imported: {(tried.stderr.splitlines() or ['?'])[-1]}"))
    advice.append(
        "torchvision cannot be imported, as where it is of another build than PyTorch. Install both with one command, "
        "from one index: PyTorch's instructions have it for every build, those for the CPU alone too"
    )
