"""Mutant, and the decorators that make one: of an operation, of a method of the VAE, or of the function that builds it.

The decorated function is the mistake. Its name is the mutant's name, and its docstring is the likely cause that a
report shows. Mistakes that differ in a value only are rows of a table: `named` gives their function a name and a cause.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.backend import Backend
from vaespec.layouts import OIHW
from vaespec.reference import ReferenceOps
from vaespec_conformance.subjects.subjects import Factory, Subject

Function = Callable[..., Any]
Decorator = Callable[[Function], Function]
Wrap = Callable[[Any], Subject]
Equivalent = Mapping[str, str]
NOWHERE: Equivalent = {}
OWNER = "owner"
"""The value of `seen_in_ports` that stands for the owner itself."""


@dataclass(frozen=True)
class Mutant:
    """A known mistake. `wrap` puts it into a subject; `owner` is the check that must catch it.

    `seen_in_ports` is the check that catches it in float32 if only the whole VAE is seen; None if none has to.
    `cause` is what a report shows as the likely cause. `equivalent_in` maps each dtype in which it is no mistake, or
    one that the owner cannot distinguish from rounding, to the reason.
    """

    name: str
    owner: str
    wrap: Wrap
    cause: str
    seen_in_ports: str | None
    equivalent_in: Equivalent


MUTANTS: dict[str, Mutant] = {}


def _mutant(
    make_wrap: Callable[[Function], Wrap], owner: str, seen_in_ports: str | None, equivalent_in: Equivalent
) -> Decorator:
    """A decorator that registers a function as a mutant."""

    def register(function: Function) -> Function:
        name, seen = function.__name__, owner if seen_in_ports == OWNER else seen_in_ports
        if name in MUTANTS:
            raise ValueError(f"two mutants are called {name!r}: rename one.")
        MUTANTS[name] = Mutant(name, owner, make_wrap(function), inspect.getdoc(function) or "", seen, equivalent_in)
        return function

    return register


def named(name: str, cause: str, function: Function) -> Function:
    """The function of a row of a table, with its name and its cause."""
    function.__name__, function.__doc__ = name, cause
    return function


# -- in an operation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangedBackend:
    """A backend whose operations go through `change`."""

    backend: Backend
    change: Callable[[ReferenceOps], ReferenceOps]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The changed operations."""
        return self.change(self.backend.ops(device, dtype, precision))


def with_methods(ops: ReferenceOps, **methods: Function) -> ReferenceOps:
    """A copy of ops, of a subclass with these methods; run layer by layer, since a framework may not trace them."""
    changed = copy.copy(ops)
    changed.__class__ = type(type(ops).__name__, (type(ops),), {"compile": ReferenceOps.compile, **methods})
    return changed


def changing_ops(change: Callable[[ReferenceOps], ReferenceOps]) -> Wrap:
    """Changes the operations of a subject's backend."""
    return lambda subject: subject.replace(backend=ChangedBackend(subject.backend, change))


def changed_ops(owner: str, *, seen_in_ports: str | None = None, equivalent_in: Equivalent = NOWHERE) -> Decorator:
    """The function below, f(ops) -> ops, changes the operations of a backend."""
    return _mutant(changing_ops, owner, seen_in_ports, equivalent_in)


def _replacing(op: str, function: Function) -> Callable[[ReferenceOps], ReferenceOps]:
    """Replaces ops.op by function(ops, call, *arguments, **numbers); `call` is the original."""

    def change(ops: ReferenceOps) -> ReferenceOps:
        original = getattr(type(ops), op)

        def method(self: ReferenceOps, *arguments: Any, **numbers: Any) -> Any:
            return function(self, partial(original, self), *arguments, **numbers)

        return with_methods(ops, **{op: method})

    return change


def operation(
    op: str, owner: str, *, seen_in_ports: str | None = None, equivalent_in: Equivalent = NOWHERE
) -> Decorator:
    """The function below, f(ops, call, *arguments, **numbers), replaces an operation; `call` is the original."""
    return _mutant(lambda function: changing_ops(_replacing(op, function)), owner, seen_in_ports, equivalent_in)


