"""One optimizer step for many tensors, of several dtypes and parameter groups, in one launch.

A table on the device has a row for every parameter: where it and its states lie, and what they are. Tensors are cut
into chunks, one program each, numbered through all tensors; a program finds its tensor by binary search in the numbers
of the tensors' first chunks. So the table grows with the tensors, not with the chunks. Gradients move more often than
the rest: their addresses stand apart, and 0 there means that the tensor has none and is left alone.

Fewest bytes per element: each array that a rule reads or writes, once. AdamW in fp32 reads param, grad, exp_avg and
exp_avg_sq and writes all but grad back, 28 bytes; in bf16 with an fp32 master 28 too (master 8, moments 16, grad 2,
param 2); in bf16 with stochastic rounding and bf16 moments 14. The average of the weights adds 8, amsgrad 8. LAMB takes
two launches, since the norms of the whole tensor stand between the moments and the update: 24 + 16 bytes. So does LARS:
8 for the norms, then SGD's 20.
"""

import triton
import triton.language as tl
from fastfeed.kernels.rounding import other_bits, random_bits, stochastically_rounded
from fastfeed.kernels.update_rules import (
    EMA_WEIGHT,
    SCALARS,
    SIGN,
    adam,
    adam_scalars,
    lamb_moments,
    lamb_ratio,
    lamb_scalars,
    lamb_update,
    lars_scalars,
    lerp,
    lion,
    lion_scalars,
    sgd,
    sgd_scalars,
)

# A chunk's 112 KiB of traffic make the search and the scalars small. It is walked in blocks of two 128-bit vectors per
# thread and array: more would cost registers, and with them the resident programs that keep loads in flight.
CHUNK = 4096
BLOCK = 1024
NUM_WARPS = 4

# The columns of a row, int64. The states' order is the optimizer's.
PARAM = tl.constexpr(0)
STATE = tl.constexpr(1)  # and 2, 3
MASTER = tl.constexpr(4)
EMA = tl.constexpr(5)
STEP = tl.constexpr(6)
NUMEL = tl.constexpr(7)
LAYOUT = tl.constexpr(8)  # which of the launch's layouts
GROUP = tl.constexpr(9)
NUMBER = tl.constexpr(10)  # among the optimizer's parameters
REDUCTION = tl.constexpr(11)  # which sum of squares the gradient counts in
COLUMNS = tl.constexpr(16)

# A layout names the dtypes of a tensor's arrays: param, grad, three states, master, ema. A launch has a string of them.
_DTYPES = {"fp32": tl.float32, "bf16": tl.bfloat16, "fp16": tl.float16, "-": None}


@triton.constexpr_function
def number_of_layouts(layouts):
    return len(layouts.split(";"))


@triton.constexpr_function
def dtype_of(layouts, index, column):
    return _DTYPES[layouts.split(";")[index].split()[column]]


@triton.constexpr_function
def vector_of(layouts, index):
    """Elements of a 128-bit vector of the widest array; of a narrower one that many are 64 bits."""
    return 4 if "fp32" in layouts.split(";")[index] else 8


@triton.constexpr_function
def block_of(layouts, index, block):
    """Elements that are in registers at a time.

    With arrays of both widths one vector per thread: were it two, of a narrow array they would be loaded as one, and
    then exchanged between threads, through shared memory, to lie as the others.
    """
    layout = layouts.split(";")[index]
    return block // 2 if "fp32" in layout and "16" in layout else block


@triton.jit
def find_tensor(first_chunks, num_tensors, chunk):
    """The last tensor whose first chunk does not come after `chunk`."""
    low = 0
    high = num_tensors
    while high - low > 1:
        middle = (low + high) // 2
        reached = tl.load(first_chunks + middle) <= chunk
        low = tl.where(reached, middle, low)
        high = tl.where(reached, high, middle)
    return low


