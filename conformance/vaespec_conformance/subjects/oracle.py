"""The oracle: the specification in float64 on NumPy; and the error that rounding to a dtype must cause."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.analysis.rounding import GRIDS, RoundingOps, rounded
from vaespec.ops import Array, Layer
from vaespec.reference import ReferenceOps
from vaespec_conformance.subjects.assembly import Assembled
from vaespec_conformance.subjects.capabilities import NO_TERMS, Capabilities, Terms
from vaespec_conformance.subjects.subjects import Alter, BackendSubject, Subject, unaltered


class OracleBackend:
    """The specification in float64, whatever dtype is requested."""

    name = "oracle"
    framework = "numpy"
    dtypes: tuple[str, ...] = ("float64",)

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """Reference operations in float64."""
        return ReferenceOps(np, "float64")


ORACLE = BackendSubject(OracleBackend())


class ReferenceBackend:
    """The specification in NumPy's dtypes: a backend without a kernel of its own."""

    name = "reference"
    framework = "numpy"
    dtypes: tuple[str, ...] = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        """The CPU."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """Reference operations in the dtype."""
        return ReferenceOps(np, dtype)


@dataclass(frozen=True)
class RoundingSubject(Subject):
    """The specification with the least error of a dtype: each result rounded to 16 bits, or computed in float32."""

    kind = "judge"
    name = "rounding"
    grid: float = 1.0
    alter: Alter = unaltered
    terms: Terms = NO_TERMS

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Assembled:
        if dtype in ("float32", "float64"):
            return Assembled(config, weights, ReferenceOps(np, dtype))
        return RoundedVae(config, weights, dtype, self.grid)

    @property
    def capabilities(self) -> Capabilities:
        """Every dtype."""
        return Capabilities(("float32", "float64", "bfloat16", "float16"))


class RoundedVae(Assembled):
    """The specification's model, with the result of every operation and method rounded to 16 bits."""

    def __init__(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str, grid: float) -> None:
        super().__init__(config, weights, ReferenceOps(np, "float64"), self._rounding)
        self.dtype, self.grid = dtype, grid

    def _rounding(self, model: Layer) -> Callable[[Array, Any], Array]:
        return partial(_run, model, RoundingOps(self.ops, self.dtype, self.grid))

    def _out(self, x: Array) -> np.ndarray:
        return rounded(x, self.dtype, self.grid)


def _run(model: Layer, ops: Any, x: Array, params: Any) -> Array:
    return model(x, params, ops)


def roundings(dtype: str) -> tuple[RoundingSubject, ...]:
    """The subjects that predict the error of a dtype: in 16 bits, one for each rounding grid."""
    return tuple(RoundingSubject(grid=grid) for grid in (GRIDS if dtype in ("float16", "bfloat16") else (1.0,)))
