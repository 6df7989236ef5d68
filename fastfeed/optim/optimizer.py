"""What all multi-tensor optimizers share: options, states, the step in its order, and the averaged weights."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any, ClassVar, TypedDict

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from fastfeed.optim import checkpoint
from fastfeed.optim.checks import check_options, check_params, check_tensors
from fastfeed.optim.eager import PartStep, Scaling, begin_parts
from fastfeed.optim.norm import total_square
from fastfeed.optim.plan import Entry, Plan, address_of_nothing, addresses, kinds_of, make_plan
from fastfeed.optim.reference import Columns
from fastfeed.optim.shards import Reduction, add_up_shards, any_dtensors, find_reductions, local, local_gradient
from fastfeed.optim.states import complete


class StepOptions(TypedDict, total=False):
    """Keyword arguments that every optimizer takes, for all of its parameter groups.

    master_weights: keep fp16 and bf16 parameters a second time, in fp32, in the state ("master"), and step that copy.
    stochastic_rounding: round bf16 parameters and states up or down at random, so that the mean is exact and small
        updates are not lost. The random bits depend on ``seed``, the step, the parameter and the element alone.
    seed: of stochastic rounding, not negative.
    state_dtype: of momentum and other averages, ``torch.float32`` or ``torch.bfloat16``. By default the parameter's, or
        its master's.
    max_grad_norm: clip the gradients of all groups together to this norm, as
        :func:`torch.nn.utils.clip_grad_norm_` does, but without changing ``.grad``.
    process_group: over which squares of gradients are added up, for parameters that are divided among its ranks.
        DTensors need none. :class:`torch.distributed.optim.ZeroRedundancyOptimizer` has an argument of that name for
        itself: give it ``functools.partial(AdamW, process_group=...)`` as `optimizer_class`, or each rank clips alone.
    ema_decay: keep an exponential moving average of the weights in fp32, in the state ("ema"): in each step
        ``ema = ema_decay * ema + (1 - ema_decay) * weights``, beginning with the weights before the first. A parameter
        without a gradient keeps its average.
    """

    master_weights: bool
    stochastic_rounding: bool
    seed: int
    state_dtype: torch.dtype | None
    max_grad_norm: float | None
    process_group: Any
    ema_decay: float | None


_OPTIONS: dict[str, Any] = {
    "master_weights": False,
    "stochastic_rounding": False,
    "seed": 0,
    "state_dtype": None,
    "max_grad_norm": None,
    "process_group": None,
    "ema_decay": None,
}


class MultiTensorOptimizer(Optimizer):
    """Steps the parameters of all groups together: in one launch on a GPU, with torch's own fused step on the CPU.

    The base of the optimizers here; :class:`StepOptions` says what all of them take. Each of them adds what is its own:
    its scalars for the kernel, its eager reference, and torch's fused step where that is the same mathematics.
    """

    rule: ClassVar[str]  # its name in kernels/multi_tensor.py
    two_passes: ClassVar[bool] = False  # whether the norms of whole tensors stand between two parts of the rule
    state_names: ClassVar[tuple[str, ...]]  # besides "step"; all that it may have, in their order
    # torch.amp.GradScaler then leaves unscaling and skipping to `step`: it sets `grad_scale` and `found_inf`.
    _step_supports_amp_scaling = True

    def __init__(self, params: ParamsT, defaults: dict[str, Any], options: StepOptions) -> None:
        unknown = options.keys() - _OPTIONS.keys()
        if unknown:
            raise TypeError(f"{type(self).__name__} got an unexpected keyword argument {min(unknown)!r}")
        values = {**_OPTIONS, **options}
        self.master_weights: bool = values["master_weights"]
        self.stochastic_rounding: bool = values["stochastic_rounding"]
        self.seed: int = values["seed"]
        self.state_dtype: torch.dtype | None = values["state_dtype"]
        self.max_grad_norm: float | None = values["max_grad_norm"]
        self.process_group: Any = values["process_group"]
        self.ema_decay: float | None = values["ema_decay"]
        self._captured: list[Any] = []  # what CUDA graphs read at every replay
        self._swapped: list[tuple[Tensor, Tensor]] | None = None  # parameters, and what they were
        self._plan: Plan | None = None
        self._forget()
        check_options(self)
        if defaults["foreach"] and defaults["fused"]:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self._check(defaults)
        super().__init__(params, defaults)

    def _forget(self) -> None:
        """Forget what can be found again."""
        self._forget_plan()
        self._total: Tensor | None = None  # what `total_square` returned at the last step
        self._found: Tensor | None = None  # the same, if `find_inf` has called it for the next one

    def _forget_plan(self) -> None:
        if self._plan is not None and (captured := [table for _, table in self._plan.tables if table.captured]):
            self._captured += [captured, self._norm_buffers, self._plan.entries]
        self._plan = None
        self._signature: Any = None
        self._kinds: list[Any] = []
        self._norm_buffers: dict[int, Tensor] = {}

    # What an optimizer says of itself.

    def _check(self, group: dict[str, Any]) -> None:
        """Raise what torch.optim raises for arguments out of range."""
        raise NotImplementedError

    def _states_of(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Name the states that the parameters of a group have: the first of `state_names`."""
        return self.state_names

    def _scalars(self, group: dict[str, Any]) -> dict[int, float]:
        """Return a group's scalars by their column in kernels/update_rules.py; those that all have are added."""
        raise NotImplementedError

    def _first_pass(
        self, columns: Columns, group: dict[str, Any], round_states: Callable[[], None]
    ) -> tuple[list[Tensor], Tensor]:
        """Begin to step eagerly, with two passes: return what `_update` is to have for gradients, and sums, [T, 2].

        `round_states` rounds the states as they will be stored.
        """
        raise NotImplementedError

    def _update(self, columns: Columns, group: dict[str, Any]) -> None:
        """Step eagerly, in place: the reference."""
        raise NotImplementedError

    def _fusable(self, group: dict[str, Any], dtype: torch.dtype) -> bool:
        """Whether torch has a fused step for the CPU with the same mathematics, for parameters of a dtype."""
        return False

    def _fused_update(
        self,
        params: list[Tensor],
        grads: list[Tensor],
        states: list[list[Tensor]],
        steps: list[Tensor],
        group: dict[str, Any],
    ) -> None:
        """Step by torch's fused step for the CPU; `steps` have counted this one."""
        raise NotImplementedError

    # torch.optim.Optimizer.

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a parameter group, see :meth:`torch.optim.Optimizer.add_param_group`.

        Raises:
            TypeError: `param_group` is not a dict, or a hyperparameter not a number.
            ValueError: a hyperparameter is out of range, or the optimizer cannot step such parameters.
            RuntimeError: the group asks for `differentiable`.
        """
        if isinstance(param_group, dict):  # else the method of the base says so
            group = {**self.defaults, **param_group}
            if group["differentiable"]:
                raise RuntimeError(
                    f"{type(self).__name__} does not support differentiable=True: its step is not recorded by "
                    "autograd. Use the optimizer of torch.optim"
                )
            self._check(group)
        super().add_param_group(param_group)
        try:
            check_params(type(self).__name__, self.param_groups[-1]["params"], self.stochastic_rounding)
        except ValueError:
            self.param_groups.pop()
            raise

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds."""
        names = (*_OPTIONS, "_swapped")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in names}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a copied or a loaded state, also of an older version or of torch.optim."""
        defaults = state["defaults"] if "defaults" in state else self.defaults  # noqa: SIM401 - not there to be copied
        for group in state["param_groups"]:
            for name, value in defaults.items():
                group.setdefault(name, value)
            if "betas" in group:  # tensors, in a checkpoint of a capturable optimizer of torch's
                group["betas"] = tuple(map(float, group["betas"]))
        for name, value in (("_captured", []), ("_swapped", None), ("_plan", None)):
            self.__dict__.setdefault(name, value)
        super().__setstate__(state)
        self._forget()

    def state_dict(self) -> dict[str, Any]:
        """Return the state, see :meth:`torch.optim.Optimizer.state_dict`.

        Raises:
            RuntimeError: averaged weights are swapped in: the model's state dict would hold them, and none the weights.
        """
        if self._swapped is not None:
            raise RuntimeError("the averaged weights are swapped in: call swap_ema() before state_dict()")
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state dict of this optimizer, or of torch.optim's of the same name.

        Masters and averaged weights stay in fp32, and other states in `state_dtype`, whatever the parameters have. What
        a checkpoint lacks, such as masters, begins with the parameters as they are at the next step. `foreach`,
        `fused`, `capturable` and `differentiable` stay as they are. As in torch.optim, tensors of the state dict that
        need no other dtype, device or memory order are not copied: the next steps change them. Load a copy
        (:func:`copy.deepcopy`) of what is to be kept.

        Raises:
            ValueError: the parameter groups do not match; the optimizer is as it was.
            RuntimeError: averaged weights are swapped in.
        """
        if self._swapped is not None:
            raise RuntimeError("the averaged weights are swapped in: call swap_ema() before load_state_dict()")
        checkpoint.load(self, super().load_state_dict, state_dict)

    @torch.compiler.disable(  # type: ignore[untyped-decorator]
        reason="a compiled graph would not see what the kernel writes through addresses"
    )
    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Step all parameters that have a gradient; does not wait for a GPU.

        In a compiled function it is a graph break: it runs as it does outside, and is never the cause of a recompile.

        Args:
            closure: evaluates the model anew and returns the loss, which is then returned.

        Raises:
            RuntimeError: a gradient is sparse; averaged weights are swapped in; a CUDA graph is captured while a group
                is not `capturable`, or with parameters that the kernel does not take; gradients of several devices are
                to be clipped together; a gradient or a state differs from its parameter in shape or device.
            NotImplementedError: a parameter is on the meta device.
            TypeError, ValueError: a hyperparameter in `param_groups`, or an option, is no number or out of range.

        In all of these cases nothing has been stepped.
        """
        found, self._found = self._found, None  # of no use to a later step, should this one raise
        capturing = torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
        if capturing and not all(group["capturable"] for group in self.param_groups):
            raise RuntimeError(
                f"{type(self).__name__}.step is captured in a CUDA graph, but capturable is False in some parameter "
                "group: pass capturable=True, and lr as a tensor on the GPU if it is to change"
            )
        if self._swapped is not None:
            raise RuntimeError("the averaged weights are swapped in: call swap_ema() before step()")
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if closure is not None or self._optimizer_step_pre_hooks:  # which may have changed the gradients
            found = None

        plan, grads = self._prepared()
        if capturing and plan.parts:
            raise RuntimeError(
                f"parameters {plan.parts[0].rows.indices} cannot be stepped in a CUDA graph: the kernel takes fp32, "
                "fp16 and bf16 whose elements fill their memory without holes, in the order of their gradients'"
            )
        self._run(plan, grads, found)
        if not torch.is_inference_mode_enabled():
            # By this autograd finds out that a graph is stale: neither the kernel nor torch's fused step tells it.
            params = [p for group in self.param_groups for p in group["params"]]
            torch.autograd.graph.increment_version([p for p, g in zip(params, grads, strict=True) if g is not None])
        return loss

    @torch.no_grad()
    def find_inf(self, grad_scale: Tensor) -> Tensor | None:
        """Look for infinities and NaNs in the gradients, for :class:`fastfeed.optim.GradScaler`.

        The pass over the gradients finds their norm too, and the next `step` does not take it again. So until then
        they must stay as they are.

        Args:
            grad_scale: 0-dim fp32; what `step` will divide the gradients by.

        Returns:
            How many there are: fp32, on the device, not waited for. None where the gradients are on several devices.
        """
        plan, grads = self._prepared()
        if len({grad.device for grad in grads if grad is not None}) > 1:
            return None
        self._found = total_square(plan, grads, grad_scale, self._norm_buffers)
        return self._found[1].to(torch.float32)

    @property
    def grad_norm(self) -> Tensor | None:
        """The norm of all gradients at the last step, unscaled, before clipping: 0-dim, on the device, not waited for.

        None before the first step and without `max_grad_norm`.
        """
        return None if self._total is None else self._total[0].sqrt()

    # Averaged weights.

    @torch.no_grad()
    def swap_ema(self) -> None:
        """Put the averaged weights in the place of the parameters, or the parameters back.

        What has had no gradient yet has no average, and stays. Buffers, such as the statistics of batch normalization,
        are the model's: :func:`torch.optim.swa_utils.update_bn` computes them for the averaged weights.

        Raises:
            RuntimeError: the optimizer keeps no average.
        """
        if self.ema_decay is None and self._swapped is None:
            raise RuntimeError(f"{type(self).__name__} keeps no averaged weights: pass ema_decay")
        if self._swapped is None:
            averaged = [p for group in self.param_groups for p in group["params"] if "ema" in self.state.get(p, ())]
            self._swapped = [(p, p.detach().clone()) for p in averaged]
            for p in averaged:
                p.copy_(self.state[p]["ema"])
            return
        for p, kept in self._swapped:
            p.copy_(kept)
        self._swapped = None

    @contextlib.contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Return a context in which the parameters are the averaged weights, see `swap_ema`.

        Raises:
            RuntimeError: the optimizer keeps no average; averaged weights are swapped in already.
        """
        if self._swapped is not None:  # or else the parameters would come back, for as long as the context lasts
            raise RuntimeError("the averaged weights are swapped in already: do not nest ema_weights()")
        self.swap_ema()
        try:
            yield
        finally:
            self.swap_ema()

    # The step.

    def _prepared(self) -> tuple[Plan, list[Tensor | None]]:
        """Return the plan and all gradients, with the tables up to date."""
        for group in self.param_groups:
            self._check(group)  # again, since anyone may write to param_groups
        check_options(self)
        params = [p for group in self.param_groups for p in group["params"]]
        grads = [p.grad for p in params]
        if any_dtensors(params):
            grads = [None if g is None else local_gradient(p, g) for p, g in zip(params, grads, strict=True)]
        plan = self._current_plan(params, grads)
        for indices, table in plan.tables:
            places = [0 if (g := grads[i]) is None else g.data_ptr() or address_of_nothing(g) for i in indices]
            table.refresh(places, *self._scalars_on(table.device))
        return plan, grads

    def _current_plan(self, params: list[Tensor], grads: list[Tensor | None]) -> Plan:
        """Return the plan, made anew when a tensor has moved or has its first gradient."""
        if self._plan is not None and self._signature == self._signature_of(params):
            known = [kind for g, kind in zip(grads, self._kinds, strict=True) if g is not None]
            if known == kinds_of([g for g in grads if g is not None]):
                return self._plan
        self._forget_plan()
        entries, reductions = self._entries(params, grads)
        kinds = iter(kinds_of([g for g in grads if g is not None]))
        self._kinds = [None if g is None else next(kinds) for g in grads]
        self._signature = self._signature_of(params)
        self._plan = make_plan(
            entries,
            grads,
            reductions,
            len(self.param_groups),
            lambda index, dtype: self._fusable(self.param_groups[index], dtype),
            self.stochastic_rounding,
        )
        return self._plan

    def _signature_of(self, params: list[Tensor]) -> Any:
        """Describe where all tensors lie, and what else decides how they are stepped.

        A tensor cannot change its device or dtype without moving: to look at these too would, in a small model, take
        longer than the kernel.
        """
        # Others may keep what they like in the state, and a step may have been set to a number.
        kept: Iterable[Any] = self.state.values()
        if set(map(type, kept)) != {dict}:
            kept = [state for state in kept if isinstance(state, dict)]
        states = list(chain.from_iterable(map(dict.values, kept)))
        if any_dtensors(params):
            params, states = list(map(local, params)), list(map(local, states))
        return (
            addresses(params),
            list(map(Tensor.numel, params)),
            list(map(Tensor.stride, params)),
            addresses(states),
            [
                (len(group["params"]), self._states_of(group), self._fusable(group, torch.float32))
                for group in self.param_groups
            ],
            (
                self.master_weights,
                self.stochastic_rounding,
                self.state_dtype,
                self.ema_decay is None,
                self.process_group is None,
            ),
        )

    def _entries(self, params: list[Tensor], grads: list[Tensor | None]) -> tuple[dict[int, Entry], list[Reduction]]:
        """Collect what belongs to each parameter that has a gradient; create states that are missing."""
        reductions, reduction_of = find_reductions(params, self.process_group)
        entries = {}
        groups = [i for i, group in enumerate(self.param_groups) for _ in group["params"]]
        for i, (p, grad, group) in enumerate(zip(params, grads, groups, strict=True)):
            if grad is not None:  # all of them before the first state is made
                names = (*self._states_of(self.param_groups[group]), "master", "ema")
                check_tensors(type(self).__name__, i, p, grad, self.state.get(p, {}), names)
        for i, (p, grad, group) in enumerate(zip(params, grads, groups, strict=True)):
            if grad is None:
                continue
            state = self.state[p]
            names = self._states_of(self.param_groups[group])
            complete(
                p,
                state,
                names,
                master_weights=self.master_weights,
                state_dtype=self.state_dtype,
                ema=self.ema_decay is not None,
            )
            entries[i] = Entry(
                local(p),
                tuple(local(state[name]) for name in names),
                local(state["master"]) if self.master_weights and "master" in state else None,
                local(state["ema"]) if self.ema_decay is not None else None,
                state["step"],
                group,
                reduction_of[i],
            )
        return entries, reductions

    def _run(self, plan: Plan, grads: list[Tensor | None], found: Tensor | None) -> None:
        """Unscale, clip, and update, unless `found_inf` is set; `found` is what `find_inf` has of these gradients."""
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        clip = None
        if self.max_grad_norm is not None:
            if found is None:
                found = total_square(plan, grads, grad_scale, self._norm_buffers)
            self._total = found
            clip = (self.max_grad_norm / (self._total[0].sqrt() + 1e-6)).clamp(max=1.0) if plan.parts else None
        options = {
            table: {
                "grad_scale": _on(grad_scale, table.device),
                "found_inf": _on(found_inf, table.device),
                "total": _on(found, table.device) if self.max_grad_norm is not None else None,
                "max_norm": float(self.max_grad_norm or 0),  # Triton compiles anew for integers such as 1
                "stochastic": self.stochastic_rounding,
                "seed": self.seed,
            }
            for _, table in plan.tables
        }
        begun: Iterable[PartStep] = ()
        if plan.parts and (found_inf is None or found_inf.item() == 0):
            begun = begin_parts(self, plan, grads, Scaling(grad_scale, clip))
        if self.two_passes:
            begun = list(begun)
            sums = [(table.numbers, table.trust(self.rule, **options[table])) for table in options]
            sums += [(step.rows.indices, step.sums) for step in begun]
            add_up_shards(plan.reductions, len(grads), sums)
        for table in options:
            table.step(self.rule, **options[table])
        for step in begun:
            step.finish()

    def _scalars_on(self, device: torch.device) -> tuple[list[Tensor | None], list[list[float]]]:
        """Return learning rates that are tensors on a device, and all groups' rows of scalars."""
        from fastfeed.kernels import update_rules  # only where there are tables: Triton may be absent

        rates: list[Tensor | None] = []
        rows = []
        for group in self.param_groups:
            lr = group["lr"]
            on_device = isinstance(lr, Tensor) and lr.device.type == "cuda"
            rates.append(lr.to(device, torch.float32) if on_device else None)
            row = [0.0] * update_rules.SCALARS.value
            row[update_rules.SIGN.value] = -1.0 if group["maximize"] else 1.0
            row[update_rules.LR.value] = 0.0 if on_device else float(lr)
            row[update_rules.EMA_WEIGHT.value] = 0.0 if self.ema_decay is None else 1 - self.ema_decay
            for column, value in self._scalars(group).items():
                row[column] = value
            rows.append(row)
        return rates, rows


def _on(t: Tensor | None, device: torch.device) -> Tensor | None:
    return None if t is None else t.to(device, torch.float32, non_blocking=True)
