"""The results of a run while it goes on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vaespec_conformance.reports.report import Failure, Place, Report, Result

PATIENCE = 3
"""After so many checks that did not end, the others are not begun."""
BEFORE = -1
"""Stands for the preliminaries where the items of a run are numbered."""


class Tally:
    """What has been found so far, and how often a check did not end."""

    def __init__(self, about: dict[str, Any]) -> None:
        self.about = about
        self.results: list[Result] = []
        self.seconds: dict[str, float] = {}
        self.lost = 0

    @property
    def patient(self) -> bool:
        """Whether another check should be begun."""
        return self.lost < PATIENCE

    def add(self, result: Result, seconds: float) -> None:
        """A check that ended."""
        self.results.append(result)
        self.seconds[result.id] = round(seconds, 3)

    def lose(self, place: Place | None, why: str) -> None:
        """A check that did not end; None for the preliminaries."""
        self.lost += 1
        if place is not None:
            self.results.append(unfinished(place, why))

    def give_up(self, places: Iterable[Place]) -> None:
        """Those that are not begun."""
        why = f"it was not begun, since {PATIENCE} checks before it did not end."
        self.results += [unfinished(place, why) for place in places]

    def report(self, places: Iterable[Place]) -> Report:
        """All of it, in the order of the run's places, in whatever order it came."""
        results = {result.id: result for result in self.results}
        return Report(self.about, tuple(results[place.id] for place in places), self.seconds)


def unfinished(place: Place, why: str) -> Result:
    """The result of a check that did not end, or was not begun."""
    return Result(*place, status="error", failure=Failure(why))
