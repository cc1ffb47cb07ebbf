"""The results of a run in progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from vaespec_conformance.reports.report import BAD, Report
from vaespec_conformance.reports.result import Failure, Place, Result

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
        self.printed: dict[str, str] = {}
        self.lost = 0

    @property
    def patient(self) -> bool:
        """Whether another check should be begun."""
        return self.lost < PATIENCE

    def add(self, result: Result, seconds: float, printed: str = "") -> None:
        """Adds the result of a check that ended, and what the subject printed if it did not pass."""
        self.results.append(result)
        if printed and result.status in BAD:
            self.printed[result.id] = printed
        self.seconds[result.id] = round(seconds, 3)

    def lose(self, place: Place | None, reason: str, printed: str = "") -> None:
        """Counts a check that did not end; `place` is None for the preliminaries."""
        self.lost += 1
        if place is not None:
            if printed:
                self.printed[place.id] = printed
            self.results.append(unfinished(place, reason))

    def lose_probe(self, place: Place, lacking: str) -> None:
        """Adds a probe that did not end: what is not claimed counts for nothing."""
        self.results.append(probed(place, lacking, works=False))

    def skip_probe(self, place: Place, lacking: str) -> None:
        """Adds a probe that is not begun, since another one in its dtype did not end."""
        self.results.append(probed(place, lacking, works=None))

    def give_up(self, places: Iterable[Place]) -> None:
        """Adds errors for checks that are not begun."""
        reason = f"it was not begun, since {PATIENCE} checks before it did not end."
        self.results += [unfinished(place, reason) for place in places]

    def report(self, places: Iterable[Place]) -> Report:
        """The report, in the order of `places`, whatever the order of the results."""
        results = {result.id: result for result in self.results}
        return Report(self.facts, tuple(results[place.id] for place in places), self.seconds, self.printed)


def hung(limit: float) -> str:
    """Says that a check did not end within `limit` seconds."""
    return f"it did not end within {limit:g} s; --time-limit gives it more."


def probed(place: Place, lacking: str, *, works: bool | None) -> Result:
    """The result of a probe that did not end or was not begun."""
    return Result(*place, status="undeclared", reason=lacking, works=works)


def unfinished(place: Place, reason: str) -> Result:
    """The result of a check that did not end, or was not begun."""
    return Result(*place, status="error", failure=Failure(reason))
