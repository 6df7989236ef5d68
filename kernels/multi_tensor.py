"""One optimizer step for many tensors in one launch.

A table on the device holds, for every tensor, the addresses of its parameter, gradient and states. Tensors
are cut into chunks, one program each, numbered through all tensors; a program finds its tensor by binary
search in the numbers of the tensors' first chunks. So the table grows with the tensors, not with the chunks.

AdamW in fp32 moves at least 28 bytes per element: it reads param, grad, exp_avg and exp_avg_sq and writes all
but grad back, 4 bytes each.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from fastfeed.kernels.special import one_minus_exp

# A chunk's 112 KiB of traffic make the search and the bias corrections small. It is walked in blocks of two
# 128-bit vectors per thread and array: more would cost registers, and with them the resident programs that
# keep loads in flight.
CHUNK = 4096
BLOCK = 1024
NUM_WARPS = 4


@triton.jit
def _find_tensor(first_chunks, num_tensors, chunk):
    """The last tensor whose first chunk does not come after `chunk`; this passes over empty tensors."""
    low = 0
    high = num_tensors
    while high - low > 1:
        middle = (low + high) // 2
        reached = tl.load(first_chunks + middle) <= chunk
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def _adamw(
    p, g, m, v, step_size, decay, beta1, one_minus_beta1, beta2, one_minus_beta2, eps, sqrt_bias_correction2
):  # fmt: skip
    """AdamW in the order of operations, and with the exact division and root, of torch's fused optimizer."""
    p = tl.where(decay == 0, p, p - decay * p)  # 0 * inf is not 0
    # torch.lerp's two forms: each is exact at its own end of the weight's range.
    m = tl.where(one_minus_beta1 < 0.5, m + one_minus_beta1 * (g - m), g - beta1 * (g - m))
    v = beta2 * v + one_minus_beta2 * g * g
    denominator = tl.div_rn(tl.sqrt_rn(v), sqrt_bias_correction2) + eps
    p -= tl.div_rn(step_size * m, denominator)
    return p, m, v


@triton.jit
def _pointer(address, ALIGNMENT: tl.constexpr):
    return tl.multiple_of(address.to(tl.pointer_type(tl.float32)), ALIGNMENT)


@triton.jit
def _adamw_chunk(
    addresses,
    start,
    count,
    hyperparameters,
    MAXIMIZE: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    p_ptr = _pointer(addresses[0], ALIGNMENT) + start
    g_ptr = _pointer(addresses[1], ALIGNMENT) + start
    m_ptr = _pointer(addresses[2], ALIGNMENT) + start
    v_ptr = _pointer(addresses[3], ALIGNMENT) + start
    # Changes nothing, but shows the compiler that no vector is cut by the mask.
    PER_VECTOR: tl.constexpr = ALIGNMENT // 4
    count = count // PER_VECTOR * PER_VECTOR
    for begin in range(0, count, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        mask = offsets < count
        p = tl.load(p_ptr + offsets, mask)
        g = tl.load(g_ptr + offsets, mask)
        m = tl.load(m_ptr + offsets, mask)
        v = tl.load(v_ptr + offsets, mask)
        if MAXIMIZE:
            g = -g
        p, m, v = _adamw(p, g, m, v, *hyperparameters)
        tl.store(p_ptr + offsets, p, mask)
        tl.store(m_ptr + offsets, m, mask)
        tl.store(v_ptr + offsets, v, mask)


# The number of tensors changes with every gradient that is None: specialising on it would recompile.
@triton.jit(do_not_specialize=["num_tensors"])
def adamw_kernel(
    table,
    num_tensors,
    lr,
    decay,
    beta1,
    one_minus_beta1,
    log_beta1,
    beta2,
    one_minus_beta2,
    log_beta2,
    eps,
    MAXIMIZE: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One chunk of one tensor; `table` is TensorTable.rows."""
    chunk = tl.program_id(0)
    column = table + _find_tensor(table + 6 * num_tensors, num_tensors, chunk)
    addresses = (
        tl.load(column),
        tl.load(column + num_tensors),
        tl.load(column + 2 * num_tensors),
        tl.load(column + 3 * num_tensors),
    )
    step = tl.load(tl.load(column + 4 * num_tensors).to(tl.pointer_type(tl.float32)))
    start = (chunk - tl.load(column + 6 * num_tensors)) * CHUNK
    count = tl.minimum(tl.load(column + 5 * num_tensors) - start, CHUNK).to(tl.int32)

    step_size = tl.div_rn(lr, one_minus_exp(step * log_beta1))
    sqrt_bias_correction2 = tl.sqrt_rn(one_minus_exp(step * log_beta2))
    hyperparameters = (
        step_size,
        decay,
        beta1,
        one_minus_beta1,
        beta2,
        one_minus_beta2,
        eps,
        sqrt_bias_correction2,
    )

    # 128-bit accesses need aligned addresses and whole vectors; either may fail in views of larger tensors. A
    # scalar access costs an address and a predicate each, hence the smaller block.
    any_address = addresses[0] | addresses[1] | addresses[2] | addresses[3]
    if (any_address % 16 == 0) & (count % 4 == 0):
        _adamw_chunk(addresses, start, count, hyperparameters, MAXIMIZE, 16, BLOCK)
    else:
        _adamw_chunk(addresses, start, count, hyperparameters, MAXIMIZE, 4, BLOCK // 2)


class TensorTable(NamedTuple):
    """Where the tensors of a launch lie; stale once any of the addresses has changed.

    `rows`, int64 [7, num_tensors] on the device: the addresses of param, grad, exp_avg, exp_avg_sq and step,
    the number of elements, and the number of the first chunk.
    """

    rows: torch.Tensor
    num_chunks: int


def build_table(rows: Sequence[Sequence[int]], device: torch.device) -> TensorTable:
    """Complete the first six rows with the chunks, and copy them to `device` without waiting for it."""
    first_chunks = list(accumulate((triton.cdiv(numel, CHUNK) for numel in rows[5]), initial=0))
    num_chunks = first_chunks.pop()
    host = torch.tensor([*rows, first_chunks], dtype=torch.int64, device="cpu", pin_memory=device.type == "cuda")
    return TensorTable(host.to(device, non_blocking=True), num_chunks)


def adamw_step(
    table: TensorTable,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    maximize: bool,
) -> None:
    """Step the tensors of `table`: fp32, each dense in one memory order with its states, step incremented."""
    if table.num_chunks == 0:
        return
    if table.rows.is_cuda:
        # The table was allocated on the stream of the step that built it, which need not be this one.
        table.rows.record_stream(torch.cuda.current_stream(table.rows.device))
    # Triton passes floats as fp32, where 1 - beta and log(beta) would have lost their accuracy.
    scalars = (
        lr,
        lr * weight_decay,
        beta1,
        1 - beta1,
        math.log(beta1) if beta1 else -math.inf,
        beta2,
        1 - beta2,
        math.log(beta2) if beta2 else -math.inf,
        eps,
    )
    with torch.cuda.device_of(table.rows):  # Triton launches on the current device
        adamw_kernel[(table.num_chunks,)](
            table.rows,
            table.rows.shape[1],
            *map(float, scalars),  # an int would be another signature
            MAXIMIZE=maximize,
            CHUNK=CHUNK,
            BLOCK=BLOCK,
            num_warps=NUM_WARPS,
            enable_fp_fusion=True,
        )
