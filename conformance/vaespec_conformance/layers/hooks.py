"""Watches the layers of a VAE of any framework while it runs, if they are objects that are called and hold arrays.

No framework is named here. The objects that a VAE is made of are found by walking from it, their weights are told by
their numbers, and each object's class is replaced, during one call, by a subclass that writes down what is returned.
Compiled functions call no objects: then nothing is seen.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from vaespec.layers import NormAct
from vaespec_conformance.layers.neutral_weights import Weights

MOST_OBJECTS = 20000
"""So many objects are looked at; a VAE has some hundreds."""
PYTHON_CLASS = 1 << 9
"""CPython's Py_TPFLAGS_HEAPTYPE: the flag of classes that are written in Python."""
HOLD_NO_ARRAYS = (str, bytes, int, float, complex, type(None), type, FunctionType, MethodType, ModuleType)


@dataclass
class Part:
    """An object of the VAE, the names of its own weights, and those of the objects in it."""

    thing: Any
    own: set[str] = field(default_factory=set)
    inside: list[Part] = field(default_factory=list)

    def names(self) -> set[str]:
        """All weights in the object, by canonical names."""
        found, visited, waiting = set(self.own), {id(self)}, [*self.inside]
        while waiting:
            part = waiting.pop()
            if id(part) not in visited:
                visited.add(id(part))
                found |= part.own
                waiting += part.inside
        return found


def watched(vae: Any, run: Callable[[], object], layers: tuple[Any, ...], weights: Weights) -> dict[str, np.ndarray]:
    """What each layer, and each part with weights, of the VAE returned in run(), which runs it: by diffusers' names."""
    things = dict(_named(_parts(vae, weights), layers))
    results: dict[int, list[np.ndarray | None]] = {}
    with _replaced({id(thing): thing for found in things.values() for thing in found}, results):
        run()
    once = {key: found[0] for key, found in results.items() if len(found) == 1}
    seen = {name: next((once[id(t)] for t in found if id(t) in once), None) for name, found in things.items()}
    return {name: y for name, y in seen.items() if y is not None}


def _parts(root: Any, weights: Weights) -> list[Part]:
    """The objects in a VAE, the outermost first, with the names of their weights."""
    known = {_fingerprint(w): name for name, w in weights.items()}
    parts: dict[int, Part] = {}
    order: list[Part] = []
    first = Part(root)
    waiting = deque([(first, _content(root))])
    parts[id(root)] = first
    while waiting and len(parts) < MOST_OBJECTS:
        part, content = waiting.popleft()
        order.append(part)
        for thing in content:
            if isinstance(thing, HOLD_NO_ARRAYS):
                continue
            if (array := as_numpy(thing)) is not None:
                part.own |= {known[_fingerprint(array)]} if _fingerprint(array) in known else set()
                continue
            if id(thing) not in parts:
                parts[id(thing)] = Part(thing)
                waiting.append((parts[id(thing)], _content(thing)))
            part.inside.append(parts[id(thing)])
    return order


def _content(thing: Any) -> list[Any]:
    """What an object holds: items, values, attributes."""
    if isinstance(thing, list | tuple | set):
        return list(thing)
    values = list(thing.values()) if isinstance(thing, dict) else []
    return values + (list(vars(thing).values()) if _written_in_python(thing) and hasattr(thing, "__dict__") else [])


def _written_in_python(thing: Any) -> bool:
    return bool(type(thing).__flags__ & PYTHON_CLASS)


def _fingerprint(a: np.ndarray) -> tuple[int, float, float]:
    """What identifies a weight in any layout: its size, least and greatest number in float32."""
    return a.size, float(np.float32(a.min())), float(np.float32(a.max()))


def _named(parts: list[Part], layers: tuple[Any, ...]) -> Iterator[tuple[str, list[Any]]]:
    """(diffusers' name, objects that hold exactly its weights) of each layer and each part with weights.

    The outermost object comes first for a layer, and the innermost for a part of one.
    """
    callables = [
        (part.thing, part.names()) for part in parts if _written_in_python(part.thing) and callable(part.thing)
    ]
    for layer in layers:
        names = {name for name, _ in layer.parameters()}
        inner: dict[str, set[str]] = {}
        for name in names:
            inner.setdefault(name.rsplit(".", 1)[0], set()).add(name)
        for part, held in inner.items():
            yield part, [thing for thing, found in reversed(callables) if found == held]
        if not isinstance(layer, NormAct):  # its activation may be outside
            yield layer.name, [thing for thing, found in callables if found == names]


@contextmanager
def _replaced(things: Mapping[int, Any], results: dict[int, list[np.ndarray | None]]) -> Iterator[None]:
    """Lets the objects write down what they return, as long as the context lasts."""
    classes = {key: type(thing) for key, thing in things.items()}
    try:
        for key, thing in things.items():
            object.__setattr__(thing, "__class__", _writing(classes[key], key, results))
        yield
    finally:
        for key, thing in things.items():
            object.__setattr__(thing, "__class__", classes[key])


def _writing(cls: Any, key: int, results: dict[int, list[np.ndarray | None]]) -> type:
    """A subclass whose objects write down what they return."""

    def call(self: Any, *arguments: Any, **options: Any) -> Any:
        y = cls.__call__(self, *arguments, **options)
        results.setdefault(key, []).append(as_numpy(y, first=True))
        return y

    return type(cls)(cls.__name__, (cls,), {"__call__": call, "__module__": cls.__module__})


def as_numpy(value: Any, *, first: bool = False) -> np.ndarray | None:
    """A framework's array as NumPy, or with `first` the first of several; None for anything else, or while traced."""
    try:
        if isinstance(value, tuple | list):
            value = value[0] if first else None
        if hasattr(value, "detach"):
            value = value.detach().cpu().double()
        if not hasattr(value, "shape"):
            return None
        array = np.array(value.numpy() if hasattr(value, "numpy") else value)
        return array.astype(np.float64) if array.size and array.dtype.kind not in "OUSV" else None
    except Exception:  # whatever a framework raises, it is no array that can be read
        return None
