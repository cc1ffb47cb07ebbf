"""Which layer computed the first NaN or infinity? Runs the model and checks every result."""

from __future__ import annotations

from vaespec.analysis.observe import WatchedOps, WatchedParams
from vaespec.dtypes import all_finite
from vaespec.layers import Params
from vaespec.ops import Array, Layer
from vaespec.reference import ReferenceOps


def first_nonfinite(model: Layer, x: Array, params: Params, ops: ReferenceOps) -> str | None:
    """The first weight or result that is not finite when `model` runs on x, in words; None if all are finite."""
    for name, _ in model.parameters():
        if not all_finite(params[name]):
            return f"the weight {name}"
    watched = WatchedParams(params)
    try:
        model(x, watched, WatchedOps(ops, _require_finite))
    except _NonFiniteResultError as error:
        return f"the {error} after reading {watched.last}"
    return None


def _require_finite(op: str, y: Array) -> Array:
    if not all_finite(y):
        raise _NonFiniteResultError(op)
    return y


class _NonFiniteResultError(Exception):
    """Carries the name of the operation."""
