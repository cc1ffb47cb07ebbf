"""The suite under pytest: one class of tests for every door, and the recorder that writes a session's report.

`conformance_suite` returns the class for a subject; `pytest --pyargs vaespec_conformance` collects it for the subject
that the options name.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

import pytest

from vaespec.errors import InputError, VaespecError
from vaespec.escaping import escaped
from vaespec_conformance.reports.html import to_html
from vaespec_conformance.reports.markdown import to_markdown
from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import Result
from vaespec_conformance.reports.text import failure_lines
from vaespec_conformance.reports.writing import write_texts
from vaespec_conformance.running.agenda import EVERYTHING, Item, Selection, agenda, levels_between
from vaespec_conformance.running.case_selection import allowed
from vaespec_conformance.running.facts import run_facts
from vaespec_conformance.running.preliminaries import preliminaries
from vaespec_conformance.running.request import Request
from vaespec_conformance.running.runner import run_item
from vaespec_conformance.running.tally import hung, probed, unfinished
from vaespec_conformance.running.timing import HungError, call_within
from vaespec_conformance.subjects.loading import as_subject, load_subject
from vaespec_conformance.subjects.subjects import Subject

Record = Callable[[str, object], None]
RESULT, SECONDS, PRELIMINARIES = "vaespec", "vaespec-seconds", "vaespec-preliminaries"
"""Names of test properties, which carry results to the recorder, also from the processes of pytest-xdist."""
WRITERS: dict[str, Callable[[Report], str]] = {"report": Report.to_json, "markdown": to_markdown, "html": to_html}
"""Options that name a file -> the text to write."""


@dataclass(frozen=True)
class Suite:
    """A subject and how it is examined; see `run_conformance`."""

    subject: Subject
    profile: str = "default"
    selection: Selection = EVERYTHING
    seed: int = 0
    time_limit: float | None = None
    named: str | None = None

    @cached_property
    def items(self) -> tuple[Item, ...]:
        """The items, each of which becomes a test."""
        return agenda(self.subject, self.selection)

    def run(self, item: Item) -> Result:
        """Runs an item within the time limit."""
        limit = allowed(self.subject, self.profile, self.time_limit)
        call = partial(run_item, self.subject, item, profile=self.profile, seed=self.seed, named=self.named)
        try:
            return call_within(limit, call)
        except HungError:
            if item.lacking:
                return probed(item.place, item.lacking, works=False)
            return unfinished(item.place, hung(limit))

    def report(
        self, results: dict[str, Result], known: dict[str, Any], seconds: dict[str, float] | None = None
    ) -> Report:
        """The report of the tests that have run, in the order of the agenda; `known` are facts found by them."""
        facts = run_facts(self.subject, profile=self.profile, selection=self.selection.to_dict(), seed=self.seed)
        own = (results[item.id] for item in self.items if item.id in results)
        return Report(facts | known, tuple(own), seconds or {})


class ConformanceTests:
    """The tests of a subject; a subclass sets `suite`."""

    suite: ClassVar[Suite]

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Makes one test of `test_conforms` for each item."""
        if "item" in metafunc.fixturenames:
            metafunc.parametrize("item", self.suite.items, ids=lambda item: item.id)

    def test_the_canary_is_caught(self, record_property: Record) -> None:
        """A known mistake, put into the subject, is detected."""
        known = preliminaries(self.suite.subject)
        record_property(PRELIMINARIES, json.dumps(known))
        if known["canary"]["status"] != "caught":
            pytest.fail(f"the canary was not caught: {known['canary']}.", pytrace=False)

    def test_what_every_subject_must_do_is_claimed(self) -> None:
        """The subject cannot pass by claiming nothing."""
        if missing := [reason for reason in self.suite.report({}, {}).unseen if "claimed" in reason]:
            pytest.fail(f"{', '.join(missing)}.", pytrace=False)

    def test_conforms(self, item: Item, record_property: Record) -> None:
        """One check in one dtype passes; a declared gap fails as expected, and an unclaimed item is skipped."""
        start = time.perf_counter()
        result = self.suite.run(item)
        record_property(RESULT, json.dumps(result.to_dict()))
        record_property(SECONDS, time.perf_counter() - start)
        if result.status in ("undeclared", "not_asked"):
            pytest.skip(result.reason or "")
        if result.status == "gap":
            pytest.xfail(result.reason or "")
        if result.status != "pass":
            pytest.fail("\n".join(failure_lines(result)), pytrace=False)
        if result.examples < result.required:
            pytest.fail(f"only {result.examples} of {result.required} cases were run.", pytrace=False)


def conformance_suite(
    subject: Any,
    *,
    profile: str = "default",
    selection: Selection = EVERYTHING,
    seed: int = 0,
    time_limit: float | None = None,
) -> type:
    """A class that pytest collects: `TestMine = conformance_suite(MyBackend)`, or `conformance_suite(build_my_vae)`.

    `subject` is a backend, the class of one, a function that builds a port from (config, weights), or a Subject.
    """
    suite = Suite(as_subject(subject), profile, selection, seed, time_limit)
    return type("TestConformance", (ConformanceTests,), {"suite": suite})


class Recorder:
    """A pytest plugin that collects the results of a session and writes the report."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.suite = _suite(config)
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self.known: dict[str, Any] = {}
        self.problem = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collects the properties of a test; under pytest-xdist this is called in the controlling process."""
        properties = dict(report.user_properties)
        if report.when == "call" and RESULT in properties:
            result = Result.from_dict(json.loads(str(properties[RESULT])))
            self.results[result.id] = result
            self.seconds[result.id] = round(float(str(properties[SECONDS])), 3)
        elif report.when == "call" and PRELIMINARIES in properties:
            self.known = json.loads(str(properties[PRELIMINARIES]))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes the requested files. A session in which every test was skipped does not pass."""
        if hasattr(self.config, "workerinput"):  # a process of pytest-xdist: the controlling process has the results
            return
        if session.exitstatus == pytest.ExitCode.OK and self.report.exit_code:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        paths = {name: self.config.getoption(f"vaespec_{name}") for name in WRITERS}
        try:
            write_texts({Path(path): WRITERS[name](self.report) for name, path in paths.items() if path})
        except InputError as error:
            self.problem = str(error)
            session.exitstatus = pytest.ExitCode.USAGE_ERROR

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Prints the verdict, as the command line does."""
        terminalreporter.section("vaespec conformance")
        terminalreporter.line(escaped(self.report.headline))
        if self.problem:
            terminalreporter.line(f"error: {self.problem}")

    @property
    def report(self) -> Report:
        """The report of the results so far."""
        return self.suite.report(self.results, self.known, self.seconds)


def _suite(config: pytest.Config) -> Suite:
    """The suite that the options describe; raises pytest.UsageError if they are invalid."""
    fields = ("backend", "port", "device", "precision", "profile", "seed", "time_limit")
    request = Request(**{name: config.getoption(f"vaespec_{name}") for name in fields})
    dtypes, levels, checks = (config.getoption(f"vaespec_{name}") for name in ("dtype", "level", "check"))
    try:
        subject = load_subject(request.backend, request.port, request.device, request.precision)
        selection = Selection(tuple(dtypes), levels_between(levels), tuple(checks))
        suite = Suite(subject, request.profile, selection, request.seed, request.time_limit, request.named)
        _ = suite.items  # raises AgendaError for a gap that names no check
    except VaespecError as error:
        raise pytest.UsageError(str(error)) from error
    return suite
