"""How exact can a dtype be? The model, with every result rounded to it: the error budget of a backend."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaespec.analysis.watched import WatchedOps
from vaespec.ops import Layer, ReferenceOps
from vaespec.parameters import storage_dtype


def predicted_error(model: Layer, x: np.ndarray, weights: Mapping[str, np.ndarray], dtype: str) -> float:
    """‖rounded - exact‖ / ‖exact‖ of model(x), both from the same x and weights, which `dtype` holds exactly.

    `weights` are canonical. For 16 bits every result is rounded, sums inside an operation are not: that is what
    hardware does. For float32 the sums are what matters, so the specification itself runs in float32. A correct
    backend is within 0.8 to 3.1 times of this; four times is the budget.
    """
    x, weights = rounded(x, dtype), {name: rounded(weights[name], dtype) for name, _ in model.parameters()}
    exact = model(x, weights, ReferenceOps(np))
    if dtype == "float32":
        narrow = {name: w.astype(np.float32) for name, w in weights.items()}
        actual = model(x.astype(np.float32), narrow, ReferenceOps(np, dtype))
    else:
        actual = model(x, weights, RoundingOps(ReferenceOps(np), dtype))
    return float(np.linalg.norm(actual - exact) / np.linalg.norm(exact))


def rounded(x: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest numbers that `dtype` holds, as float64."""
    return x.astype(storage_dtype(dtype)).astype(np.float64)


class RoundingOps(WatchedOps):
    """The float64 specification on NumPy, each result rounded to `dtype`."""

    def __init__(self, ops: ReferenceOps, dtype: str) -> None:
        super().__init__(ops, lambda _, y: rounded(y, dtype))
