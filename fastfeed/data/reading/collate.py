"""Reading collate functions: PyTorch's own, and those that hand its batches to torchvision's MixUp and CutMix."""

import sys
import types
from collections.abc import Callable
from typing import Any

from torch.utils.data import default_collate

from fastfeed.data.mix import Mix
from fastfeed.data.reading.reasons import Unreadable, torchvision_class

_V2 = ("torchvision.transforms.v2",)
_EXPECTED = "torch.utils.data.default_collate, or a function that gives its batch to v2.MixUp, CutMix or both"


def read_collate(collate_fn: Any) -> Mix | None:
    """Return what a collate function mixes.

    A function is read by being run: on an opaque batch, as a copy that sees stand-ins for `default_collate`, for
    modules, and for ``v2.MixUp``, ``v2.CutMix``, ``v2.RandomChoice`` of one each, and ``v2.RandomApply`` of these, and
    nothing else, no built-in functions either. So one that does anything besides, or depends on anything, is not read.

    Args:
        collate_fn: PyTorch's `default_collate`, or None for it; or a function such as
            ``lambda batch: mixup(*default_collate(batch))``.

    Returns:
        What is mixed; None if nothing.

    Raises:
        Unreadable: for any other function.
    """
    if collate_fn is None or collate_fn is default_collate:
        return None
    name = getattr(collate_fn, "__qualname__", type(collate_fn).__name__)
    if not isinstance(collate_fn, types.FunctionType):
        raise Unreadable([f"collate_fn is {name}, which cannot be read: expected {_EXPECTED}"])
    run = _Run()
    try:
        returned = run.copy(collate_fn)(run.batch)
    except Unreadable:
        raise
    except Exception as error:  # of whatever it does with what is not there
        raise Unreadable(
            [f"collate_fn is {name}, which does more than can be read ({error}): expected {_EXPECTED}"]
        ) from error
    return run.mix_of(returned, name)


class _Opaque:
    """A value of which a function can learn nothing."""

    __slots__ = ("_what",)
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, what: str) -> None:
        self._what = what

    def _refuse(self, *_: object) -> Any:
        raise TypeError(f"it looks at {self._what}")

    __bool__ = __eq__ = __ne__ = _refuse


class _Run:
    """One run of a function, and what its stand-ins were called with."""

    def __init__(self) -> None:
        self.batch = _Opaque("the batch")
        self.images, self.target = _Opaque("the images"), _Opaque("the target")
        self.mixed: list[tuple[tuple[_Opaque, _Opaque], Mix]] = []

    def copy(self, function: types.FunctionType) -> types.FunctionType:
        """Return a function of the same code that sees stand-ins alone."""
        known = {name: self.stand_in(value) for name, value in function.__globals__.items() if self.is_known(value)}
        cells = tuple(types.CellType(self.stand_in(cell.cell_contents)) for cell in function.__closure__ or ())
        copy = types.FunctionType(
            function.__code__,
            {**known, "__builtins__": {"__import__": self._import}},
            function.__name__,
            tuple(map(self.stand_in, function.__defaults__ or ())),
            cells,
        )
        copy.__kwdefaults__ = {name: self.stand_in(value) for name, value in (function.__kwdefaults__ or {}).items()}
        return copy

    def is_known(self, value: Any) -> bool:
        """Whether there is a stand-in for a value."""
        return value is default_collate or isinstance(value, types.ModuleType) or _is_mix(value)

    def stand_in(self, value: Any) -> Any:
        """Return what takes the place of a value."""
        if value is default_collate:
            return self._collate
        if isinstance(value, types.ModuleType):
            return _Module(self, value)
        if _is_mix(value):
            return self._mixer(value)
        return _Opaque(f"a value of type {type(value).__name__}")

    def mix_of(self, returned: Any, name: str) -> Mix | None:
        """Return what was mixed, if nothing else was done.

        Raises:
            Unreadable: otherwise.
        """
        pair = tuple(returned) if isinstance(returned, tuple | list) else ()
        if _same(pair, (self.images, self.target)) and not self.mixed:
            return None
        # Whatever else it mixed and did not return would have drawn from the generator, at least.
        if len(self.mixed) != 1 or not _same(pair, self.mixed[0][0]):
            raise Unreadable([f"collate_fn is {name}, which returns something else: expected {_EXPECTED}"])
        return self.mixed[0][1]

    def _collate(self, batch: Any) -> list[_Opaque]:
        if batch is not self.batch:
            raise TypeError("it collates something else than the batch")
        return [self.images, self.target]

    def _mixer(self, transform: Any) -> Callable[..., Any]:
        def mixed(*inputs: Any) -> Any:
            given = inputs[0] if len(inputs) == 1 else inputs
            if not isinstance(given, tuple | list) or not _same(tuple(given), (self.images, self.target)):
                raise TypeError(f"it gives {type(transform).__name__} something else than the images and the target")
            pair = _Opaque("the mixed images"), _Opaque("the mixed target")
            self.mixed.append((pair, _read_mix(transform)))
            return type(given)(pair)

        return mixed

    def _import(self, name: str, _globals: Any = None, _locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
        module = sys.modules.get(name if fromlist else name.partition(".")[0])
        if level or module is None:
            raise ImportError(f"it imports {name}")
        return _Module(self, module)


class _Module:
    """A module of which only what there are stand-ins for can be had."""

    def __init__(self, run: _Run, module: types.ModuleType) -> None:
        self.__dict__["_found"] = (run, module)

    def __getattr__(self, name: str) -> Any:
        run, module = self.__dict__["_found"]
        value = getattr(module, name)
        if not run.is_known(value):
            raise AttributeError(f"it uses {module.__name__}.{name}")
        return run.stand_in(value)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"it sets {name} of a module")


