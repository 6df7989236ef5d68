"""Compile the kernels for GPUs that need not be here; run as a script, it prints what became of them as JSON.

A script, because kernels that were imported under TRITON_INTERPRET cannot be compiled.
A new kernel needs one more entry in CASES.
"""

import importlib
import json
import re
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARCHITECTURES = (80, 90, 100)


@dataclass(frozen=True)
class Case:
    """One specialisation of a kernel, as the launch function or a typical call asks for it."""

    module: str  # in fastfeed.kernels
    kernel: str
    arguments: str  # types of what is not constexpr, in order; ":16" for a multiple of 16, as aligned pointers are
    constexprs: dict[str, Any]  # a string in capitals names a constant of the module
    num_warps: int | str = 4
    loads_128bit: int = 0  # at least so many in the PTX
    shared: int = 1 << 18  # bytes, at most; the exchange of data between threads takes some

    def __str__(self) -> str:
        constexprs = [f"{name}={value}" for name, value in self.constexprs.items() if name != value]
        return f"{self.kernel}({', '.join([self.arguments.split(':')[0], *constexprs])})"


def in_fp32(arguments: str) -> str:
    """The same arguments, with fp32 for bf16."""
    return arguments.replace("bf16", "fp32")


def optimizers() -> list[Case]:
    """Each rule, in fp32 and in the mixed precision that takes the most registers, and several layouts at once."""
    fp32 = "fp32 fp32 fp32 fp32 - - -"  # param, grad, three states, master, ema
    everything = "fp32 fp32 fp32 fp32 fp32 - fp32"  # amsgrad, averaged weights
    master = "bf16 bf16 fp32 fp32 - fp32 fp32"
    stochastic = "bf16 bf16 bf16 bf16 - - -"
    momentum = "fp32 fp32 fp32 - - - -"
    pointers = "*i64:16 *i32:16 *i64 *fp32 *i64 *i32:16"
    optional = {"grad_scale": None, "found_inf": None, "total": None}
    cases = []
    for rule, layouts, everywhere, rounds, loads in (
        ("adam", fp32, False, False, 8),
        ("adam", everything, True, False, 12),
        ("adam", master, True, False, 4),
        ("adam", stochastic, False, True, 4),
        ("adam", f"{master};{fp32}", True, False, 12),
        ("sgd", "fp32 fp32 - - - - -", False, False, 4),
        ("sgd", momentum, True, False, 6),
        ("lion", momentum, True, False, 6),
        ("lamb", fp32, True, False, 6),
        ("lamb", stochastic, True, True, 3),
        ("lars", momentum, True, False, 6),
    ):
        sizes = {"CHUNK": "CHUNK", "BLOCK": "BLOCK"}
        options = {"RULE": rule, "LAYOUTS": layouts, "STOCHASTIC": rounds, **sizes, **({} if everywhere else optional)}
        scaling = " *fp32 *fp32 *fp32" if everywhere else ""
        two_passes = rule in ("lamb", "lars")
        sums = " *fp32:16" if two_passes else ""
        absent = {} if two_passes else {"sums": None}
        cases.append(
            Case("multi_tensor", "step_kernel", f"{pointers}{sums}{scaling} fp32 i32 i32", options | absent,
                 "NUM_WARPS", loads, 4096 if rounds else 16)
        )  # fmt: skip
        if two_passes:
            least = {"lamb": 4 if rounds else 8, "lars": 4}[rule]
            cases.append(
                Case("multi_tensor", "trust_kernel", f"{pointers} *fp32:16 *fp32:16{scaling} fp32 i32 i32", options,
                     "NUM_WARPS", least)
            )  # fmt: skip
    for layouts, loads in ((fp32, 4), (f"{master};{fp32}", 6)):
        cases.append(
            Case("gradient_norm", "gradient_norm_kernel",
                 "*i64:16 *i32:16 *i64 *i32 *fp32:16 *fp32 *fp32 i32 i32 i32 i32",
                 {"LAYOUTS": layouts, "CHUNK": 4096, "BLOCK": "BLOCK", "PROGRAMS": "PROGRAMS"}, "NUM_WARPS", loads)
        )  # fmt: skip
    return cases


