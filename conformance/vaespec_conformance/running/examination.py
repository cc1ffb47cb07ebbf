"""Examines one check on one subject in one dtype: runs and counts its cases, and keeps the failures."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

from hypothesis.errors import Flaky

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.drawing import draw, run_drawn
from vaespec_conformance.judging.registry import EXACT, Margin
from vaespec_conformance.running.agenda import Item
from vaespec_conformance.running.case_selection import drawn_cases, fitted, pinned_cases
from vaespec_conformance.running.labels import label_of
from vaespec_conformance.subjects.capabilities import LACKING
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.subjects import Subject


class Examination:
    """Calls a check: counts the cases, and keeps the greatest margin, the failures, and what is not asked.

    `failures` are (case, error) of the pinned cases that failed, or the last and smallest of the drawn ones; the case
    is None if none could be drawn. `not_asked` maps what the subject does not take to the reason.
    """

    def __init__(self, subject: Subject, item: Item) -> None:
        self.subject, self.item = subject, item
        self.examples = self.required = 0
        self.margin: Margin = EXACT
        self.failures: list[tuple[Case | None, Exception]] = []
        self.not_asked: dict[str, str] = {}
        self.passed: dict[str, list[Case]] = {}
        self.flaky = False

    @property
    def failure(self) -> tuple[Case | None, Exception] | None:
        """The first failure; None if there is none."""
        return self.failures[0] if self.failures else None

    @property
    def failed(self) -> tuple[str, ...]:
        """The labels of the configs of which a case failed after the subject was built."""
        failures = [(case, getattr(error, "raised", None)) for case, error in self.failures if case]
        labels = (label_of(case) for case, raised in failures if not (raised and raised[0] == "build"))
        return tuple(dict.fromkeys(label for label in labels if label))

    def run_pinned(self, cases: Sequence[Case]) -> None:
        """Runs every case, whatever fails."""
        for case in cases:
            try:
                self._count(asked=self._passes(case))
            except Exception as error:
                self._count(asked=True)
                self.failures.append((case, error))

    def __call__(self, case: Case) -> None:
        """Runs one drawn case; raises the check's exception, which replaces the failure before it.

        What is drawn after a failure is smaller cases of the same, which are not counted.
        """
        case, counted = fitted(self.subject, case), not self.failures
        try:
            asked = self._passes(case)
        except Exception as error:
            self.examples += counted
            self.failures = [(case, error)]
            raise
        if counted:
            self._count(asked=asked)

    def _count(self, *, asked: bool) -> None:
        """Counts a case, or demands one less."""
        self.examples += asked
        self.required -= not asked

    def _passes(self, case: Case) -> bool:
        """Runs a case: True if it passes, False if it is not asked.

        Raises what the check raises, or ConformanceError if more than the budget was used.
        """
        try:
            margin = self.item.check.run(self.subject, case, self.item.dtype)
        except NotSupportedError as refusal:
            self.not_asked.setdefault(refusal.what or label_of(case) or refusal.reason, refusal.reason)
            return False
        if not max(margin) <= 1:  # NaN does not pass
            raise ConformanceError("the error is beyond the budget.", eta2=margin.eta2, etainf=margin.etainf)
        self.margin = Margin(max(self.margin.eta2, margin.eta2), max(self.margin.etainf, margin.etainf))
        self.passed.setdefault(label_of(case) or "", []).append(case)
        return True


def examine(
    subject: Subject, item: Item, *, profile: str, seed: int, case: Case | None = None, shrink: bool = True
) -> Examination:
    """Runs the pinned cases of an item and as many drawn ones as the profile needs, or only the given case.

    An item that the subject does not claim is tried with one drawn case, if at all. With `shrink`, a smaller failing
    case is searched, unless the failure is a declared gap.
    """
    examination = Examination(subject, item)
    if item.missing:
        examination.not_asked[LACKING[item.missing]] = f"the subject declares that it lacks {LACKING[item.missing]}"
        return examination
    if item.lacking and not (item.tried or case):
        return examination
    pinned = (case,) if case else () if item.lacking else pinned_cases(subject, item.check, item.dtype, profile)
    drawn = 0 if case else 1 if item.lacking else drawn_cases(subject, item.check, profile)
    examination.required = len(pinned) + drawn
    if pinned:
        subject.prepare(item.check, pinned, item.dtype)
        examination.run_pinned(pinned)
    if drawn and not examination.failures:
        _run_drawn(examination, drawn, seed, shrink=shrink and not (item.lacking or item.gap))
    return examination


def _run_drawn(examination: Examination, examples: int, seed: int, *, shrink: bool) -> None:
    """Runs drawn cases. Each item has its own seed, so it draws the same cases alone as in a whole run."""
    item = examination.item
    item_seed = zlib.crc32(f"{seed} {item.id}".encode())
    if examination.subject.kind == "program":  # it answers all cases at once
        drawn = draw(item.check.cases, examples=examples, seed=item_seed)
        cases = [fitted(examination.subject, case) for case in drawn]
        examination.subject.prepare(item.check, cases, item.dtype)
        shrink = False  # each smaller case would start it
    try:
        run_drawn(examination, item.check.cases, examples=examples, seed=item_seed, shrink=shrink)
    except Flaky:
        examination.flaky = True
    except Exception as error:
        examination.failures = examination.failures or [(None, error)]