def _same(values: tuple[Any, ...], expected: tuple[Any, ...]) -> bool:
    return len(values) == len(expected) and all(a is b for a, b in zip(values, expected, strict=True))


def _is_mix(value: Any) -> bool:
    found = torchvision_class(value, _V2)
    return found is not None and found[1] in ("MixUp", "CutMix", "RandomChoice", "RandomApply")


def _read_mix(transform: Any) -> Mix:
    """Return what a transform of batches does.

    Raises:
        Unreadable: for another transform, or other values than `Mix` can have.
    """
    reasons: list[str] = []
    probability = 1.0
    name = type(transform).__name__
    if name == "RandomApply":
        probability = transform.p
        if len(transform.transforms) != 1:
            reasons.append(f"RandomApply has {len(transform.transforms)} transforms, and of batches one can be done")
        transform = transform.transforms[0]
        name = type(transform).__name__
    parts = [transform]
    if name == "RandomChoice":
        parts = list(transform.transforms)
        if max(transform.p) - min(transform.p) > 1e-6:
            reasons.append(f"RandomChoice: p is {transform.p}, and only equal probabilities can be done")
    names = [type(part).__name__ if _is_mix(part) else None for part in parts]
    if sorted(map(str, names)) not in (["CutMix"], ["MixUp"], ["CutMix", "MixUp"]):
        shown = ", ".join(type(part).__name__ for part in parts)
        raise Unreadable(
            [*reasons, f"{name} has {shown}, and of batches only MixUp, CutMix, or one of each can be done"]
        )
    for part in parts:
        getter = part._labels_getter
        if getattr(getter, "__name__", None) != "_find_labels_default_heuristic":
            reasons.append(f"{type(part).__name__}: labels_getter is given, and only the default one can be done")
    counts = {part.num_classes for part in parts}
    if len(counts) > 1:
        reasons.append(f"MixUp and CutMix have different num_classes, {' and '.join(map(str, counts))}")
    alphas = {name: part.alpha for name, part in zip(names, parts, strict=True)}
    if not reasons:
        try:
            return Mix(
                alphas.get("MixUp", 0.0),
                alphas.get("CutMix", 0.0),
                probability=probability,
                num_classes=counts.pop(),
            )
        except (TypeError, ValueError) as error:
            reasons.append(str(error))
    raise Unreadable(reasons)