def losses() -> list[Case]:
    """Cross-entropy of long rows and of tiles, forward and backward, with all that a call may ask for."""
    plain = {"MIXED": False, "WEIGHTED": False, "SMOOTHED": True, "FOCAL": False}
    everything = {"MIXED": True, "WEIGHTED": True, "SMOOTHED": True, "FOCAL": False}
    focal = {"MIXED": False, "WEIGHTED": True, "SMOOTHED": False, "FOCAL": True}
    cases = []
    for dtype, classes, flags in (
        ("bf16", 1000, plain),
        ("fp32", 1000, plain),
        ("bf16", 1000, everything),
        ("fp16", 1000, focal),
        ("bf16", 1001, plain),  # rows that begin anywhere
        ("bf16", 21843, everything),
        ("bf16", 128256, plain),
    ):
        vec = 4 if dtype == "fp32" else 8
        unaligned = classes % vec != 0
        block = 1024 if classes <= 1001 else 4096
        pointers = " ".join([f"*{dtype}:16", "*i64:16", "*i64:16", "*fp32:16", "*fp32:16"])
        size = f"i32 i32{':16' if classes % 16 == 0 else ''}"
        options = {**flags, "VEC": vec, "TAIL": unaligned, "BLOCK": block}
        warps = block // 256 if block < 2048 else 8
        least = 1 if vec == 8 else 2
        forward = {**options, "BLOCK": min(block, 2048 if flags["WEIGHTED"] else 4096)}
        cases.append(
            Case("cross_entropy", "cross_entropy_rows_kernel",
                 f"{pointers} *fp32:16 *fp32:16 i32 {size} i32 fp32 fp32", forward, warps, least)
        )  # fmt: skip
        cases.append(
            Case("cross_entropy", "cross_entropy_rows_backward_kernel",
                 f"{pointers} *fp32:16 *fp32:16 *{dtype}:16 i32 i32 {size} i32 fp32 fp32",
                 {**options, "MEAN": True, "ALIGNED": not unaligned}, warps, least)
        )  # fmt: skip
    for dtype, flags, block_c, block_s, step, loads in (
        ("bf16", plain, 8, 512, "constexpr", 4),
        ("fp32", everything, 8, 512, "constexpr", 8),
        ("bf16", focal, 16, 64, "i32", 0),  # short rows
    ):
        classes_together = step == "i32"
        pointers = " ".join([f"*{dtype}:16", "*i64:16", "*i64:16", "*fp32:16", "*fp32:16"])
        constants = {"class_stride": 1} if classes_together else {"step": 1}
        strides = "i32:16 i32" if classes_together else "i32:16 i32:16"
        sizes = f"i32 i32 {'i32 i32' if classes_together else 'i32:16 i32'} {strides} i32 fp32 fp32"
        options = {**constants, **flags, "BLOCK_C": block_c, "BLOCK_S": block_s}
        cases.append(
            Case("cross_entropy", "cross_entropy_tile_kernel", f"{pointers} *fp32:16 *fp32:16 i32 {sizes}",
                 options, 4, loads)
        )  # fmt: skip
        cases.append(
            Case("cross_entropy", "cross_entropy_tile_backward_kernel",
                 f"{pointers} *fp32:16 *fp32:16 *{dtype}:16 i32 i32 {sizes}", {**options, "MEAN": False}, 4, loads)
        )  # fmt: skip
    return cases


def pairs() -> list[Case]:
    """Losses of two matrices, row by row: long rows, those that begin anywhere, and short ones that share a program."""
    cases = []
    for dtype, other, classes, rows, block, warps, everything in (
        ("bf16", "bf16", 1000, 1, 1024, 4, False),
        ("bf16", "fp32", 1001, 1, 1024, 4, True),
        ("bf16", "bf16", 21843, 1, 2048, 8, False),
        ("fp32", "fp32", 21843, 1, 2048, 8, True),
        ("bf16", "bf16", 41, 16, 64, 4, True),
    ):
        vec = 4 if dtype == other == "fp32" else 8
        unaligned = classes % vec != 0
        tiles = {"VEC": vec, "TAIL": unaligned, "ALIGNED": not unaligned, "ROWS": rows, "BLOCK": block}
        matrices = f"*{dtype}:16 *{other}:16"
        size = f"i32 i32{':16' if classes % 16 == 0 else ''}"
        least = sum(2 if name == "fp32" else 1 for name in (dtype, other))
        cases.append(
            Case("dense_cross_entropy", "dense_cross_entropy_kernel",
                 f"{matrices} *fp32:16 *fp32:16 *fp32:16 {size} fp32", {"WEIGHTED": everything, **tiles}, warps, least)
        )  # fmt: skip
        cases.append(
            Case("dense_cross_entropy", "dense_cross_entropy_backward_kernel",
                 f"{matrices} *fp32:16 *fp32:16 *fp32:16 *{dtype}:16 *{other}:16 i32 {size} fp32",
                 {"WEIGHTED": everything, "MEAN": True, "TARGET_GRAD": everything, **tiles}, warps, least)
        )  # fmt: skip
        cases.append(
            Case("kl_divergence", "kl_divergence_kernel", f"{matrices} *fp32:16 *fp32:16 {size} fp32 fp32",
                 tiles, warps, least)
        )  # fmt: skip
        cases.append(
            Case("kl_divergence", "kl_divergence_backward_kernel",
                 f"{matrices} *fp32:16 *fp32:16 *{dtype}:16 i32 {size} fp32 fp32", tiles, warps, least)
        )  # fmt: skip
    return cases


