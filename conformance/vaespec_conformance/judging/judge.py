"""A computation, by the subject and by the specification: what nearly every check comes to."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from vaespec.analysis.rounding import relative_error
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.registry import Margin
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE, roundings

Compute = Callable[[Any, Case, str], np.ndarray]
"""(subject, case, dtype) -> what it computes. A function of a module, so that the oracle's result can be kept."""


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
    """The subject's result against what is `expected`, the specification's; ConformanceError tells the likely cause.

    `budget` is by default that of a model: what rounding to the dtype costs the specification, and some.
    """
    if expected is None:
        expected = specified(compute, case, dtype)
    if budget is None:
        budget = budgets.model(dtype, predicted(compute, case, dtype))
    actual = compute(subject, case, dtype)
    try:
        return compare(actual, expected, budget, what)
    except ConformanceError as error:
        error.evidence = (compute, case, dtype, actual, expected)
        raise


@lru_cache(512)
def specified(compute: Compute, case: Case, dtype: str) -> np.ndarray:
    """What the specification computes in float64, of inputs that the dtype holds."""
    expected = compute(ORACLE, case, dtype)
    expected.flags.writeable = False
    return expected


@lru_cache(512)
def predicted(compute: Compute, case: Case, dtype: str) -> float:
    """What rounding to the dtype must cost: the relative L2 of the specification, rounded, against itself.

    In 16 bits the root mean square over several grids, since one rounding alone may be lucky.

    That of float64, in which the specification is, is 2⁻²⁹ of float32's.
    """
    if dtype == "float64":
        return 2.0**-29 * predicted(compute, case, "float32")
    return relative_error(
        [compute(subject, case, dtype) for subject in roundings(dtype)], specified(compute, case, dtype)
    )
