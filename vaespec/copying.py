"""How models, ops and modules are copied and pickled: what only this process has is named, and found again elsewhere.

`copy.deepcopy`, `pickle`, and whatever uses them (spawn, forkserver, joblib, Ray, torch.save) call `__reduce_ex__`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property, singledispatch
from importlib import import_module
from types import ModuleType
from typing import Any, Self

import numpy as np

from vaespec.errors import BackendError


class Call:
    """Is pickled as a call of `function`, whose result takes its place where it is unpickled."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


@singledispatch
def portable(value: Any) -> Any:
    """What is pickled in place of `value`: itself. An adapter registers a `Call` for each type that pickle refuses."""
    return value


@portable.register
def _(value: ModuleType) -> Call:
    return Call(imported, value.__name__)


def imported(name: str) -> ModuleType:
    """The module of that name. Raises BackendError if it, or a framework that it imports, is not installed."""
    try:
        return import_module(name)
    except ImportError as error:
        raise BackendError(
            f"the pickled object needs {error.name or name}, which cannot be imported here ({error}): install it, or "
            "pickle the model on another backend (with_backend)."
        ) from error


class Guarded:
    """An object that names what is missing, in a sentence, where it is unpickled without its framework."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        """What `object` returns, after an import of the module of this class."""
        reduced = super().__reduce_ex__(max(protocol, 2))
        assert isinstance(reduced, tuple)
        make, args, *rest = reduced
        return _made, (Call(imported, type(self).__module__), make, args), *rest


def _made(_: ModuleType, make: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """Calls `make`. Its class is unpickled after the module, so that the module's error comes first."""
    return make(*args)


class Portable(Guarded):
    """An object whose pickles and deep copies hold its attributes as `portable` says; copy.copy shares them.

    What a cached_property has cached is left out, and computed again.
    """

    def __getstate__(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self).items() if not _is_cached(type(self), name)}
        return {name: portable(value) for name, value in kept.items()}

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        vars(copied).update(vars(self))
        return copied


def _is_cached(cls: type, name: str) -> bool:
    return isinstance(getattr(cls, name, None), cached_property)


def in_memory_order(a: np.ndarray) -> tuple[np.ndarray, tuple[int, ...]]:
    """(`a` with its axes in the order of its memory, the axes that transpose it back): pickle stores only that order.

    The order of a kernel in memory decides how fast it is read, and the last bit of what is computed with it.
    """
    axes = range(a.ndim) if a.flags.c_contiguous else sorted(range(a.ndim), key=lambda axis: -a.strides[axis])
    return a.transpose(axes), tuple(int(axis) for axis in np.argsort(axes))
