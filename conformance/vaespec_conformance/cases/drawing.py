"""Draws cases with hypothesis, so that the seed alone decides which.

Two habits of hypothesis are switched off: it keeps a database of failures, and it draws constants of the modules that
happen to be imported. The settings hold for one call; the user's own profile of hypothesis is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import SearchStrategy

from vaespec_conformance.cases.cases import Case

SHRINKING = 100
"""Cases tried after a failure, to find a smaller one."""


class SeededProvider(HypothesisProvider):
    """Hypothesis' provider, without the constants of imported modules."""

    def _maybe_draw_constant(self, *args: Any, **kwargs: Any) -> None:
        return None


AVAILABLE_PROVIDERS["vaespec"] = f"{__name__}.{SeededProvider.__qualname__}"


FIXED = settings(
    backend="vaespec",
    database=None,
    deadline=None,
    derandomize=False,
    print_blob=False,
    report_multiple_bugs=False,
    suppress_health_check=[HealthCheck.too_slow],
    verbosity=Verbosity.quiet,
)
"""Settings of every run; each is written out, so that none comes from the user's profile."""


class Enough(BaseException):
    """Ends the search for a smaller case. Hypothesis passes on anything that is no Exception."""


def run_drawn(
    examine: Callable[[Case], None], cases: SearchStrategy[Case], *, examples: int, seed: int, shrink: bool
) -> None:
    """Calls `examine` with `examples` drawn cases, after a failure with smaller ones; raises the last exception."""
    phases = (Phase.generate, *[Phase.shrink] * shrink)
    after_failure = 0

    @hypothesis.seed(seed)
    @settings(FIXED, max_examples=examples, phases=phases)
    @given(cases)
    def run(case: Case) -> None:
        nonlocal after_failure
        after_failure += bool(after_failure)
        if after_failure > SHRINKING:
            raise Enough
        try:
            examine(case)
        except Exception:
            after_failure = after_failure or 1
            raise

    with suppress(Enough):
        run()


def draw(cases: SearchStrategy[Case], *, examples: int, seed: int) -> list[Case]:
    """The cases that `run_drawn` calls with if none fails."""
    drawn: list[Case] = []
    run_drawn(drawn.append, cases, examples=examples, seed=seed, shrink=False)
    return drawn


def require_alike(case: Case, cases: SearchStrategy[Case]) -> None:
    """Raises ValueError unless the case has the fields of a drawn one, with values of their types."""
    drawn: list[Case] = []
    run_drawn(drawn.append, cases, examples=1, seed=0, shrink=False)
    expected, given = (dict(one.items) for one in (drawn[0], case))
    if given.keys() != expected.keys():
        raise ValueError(f"it has the fields {sorted(given)}, the check's cases have {sorted(expected)}: give those.")
    for name, value in expected.items():
        if type(given[name]) is not type(value) or not _types(given[name]) <= _types(value):
            raise ValueError(f"its {name} is {given[name]!r:.80}, a case has values such as {value!r}: give one.")


def _types(value: object) -> set[type]:
    """The type of a value, and of all that is in a tuple."""
    return {type(value)}.union(*map(_types, value)) if isinstance(value, tuple) else {type(value)}