@triton.jit
def _pointer(address, start, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = address.to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer + start


@triton.jit
def load_block(address, start, offsets, mask, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE is None:
        return 0.0
    else:
        return tl.load(_pointer(address, start, DTYPE, ALIGNED) + offsets, mask, other=0.0).to(tl.float32)


@triton.jit
def _store_block(address, start, offsets, mask, value, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    if DTYPE is not None:
        tl.store(_pointer(address, start, DTYPE, ALIGNED) + offsets, value.to(DTYPE), mask)


@triton.jit
def _rounded(value, bits, DTYPE: tl.constexpr, STOCHASTIC: tl.constexpr):
    """`value`, fp32, as DTYPE will hold it."""
    if DTYPE is None or tl.float32 == DTYPE:
        return value
    elif STOCHASTIC and tl.bfloat16 == DTYPE:
        return stochastically_rounded(value, bits)
    else:
        return value.to(DTYPE).to(tl.float32)


@triton.jit
def unscaled(g, scale, SCALED: tl.constexpr):
    if SCALED:
        g = tl.div_rn(g, scale)
    return g


@triton.jit
def _step_chunk(
    row, grad, start, count, group, h, ratio, scale, factor, seed, step,
    RULE: tl.constexpr, LAYOUTS: tl.constexpr, INDEX: tl.constexpr, SCALED: tl.constexpr,
    STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    P: tl.constexpr = dtype_of(LAYOUTS, INDEX, 0)
    G: tl.constexpr = dtype_of(LAYOUTS, INDEX, 1)
    S0: tl.constexpr = dtype_of(LAYOUTS, INDEX, 2)
    S1: tl.constexpr = dtype_of(LAYOUTS, INDEX, 3)
    S2: tl.constexpr = dtype_of(LAYOUTS, INDEX, 4)
    M: tl.constexpr = dtype_of(LAYOUTS, INDEX, 5)
    E: tl.constexpr = dtype_of(LAYOUTS, INDEX, 6)
    VECTOR: tl.constexpr = vector_of(LAYOUTS, INDEX) if ALIGNED else 1
    count = count // VECTOR * VECTOR  # changes nothing, but shows the compiler that no vector is cut by the mask
    p_address = tl.load(row + PARAM)
    s0_address = tl.load(row + STATE)
    s1_address = tl.load(row + STATE + 1)
    s2_address = tl.load(row + STATE + 2)
    master_address = tl.load(row + MASTER)
    ema_address = tl.load(row + EMA)
    for begin in range(0, count, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        mask = offsets < count
        if M is None:
            p = load_block(p_address, start, offsets, mask, P, ALIGNED)
        else:
            p = load_block(master_address, start, offsets, mask, M, ALIGNED)
        if RULE != "lamb":
            g = load_block(grad, start, offsets, mask, G, ALIGNED)
        s0 = load_block(s0_address, start, offsets, mask, S0, ALIGNED)
        s1 = load_block(s1_address, start, offsets, mask, S1, ALIGNED)
        s2 = load_block(s2_address, start, offsets, mask, S2, ALIGNED)
        ema = load_block(ema_address, start, offsets, mask, E, ALIGNED)

        if RULE == "lamb":  # its first pass has written the moments
            p -= ratio * lamb_update(p, s0, s1, h)
        else:
            g = unscaled(g, scale, SCALED) * factor
            if RULE == "adam":
                p, s0, s1, s2 = adam(p, g, s0, s1, s2, h, S2 is not None)
            elif RULE == "lion":
                p, s0 = lion(p, g, s0, h)
            else:
                p, s0 = sgd(p, g, s0, h, S0 is not None)

        bits = 0
        if STOCHASTIC:
            bits = random_bits(seed, step, tl.load(row + NUMBER), start + begin, BLOCK)
        stored = _rounded(p, bits, P, STOCHASTIC)
        _store_block(p_address, start, offsets, mask, stored, P, ALIGNED)
        if RULE != "lamb":
            _store_block(s0_address, start, offsets, mask, _rounded(s0, bits >> 16, S0, STOCHASTIC), S0, ALIGNED)
            if S1 is not None:
                more = bits
                if STOCHASTIC:
                    more = other_bits(bits)
                _store_block(s1_address, start, offsets, mask, _rounded(s1, more, S1, STOCHASTIC), S1, ALIGNED)
                _store_block(s2_address, start, offsets, mask, _rounded(s2, more, S2, STOCHASTIC), S2, ALIGNED)
        if M is not None:
            _store_block(master_address, start, offsets, mask, p, M, ALIGNED)
            stored = p
        if E is not None:
            ema_weight = tl.load(group + EMA_WEIGHT)
            averaged = lerp(ema, stored, ema_weight, 1.0 - ema_weight)
            _store_block(ema_address, start, offsets, mask, averaged, E, ALIGNED)


@triton.jit
def _any_address(row, grad):
    """All addresses of a row's arrays in one: aligned if each of them is. Arrays that are not there have address 0."""
    any_address = grad
    for column in tl.static_range(6):
        any_address |= tl.load(row + column)
    return any_address


@triton.jit
def clip_coefficient(total, max_norm):
    """min(1, max_norm / (norm + 1e-6)), as torch.nn.utils.clip_grad_norm_ has it: NaN if the norm is."""
    ratio = tl.div_rn(max_norm, tl.sqrt_rn(tl.load(total)) + 1e-6)
    return tl.where(ratio > 1.0, 1.0, ratio)


@triton.jit
def _step_pointer(row):
    return tl.load(row + STEP).to(tl.pointer_type(tl.float32))


@triton.jit
def _count_step(row):
    """Load everything again: kept since the beginning, it would cost registers where they are scarce."""
    pointer = _step_pointer(row)
    tl.store(pointer, tl.load(pointer) + 1)


@triton.jit
def _last_of_tensor(finished, first_chunks, tensor):
    """Whether this is the last program of the tensor to come here; it finds what the others have written before."""
    programs = tl.load(first_chunks + tensor + 1) - tl.load(first_chunks + tensor)
    tl.debug_barrier()  # every warp has read the step, and written its part, before this program counts as done
    last = tl.atomic_add(finished + tensor, 1, sem="acq_rel") == programs - 1
    if last:
        tl.store(finished + tensor, 0)
    return last


# Numbers change with the model, seeds with the user, and the alignment of these addresses by chance: specialising on
# them would recompile.
_ANY_VALUE = ["num_tensors", "seed"]
_ANY_ADDRESS = ["gradients", "groups", "learning_rates", "grad_scale", "found_inf", "total"]


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ADDRESS)
def step_kernel(
    rows,  # [T, COLUMNS]
    first_chunks,  # [T + 1] int32
    gradients,  # [T] int64 addresses
    groups,  # [G, SCALARS] fp32
    learning_rates,  # [G] int64 addresses
    finished,  # [T] int32 programs, zero before and after
    sums,  # [T, 2] fp32 that trust_kernel has written, if RULE is lamb or lars
    grad_scale,  # one fp32 that divides the gradients, or None
    found_inf,  # one fp32 that must be 0 for anything to happen, or None
    total,  # the gradients' sum of squares, one fp32, or None
    max_norm,
    seed,
    num_tensors,
    RULE: tl.constexpr,
    LAYOUTS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Step one chunk of one tensor; the last chunk of a tensor counts its step."""
    TWO_PASSES: tl.constexpr = RULE == "lamb" or RULE == "lars"
    if found_inf is not None:  # noqa: SIM102 - one is known to the compiler, the other is not
        if tl.load(found_inf) != 0:
            return
    chunk = tl.program_id(0)
    tensor = find_tensor(first_chunks, num_tensors, chunk)
    grad = tl.load(gradients + tensor)
    if grad == 0:
        return
    row = rows + tensor * COLUMNS
    step = tl.load(_step_pointer(row))
    if not TWO_PASSES:  # else the first one has counted it
        step += 1
    group_index = tl.load(row + GROUP)
    group = groups + group_index * SCALARS
    lr = tl.load(tl.load(learning_rates + group_index).to(tl.pointer_type(tl.float32)))
    ratio = 1.0
    if TWO_PASSES:
        param_norm = tl.sqrt_rn(tl.load(sums + 2 * tensor))
        other_norm = tl.sqrt_rn(tl.load(sums + 2 * tensor + 1))
    if RULE == "adam":
        h = adam_scalars(group, step, lr)
    elif RULE == "lion":
        h = lion_scalars(group, step, lr)
    elif RULE == "lamb":
        h = lamb_scalars(group, step, lr)
        ratio = lr * lamb_ratio(group, param_norm, other_norm)
    elif RULE == "lars":
        h = lars_scalars(group, step, lr, param_norm, other_norm)
    else:
        h = sgd_scalars(group, step, lr)

    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale)
    factor = tl.load(group + SIGN)  # of the gradient
    if total is not None:
        factor *= clip_coefficient(total, max_norm)
    layout = tl.load(row + LAYOUT)
    any_address = _any_address(row, grad)
    start = (chunk - tl.load(first_chunks + tensor)).to(tl.int64) * CHUNK
    count = tl.minimum(tl.load(row + NUMEL) - start, CHUNK).to(tl.int32)
    for i in tl.static_range(number_of_layouts(LAYOUTS)):
        if layout == i:
            # 128-bit accesses need aligned addresses and whole vectors; either may fail in views of larger tensors. A
            # scalar access costs an address and a predicate each, hence the smaller block. It is smaller than any of
            # the others: offsets that two blocks share would lie well for one of them alone.
            if (any_address % 16 == 0) & (count % vector_of(LAYOUTS, i) == 0):
                _step_chunk(
                    row, grad, start, count, group, h, ratio, scale, factor, seed, step,
                    RULE, LAYOUTS, i, grad_scale is not None, STOCHASTIC, True, block_of(LAYOUTS, i, BLOCK),
                )  # fmt: skip
            else:
                _step_chunk(
                    row, grad, start, count, group, h, ratio, scale, factor, seed, step,
                    RULE, LAYOUTS, i, grad_scale is not None, STOCHASTIC, False, BLOCK // 4,
                )  # fmt: skip
    if not TWO_PASSES:  # noqa: SIM102
        if _last_of_tensor(finished, first_chunks, tensor):
            _count_step(row)


@triton.jit
def _trust_chunk(
    row, grad, start, count, h, scale, factor, seed, step,
    RULE: tl.constexpr, LAYOUTS: tl.constexpr, INDEX: tl.constexpr, SCALED: tl.constexpr,
    STOCHASTIC: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    P: tl.constexpr = dtype_of(LAYOUTS, INDEX, 0)
    G: tl.constexpr = dtype_of(LAYOUTS, INDEX, 1)
    S0: tl.constexpr = dtype_of(LAYOUTS, INDEX, 2)
    S1: tl.constexpr = dtype_of(LAYOUTS, INDEX, 3)
    M: tl.constexpr = dtype_of(LAYOUTS, INDEX, 5)
    VECTOR: tl.constexpr = vector_of(LAYOUTS, INDEX) if ALIGNED else 1
    count = count // VECTOR * VECTOR
    p_address = tl.load(row + PARAM)
    s0_address = tl.load(row + STATE)
    s1_address = tl.load(row + STATE + 1)
    master_address = tl.load(row + MASTER)
    of_param = tl.zeros([BLOCK], tl.float32)
    of_other = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, count, BLOCK):
        offsets = begin + tl.arange(0, BLOCK)
        mask = offsets < count
        if M is None:
            p = load_block(p_address, start, offsets, mask, P, ALIGNED)
        else:
            p = load_block(master_address, start, offsets, mask, M, ALIGNED)
        g = load_block(grad, start, offsets, mask, G, ALIGNED)
        other = unscaled(g, scale, SCALED) * factor
        if RULE == "lamb":
            s0 = load_block(s0_address, start, offsets, mask, S0, ALIGNED)
            s1 = load_block(s1_address, start, offsets, mask, S1, ALIGNED)
            s0, s1 = lamb_moments(other, s0, s1, h)
            # The second pass has the moments as they were stored; so must the norm.
            bits = 0
            if STOCHASTIC:
                bits = random_bits(seed, step, tl.load(row + NUMBER), start + begin, BLOCK)
            s0 = _rounded(s0, bits >> 16, S0, STOCHASTIC)
            if STOCHASTIC:
                bits = other_bits(bits)
            s1 = _rounded(s1, bits, S1, STOCHASTIC)
            _store_block(s0_address, start, offsets, mask, s0, S0, ALIGNED)
            _store_block(s1_address, start, offsets, mask, s1, S1, ALIGNED)
            other = tl.where(mask, lamb_update(p, s0, s1, h), 0.0)
        of_param += p * p
        of_other += other * other
    return tl.sum(of_param, axis=0), tl.sum(of_other, axis=0)


@triton.jit(do_not_specialize=_ANY_VALUE, do_not_specialize_on_alignment=_ANY_ADDRESS)
def trust_kernel(
    rows,  # [T, COLUMNS]
    first_chunks,  # [T + 1] int32
    gradients,  # [T] int64 addresses
    groups,  # [G, SCALARS] fp32
    learning_rates,  # [G] int64 addresses
    finished,  # [T] int32 programs, zero before and after
    sums,  # [T, 2] fp32, written: of squares of the parameter, and of LAMB's update or LARS's gradient
    partial_sums,  # [chunks, 2] fp32, written: the same of chunks
    grad_scale,
    found_inf,
    total,
    max_norm,
    seed,
    num_tensors,
    RULE: tl.constexpr,
    LAYOUTS: tl.constexpr,
    STOCHASTIC: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The first pass of LAMB, which steps the moments, and of LARS: the norms of the whole tensor."""
    if found_inf is not None:  # noqa: SIM102 - one is known to the compiler, the other is not
        if tl.load(found_inf) != 0:
            return
    chunk = tl.program_id(0)
    tensor = find_tensor(first_chunks, num_tensors, chunk)
    grad = tl.load(gradients + tensor)
    if grad == 0:
        return
    row = rows + tensor * COLUMNS
    step = tl.load(_step_pointer(row)) + 1
    group_index = tl.load(row + GROUP)
    group = groups + group_index * SCALARS
    h = ()
    if RULE == "lamb":
        h = lamb_scalars(group, step, 0.0)
    scale = 1.0
    if grad_scale is not None:
        scale = tl.load(grad_scale)
    factor = tl.load(group + SIGN)  # of the gradient
    if total is not None:
        factor *= clip_coefficient(total, max_norm)
    layout = tl.load(row + LAYOUT)
    any_address = _any_address(row, grad)
    first_chunk = tl.load(first_chunks + tensor)
    start = (chunk - first_chunk).to(tl.int64) * CHUNK
    count = tl.minimum(tl.load(row + NUMEL) - start, CHUNK).to(tl.int32)
    of_param = 0.0
    of_other = 0.0
    for i in tl.static_range(number_of_layouts(LAYOUTS)):
        if layout == i:
            if (any_address % 16 == 0) & (count % vector_of(LAYOUTS, i) == 0):
                of_param, of_other = _trust_chunk(
                    row, grad, start, count, h, scale, factor, seed, step,
                    RULE, LAYOUTS, i, grad_scale is not None, STOCHASTIC, True, block_of(LAYOUTS, i, BLOCK),
                )  # fmt: skip
            else:
                of_param, of_other = _trust_chunk(
                    row, grad, start, count, h, scale, factor, seed, step,
                    RULE, LAYOUTS, i, grad_scale is not None, STOCHASTIC, False, BLOCK // 4,
                )  # fmt: skip
    tl.store(partial_sums + 2 * chunk, of_param)
    tl.store(partial_sums + 2 * chunk + 1, of_other)
    if _last_of_tensor(finished, first_chunks, tensor):
        # In the order of the chunks, whichever program comes last: the sums are the same in every run.
        programs = tl.load(first_chunks + tensor + 1) - first_chunk
        param_sums = tl.zeros([BLOCK], tl.float32)
        other_sums = tl.zeros([BLOCK], tl.float32)
        for begin in range(0, programs, BLOCK):
            offsets = begin + tl.arange(0, BLOCK)
            mask = offsets < programs
            pointers = partial_sums + 2 * (first_chunk + offsets)
            param_sums += tl.load(pointers, mask, other=0.0, cache_modifier=".cg")
            other_sums += tl.load(pointers + 1, mask, other=0.0, cache_modifier=".cg")
        tl.store(sums + 2 * tensor, tl.sum(param_sums, axis=0))
        tl.store(sums + 2 * tensor + 1, tl.sum(other_sums, axis=0))
        _count_step(row)
