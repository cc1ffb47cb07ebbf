"""What was found out about a half: numbers, and the likely cause and the way out in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.places import WrongRegion
from vaespec_conformance.machine_check.operations import PRODUCTS, WrongOperation

PRECISION = 1e5
"""A float32 result that is off by fewer predicted errors may come from narrow products; TF32 makes 1,700."""
Cause = Literal["overflow", "exception", "precision", "index", "size", "everywhere"]


@dataclass(frozen=True)
class Comparison:
    """A result beside the reference: the relative L2, the used share of the budget, what is wrong, and where.

    Error and share are infinite if nothing could be measured; `problem` then says why.
    """

    error: float
    share: float
    problem: str = ""
    culprit: str = ""
    note: str = ""
    region: WrongRegion | None = None

    @property
    def right(self) -> bool:
        """Whether the result is within the budget."""
        return self.share <= 1


@dataclass(frozen=True)
class Finding:
    """The answer for one half. `right_up_to` and `wrong_from` are sizes in px, None if there is no such size.

    `band_rows` are the rows of the exact bands that were tried on the device, None if none were; `bands_right` is
    whether they were right.
    """

    half: str
    dtype: str
    budget: float
    predicted: float
    overflows: bool
    comparison: Comparison
    right_up_to: int | None = None
    wrong_from: int | None = None
    operation: WrongOperation | None = None
    band_rows: int | None = None
    bands_right: bool | None = None

    @property
    def right(self) -> bool:
        """Whether the half is right at the size that was asked for."""
        return self.comparison.right

    @property
    def error(self) -> float:
        """The relative L2 of the difference."""
        return self.comparison.error

    @property
    def share(self) -> float:
        """The used share of the budget."""
        return self.comparison.share

    @property
    def region(self) -> WrongRegion | None:
        """Where it is wrong: in the first wrong operation if it is known, else in the result."""
        return self.operation.region if self.operation else self.comparison.region

    @property
    def cause(self) -> Cause | None:
        """The likely cause, for programs; None if the half is right."""
        if self.right:
            return None
        if self._not_finite and self.dtype == "float16" and (self.overflows or not self.operation):
            return "overflow"
        if self.comparison.problem.startswith("raised"):
            return "exception"
        if self.precision:
            return "precision"
        if self.region and self.region.kind == "index":
            return "index"
        return "size" if self.right_up_to else "everywhere"

    @property
    def _not_finite(self) -> bool:
        return self.comparison.problem.startswith("NaN or infinity")

    @property
    def precision(self) -> str | None:
        """The class of the float32 products, if they are narrower and nothing else is wrong."""
        if self.right or self.dtype != "float32" or self.comparison.problem or self._has_an_edge:
            return None
        if self.operation is None:
            return "tf32 or bfloat16" if self.comparison.error < PRECISION * self.predicted else None
        found = budgets.product_class(self.operation.error) if self.operation.op in PRODUCTS else None
        return found if found != "float32" else None

    @property
    def _has_an_edge(self) -> bool:
        """Whether zeros, NaN or a part with an edge are wrong, which no rounding causes."""
        region = self.region
        spread = region is None or region.kind in ("everywhere", "scattered", "channels")
        return not spread or (region is not None and region.holds != "other numbers")

    def document(self) -> dict[str, Any]:
        """The finding for JSON."""
        found, op = self.comparison, self.operation
        return {
            "half": self.half,
            "dtype": self.dtype,
            "verdict": "right" if self.right else "wrong",
            "error": _finite(found.error),
            "budget": _finite(self.budget),
            "share": _finite(found.share),
            "problem": found.problem or None,
            "note": found.note or None,
            "where": str(found.region) if found.region else None,
            "right_up_to": self.right_up_to,
            "wrong_from": self.wrong_from,
            "operation": op and {"name": op.op, "layer": op.layer, "shape": list(op.shape), "error": _finite(op.error)},
            "operation_where": str(op.region) if op and op.region else None,
            "cause": self.cause,
            "precision": self.precision,
            "band_rows": self.band_rows,
            "bands_right": self.bands_right,
        }


def _finite(number: float) -> float | None:
    return float(f"{number:.4g}") if math.isfinite(number) else None
