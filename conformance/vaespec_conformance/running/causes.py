"""Groups the failures of a check by cause, so that one does not hide another."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.mutants import hints
from vaespec_conformance.subjects.errors import ConformanceError

SEARCHED = 6
"""Failures of one check whose likely cause is searched; each search computes the known mistakes."""
SECONDS = 20.0
"""Seconds for all searches of one check, of which even the quick profile lets one take a minute."""

NOT_SEARCHED = "not searched"


@dataclass
class Cause:
    """A cause: its first case and error, the likely mistake, and how many cases failed of it.

    `searched` is False for cases whose likely mistake was not searched: too many were, or the time was up.
    """

    case: Case | None
    error: Exception
    hint: str | None
    count: int = 1
    searched: bool = True


def causes(failures: Sequence[tuple[Case | None, Exception]], passed: Sequence[Case] = ()) -> list[Cause]:
    """The distinct causes, in the order of their first cases; mistakes of the suite first.

    Two failures have one cause if a known mistake explains both, if the same exception was raised at the same place, or
    if they differ in the numbers of their messages only.
    """
    found: dict[object, Cause] = {}
    searches, end = 0, time.monotonic() + SECONDS
    far = all(dict(case.items).get("regime") == "far" for case, _ in failures if case)
    for case, error in sorted(failures, key=lambda failure: isinstance(failure[1], ConformanceError)):
        hint, searched = None, True
        if isinstance(error, ConformanceError) and error.evidence is not None:
            hint = next((c.hint for c in found.values() if c.hint and hints.explains(c.hint, error)), None)
            searched = hint is not None or (searches < SEARCHED and time.monotonic() < end)
            if hint is None and searched:
                searches += 1
                hint = hints.likely(error, passed, end - time.monotonic())
            hint = None if hint == hints.FAR and not far else hint
        key = _key(error, hint) if searched else NOT_SEARCHED
        if key in found:
            found[key].count += 1
        else:
            found[key] = Cause(case, error, hint, searched=searched)
    return list(found.values())


def _key(error: Exception, hint: str | None) -> object:
    """What failures of one cause have in common."""
    if isinstance(error, ConformanceError) and error.raised:
        return error.raised
    return hint or (type(error).__name__, re.sub(r"\d[\d.e+-]*", "#", str(error)))
