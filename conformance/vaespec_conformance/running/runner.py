"""Runs the checks on a subject in this process. Examples are counted and a canary must be caught, or no run passes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import Result
from vaespec_conformance.running.agenda import EVERYTHING, Item, Selection, agenda
from vaespec_conformance.running.case_selection import allowed
from vaespec_conformance.running.examination import examine
from vaespec_conformance.running.facts import run_facts
from vaespec_conformance.running.outcome import outcome
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.tally import Tally, hung
from vaespec_conformance.running.timing import HungError, call_within
from vaespec_conformance.subjects.subjects import Subject


def run_conformance(
    subject: Subject,
    *,
    profile: str = "default",
    selection: Selection = EVERYTHING,
    seed: int = 0,
    time_limit: float | None = None,
    named: str | None = None,
    progress: Callable[[Item], None] = lambda item: None,
) -> Report:
    """Examines a subject in this process.

    `profile` is quick, default or thorough: the number of examples, and the seconds (`time_limit`) a check may take.
    A check that takes longer is an error, and its thread is abandoned. `named` is the subject's options on the command
    line, for the commands in the report; `progress` is called before each check. Raises AgendaError for a gap that
    names no check, and if no selected check examines such a subject. `vaespec conformance` does the same in worker
    processes, which may also crash.
    """
    limit = allowed(subject, profile, time_limit)
    items = agenda(subject, selection)
    tally = Tally(run_facts(subject, profile=profile, selection=selection.to_dict(), seed=seed))
    try:
        tally.facts |= call_within(limit, lambda: preliminaries(subject))
    except HungError:
        tally.lose(None, hung(limit))
    lost: set[str] = set()  # dtypes of which a probe did not end
    for item in sorted(items, key=lambda item: item.turn):
        if not tally.patient and not item.lacking:
            tally.give_up([item.place])
            continue
        if item.lacking and (item.dtype in lost or not tally.patient):
            tally.skip_probe(item.place, item.lacking)
            continue
        progress(item)
        start = time.perf_counter()
        try:
            result = call_within(limit, partial(run_item, subject, item, profile=profile, seed=seed, named=named))
        except HungError:
            if item.lacking:
                lost.add(item.dtype)
                tally.lose_probe(item.place, item.lacking)
            else:
                tally.lose(item.place, hung(limit))
        else:
            tally.add(result, time.perf_counter() - start)
    return tally.report([item.place for item in items])


def run_item(
    subject: Subject,
    item: Item,
    *,
    profile: str,
    seed: int,
    case: Case | None = None,
    named: str | None = None,
    debug: bool = False,
) -> Result:
    """Runs one check in one dtype, without a time limit. `debug` adds the traceback of what the subject raised."""
    return outcome(examine(subject, item, profile=profile, seed=seed, case=case), named, debug=debug)
