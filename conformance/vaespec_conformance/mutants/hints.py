"""The likely cause of a failure: the known mistake whose float64 result is nearest to the subject's result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.cache import cached_within
from vaespec_conformance.judging.judge import Compute, predicted, specified
from vaespec_conformance.mutants import MUTANTS
from vaespec_conformance.mutants.mutant import Mutant
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE

NEAR = 0.25
"""A mistake is a likely cause if the result is four times nearer to it than to the specification."""
NEARLY_EQUAL = 0.01
"""A mistake that was found before the time was over has to be so much nearer; two such mistakes are the same."""
SAME_SHAPE = 0.05
"""If the result has another shape than the specification's, the relative distance to a mistake of that shape."""
TIED = 1.5
"""Two mistakes are equally likely if the distance to one is at most so many times the distance to the other."""
SEEN = 1e-3
"""A mistake that changes a result by less may have passed a case."""
STORED = 8
"""The greatest budget of an operation in 16 bits, in eps: attention's; see `budgets.attention`."""
KEPT = 32 << 20
"""Bytes of the results of mistakes that are kept: the failures of a check are compared with the same passed cases."""
OR = " Or: "
"""Between causes that a case cannot tell apart."""
FAR = "Only maps whose mean is far from 0 are wrong: is the variance computed in one pass, as E[x²] - E[x]²?"
TURNED = {
    (0, 1, 3, 2): "The result has its height and width exchanged.",
    (0, 2, 3, 1): "The result is (B, H, W, C), not (B, C, H, W).",
}


def likely(error: ConformanceError, passed: Sequence[Case] = (), seconds: float = float("inf")) -> str | None:
    """The likely cause as a sentence; None if no known mistake comes near, or nothing was computed.

    If several come near alike, all are named if the case gives the same numbers for them, and none otherwise.
    `passed` are cases that the same check passed: they refute mistakes that would have failed them. The search ends
    after some `seconds`, and then names only a mistake whose result is nearly the same.
    """
    if error.evidence is None:
        return None
    compute, case, dtype, actual, expected = error.evidence
    end = time.monotonic() + seconds
    mutants = _nearest(_near(error.evidence, end), compute, passed[:4], dtype, end)
    if mutants:
        causes = dict.fromkeys(mutant.cause for mutant in mutants)
        return OR.join(causes) if len(causes) == 1 or _alike(mutants, error.evidence) else None
    if actual.shape != expected.shape:
        return _turned(actual, expected)
    return FAR if dtype in models.FAR_IN and _only_far(case, passed) else None


def _only_far(case: Case, passed: Sequence[Case]) -> bool:
    """Whether a case of the regime "far" failed, and one of the same config passed that is plain."""
    kinds = [(kind.get("config"), kind.get("regime")) for kind in (dict(other.items) for other in (case, *passed))]
    return kinds[0][1] == "far" and (kinds[0][0], "plain") in kinds[1:]


def explains(cause: str, error: ConformanceError) -> bool:
    """Whether a likely cause that was found in another case gives the numbers of this failure too."""
    if error.evidence is None:
        return False
    compute, case, dtype, actual, expected = error.evidence
    limit = _limit(actual, expected)
    mutants = (mutant for mutant in MUTANTS.values() if mutant.cause in cause.split(OR))
    return any(_distance(actual, _mistaken(mutant.name, compute, case, dtype), expected) < limit for mutant in mutants)


def _near(evidence: tuple[Any, ...], end: float) -> list[tuple[float, Mutant]]:
    """The mistakes that come near, nearest first; fewer and nearer ones if the time is over."""
    compute, case, dtype, actual, expected = evidence
    limit = _limit(actual, expected)
    found: list[tuple[float, Mutant]] = []
    for mutant in MUTANTS.values():
        if time.monotonic() > end:
            found = [near for near in found if near[0] < limit * NEARLY_EQUAL]
            break
        distance = _distance(actual, _mistaken(mutant.name, compute, case, dtype), expected)
        if distance < limit:
            found.append((distance, mutant))
    return sorted(found, key=lambda near: near[0])


def _limit(actual: np.ndarray, expected: np.ndarray) -> float:
    """How far from a result the numbers of its cause may be."""
    right = _distance(actual, expected, expected)
    return NEAR * right if np.isfinite(right) or actual.shape == expected.shape else SAME_SHAPE


def _nearest(
    near: list[tuple[float, Mutant]], compute: Compute, passed: Sequence[Case], dtype: str, end: float
) -> list[Mutant]:
    """The mistakes that are nearest among those that no passed case refutes: more than one if they are tied."""
    kept = [
        (distance, mutant) for distance, mutant in near if not any(_refutations(mutant, compute, passed, dtype, end))
    ]
    return [mutant for distance, mutant in kept if distance <= TIED * kept[0][0] + 1e-12]


def _alike(mutants: Sequence[Mutant], evidence: tuple[Any, ...]) -> bool:
    """Whether mistakes give the same numbers in a case, which then cannot tell them apart."""
    compute, case, dtype, actual, expected = evidence
    first, *others = (_mistaken(mutant.name, compute, case, dtype) for mutant in mutants)
    limit = NEARLY_EQUAL * min(1.0, _distance(actual, expected, expected))
    return all(_distance(first, other, expected) < limit for other in others)


def _refutations(mutant: Mutant, compute: Compute, passed: Sequence[Case], dtype: str, end: float) -> Iterator[bool]:
    """For each passed case, whether the mistake would have failed it: it changes the result by more than the budget."""
    for case in passed:
        if time.monotonic() < end:
            right = specified(compute, case, dtype)
            budget = _budget(compute, case, dtype)
            yield _distance(right, _mistaken(mutant.name, compute, case, dtype), right) > budget


def _budget(compute: Compute, case: Case, dtype: str) -> float:
    """The change that a passed case shows: for one with a config, which is of a whole model, the model's budget."""
    of_model = "config" in dict(case.items)
    return max(SEEN, budgets.model(dtype, predicted(compute, case, dtype)) if of_model else STORED * budgets.EPS[dtype])


def _turned(actual: np.ndarray, expected: np.ndarray) -> str | None:
    """Says if a result has the right axes in another order."""
    if actual.ndim != 4 or expected.ndim != 4:
        return None
    return next((text for axes, text in TURNED.items() if actual.shape == expected.transpose(axes).shape), None)


@cached_within(KEPT)
def _mistaken(name: str, compute: Compute, case: Case, dtype: str) -> np.ndarray:
    """The result of the specification with a mistake; no numbers if the mistake stops it."""
    try:
        with np.errstate(all="ignore"):
            return np.array(
                compute(MUTANTS[name].wrap(ORACLE), case, dtype)
            )  # a copy: some mistakes reuse their result
    except Exception:  # a mistake that stops the specification is not the cause of a wrong result
        return np.empty(0)


def _distance(actual: np.ndarray, other: np.ndarray, expected: np.ndarray) -> float:
    """The distance of the finite numbers, relative to the expected result; inf if other numbers are finite."""
    finite = np.isfinite(actual.astype(np.float64))
    if actual.shape != other.shape or not np.array_equal(np.isfinite(other), finite):
        return float("inf")
    return float(np.linalg.norm((actual.astype(np.float64) - other)[finite]) / np.linalg.norm(expected))
