"""The summary that is printed after a run."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from vaespec.cli.console import print_lines, print_table
from vaespec.escaping import escaped
from vaespec_conformance.judging.registry import LEVELS
from vaespec_conformance.reports.report import Report, by_level
from vaespec_conformance.reports.result import Result
from vaespec_conformance.reports.text import COLUMNS, MARKS, NOTE, failure_lines, grade_text, margin, precision_rows

PRINTED = 10
"""Lines of what the subject printed that are shown below a failure."""
FAILURES = 5
"""The number of failures that are printed in full; the written reports contain all."""


def print_summary(report: Report) -> None:
    """Prints a row for each level, the failures, and the verdict last."""
    if rows := list(_rows(report)):
        print_table(("level", "", *report.dtypes), rows)
    for result in report.bad[:FAILURES]:
        print_lines("", *failure_lines(result), *_printed(report, result))
    if len(report.bad) > FAILURES:
        others = ", ".join(result.id for result in report.bad[FAILURES:])
        print_lines("", *textwrap.wrap(f"and {others}", COLUMNS, break_on_hyphens=False))
    print()
    label = report.about["subject"]["label"]
    if graded := [dtype for dtype in report.dtypes if report.grade(dtype)]:
        print_lines(*(f"grade in {dtype}: {grade_text(report, dtype)}" for dtype in graded))
        print_lines(*textwrap.wrap(NOTE, COLUMNS))
    if products := ", ".join(f"{name} {measured}" for name, measured in precision_rows(report)):
        print_lines(f"products of float32: {products}" + (f"; {label}" if label == "array-api-only" else ""))
    print_lines(report.headline)


def _printed(report: Report, result: Result) -> Iterator[str]:
    """The last lines that the subject printed while a check failed."""
    if text := report.printed.get(result.id):
        yield "  printed meanwhile:"
        yield from (f"    {escaped(line)}" for line in text.splitlines()[-PRINTED:])


def _rows(report: Report) -> Iterator[list[str]]:
    """A row for each level: in each dtype, how many checks passed of how many, and the greatest margin."""
    for level, cells in by_level(report).items():
        yield [level, LEVELS[level], *(_cell(cells.get(dtype, [])) for dtype in report.dtypes)]


def _cell(results: list[Result]) -> str:
    if not results:
        return ""
    passed = [result for result in results if result.status in ("pass", "gap")]
    mark = MARKS["pass"] if len(passed) == len(results) else MARKS["fail"]
    used = max((result.margin or 0.0 for result in passed), default=0.0)
    return f"{mark} {len(passed)}/{len(results)}" + (f"  {margin(used)}" if used else "")
