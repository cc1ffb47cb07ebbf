"""Runs one computation on the subject and on the specification, and compares: the body of nearly every check."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from vaespec.analysis.rounding import relative_error
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.registry import EXACT, Margin
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE, roundings

Compute = Callable[[Any, Case, str], np.ndarray]
"""(subject, case, dtype) -> the result. A function of a module, so that the oracle's result can be cached."""


def judge(
    subject: Any,
    compute: Compute,
    case: Case,
    dtype: str,
    *,
    what: str,
    budget: float | np.ndarray | None = None,
    compare: Callable[..., Margin] = within,
    expected: np.ndarray | None = None,
) -> Margin:
    """Compares the subject's result with `expected`, by default the specification's; raises ConformanceError.

    `budget` is by default a model's: a multiple of the error that rounding to the dtype causes in the specification.
    The error carries the evidence from which its likely cause is found.
    """
    actual = compute(subject, case, dtype)
    if subject.recording:
        return EXACT
    if expected is None:
        expected = specified(compute, case, dtype)
    if budget is None:
        budget = budgets.model(dtype, predicted(compute, case, dtype))
    try:
        return compare(actual, expected, budget, what)
    except ConformanceError as error:
        error.evidence = (compute, case, dtype, actual, expected)
        raise


@lru_cache(512)
def specified(compute: Compute, case: Case, dtype: str) -> np.ndarray:
    """The specification's result in float64, from inputs rounded to the dtype."""
    expected = compute(ORACLE, case, dtype)
    expected.flags.writeable = False
    return expected


@lru_cache(512)
def predicted(compute: Compute, case: Case, dtype: str) -> float:
    """The error that rounding to the dtype must cause: the relative L2 of the rounded specification against itself.

    In 16 bits it is the root mean square over several grids, since one rounding alone may be lucky. In float64, the
    dtype of the specification itself, it is 2⁻²⁹ of float32's.
    """
    if dtype == "float64":
        return 2.0**-29 * predicted(compute, case, "float32")
    return relative_error(
        [compute(subject, case, dtype) for subject in roundings(dtype)], specified(compute, case, dtype)
    )
