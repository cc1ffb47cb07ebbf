"""What a run examines: every check in every dtype it concerns, or those that were asked for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

from vaespec.errors import VaespecError
from vaespec_conformance import checks  # noqa: F401  (registers them)
from vaespec_conformance.judging.registry import CHECKS, DTYPES, LEVELS, Check
from vaespec_conformance.reports.report import Place
from vaespec_conformance.subjects.subjects import Gap, Subject

REQUIRED = ("float32",)
"""Dtypes that every subject must claim."""


class PlanError(VaespecError, ValueError):
    """A check, level, dtype or gap that does not exist."""


@dataclass(frozen=True)
class Item:
    """One check in one dtype. `lacking` says what the subject does not claim of what it needs."""

    check: Check
    dtype: str
    gap: Gap | None
    lacking: str | None

    @property
    def id(self) -> str:
        """That of its place."""
        return self.place.id

    @property
    def place(self) -> Place:
        """Where its result stands in a report."""
        return Place(self.check.id, self.check.level, self.dtype)


@dataclass(frozen=True)
class Selection:
    """What was asked for; everything where nothing is named. `checks` are ids, with or without a dtype."""

    dtypes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*CHECKS, *(f"{check.id}[{dtype}]" for check in CHECKS.values() for dtype in check.dtypes)}
        for what, asked, choices in (
            ("dtype", self.dtypes, DTYPES),
            ("level", self.levels, LEVELS),
            ("check", self.checks, known),
        ):
            for name in asked:
                if name not in choices:
                    raise PlanError(f"no {what} called {name!r}: {_choose(name, choices)}.")

    def takes(self, check: Check, dtype: str) -> bool:
        """Whether this was asked for."""
        return (
            (not self.dtypes or dtype in self.dtypes)
            and (not self.levels or check.level in self.levels)
            and (not self.checks or check.id in self.checks or f"{check.id}[{dtype}]" in self.checks)
        )

    def to_dict(self) -> dict[str, list[str]]:
        """What was named."""
        fields = {"dtypes": self.dtypes, "levels": self.levels, "checks": self.checks}
        return {name: list(asked) for name, asked in fields.items() if asked}


EVERYTHING = Selection()


def levels_between(text: str) -> tuple[str, ...]:
    """ "L1", "L0-L3" or "L1,L4-L6" -> the levels; PlanError for one that does not exist."""
    found: list[str] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        for name in (first, last or first):
            if name not in LEVELS:
                raise PlanError(f"no level called {name!r}: {_choose(name, LEVELS)}.")
        names = list(LEVELS)
        found += names[names.index(first) : names.index(last or first) + 1]
    return tuple(found)


def plan(subject: Subject, selection: Selection = EVERYTHING) -> tuple[Item, ...]:
    """The items of a run, level by level; PlanError where the subject declares a gap for what does not exist."""
    for gap in subject.gaps:
        if not any(gap.covers(check.id, dtype) for check in CHECKS.values() for dtype in check.dtypes):
            raise PlanError(f"{subject.name} declares a gap for {gap.check!r}: {_choose(gap.check, CHECKS)}.")
    return tuple(
        Item(check, dtype, _gap(subject, check, dtype), _lacking(subject, check, dtype))
        for check in sorted(CHECKS.values(), key=lambda check: check.level)
        for dtype in DTYPES
        if check.concerns(subject, dtype) and selection.takes(check, dtype)
    )


def _gap(subject: Subject, check: Check, dtype: str) -> Gap | None:
    return next((gap for gap in subject.gaps if gap.covers(check.id, dtype)), None)


def _lacking(subject: Subject, check: Check, dtype: str) -> str | None:
    claimed = subject.capabilities
    lacking = [] if dtype in claimed.dtypes else [dtype]
    lacking += [feature for feature in check.requires if feature not in claimed.features]
    return f"{' and '.join(lacking)} not claimed" if lacking else None


def _choose(name: str, choices: Iterable[str]) -> str:
    """ "choose ops.conv2d, …": those that share more than half of the letters, or the first few."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.51) or sorted(names)[:9]
    return f"choose {', '.join(near)}"
