"""Checks that a test defines itself, in place of the suite's."""

from __future__ import annotations

from hypothesis import strategies as st

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import cases
from vaespec_conformance.judging.registry import CHECKS, EXACT, Examples, check

NUMBERS = cases(number=st.integers(0, 10**6))


def define(id, run=lambda subject, case, dtype: EXACT, **fields):
    """Registers a check that applies to every subject."""
    fields = {"level": "L1", "cases": NUMBERS, "examples": Examples(3, 6, 12), **fields}
    return check(id, **fields)(run) and CHECKS[id]


def pinned(*numbers):
    return tuple(Case.of(number=number, seed=0) for number in numbers)
