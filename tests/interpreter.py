"""Triton's interpreter, made quicker for the tests."""

import inspect
from typing import Any


def patch_language_once() -> None:
    """Let the interpreter patch triton.language once for each launch.

    It does so again at every call of a device function, where nothing is left to patch: as of Triton 3.7, three
    quarters of the time of a kernel of many small functions.
    """
    import triton.language as tl
    from triton.runtime import interpreter

    own = getattr(interpreter, "_patch_lang", None)
    if own is None:
        return  # of another version, which goes its own way
    modules: dict[Any, set[str]] = {}
    patched: set[str] = set()

    def patch(fn: Any) -> Any:
        if fn not in modules:
            seen = (module for module in fn.__globals__.values() if inspect.ismodule(module))
            modules[fn] = {module.__name__ for module in seen if module in (tl, tl.core)}
        if patched and modules[fn] <= patched:
            return None  # in a device function, which does not look at it
        scope = own(fn)
        if not patched:  # a kernel: restores what its scope holds when it ends
            restore = scope.restore

            def restored() -> None:
                patched.clear()
                restore()

            scope.restore = restored
        patched.update(modules[fn])
        return scope

    interpreter._patch_lang = patch
