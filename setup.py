"""Builds fastfeed._C. Everything else about the package stands in pyproject.toml.

FASTFEED_CUDA=auto  (default) CUDA code if nvcc is found, else C++ alone
FASTFEED_CUDA=1     CUDA code, or fail
FASTFEED_CUDA=0     C++ alone
FASTFEED_CUDA_ARCH  nvcc's -arch, default all-major: machine code for every generation the compiler knows
MAX_JOBS            C++ files to compile at a time, by default one per core
FASTFEED_LOCAL_VERSION=1  name the version after the build, 0.1.0+cu130 or 0.1.0+cpu, to tell published wheels apart
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from pybind11.setup_helpers import ParallelCompile, Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
BASE_VERSION = re.search(r'"(.+)"', (ROOT / "fastfeed" / "_version.py").read_text())[1]


def find_nvcc():
    """Return (path of nvcc, CUDA version such as "13.0"), or None where there is no nvcc."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        if variable in os.environ and (Path(os.environ[variable]) / "bin" / "nvcc").is_file():
            nvcc = Path(os.environ[variable]) / "bin" / "nvcc"
            break
    else:
        found = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
        if found is None:
            return None
        nvcc = Path(found)
    output = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
    return nvcc, re.search(r"release (\d+\.\d+)", output)[1]


def cuda_library_dirs(nvcc):
    """Return the folders nvcc itself links from; they differ between installers, and nvcc may be a wrapper."""
    output = subprocess.run([nvcc, "--dryrun", "none.cu"], capture_output=True, text=True).stderr
    return re.findall(r'"-L([^"]+)"', next((line for line in output.splitlines() if "LIBRARIES=" in line), ""))


def cuda_toolkit():
    """Apply FASTFEED_CUDA to what the machine has."""
    mode = os.environ.get("FASTFEED_CUDA", "auto")
    if mode not in ("auto", "0", "1"):
        raise SystemExit(f"FASTFEED_CUDA={mode}: expected auto, 0 or 1")
    if mode == "0":
        return None
    toolkit = find_nvcc()
    if toolkit is None and mode == "1":
        raise SystemExit(
            "FASTFEED_CUDA=1, but nvcc was not found in CUDA_HOME, on PATH or in /usr/local/cuda/bin. Install the "
            "CUDA toolkit, or build with FASTFEED_CUDA=0 for the CPU alone."
        )
    return toolkit


class BuildExtension(build_ext):
    """Compiles csrc/*.cu with nvcc and links the objects, with the CUDA runtime inside, into _C."""

    def finalize_options(self):
        super().finalize_options()
        # What build/ holds may be of other settings, which setuptools does not compare.
        self.force = True

    def build_extension(self, ext):
        if self.debug:
            ext.extra_compile_args.append("-O0")  # the last one counts
        if CUDA is not None:
            nvcc, _ = CUDA
            for source in sorted(Path("csrc").glob("*.cu")):
                target = Path(self.build_temp) / source.with_suffix(".cu.o").name
                target.parent.mkdir(parents=True, exist_ok=True)
                command = [nvcc, "-c", source, "-o", target, "-std=c++17", "-O3", "-fmad=false", f"-arch={CUDA_ARCH}"]
                command += [
                    "-Xcompiler",
                    "-fPIC,-fvisibility=hidden",
                    "-Xptxas",
                    "-warn-spills",
                    "--threads",
                    "0",
                    # Machine code for every generation is mostly repetition: a sixth of the size.
                    "-Xfatbin",
                    "-compress-all",
                ]
                command += [f"-D{name}={value}" for name, value in ext.define_macros]
                self.announce(" ".join(map(str, command)), level=2)
                try:
                    subprocess.run(command, check=True)
                except subprocess.CalledProcessError as error:
                    raise SystemExit(
                        f"{nvcc} could not compile {source} (its output stands above). Mend the CUDA toolkit, or "
                        "build with FASTFEED_CUDA=0 for the CPU alone."
                    ) from error
                ext.extra_objects.append(str(target))
        super().build_extension(ext)


CUDA = cuda_toolkit()
CUDA_ARCH = os.environ.get("FASTFEED_CUDA_ARCH", "all-major")
# Not by default: pip refuses a source distribution that builds another version than its file name says.
VERSION = BASE_VERSION
if os.environ.get("FASTFEED_LOCAL_VERSION") == "1" and "sdist" not in sys.argv:
    VERSION += "+cu" + CUDA[1].replace(".", "") if CUDA else "+cpu"

extension = Pybind11Extension(
    "fastfeed._C",
    sorted(str(p) for p in Path("csrc").glob("*.cpp")),
    depends=sorted(str(p) for p in Path("csrc").iterdir()),
    cxx_std=17,
    # No -march: the wheel must run on any processor of the architecture.
    # One rounding per operation, so that every machine computes the same: csrc/finish.h. Nobody asks for errno or traps
    # of arithmetic, which would keep square roots out of vectors.
    extra_compile_args=["-O3", "-Wall", "-Wextra", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    define_macros=[("FASTFEED_VERSION", f'"{VERSION}"'), ("FASTFEED_COMPILER", "__VERSION__")],
)
if CUDA is not None:
    nvcc, cuda_version = CUDA
    extension.define_macros += [
        ("FASTFEED_CUDA", f'"{cuda_version}"'),
        ("FASTFEED_CUDA_ARCH", f'"{CUDA_ARCH}"'),
    ]
    # The static runtime: no libcudart to find at import, and the module loads where there is no driver.
    extension.library_dirs += cuda_library_dirs(nvcc)
    extension.libraries += ["cudart_static", "rt", "dl", "pthread"]

with ParallelCompile("MAX_JOBS", default=len(os.sched_getaffinity(0))):
    setup(version=VERSION, ext_modules=[extension], cmdclass={"build_ext": BuildExtension})
