"""The agenda of a run: every check in every dtype it applies to, or a selection of them."""

from __future__ import annotations

import difflib
from collections.abc import Collection
from dataclasses import dataclass

from vaespec.errors import VaespecError
from vaespec_conformance import checks  # noqa: F401  (registers them)
from vaespec_conformance.judging.registry import CHECKS, DTYPES, LEVELS, Check
from vaespec_conformance.reports.result import Place
from vaespec_conformance.subjects.capabilities import Gap
from vaespec_conformance.subjects.subjects import PortSubject, Subject

REQUIRED = ("float32",)
"""Dtypes that every subject must claim."""


class AgendaError(VaespecError, ValueError):
    """A check, level, dtype or gap does not exist."""


@dataclass(frozen=True)
class Item:
    """One check in one dtype. `lacking` names what the check requires and the subject does not claim.

    What is lacking is tried with one case, a probe, if the subject may be called so (`tried`). `missing` names what the
    check needs and the subject declares that it does not have: the check is not asked.
    """

    check: Check
    dtype: str
    gap: Gap | None = None
    lacking: str | None = None
    tried: bool = True
    missing: str | None = None

    @property
    def id(self) -> str:
        """The check and the dtype: "ops.conv2d[float32]"."""
        return self.place.id

    @property
    def place(self) -> Place:
        """Where the result stands in a report."""
        return Place(self.check.id, self.check.level, self.dtype)

    @property
    def turn(self) -> tuple[bool, bool]:
        """The order in which items are run: float32 of every level, other claimed dtypes, and probes last."""
        return self.lacking is not None, self.dtype not in REQUIRED


def _require(kind: str, names: Collection[str], choices: Collection[str]) -> None:
    """Raises AgendaError for the first name that is not one of the choices."""
    for name in names:
        if name not in choices:
            raise AgendaError(f"no {kind} called {name!r}: {_choose(name, choices)}.")


def _choose(name: str, choices: Collection[str]) -> str:
    """ "choose ops.conv2d, …": names that share more than half of the letters, or the first nine."""
    names = list(choices)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.51) or sorted(names)[:9]
    return f"choose {', '.join(near)}"


@dataclass(frozen=True)
class Selection:
    """The requested part of the suite; an empty field selects everything. `checks` are ids, with or without a dtype."""

    dtypes: tuple[str, ...] = ()
    levels: tuple[str, ...] = ()
    checks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        known = {*CHECKS, *(f"{check.id}[{dtype}]" for check in CHECKS.values() for dtype in check.dtypes)}
        _require("dtype", self.dtypes, DTYPES)
        _require("level", self.levels, LEVELS)
        _require("check", self.checks, known)

    def takes(self, check: Check, dtype: str) -> bool:
        """Whether a check in a dtype is selected."""
        return (
            (not self.dtypes or dtype in self.dtypes)
            and (not self.levels or check.level in self.levels)
            and (not self.checks or check.id in self.checks or f"{check.id}[{dtype}]" in self.checks)
        )

    def to_dict(self) -> dict[str, list[str]]:
        """The fields that are not empty."""
        fields = {"dtypes": self.dtypes, "levels": self.levels, "checks": self.checks}
        return {name: list(names) for name, names in fields.items() if names}


EVERYTHING = Selection()


def levels_between(text: str | None) -> tuple[str, ...]:
    """ "L1", "L0-L3" or "L1,L4-L6" -> the levels, none for None; raises AgendaError if one does not exist."""
    levels: list[str] = []
    for part in text.split(",") if text else ():
        first, _, last = part.strip().partition("-")
        _require("level", (first, last or first), LEVELS)
        names = list(LEVELS)
        levels += names[names.index(first) : names.index(last or first) + 1]
    return tuple(levels)


def agenda(subject: Subject, selection: Selection = EVERYTHING) -> tuple[Item, ...]:
    """The items of a run, level by level.

    Raises AgendaError for a gap that names no check, and if no selected check examines subjects of this kind.
    """
    for gap in subject.gaps:
        if not any(gap.covers(check.id, dtype) for check in CHECKS.values() for dtype in check.dtypes):
            raise AgendaError(f"{subject.name} declares a gap for {gap.check!r}: {_choose(gap.check, CHECKS)}.")
    named = selection.checks
    if named and not any(subject.kind in CHECKS[name.partition("[")[0]].subjects for name in named):
        raise AgendaError(f"{' and '.join(named)} cannot examine a {subject.kind}: see `vaespec conformance --list`.")
    return tuple(
        _item(subject, check, dtype)
        for check in sorted(CHECKS.values(), key=lambda check: check.level)
        for dtype in DTYPES
        if check.concerns(subject, dtype) and selection.takes(check, dtype)
    )


def _item(subject: Subject, check: Check, dtype: str) -> Item:
    gap = next((gap for gap in subject.gaps if gap.covers(check.id, dtype)), None)
    claimed = subject.capabilities
    features = [feature for feature in check.requires if feature not in claimed.features]
    dtypes = [] if dtype in claimed.dtypes else [dtype]
    lacking = f"{' and '.join((*dtypes, *features))} not claimed" if dtypes or features else None
    tried = not isinstance(subject, PortSubject) or (subject.takes_dtype and not features)
    missing = next((need for need in check.needs if need in claimed.lacks), None)
    return Item(check, dtype, gap, lacking, tried, missing)
