"""Mutant, and the two ways to make one: a mistake in an operation, or in a whole VAE."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vaespec.backend import Backend
from vaespec.ops import ReferenceOps
from vaespec_conformance.subjects import Subject

Wrap = Callable[[Any], Subject]


@dataclass(frozen=True)
class Mutant:
    """A mistake. `wrap` makes it in a subject; `owner` is the check that must catch it, in a backend.

    `seen_in_ports` is the check that catches it where only the whole VAE is seen, None where none can. `cause` says it in
    the words of a hint. `equivalent_in` names the dtypes in which it changes nothing that may be told from rounding,
    with the reason.
    """

    name: str
    owner: str
    wrap: Wrap
    cause: str
    seen_in_ports: str | None = None
    equivalent_in: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ChangedBackend:
    """A backend whose operations were changed after they were made."""

    backend: Backend
    change: Callable[[ReferenceOps], ReferenceOps]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The backend's, changed."""
        return self.change(self.backend.ops(device, dtype, precision))


def with_methods(ops: ReferenceOps, **methods: Callable[..., Any]) -> ReferenceOps:
    """A copy of ops, of a subclass with these methods in the place of its own; run as it is, never compiled."""
    changed = copy.copy(ops)
    changed.__class__ = type(type(ops).__name__, (type(ops),), {"compile": ReferenceOps.compile, **methods})
    return changed


def changing_ops(change: Callable[[ReferenceOps], ReferenceOps]) -> Wrap:
    """A subject whose backend's operations go through `change`."""
    return lambda subject: subject.replace(backend=ChangedBackend(subject.backend, change))
