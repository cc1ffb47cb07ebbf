"""Runs one computation on the subject and on the specification, and compares: the body of nearly every check."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounding_error
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.cache import cached_within
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.judging.registry import EXACT, Margin
from vaespec_conformance.subjects.capabilities import NO_TERMS, Terms
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.oracle import ORACLE, roundings

Compute = Callable[[Any, Case, str], np.ndarray]
"""(subject, case, dtype) -> the result. A function of a module, so that the oracle's result can be cached."""

CACHED = 64 << 20
"""Bytes of the specification's results that are kept: thousands of narrow models', or a few of the largest maps."""
CHANGE = 10
"""Budgets by which the result has to change with the input, so that no constant is within a budget of both."""


def judge(
    subject: Any,
    compute: Compute,
    case: Case,
    dtype: str,
    *,
    what: str,
    budget: float | np.ndarray | None = None,
    compare: Callable[..., Margin] = within,
    expected: Callable[[Terms], np.ndarray] | None = None,
    like: Case | None = None,
) -> Margin:
    """Compares the subject's result with `expected`, by default the specification's; raises ConformanceError.

    `budget` is by default a model's: a multiple of the error that rounding to the dtype causes in the specification;
    `like` is a case with the same error, if it is predicted for another one, which costs less.
    A subject that declares less, such as the mean alone, is compared with the specification of the same terms.
    The error carries the evidence from which its likely cause is found.
    """
    actual = compute(subject, case, dtype)  # first: the subject may not take the case
    if subject.recording:
        return EXACT
    asked = on_terms(compute, subject.terms)
    right = expected(subject.terms) if expected else specified(asked, case, dtype)
    if budget is None:
        budget = budgets.model(dtype, predicted(asked, like or case, dtype))
    try:
        return compare(actual, right, budget, what)
    except ConformanceError as error:
        error.evidence = (asked, case, dtype, actual, right)
        raise


def require_change(subject: Any, compute: Compute, case: Case, dtype: str, *, what: str) -> None:
    """Raises NotSupportedError if a subject's own weights show nothing, since the result is nearly one for any input.

    A port that returned a constant would pass under such weights, of which the last may be zeros.
    """
    if subject.recording or subject.terms.weights is None:
        return
    asked = on_terms(compute, subject.terms)
    first, second = (specified(asked, Case.of(**dict(case.items) | {"seed": case["seed"] + n}), dtype) for n in (0, 1))
    change = float(np.linalg.norm(first - second)) / (float(np.linalg.norm(first)) or 1.0)
    if change < CHANGE * budgets.model(dtype, predicted(asked, case, dtype)):
        reason = f"with its own weights, {what} hardly depends on the input ({change:.2g} of its size changes)"
        raise NotSupportedError(reason, f"{what} with its own weights")


@lru_cache(256)
def on_terms(compute: Compute, terms: Terms) -> Compute:
    """The computation on a subject of the same terms: with the same weights, and without what is not asked."""
    if terms == NO_TERMS:
        return compute
    return lambda subject, case, dtype: compute(subject.replace(terms=terms), case, dtype)


@cached_within(CACHED)
def specified(compute: Compute, case: Case, dtype: str) -> np.ndarray:
    """The specification's result in float64, from inputs rounded to the dtype."""
    expected = compute(ORACLE, case, dtype)
    expected.flags.writeable = False
    return expected


@lru_cache(512)
def predicted(compute: Compute, case: Case, dtype: str) -> float:
    """The error that rounding to the dtype must cause: the relative L2 of the rounded specification against itself.

    In 16 bits it is the root mean square over several grids, since one rounding alone may be lucky. In float64, the
    dtype of the specification itself, it is a share of float32's.
    """
    narrow = "float32" if dtype == "float64" else dtype
    results = [compute(subject, case, narrow) for subject in roundings(narrow)]
    return rounding_error(results, specified(compute, case, narrow), dtype)
