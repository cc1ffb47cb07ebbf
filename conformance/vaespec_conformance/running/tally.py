"""The results of a run in progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vaespec_conformance.reports.report import Failure, Place, Report, Result

PATIENCE = 3
"""After this many checks that did not end, no other is begun."""
PRELIMINARIES = -1
"""The number of the preliminaries among the numbered items of a run."""


class Tally:
    """The results so far, and how many checks did not end."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts
        self.results: list[Result] = []
        self.seconds: dict[str, float] = {}
        self.lost = 0

    @property
    def patient(self) -> bool:
        """Whether another check should be begun."""
        return self.lost < PATIENCE

    def add(self, result: Result, seconds: float) -> None:
        """Adds the result of a check that ended."""
        self.results.append(result)
        self.seconds[result.id] = round(seconds, 3)

    def lose(self, place: Place | None, reason: str) -> None:
        """Counts a check that did not end; `place` is None for the preliminaries."""
        self.lost += 1
        if place is not None:
            self.results.append(unfinished(place, reason))

    def give_up(self, places: Iterable[Place]) -> None:
        """Adds errors for checks that are not begun."""
        reason = f"it was not begun, since {PATIENCE} checks before it did not end."
        self.results += [unfinished(place, reason) for place in places]

    def report(self, places: Iterable[Place]) -> Report:
        """The report, in the order of `places`, whatever the order of the results."""
        results = {result.id: result for result in self.results}
        return Report(self.facts, tuple(results[place.id] for place in places), self.seconds)


def unfinished(place: Place, reason: str) -> Result:
    """The result of a check that did not end, or was not begun."""
    return Result(*place, status="error", failure=Failure(reason))
