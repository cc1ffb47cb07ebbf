"""Keeps what the tests of one session find, in this process or in those of pytest-xdist, and writes the report."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vaespec.errors import VaespecError
from vaespec.files import written_whole
from vaespec_conformance.pytest_request import KNOWN, RESULT, SECONDS, Asked
from vaespec_conformance.reports.html import to_html
from vaespec_conformance.reports.markdown import to_markdown
from vaespec_conformance.reports.report import Report, Result
from vaespec_conformance.running.agenda import Selection, levels_between
from vaespec_conformance.running.request import Request
from vaespec_conformance.subjects.loading import load_backend, load_port

WRITERS: dict[str, Callable[[Report], str]] = {
    "vaespec_report": Report.to_json,
    "vaespec_markdown": to_markdown,
    "vaespec_html": to_html,
}


class Recorder:
    """A plugin of pytest, registered where a subject is named."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.asked = _asked(config)
        self.results: dict[str, Result] = {}
        self.seconds: dict[str, float] = {}
        self.known: dict[str, Any] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Where tests run in other processes, this is called in the one that collects what they say."""
        said = dict(report.user_properties)
        if report.when == "call" and RESULT in said:
            result = Result.from_dict(json.loads(str(said[RESULT])))
            self.results[result.id] = result
            self.seconds[result.id] = round(float(str(said[SECONDS])), 3)
        elif report.when == "call" and KNOWN in said:
            self.known = json.loads(str(said[KNOWN]))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what was asked for. A run in which every test was skipped has not passed."""
        if hasattr(self.config, "workerinput"):  # a process of pytest-xdist; the report is made in the first one
            return
        if session.exitstatus == pytest.ExitCode.OK and self.report.exit_code:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        for option, write in WRITERS.items():
            if path := self.config.getoption(option):
                with written_whole(Path(path)) as part:
                    part.write_text(write(self.report), encoding="utf-8")

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The verdict, as the command line gives it."""
        terminalreporter.section("vaespec conformance")
        terminalreporter.line(self.report.headline)

    @property
    def report(self) -> Report:
        """What has been found."""
        return self.asked.report(self.results, self.known, self.seconds)


def _asked(config: pytest.Config) -> Asked:
    """What the options say; pytest.UsageError where that is nonsense."""
    option = {name: config.getoption(f"vaespec_{name}") for name in ("backend", "port", "device", "precision", "level")}
    try:
        if option["port"]:
            subject = load_port(option["port"])
        else:
            subject = load_backend(option["backend"], option["device"], option["precision"])
        levels = levels_between(option["level"]) if option["level"] else ()
        asked = Asked(
            subject,
            config.getoption("vaespec_profile"),
            Selection(tuple(config.getoption("vaespec_dtype")), levels, tuple(config.getoption("vaespec_check"))),
            config.getoption("vaespec_seed"),
            config.getoption("vaespec_time_limit"),
            Request(**{name: option[name] for name in ("backend", "port", "device", "precision")}).named,
        )
        _ = asked.items
    except VaespecError as error:
        raise pytest.UsageError(str(error)) from error
    return asked
