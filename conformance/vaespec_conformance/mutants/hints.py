"""The likely cause of a failure: the known mistake whose result, in float64, is nearest to what the subject gave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.mutants import MUTANTS
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE

NEAR = 0.25
"""A mistake is named where the result is four times nearer to it than to the specification."""


def likely(error: ConformanceError) -> str | None:
    """The likely cause in words; None if no known mistake comes near, or nothing was computed."""
    if error.evidence is None:
        return None
    compute, case, dtype, actual, expected = error.evidence
    best, cause = NEAR * _distance(actual, expected, expected), None
    for mutant in MUTANTS.values():
        distance = _distance(actual, _mistaken(mutant.wrap(ORACLE), compute, case, dtype), expected)
        if distance < best:
            best, cause = distance, mutant.cause
    return cause


def _mistaken(subject: Any, compute: Callable[..., np.ndarray], case: Case, dtype: str) -> np.ndarray | None:
    """What the specification with that mistake gives; None where it gives nothing."""
    try:
        with np.errstate(all="ignore"):
            return compute(subject, case, dtype)
    except Exception:  # many mistakes stop the specification, and so are not what was seen
        return None


def _distance(actual: np.ndarray, other: np.ndarray | None, expected: np.ndarray) -> float:
    """Of what is finite, relative to the size of what was expected; infinite where not the same numbers are."""
    finite = np.isfinite(actual.astype(np.float64))
    if other is None or actual.shape != other.shape or not np.array_equal(np.isfinite(other), finite):
        return float("inf")
    return float(np.linalg.norm((actual.astype(np.float64) - other)[finite]) / np.linalg.norm(expected))
