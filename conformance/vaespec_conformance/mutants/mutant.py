"""Mutant, and the ways to make one: a mistake in an operation, in a whole VAE, or in how it is built."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.backend import Backend
from vaespec.layouts import OIHW
from vaespec.reference import ReferenceOps
from vaespec_conformance.subjects.subjects import Factory, Subject

Wrap = Callable[[Any], Subject]
Equivalent = Mapping[str, str]


@dataclass(frozen=True)
class Mutant:
    """A mistake. `wrap` makes it in a subject; `owner` is the check that must catch it.

    `seen_in_ports` is the check that catches it in float32 where only the whole VAE is seen, None where none need to.
    `cause` is what a hint says. `equivalent_in` names the dtypes in which it is no mistake, or none that the owner
    could tell from rounding, and why.
    """

    name: str
    owner: str
    wrap: Wrap
    cause: str
    seen_in_ports: str | None = None
    equivalent_in: Equivalent = field(default_factory=dict)


MUTANTS: dict[str, Mutant] = {}


def _register(
    name: str, wrap: Wrap, owner: str, cause: str, seen_in_ports: str | None, equivalent_in: Equivalent
) -> None:
    if name in MUTANTS:
        raise ValueError(f"two mutants are called {name!r}: rename one.")
    MUTANTS[name] = Mutant(name, owner, wrap, cause, seen_in_ports, equivalent_in)


# -- in an operation -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ChangedBackend:
    """A backend whose operations are changed after they are made."""

    backend: Backend
    change: Callable[[ReferenceOps], ReferenceOps]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The backend's, changed."""
        return self.change(self.backend.ops(device, dtype, precision))


def with_methods(ops: ReferenceOps, **methods: Callable[..., Any]) -> ReferenceOps:
    """A copy of ops, of a subclass with these methods; run layer by layer, since a framework may not trace them."""
    changed = copy.copy(ops)
    changed.__class__ = type(type(ops).__name__, (type(ops),), {"compile": ReferenceOps.compile, **methods})
    return changed


def changing_ops(change: Callable[[ReferenceOps], ReferenceOps]) -> Wrap:
    """A subject whose backend's operations go through `change`."""
    return lambda subject: subject.replace(backend=ChangedBackend(subject.backend, change))


def _replacing(op: str, function: Callable[..., Any]) -> Callable[[ReferenceOps], ReferenceOps]:
    """function(ops, call, *arguments, **numbers) in the place of ops.op, which is `call`."""

    def change(ops: ReferenceOps) -> ReferenceOps:
        original = getattr(type(ops), op)

        def method(self: ReferenceOps, *arguments: Any, **numbers: Any) -> Any:
            return function(self, partial(original, self), *arguments, **numbers)

        return with_methods(ops, **{op: method})

    return change


def replaced(
    op: str,
    name: str,
    *,
    owner: str,
    cause: str,
    seen_in_ports: str | None = None,
    equivalent_in: Equivalent | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below, f(ops, call, *arguments, **numbers), stands in for an operation, which is `call`."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        wrap = changing_ops(_replacing(op, function))
        _register(f"{op}: {name}", wrap, owner, cause, seen_in_ports, equivalent_in or {})
        return function

    return register


def reformulated(op: str, name: str, **how: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below is another formula for an operation, on NumPy's float64 maps, tokens and canonical weights."""

    def register(formula: Callable[..., Any]) -> Callable[..., Any]:
        replaced(op, name, **how)(_on_numbers(op, formula))
        return formula

    return register


def formula_of(op: str, formula: Callable[..., Any]) -> Callable[[ReferenceOps], ReferenceOps]:
    """What makes an operation that formula."""
    return _replacing(op, _on_numbers(op, formula))


def _on_numbers(op: str, formula: Callable[..., Any]) -> Callable[..., Any]:
    def function(ops: ReferenceOps, call: Any, *arguments: Any, **numbers: Any) -> Any:
        leave = as_tokens if op in READS else as_map
        reads = [*READS.get(op, (map_numbers,)), *[weight_numbers] * len(arguments)]
        return leave(ops, formula(*(read(ops, a) for read, a in zip(reads, arguments, strict=False)), **numbers))

    return function


def map_numbers(ops: ReferenceOps, x: Any) -> np.ndarray:
    """A map as NumPy's float64 (B, C, H, W)."""
    return ops.to_numpy(ops.to_nchw(x)).astype(np.float64)


def as_map(ops: ReferenceOps, y: np.ndarray) -> Any:
    """The inverse, rounded to what is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ops.from_nchw(ops.from_numpy(np.asarray(y)))


def as_tokens(ops: ReferenceOps, t: np.ndarray) -> Any:
    """NumPy's tokens as the backend's, rounded to what is stored."""
    with np.errstate(over="ignore", invalid="ignore"):
        return ops.from_numpy(t)


def token_numbers(ops: ReferenceOps, t: Any) -> np.ndarray:
    """Tokens as NumPy's float64 (B, N, C)."""
    return ops.to_numpy(t).astype(np.float64)


def weight_numbers(ops: ReferenceOps, w: Any) -> np.ndarray:
    """A weight as NumPy's float64 in canonical order."""
    a = ops.to_numpy(w)
    return ops.layout.convert(a, OIHW).astype(np.float64)


READS: dict[str, tuple[Callable[[ReferenceOps, Any], np.ndarray], ...]] = {
    "linear": (token_numbers,),
    "attention": (token_numbers,) * 3,
    "eager_attention": (token_numbers,) * 3,
}
"""How the first arguments of an operation are read, where it is of tokens; the others are weights."""


# -- in a whole VAE --------------------------------------------------------------------------------------------------


class ChangedVae:
    """A VAE, but for some methods: method(vae, call, *arguments), where `call` is the one it had."""

    def __init__(self, vae: Any, methods: Mapping[str, Callable[..., Any]]) -> None:
        self.vae, self.methods = vae, methods

    def __getattr__(self, name: str) -> Any:
        call = getattr(self.vae, name)
        return partial(self.methods[name], self.vae, call) if name in self.methods else call


def altering(alter: Callable[[Factory], Factory]) -> Wrap:
    """A subject whose factory goes through `alter`, after whatever it went through before."""
    return lambda subject: subject.replace(alter=lambda factory: alter(subject.alter(factory)))


def method(
    *names: str,
    name: str,
    owner: str,
    cause: str,
    seen_in_ports: str | None = "owner",
    equivalent_in: Equivalent | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below, f(vae, call, *arguments), stands in for methods of the VAE."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def alter(factory: Factory) -> Factory:
            def make(config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Any:
                return ChangedVae(factory(config, weights, dtype), dict.fromkeys(names, function))

            return make

        seen = owner if seen_in_ports == "owner" else seen_in_ports
        _register(f"{names[0]}: {name}", altering(alter), owner, cause, seen, equivalent_in or {})
        return function

    return register


def building(
    name: str, *, owner: str, cause: str, seen_in_ports: str | None = "owner", equivalent_in: Equivalent | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """The function below, f(factory, config, weights, dtype), builds the VAE."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        seen = owner if seen_in_ports == "owner" else seen_in_ports
        wrap = altering(lambda factory: partial(function, factory))
        _register(f"build: {name}", wrap, owner, cause, seen, equivalent_in or {})
        return function

    return register
