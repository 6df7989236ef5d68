"""The table of a multi-tensor launch on the device, and the launches."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import triton
from fastfeed.kernels import gradient_norm
from fastfeed.kernels.multi_tensor import BLOCK, CHUNK, COLUMNS, NUM_WARPS, NUMBER, step_kernel, trust_kernel
from fastfeed.kernels.update_rules import LR, SCALARS
from torch import Tensor

_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", None: "-"}
_TWO_PASSES = ("lamb", "lars")


class Row(NamedTuple):
    """One parameter and what belongs to it, on one device, each array dense in the same memory order."""

    param: Tensor
    states: Sequence[Tensor]  # up to three
    master: Tensor | None
    ema: Tensor | None
    step: Tensor  # 0-dim fp32
    grad_dtype: torch.dtype
    group: int  # index of the parameter group
    number: int  # index among the optimizer's parameters
    reduction: int  # index of the sum of squares that its gradient counts in


class TensorTable:
    """Where the tensors of a launch lie; stale once one of them has moved. It keeps addresses, not tensors."""

    def __init__(self, rows: Sequence[Row], num_groups: int) -> None:
        self.device = rows[0].param.device
        self.num_tensors, self.num_groups = len(rows), num_groups
        layouts: dict[str, int] = {}
        table, chunks = [], []
        for row in rows:
            arrays = [row.param, *row.states, *[None] * (3 - len(row.states)), row.master, row.ema]
            dtypes = [None if array is None else array.dtype for array in arrays]
            dtypes.insert(1, row.grad_dtype)
            layout = layouts.setdefault(" ".join(_DTYPES[dtype] for dtype in dtypes), len(layouts))
            addresses = [0 if array is None else array.data_ptr() for array in (*arrays, row.step)]
            numel = row.param.numel()
            cells = [*addresses, numel, layout, row.group, row.number, row.reduction]
            table.append(cells + [0] * (COLUMNS.value - len(cells)))
            chunks.append(max(1, triton.cdiv(numel, CHUNK)))  # one that counts an empty tensor's step
        self.layouts = ";".join(layouts)
        first_chunks = list(accumulate(chunks, initial=0))
        self.num_chunks = first_chunks[-1]
        self.rows = self._uploaded(table, torch.int64)
        self.first_chunks = self._uploaded(first_chunks, torch.int32)
        # Programs that are done: of each tensor's, and last of all the norm's.
        self.finished = torch.zeros(self.num_tensors + 1, dtype=torch.int32, device=self.device)
        self.norm_sums = self._empty(2 * gradient_norm.PROGRAMS)
        self.trust_sums: Tensor | None = None
        self.trust_partial_sums: Tensor | None = None

        # What moves between steps lies together: one copy brings it.
        self._moving = self._host_buffer().to(self.device, non_blocking=True)
        self.gradients, self.learning_rates, self.groups = self._split(self._moving)
        self._current: Any = None
        self._spare: Tensor | None = self._host_buffer()  # memory of the host is not to be allocated during a capture
        self.captured: list[Tensor] = []  # what the replays of CUDA graphs read
        self._stream = self._current_stream()

    @property
    def numbers(self) -> Tensor:
        """Indices of the rows among the optimizer's parameters, int64 [T]."""
        return self.rows[:, NUMBER.value]

    def _current_stream(self) -> Any:
        return torch.cuda.current_stream(self.device) if self.device.type == "cuda" else None

    def _empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.device)

    def _uploaded(self, values: list[Any], dtype: torch.dtype) -> Tensor:
        host = torch.tensor(values, dtype=dtype, device="cpu", pin_memory=self.device.type == "cuda")
        return host.to(self.device, non_blocking=True)

    def _host_buffer(self) -> Tensor:
        length = self.num_tensors + self.num_groups * (1 + SCALARS.value // 2)
        return torch.zeros(length, dtype=torch.int64, device="cpu", pin_memory=self.device.type == "cuda")

    def _split(self, buffer: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gradients, learning_rates, groups = buffer.tensor_split([self.num_tensors, self.num_tensors + self.num_groups])
        return gradients, learning_rates, groups.view(torch.float32).view(self.num_groups, SCALARS.value)

    def refresh(
        self, gradients: list[int], learning_rates: Sequence[Tensor | None], scalars: list[list[float]]
    ) -> None:
        """Bring what has changed since the last step to the device, without waiting for it.

        Args:
            gradients: the address of each row's gradient, 0 for none.
            learning_rates: of each group, 0-dim fp32 on the device; None for the one among its scalars.
            scalars: of each group, in the order of update_rules.py.
        """
        own = self.groups.data_ptr() + 4 * LR.value
        rates = [
            own + 4 * SCALARS.value * group if lr is None else lr.data_ptr() for group, lr in enumerate(learning_rates)
        ]
        values = (gradients, rates, scalars)
        self._rates = learning_rates  # those that were converted belong to nobody else, and the launches read them
        if self.device.type == "cuda" and torch.cuda.is_current_stream_capturing():
            # Each replay copies from this buffer again: it stays, as it is. What the device has by then is not known.
            host = self._host_buffer() if self._spare is None else self._spare
            self._spare = None
            self.captured += [host, *(lr for lr in learning_rates if lr is not None)]
            self._current = None
        else:
            stream = self._current_stream()
            if stream != self._stream:  # the memory must not be given away while a launch on another stream reads it
                self._stream = stream
                always = [self.rows, self.first_chunks, self.finished, self.norm_sums, self._moving]
                for tensor in [*always, *filter(torch.is_tensor, (self.trust_sums, self.trust_partial_sums))]:
                    tensor.record_stream(stream)
            if self._spare is None:
                self._spare = self._host_buffer()
            if values == self._current and not self.captured:  # a replay since then has brought its own
                return
            host = self._host_buffer()
            self._current = values
        for part, content in zip(self._split(host), values, strict=True):
            part.numpy()[...] = content
        self._moving.copy_(host, non_blocking=True)

    def norm(self, reduction: int, total: Tensor, grad_scale: Tensor | None) -> None:
        """Write the gradients' sum of squares, and how many elements are not finite.

        Args:
            reduction: of the rows that count.
            total: fp32 [2], written.
            grad_scale: one fp32 that divides the gradients.
        """
        per_program = triton.cdiv(self.num_chunks, gradient_norm.PROGRAMS)
        with torch.cuda.device_of(self.rows):  # Triton launches on the current device
            gradient_norm.gradient_norm_kernel[(triton.cdiv(self.num_chunks, per_program),)](
                self.rows,
                self.first_chunks,
                self.gradients,
                self.finished[-1:],
                self.norm_sums,
                total,
                grad_scale,
                self.num_tensors,
                self.num_chunks,
                per_program,
                reduction,
                LAYOUTS=self.layouts,
                CHUNK=CHUNK,
                BLOCK=gradient_norm.BLOCK,
                PROGRAMS=gradient_norm.PROGRAMS,
                num_warps=gradient_norm.NUM_WARPS,
            )

    def trust(self, rule: str, **options: Any) -> Tensor:
        """Run the first pass of "lamb" or "lars", see `step`; return the sums of squares of each row, [T, 2]."""
        if self.trust_sums is None:
            self.trust_sums = self._empty(self.num_tensors, 2).zero_()
            self.trust_partial_sums = self._empty(self.num_chunks, 2)
        self._launch(trust_kernel, rule, [self.trust_sums, self.trust_partial_sums], **options)
        return self.trust_sums

    def step(self, rule: str, **options: Any) -> None:
        """Step every row that has a gradient.

        Args:
            rule: "sgd", "adam", "lion", "lamb" or "lars"; the last two after `trust`.
            **options: grad_scale, one fp32 that divides the gradients, or None; found_inf, one fp32, unless it is 0
                nothing happens, or None; total, one fp32, the sum of squares of all gradients, or None not to clip
                them; max_norm, that they are clipped to; stochastic, whether bf16 is rounded stochastically; seed, of
                this rounding.
        """
        self._launch(step_kernel, rule, [self.trust_sums if rule in _TWO_PASSES else None], **options)

    def _launch(
        self,
        kernel: Any,
        rule: str,
        sums: list[Tensor | None],
        *,
        grad_scale: Tensor | None,
        found_inf: Tensor | None,
        total: Tensor | None,
        max_norm: float,
        stochastic: bool,
        seed: int,
    ) -> None:
        with torch.cuda.device_of(self.rows):
            kernel[(self.num_chunks,)](
                self.rows,
                self.first_chunks,
                self.gradients,
                self.groups,
                self.learning_rates,
                self.finished,
                *sums,
                grad_scale,
                found_inf,
                total,
                max_norm,
                seed,
                self.num_tensors,
                RULE=rule,
                LAYOUTS=self.layouts,
                STOCHASTIC=stochastic,
                CHUNK=CHUNK,
                BLOCK=BLOCK,
                num_warps=NUM_WARPS,
                enable_fp_fusion=True,
            )