def formula(op: str, owner: str, *, seen_in_ports: str | None = None, equivalent_in: Equivalent = NOWHERE) -> Decorator:
    """The function below is another formula for an operation, on NumPy's float64 maps, tokens and canonical weights."""
    return _mutant(lambda function: changing_ops(computing(op, function)), owner, seen_in_ports, equivalent_in)


def computing(op: str, formula: Function) -> Callable[[ReferenceOps], ReferenceOps]:
    """Replaces an operation by a formula on NumPy's float64 arrays."""

    def function(ops: ReferenceOps, call: Any, *arguments: Any, **numbers: Any) -> Any:
        leave = as_tokens if op in READS else as_map
        reads = [*READS.get(op, (map_numbers,)), *[weight_numbers] * len(arguments)]
        return leave(ops, formula(*(read(ops, a) for read, a in zip(reads, arguments, strict=False)), **numbers))

    return _replacing(op, function)


def map_numbers(ops: ReferenceOps, x: Any) -> np.ndarray:
    """A backend's map as a float64 NumPy array (B, C, H, W)."""
    return ops.to_numpy(ops.to_nchw(x)).astype(np.float64)


def as_map(ops: ReferenceOps, y: np.ndarray) -> Any:
    """NumPy (B, C, H, W) as a backend's map, rounded to the storage dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ops.from_nchw(ops.from_numpy(np.asarray(y)))


def as_tokens(ops: ReferenceOps, t: np.ndarray) -> Any:
    """NumPy (B, N, C) as a backend's tokens, rounded to the storage dtype."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ops.from_numpy(t)


def token_numbers(ops: ReferenceOps, t: Any) -> np.ndarray:
    """A backend's tokens as a float64 NumPy array (B, N, C)."""
    return ops.to_numpy(t).astype(np.float64)


def weight_numbers(ops: ReferenceOps, w: Any) -> np.ndarray:
    """A backend's weight as a float64 NumPy array in canonical order."""
    return ops.layout.convert(ops.to_numpy(w), OIHW).astype(np.float64)


READS: dict[str, tuple[Callable[[ReferenceOps, Any], np.ndarray], ...]] = {
    "linear": (token_numbers,),
    "attention": (token_numbers,) * 3,
    "eager_attention": (token_numbers,) * 3,
}
"""How the first arguments of operations on tokens are read; all other arguments are weights."""


# -- in a whole VAE --------------------------------------------------------------------------------------------------


class ChangedVae:
    """A VAE with some methods replaced by method(vae, call, *arguments); `call` is the original."""

    def __init__(self, vae: Any, methods: Mapping[str, Function]) -> None:
        self.vae, self.methods = vae, methods

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.vae, name)
        return partial(self.methods[name], self.vae, call) if name in self.methods else call


def altering(alter: Callable[[Factory], Factory]) -> Wrap:
    """Adds `alter` to what already changes a subject's factory."""
    return lambda subject: subject.replace(alter=lambda factory: alter(subject.alter(factory)))


def with_vae_methods(**methods: Function) -> Wrap:
    """Replaces methods of the VAE that a subject builds."""

    def alter(factory: Factory) -> Factory:
        def make(config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
            return ChangedVae(factory(config, weights, dtype), methods)

        return make

    return altering(alter)


def method(
    name: str, owner: str, *, seen_in_ports: str | None = OWNER, equivalent_in: Equivalent = NOWHERE
) -> Decorator:
    """The function below, f(vae, call, *arguments), replaces a method of the VAE; `call` is the original."""
    return _mutant(lambda function: with_vae_methods(**{name: function}), owner, seen_in_ports, equivalent_in)


def builder(owner: str, *, seen_in_ports: str | None = OWNER, equivalent_in: Equivalent = NOWHERE) -> Decorator:
    """The function below, f(factory, config, weights, dtype), builds the VAE."""
    return _mutant(
        lambda function: altering(lambda factory: partial(function, factory)), owner, seen_in_ports, equivalent_in
    )