REDUCTION = {"LAST": True, "CHUNK": "CHUNK", "BLOCK": 1024}

# The pools of 2048 channels: 7 x 7 elements, and 32 x 32, side by side; and channels-last, of any number.
SHORT = {"C": 2048, "S": 49, "COLUMNS": 64, "ROWS": 128, "BLOCK": 8192}
LONG = {"C": 2048, "ROWS": 4, "BLOCK": 1024}
CHANNELS_LAST = {"C": 2048, "DEPTH": 4, "LANES": 16, "CHANNELS": 64}
ROWS = "i32:16"
GEM = "*bf16:16 *fp32:16 *bf16:16 *fp32:16 fp32 fp32"
GEM_BACKWARD = "*bf16:16 *fp32:16 *fp32:16 *bf16:16 *bf16:16 *fp32:16 fp32 fp32"
ONE_P, P_PER_CHANNEL = {"PER_CHANNEL": False}, {"PER_CHANNEL": True}
NUMBER = ONE_P | {"p": None}  # and so without p's gradient
GEM_NUMBER = GEM.replace(" *fp32:16", "", 1)
GEM_NUMBER_BACKWARD = "*bf16:16 *fp32:16 *bf16:16 *bf16:16 fp32 fp32"
AVG_MAX = "*bf16:16 *bf16:16 *i32:16"
AVG_MAX_BACKWARD = "*bf16:16 *i32:16 *bf16:16"

