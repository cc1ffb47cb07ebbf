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


def predicted_error(model: Layer, x: np.ndarray, weights: Mapping[str, np.ndarray], dtype: str) -> float:
    """‖rounded - exact‖ / ‖exact‖ of model(x), both from x and weights after they are rounded to `dtype`.

    `weights` are canonical. For 16 bits, every result is rounded and sums inside an operation are not, as hardware
    does; the error is the root mean square over the `GRIDS`. For float32, the sums matter most, so the specification
    itself runs in float32. A backend's budget in 16 bits is four times this error.
    """
    x, weights = rounded(x, dtype), {name: rounded(weights[name], dtype) for name, _ in model.parameters()}
    exact = model(x, weights, ReferenceOps(np))
    if dtype == "float32":
        narrow = {name: w.astype(np.float32) for name, w in weights.items()}
        results = [model(x.astype(np.float32), narrow, ReferenceOps(np, dtype))]
    else:
        results = [model(x, weights, RoundingOps(ReferenceOps(np), dtype, grid)) for grid in GRIDS]
    return relative_error(results, exact)


def relative_error(results: Sequence[np.ndarray], exact: np.ndarray) -> float:
    """‖result - exact‖ / ‖exact‖, as a root mean square over the results."""
    squares = [np.square(result.astype(np.float64) - exact).sum() for result in results]
    return float(np.sqrt(np.mean(squares)) / np.linalg.norm(exact))


def rounded(x: np.ndarray, dtype: str, grid: float = 1.0) -> np.ndarray:
    """The nearest numbers to x that `dtype` holds, or that are 1 / `grid` times such a number, as float64."""
    return (x * grid).astype(storage_dtype(dtype)).astype(np.float64) / grid


class RoundingOps(WatchedOps):
    """The ops of the float64 specification, with each result `rounded` to `dtype` on a grid."""

    def __init__(self, ops: ReferenceOps, dtype: str, grid: float = 1.0) -> None:
        super().__init__(ops, lambda _, y: rounded(y, dtype, grid))
