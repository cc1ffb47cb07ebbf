"""The suite under pytest: a subject, what is asked of it, and how a result becomes the outcome of a test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import pytest

from vaespec_conformance.reports.report import Report, Result
from vaespec_conformance.reports.text import failure_lines
from vaespec_conformance.running.agenda import EVERYTHING, Item, Selection, plan
from vaespec_conformance.running.facts import about
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.running.tally import unfinished
from vaespec_conformance.running.timing import TIME_LIMITS, HungError, within
from vaespec_conformance.subjects.subjects import Subject

Record = Callable[[str, object], None]
RESULT, SECONDS, KNOWN = "vaespec", "vaespec-seconds", "vaespec-known"
"""Names of the properties of a test, in which results travel, from one process of pytest to another too."""


@dataclass(frozen=True)
class Asked:
    """A subject and how it is examined."""

    subject: Subject
    profile: str = "default"
    selection: Selection = EVERYTHING
    seed: int = 0
    time_limit: float | None = None
    named: str | None = None

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """What becomes a test each."""
        return plan(self.subject, self.selection)

    def examine(self, item: Item, record: Record) -> None:
        """Run an item as the body of a test: passes, fails, is skipped, or fails as expected."""
        limit = TIME_LIMITS[self.profile] if self.time_limit is None else self.time_limit
        run = partial(run_item, self.subject, item, profile=self.profile, seed=self.seed, named=self.named)
        start = time.perf_counter()
        try:
            result = within(limit, run)
        except HungError:
            result = unfinished(item.place, f"it did not end within {limit:g} s.")
        record(RESULT, json.dumps(result.to_dict()))
        record(SECONDS, time.perf_counter() - start)
        _conclude(result)

    def fly_canary(self, record: Record) -> None:
        """Fails where a known mistake, put into the subject, is not seen."""
        known = preliminaries(self.subject)
        record(KNOWN, json.dumps(known))
        if known["canary"]["status"] != "caught":
            pytest.fail(f"the canary was not caught: {known['canary']}.", pytrace=False)

    def require_claims(self) -> None:
        """Fails where the subject does not claim what every subject must do."""
        if missing := [reason for reason in self.report({}, {}).unseen if "claimed" in reason]:
            pytest.fail(f"{', '.join(missing)}.", pytrace=False)

    def report(
        self, found: dict[str, Result], known: dict[str, Any], seconds: dict[str, float] | None = None
    ) -> Report:
        """What tests have found, in the order of the plan."""
        facts = about(self.subject, profile=self.profile, selection=self.selection.to_dict(), seed=self.seed)
        return Report(facts | known, tuple(found[item.id] for item in self.items if item.id in found), seconds or {})


def _conclude(result: Result) -> None:
    if result.status == "undeclared":
        pytest.skip(result.reason or "")
    if result.status == "gap":
        pytest.xfail(result.reason or "")
    if result.status != "pass":
        pytest.fail("\n".join(failure_lines(result)), pytrace=False)
    if result.examples < result.required:
        pytest.fail(f"only {result.examples} of {result.required} cases were run.", pytrace=False)