CASES = [
    *optimizers(),
    *losses(),
    *pairs(),
    Case(
        "ohem",
        "ohem_kernel",
        "*fp32:16 *fp32:16 *i1:16 *bf16:16 *fp32:16 i32:16 i32 fp32",
        {"THRESHOLD": True, "MEAN": True, "EACH": False, "BLOCK": 1024},
        4,
        loads_128bit=2,
    ),
    Case(
        "ohem",
        "ohem_kernel",
        "*fp32:16 *fp32:16 *i1:16 *bf16:16 *fp32:16 i32 i32 fp32",
        {"THRESHOLD": False, "MEAN": False, "EACH": True, "BLOCK": "MAX_ROWS"},
        16,
    ),
    Case(
        "reduction",
        "sum_kernel",
        "*fp32:16 *fp32:16 *fp32:16 *bf16:16 *fp32 i32:16",
        {"MEAN": True, "COUNTED": True, **REDUCTION},
        2,
        loads_128bit=2,
    ),
    # 64 elements a thread, or 32 of twice as many threads; in long rows and channels-last 32
    Case("gem_pool", "gem_pool_short_kernel", f"{GEM} {ROWS} {ROWS}", SHORT | ONE_P, loads_128bit=8),
    Case("gem_pool", "gem_pool_long_kernel", f"{GEM_NUMBER} {ROWS} {ROWS}", LONG | NUMBER, loads_128bit=4),
    Case("gem_pool", "gem_pool_channels_last_kernel", f"{GEM} i32", CHANNELS_LAST | ONE_P, loads_128bit=4),
    Case("gem_pool", "gem_pool_short_backward_kernel", f"{GEM_BACKWARD} {ROWS} {ROWS}", SHORT | P_PER_CHANNEL, 8, 4),
    Case(
        "gem_pool",
        "gem_pool_long_backward_kernel",
        f"{GEM_BACKWARD} {ROWS} {ROWS}",
        LONG | P_PER_CHANNEL,
        loads_128bit=4,
    ),
    Case("gem_pool", "gem_pool_channels_last_backward_kernel", f"{GEM_BACKWARD} i32", CHANNELS_LAST | ONE_P, 4, 4),
    Case(
        "gem_pool",
        "gem_pool_short_backward_kernel",
        f"{GEM_NUMBER_BACKWARD} {ROWS} {ROWS}",
        SHORT | NUMBER | {"grad_p": None},
        num_warps=8,
        loads_128bit=4,
    ),
    Case("gem_pool", "gem_pool_channels_last_kernel", in_fp32(f"{GEM} i32"), CHANNELS_LAST | P_PER_CHANNEL, 4, 8),
    Case("gem_pool", "gem_pool_short_kernel", in_fp32(f"{GEM} {ROWS} {ROWS}"), SHORT | ONE_P, loads_128bit=16),
    Case("avg_max_pool", "avg_max_pool_short_kernel", f"{AVG_MAX} {ROWS} {ROWS}", SHORT, loads_128bit=8),
    Case("avg_max_pool", "avg_max_pool_long_kernel", f"{AVG_MAX} {ROWS} {ROWS}", LONG, loads_128bit=4),
    Case("avg_max_pool", "avg_max_pool_channels_last_kernel", f"{AVG_MAX} i32", CHANNELS_LAST, loads_128bit=4),
    Case("avg_max_pool", "avg_max_pool_short_backward_kernel", f"{AVG_MAX_BACKWARD} {ROWS} {ROWS}", SHORT, 8),
    Case("avg_max_pool", "avg_max_pool_long_backward_kernel", f"{AVG_MAX_BACKWARD} {ROWS} {ROWS}", LONG),
    Case("avg_max_pool", "avg_max_pool_channels_last_backward_kernel", f"{AVG_MAX_BACKWARD} i32", CHANNELS_LAST),
]


def compile_case(case: Case, architecture: int) -> dict[str, Any]:
    """Registers and bytes of local memory per thread, bytes shared per program, and loads by width in bits."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    module = importlib.import_module(f"fastfeed.kernels.{case.module}")
    kernel = getattr(module, case.kernel)

    def resolve(value: Any) -> Any:
        return getattr(module, value) if isinstance(value, str) and value.isupper() else value

    constexprs = {name: resolve(value) for name, value in case.constexprs.items()}
    names = [name for name in kernel.arg_names if name not in constexprs]
    if len(names) != len(case.arguments.split()):
        raise ValueError(f"the table says {case.arguments}, {case.kernel} takes {', '.join(names)}")
    types = dict(zip(names, case.arguments.split(), strict=True))
    signature = {name: types.get(name, "constexpr").split(":")[0] for name in kernel.arg_names}
    attrs = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if types.get(name, "").endswith(":16")
    }
    compiled = triton.compile(
        ASTSource(kernel, signature, constexprs, attrs),
        target=GPUTarget("cuda", architecture, 32),
        options={"num_warps": resolve(case.num_warps), "enable_fp_fusion": True},
    )
    cuobjdump = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(compiled.asm["cubin"])
        cubin.flush()
        usage = subprocess.check_output([cuobjdump, "--dump-resource-usage", cubin.name], text=True)
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", usage)[1]) for key in ("REG", "STACK", "LOCAL"))
    loads = re.findall(r"ld\.global[\w.:]*?(?:\.v(\d))?\.[bfsu](\d+)", compiled.asm["ptx"])
    return {
        "registers": registers,
        "stack": stack,
        "local": local,
        "shared": compiled.metadata.shared,
        "loads": Counter(int(vector or 1) * int(bits) for vector, bits in loads),
    }


def architectures(case: Case) -> tuple[int, ...]:
    """All for the first case of a kernel; for the others, which take most of the time, all but the newest."""
    first = next(other for other in CASES if other.kernel == case.kernel)
    return ARCHITECTURES if case is first else ARCHITECTURES[:-1]


def _compile_or_report(case: Case, architecture: int) -> dict[str, Any]:
    try:
        return compile_case(case, architecture)
    except Exception:
        return {"error": traceback.format_exc()}


if __name__ == "__main__":
    json.dump([[_compile_or_report(case, arch) for arch in architectures(case)] for case in CASES], sys.stdout)
