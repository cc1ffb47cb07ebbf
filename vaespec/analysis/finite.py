"""Which layer made the first NaN or infinity? The model, with every result looked at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from vaespec.layers import Params
from vaespec.ops import Array, Layer, ReferenceOps
from vaespec.precision import all_finite


def first_nonfinite(model: Layer, x: Array, params: Params, ops: ReferenceOps) -> str | None:
    """The name of the first weight or layer of `model` that is not finite on x, in words; None if all are."""
    for name, _ in model.parameters():
        if not all_finite(params[name]):
            return f"the weight {name}"
    watched = _WatchedParams(params)
    try:
        model(x, watched, _FiniteOps(ops))
    except _FoundError as found:
        return f"the {found.op} after reading {watched.last}"
    return None


class _FoundError(Exception):
    def __init__(self, op: str) -> None:
        self.op = op


class _WatchedParams(Mapping[str, Array]):
    """Remembers the last name that was looked up: the layer at work."""

    def __init__(self, params: Params) -> None:
        self.params = params
        self.last = ""

    def __getitem__(self, name: str) -> Array:
        self.last = name
        return self.params[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.params)

    def __len__(self) -> int:
        return len(self.params)


class _FiniteOps:
    """The ops of a backend, each result checked."""

    def __init__(self, ops: ReferenceOps) -> None:
        self.ops = ops

    def run(self, layer: Layer, x: Array, params: Params) -> Array:
        return layer(x, params, self)

    def __getattr__(self, name: str) -> Callable[..., Array]:
        op = getattr(self.ops, name)

        def checked(*args: Any, **kwargs: Any) -> Array:
            y = op(*args, **kwargs)
            if not all(map(all_finite, y if isinstance(y, tuple) else (y,))):
                raise _FoundError(name)
            return y

        return checked
