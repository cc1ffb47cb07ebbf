"""How exact can a dtype be? Runs the model with every result rounded to it: the error budget of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vaespec.analysis.observe import WatchedOps
from vaespec.dtypes import storage_dtype
from vaespec.ops import Layer
from vaespec.reference import ReferenceOps

GRIDS = (1.0, 7 / 8, 3 / 4)
"""Factors that numbers are scaled by before they are rounded: samples of the same rounding error.

A single sample can be three times too small, for example if a softmax decides between two nearly equal keys.
"""

FLOAT64_TO_FLOAT32 = 2.0**-29
"""The rounding of float64, relative to that of float32."""


def predicted_error(model: Layer, x: np.ndarray, weights: Mapping[str, np.ndarray], dtype: str) -> float:
    """‖rounded - exact‖ / ‖exact‖ of model(x), both from x and weights after they are rounded to `dtype`.

    `weights` are canonical. For 16 bits, every result is rounded and sums inside an operation are not, as hardware
    does; the error is the root mean square over the `GRIDS`. For float32, the sums matter most, so the specification
    itself runs in float32; float64's error is 2⁻²⁹ of that. A backend's budget in 16 bits is four times this error.
    """
    x, weights = rounded(x, dtype), {name: rounded(weights[name], dtype) for name, _ in model.parameters()}
    exact = model(x, weights, ReferenceOps(np))
    results = [
        model(x.astype(kind), {name: w.astype(kind) for name, w in weights.items()}, ops)
        for ops, kind in rounding_ops(dtype)
    ]
    return rounding_error(results, exact, dtype)


def rounding_ops(dtype: str) -> tuple[tuple[ReferenceOps | RoundingOps, type[np.floating]], ...]:
    """(ops, dtype of their arrays) of the runs whose errors `rounding_error` takes: RoundingOps for 16 bits.

    float32 is computed as such, and stands for float64, in which the specification itself is computed.
    """
    if dtype in ("float32", "float64"):
        return ((ReferenceOps(np, "float32"), np.float32),)
    return tuple((RoundingOps(ReferenceOps(np), dtype, grid), np.float64) for grid in GRIDS)


def rounding_error(results: Sequence[np.ndarray], exact: np.ndarray, dtype: str) -> float:
    """‖result - exact‖ / ‖exact‖ in `dtype`, as a root mean square over the results of the `rounding_ops`."""
    squares = [np.square(result.astype(np.float64) - exact).sum() for result in results]
    error = float(np.sqrt(np.mean(squares)) / np.linalg.norm(exact))
    return error * FLOAT64_TO_FLOAT32 if dtype == "float64" else error


def rounded(x: np.ndarray, dtype: str, grid: float = 1.0) -> np.ndarray:
    """The nearest numbers to x that `dtype` holds, or that are 1 / `grid` times such a number, as float64."""
    return (x * grid).astype(storage_dtype(dtype)).astype(np.float64) / grid


class RoundingOps(WatchedOps):
    """The ops of the float64 specification, with each result `rounded` to `dtype` on a grid."""

    def __init__(self, ops: ReferenceOps, dtype: str, grid: float = 1.0) -> None:
        super().__init__(ops, lambda _, y: rounded(y, dtype, grid))
