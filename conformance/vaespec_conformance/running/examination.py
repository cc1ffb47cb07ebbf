"""Examines one check on one subject in one dtype: runs and counts its cases, and keeps the smallest that fails."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hypothesis.errors import Flaky

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.drawing import drawn_cases, run_drawn
from vaespec_conformance.judging.registry import EXACT, PROFILES, Margin
from vaespec_conformance.running.agenda import Item
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import Subject


class Examination:
    """Calls a check: counts the cases until one fails, and keeps the greatest margin, or the last failure."""

    def __init__(self, subject: Subject, item: Item, *, required: int) -> None:
        self.subject, self.item, self.required = subject, item, required
        self.examples = 0
        self.margin: Margin = EXACT
        self.failure: tuple[Case | None, Exception] | None = None  # no case: none could be drawn
        self.flaky = False

    def __call__(self, case: Case) -> None:
        """Runs one case; raises the check's exception, or ConformanceError if more than the budget was used."""
        self.examples += self.failure is None
        try:
            margin = self.item.check.run(self.subject, case, self.item.dtype)
            if not max(margin) <= 1:  # NaN does not pass
                raise ConformanceError("the error is beyond the budget.", eta2=margin.eta2, etainf=margin.etainf)
        except Exception as error:
            self.failure = case, error
            raise
        self.margin = Margin(max(self.margin.eta2, margin.eta2), max(self.margin.etainf, margin.etainf))


def examine(
    subject: Subject, item: Item, *, profile: str, seed: int, case: Case | None = None, shrink: bool = True
) -> Examination:
    """Runs the pinned cases of an item and as many drawn ones as the profile needs, or only the given case.

    An item that the subject does not claim is tried with one drawn case. With `shrink`, a smaller failing case is
    searched, unless the failure is a declared gap.
    """
    check = item.check
    pinned = (case,) if case else () if item.lacking else check.pinned
    drawn = 0 if case else 1 if item.lacking else check.examples[PROFILES.index(profile)]
    examination = Examination(subject, item, required=len(pinned) + drawn)
    _run_all(examination, pinned)
    if drawn and examination.failure is None:
        _run_drawn(examination, drawn, seed, shrink=shrink and not (item.lacking or item.gap))
    return examination


def _run_all(examination: Examination, cases: Sequence[Case]) -> None:
    examination.subject.prepare(examination.item.check, cases, examination.item.dtype)
    for case in cases:
        try:
            examination(case)
        except Exception:  # the examination keeps it
            return


def _run_drawn(examination: Examination, examples: int, seed: int, *, shrink: bool) -> None:
    """Runs drawn cases. Each item has its own seed, so it draws the same cases alone as in a whole run."""
    item = examination.item
    item_seed = zlib.crc32(f"{seed} {item.id}".encode())
    if examination.subject.kind == "program":  # it answers all cases at once
        cases = drawn_cases(item.check.cases, examples=examples, seed=item_seed)
        examination.subject.prepare(item.check, cases, item.dtype)
        shrink = False  # each smaller case would start it
    try:
        run_drawn(examination, item.check.cases, examples=examples, seed=item_seed, shrink=shrink)
    except Flaky:
        examination.flaky = True
    except Exception as error:
        examination.failure = examination.failure or (None, error)
