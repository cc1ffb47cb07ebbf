"""Cases drawn by hypothesis, and nothing but the seed decides which.

Two habits of hypothesis would: it keeps a database of failures, and it draws the constants of whatever modules happen
to be imported. The settings are those of one call; a host's profile of hypothesis is neither read nor changed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider
from hypothesis.strategies import SearchStrategy

from vaespec_conformance.cases.cases import Case

SHRINKING = 100
"""Cases that are tried after a failure, to find a smaller one."""


class SeededProvider(HypothesisProvider):
    """Hypothesis' own, without the constants of imported modules."""

    def _maybe_draw_constant(self, *args: Any, **kwargs: Any) -> None:
        return None


AVAILABLE_PROVIDERS["vaespec"] = f"{__name__}.{SeededProvider.__qualname__}"


class Enough(BaseException):
    """Ends the search for a smaller case. Hypothesis lets pass what is no Exception."""


def run_drawn(
    examine: Callable[[Case], None],
    cases: SearchStrategy[Case],
    *,
    examples: int,
    seed: int,
    shrink: bool,
) -> None:
    """Call `examine` with that many cases, and after a failure with smaller ones; raises what it raised last."""
    phases = (Phase.generate, *[Phase.shrink] * shrink)
    after = 0

    @hypothesis.seed(seed)
    @settings(
        max_examples=examples,
        phases=phases,
        backend="vaespec",
        database=None,
        deadline=None,
        derandomize=False,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
        verbosity=Verbosity.quiet,
    )
    @given(cases)
    def run(case: Case) -> None:
        nonlocal after
        after += bool(after)
        if after > SHRINKING:
            raise Enough
        try:
            examine(case)
        except Exception:
            after = after or 1
            raise

    try:
        run()
    except Enough:
        return
