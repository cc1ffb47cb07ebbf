"""How exact can a dtype be? The model, with every result rounded to it: the error budget of a backend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from vaespec.analysis.observe import WatchedOps
from vaespec.dtypes import storage_dtype
from vaespec.ops import Layer
from vaespec.reference import ReferenceOps

GRIDS = (1.0, 7 / 8, 3 / 4)
"""What is rounded is first scaled by this: roundings that have nothing in common but their size.

One alone may be three times luckier than the others, where a softmax decides between two keys that are as good.
"""


def predicted_error(model: Layer, x: np.ndarray, weights: Mapping[str, np.ndarray], dtype: str) -> float:
    """‖rounded - exact‖ / ‖exact‖ of model(x), both from the same x and weights, which `dtype` holds exactly.

    `weights` are canonical. For 16 bits every result is rounded, sums inside an operation are not: that is what
    hardware does; the error is the root mean square of that on each of the `GRIDS`. For float32 the sums are what
    matters, so the specification itself runs in float32. Four times this is a backend's budget in 16 bits.
    """
    x, weights = rounded(x, dtype), {name: rounded(weights[name], dtype) for name, _ in model.parameters()}
    exact = model(x, weights, ReferenceOps(np))
    if dtype == "float32":
        narrow = {name: w.astype(np.float32) for name, w in weights.items()}
        found = [model(x.astype(np.float32), narrow, ReferenceOps(np, dtype))]
    else:
        found = [model(x, weights, RoundingOps(ReferenceOps(np), dtype, grid)) for grid in GRIDS]
    return relative_error(found, exact)


def relative_error(found: Sequence[np.ndarray], exact: np.ndarray) -> float:
    """‖found - exact‖ / ‖exact‖, the root of its mean square over several."""
    squares = [np.square(each.astype(np.float64) - exact).sum() for each in found]
    return float(np.sqrt(np.mean(squares)) / np.linalg.norm(exact))


def rounded(x: np.ndarray, dtype: str, grid: float = 1.0) -> np.ndarray:
    """The nearest numbers that `dtype` holds, or those of their multiples by 1 / `grid`, as float64."""
    return (x * grid).astype(storage_dtype(dtype)).astype(np.float64) / grid


class RoundingOps(WatchedOps):
    """The float64 specification on NumPy, each result rounded to `dtype`, on a grid of its numbers times 1 / `grid`."""

    def __init__(self, ops: ReferenceOps, dtype: str, grid: float = 1.0) -> None:
        super().__init__(ops, lambda _, y: rounded(y, dtype, grid))
