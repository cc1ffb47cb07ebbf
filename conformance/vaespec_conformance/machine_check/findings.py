"""What was found out about a half: numbers, and the likely cause and the way out in words."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from vaespec_conformance.machine_check.operations import PRODUCTS, WrongOperation
from vaespec_conformance.machine_check.places import EVERYWHERE, NAN, Place

CLASSES = {"TF32": 1.5e-3, "bfloat16": 1.2e-2}
"""The class of products of float32 -> the greatest relative L2 of a sum of them, as in the suite's preliminaries."""
PRECISION = 1e5
"""A float32 result that is off by fewer predicted errors may come from narrow products; TF32 makes 1,700."""


@dataclass(frozen=True)
class Comparison:
    """A result beside the reference: the relative L2, the used share of the budget, what is wrong, and where.

    Error and share are infinite if nothing could be measured; `problem` then says why. `peak` is where an error that
    is everywhere is largest.
    """

    error: float
    share: float
    problem: str = ""
    culprit: str = ""
    note: str = ""
    place: Place | None = None
    peak: Place | None = None

    @property
    def right(self) -> bool:
        """Whether the result is within the budget."""
        return self.share <= 1


@dataclass(frozen=True)
class Finding:
    """The answer for one half. `right_up_to` and `wrong_from` are sizes in px, None if there is no such size.

    `bands_rows` are the rows of the exact bands that were tried on the device, None if none were; `bands_right` is
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
    def place(self) -> Place | None:
        """Where it is wrong: in the first wrong operation if it is known, else in the result."""
        return self.operation.place if self.operation else self.comparison.place

    @property
    def cause(self) -> str | None:
        """A word for the likely cause, for programs: one of CAUSES; None if the half is right."""
        if self.right:
            return None
        if (
            self.comparison.problem.startswith(NAN)
            and self.dtype == "float16"
            and (self.overflows or not self.operation)
        ):
            return "overflow"
        if self.comparison.problem.startswith("raised"):
            return "exception"
        if self.precision:
            return "precision"
        if self.place and self.place.kind == "index":
            return "index"
        return "size" if self.right_up_to else "everywhere"

    @property
    def precision(self) -> str | None:
        """The class of the float32 products, if they are narrower and nothing else is wrong."""
        if (
            self.right
            or self.dtype != "float32"
            or (self.place and self.place.words != EVERYWHERE)
            or self.comparison.problem
        ):
            return None
        if self.operation is None:
            return "TF32 or bfloat16" if self.comparison.error < PRECISION * self.predicted else None
        if self.operation.op not in PRODUCTS:
            return None
        return next((name for name, most in CLASSES.items() if self.operation.error <= most), None)

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
            "where": found.place.words if found.place else None,
            "most_of_all": found.peak.words if found.peak else None,
            "right_up_to": self.right_up_to,
            "wrong_from": self.wrong_from,
            "operation": op and {"name": op.op, "layer": op.layer, "shape": list(op.shape), "error": _finite(op.error)},
            "operation_where": op.place.words if op and op.place else None,
            "cause": self.cause,
            "precision": self.precision,
            "band_rows": self.band_rows,
            "bands_right": self.bands_right,
        }


CAUSES = ("overflow", "exception", "precision", "index", "size", "everywhere")


def _finite(number: float) -> float | None:
    return float(f"{number:.4g}") if math.isfinite(number) else None
