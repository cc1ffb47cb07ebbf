"""The likely cause of a failure: the known mistake whose float64 result is nearest to the subject's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.mutants import MUTANTS
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE

NEAR = 0.25
"""A mistake is a likely cause if the result is four times nearer to it than to the specification."""


def likely(error: ConformanceError) -> str | None:
    """The likely cause as a sentence; None if no known mistake comes near, or nothing was computed."""
    if error.evidence is None:
        return None
    compute, case, dtype, actual, expected = error.evidence
    nearest, cause = NEAR * _distance(actual, expected, expected), None
    for mutant in MUTANTS.values():
        distance = _distance(actual, _mistaken(mutant.wrap(ORACLE), compute, case, dtype), expected)
        if distance < nearest:
            nearest, cause = distance, mutant.cause
    return cause


def _mistaken(subject: Any, compute: Callable[..., np.ndarray], case: Case, dtype: str) -> np.ndarray | None:
    """The result of the specification with a mistake; None if the mistake stops it."""
    try:
        with np.errstate(all="ignore"):
            return compute(subject, case, dtype)
    except Exception:  # a mistake that stops the specification is not the cause of a wrong result
        return None


def _distance(actual: np.ndarray, other: np.ndarray | None, expected: np.ndarray) -> float:
    """The distance of the finite numbers, relative to the expected result; inf if other numbers are finite."""
    finite = np.isfinite(actual.astype(np.float64))
    if other is None or actual.shape != other.shape or not np.array_equal(np.isfinite(other), finite):
        return float("inf")
    return float(np.linalg.norm((actual.astype(np.float64) - other)[finite]) / np.linalg.norm(expected))
