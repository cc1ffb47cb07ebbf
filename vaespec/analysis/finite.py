"""Which layer made the first NaN or infinity? The model, with every result looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from vaespec.analysis.observe import WatchedOps
from vaespec.dtypes import all_finite
from vaespec.layers import Params
from vaespec.ops import Array, Layer
from vaespec.reference import ReferenceOps


def first_nonfinite(model: Layer, x: Array, params: Params, ops: ReferenceOps) -> str | None:
    """The name of the first weight or layer of `model` that is not finite on x, in words; None if all are."""
    for name, _ in model.parameters():
        if not all_finite(params[name]):
            return f"the weight {name}"
    watched = _WatchedParams(params)
    try:
        model(x, watched, WatchedOps(ops, _require_finite))
    except _FoundError as found:
        return f"the {found.op} after reading {watched.last}"
    return None


def _require_finite(op: str, y: Array) -> Array:
    if not all_finite(y):
        raise _FoundError(op)
    return y


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
