"""The judge: the specification in float64 on NumPy, and what rounding to a dtype must cost it at least."""

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
from vaespec_conformance.subjects.subjects import Alter, BackendSubject, Capabilities, Subject, unaltered


class OracleBackend:
    """The specification, in float64 whatever dtype is asked for."""

    name = "oracle"
    framework = "numpy"
    dtypes: tuple[str, ...] = ("float64",)

    def devices(self) -> tuple[str, ...]:
        """NumPy's."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """Always the same."""
        return ReferenceOps(np, "float64")


ORACLE = BackendSubject(OracleBackend())


class ReferenceBackend:
    """The specification in the dtypes that NumPy has: a backend like any other, without a kernel of its own."""

    name = "reference"
    framework = "numpy"
    dtypes: tuple[str, ...] = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        """NumPy's."""
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """In that dtype."""
        return ReferenceOps(np, dtype)


@dataclass(frozen=True)
class RoundingSubject(Subject):
    """The least that a dtype costs: each result rounded to 16 bits, or all of it in float32, by the specification."""

    kind = "judge"
    name = "rounding"
    grid: float = 1.0
    alter: Alter = unaltered

    def _make(self, config: AutoencoderConfig, weights: dict[str, np.ndarray], dtype: str) -> Assembled:
        if dtype in ("float32", "float64"):
            return Assembled(config, weights, ReferenceOps(np, dtype))
        return RoundedVae(config, weights, dtype, self.grid)

    @property
    def capabilities(self) -> Capabilities:
        """All dtypes."""
        return Capabilities(("float32", "float64", "bfloat16", "float16"))


class RoundedVae(Assembled):
    """The specification's model, what every operation and every method gives rounded to 16 bits."""

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
    """For 16 bits, one on each grid."""
    return tuple(RoundingSubject(grid=grid) for grid in (GRIDS if dtype in ("float16", "bfloat16") else (1.0,)))
