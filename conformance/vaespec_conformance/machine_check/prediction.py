"""The budget: the error that rounding must cause on these weights, predicted by the specification on a small crop."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from vaespec.analysis.rounding import rounded, rounding_error, rounding_ops
from vaespec.architecture import Half
from vaespec.config import AutoencoderConfig
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging import budgets

CROP = 64
"""The side of the crop in px: seconds in float64 at full width."""


class RoundedWeights(Mapping[str, np.ndarray]):
    """Canonical weights after they are rounded to `dtype`, as `wide` numbers. Each is read when it is needed."""

    def __init__(self, weights: Mapping[str, np.ndarray], dtype: str, wide: str) -> None:
        self.weights, self.dtype, self.wide = weights, dtype, wide

    def __getitem__(self, name: str) -> np.ndarray:
        stored = self.weights[name]
        if np.issubdtype(stored.dtype, np.integer):  # a counter
            return stored
        return rounded(stored, self.dtype).astype(self.wide, copy=False)

    def __contains__(self, name: object) -> bool:
        return name in self.weights

    def __iter__(self) -> Iterator[str]:
        return iter(self.weights)

    def __len__(self) -> int:
        return len(self.weights)


@dataclass(frozen=True)
class Prediction:
    """The specification's result on the crop, and the relative error of rounding; NaN or infinity if it overflows."""

    exact: np.ndarray
    error: float
    dtype: str

    @property
    def overflows(self) -> bool:
        """Whether the dtype cannot hold the model's maps, on any machine."""
        return not math.isfinite(self.error)

    @property
    def budget(self) -> float:
        """The greatest relative error of a right machine: the conformance suite's budget of a model."""
        return budgets.model(self.dtype, 0.0 if self.overflows else self.error)


def specified(
    half: Half, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], x: np.ndarray, dtype: str
) -> np.ndarray:
    """The specification's result in float64, from x and weights that are rounded to the dtype."""
    wide = RoundedWeights(weights, dtype, "float64")
    exact: np.ndarray = half.build(config)(rounded(x, dtype), wide, ReferenceOps(np))
    return exact


def predict(
    half: Half, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], x: np.ndarray, dtype: str
) -> Prediction:
    """Runs a half on a crop x in float64, and again with the rounding of the dtype: see vaespec.analysis.rounding."""
    layers, exact = half.build(config), specified(half, config, weights, x, dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        results = [
            layers(rounded(x, dtype).astype(kind), RoundedWeights(weights, dtype, np.dtype(kind).name), ops)
            for ops, kind in rounding_ops(dtype)
        ]
        return Prediction(exact, rounding_error(results, exact, dtype), dtype)
