"""The report as Markdown, and a table of several reports, such as BACKENDS.md."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from vaespec.escaping import escaped
from vaespec_conformance.reports.report import NOT_RUN, Report, by_check
from vaespec_conformance.reports.result import STATUSES, Result
from vaespec_conformance.reports.text import (
    NOTE,
    environment_rows,
    gap_rows,
    grade_text,
    layer_rows,
    margin,
    precision_rows,
    subject_rows,
)

SIGNS = {"pass": "✅", "fail": "❌", "error": "❗", "gap": "⚠️", "xpass": "⇡", "undeclared": "➖", "not_asked": "○"}

ORIGIN = "Written by `vaespec conformance --matrix`, from a report of each; see docs/port-the-vae.md."
CELLS = "The greatest part of its budget that a check used, over the dtypes of the backend."


def to_markdown(report: Report) -> str:
    """The document: the verdict, the failures, the matrix of checks and dtypes, and the facts."""
    dtypes = tuple(dict.fromkeys(result.dtype for result in report.results))
    lines = [f"# {_line(report.name)}: {report.verdict}", "", _line(report.headline)]
    if report.bad:
        lines += ["", "## What did not pass"]
        for result in report.bad:
            lines += ["", *_failure(result)]
    lines += ["", "## Checks", "", _legend(report), ""]
    graded = [(dtype, grade_text(report, dtype)) for dtype in report.dtypes if report.grade(dtype)]
    lines += [*_table(("dtype", "grade"), graded), ""] if graded else []
    lines += _table(
        ("level", "check", *dtypes),
        (
            (level, f"`{check}`", *(_cell(cells.get(dtype)) for dtype in dtypes))
            for (level, check), cells in by_check(report.results).items()
        ),
    )
    ops = [(f"`{op}`", provenance) for op, provenance in report.about["ops"].items()]
    for title, header, rows in (
        ("Precision of float32", ("requested", "measured"), precision_rows(report)),
        ("Operations", ("operation", "kernel"), ops),
        ("Declared gaps and missing claims", ("check or claim", "reason"), _gaps(report)),
        ("Subject", ("", ""), subject_rows(report)),
        ("Environment", ("", ""), environment_rows(report)),
    ):
        if table := list(rows):
            lines += ["", f"## {title}", "", *_table(header, table)]
    return "\n".join(map(escaped, lines)) + "\n"


def matrix(reports: Sequence[Report]) -> str:
    """Several subjects side by side: verdicts and grades, then each check, then where each was run."""
    dtypes = tuple(dict.fromkeys(dtype for report in reports for dtype in report.dtypes))
    lines = ["# Backends", "", ORIGIN, ""]
    lines += _table(
        ("backend", "verdict", *dtypes, "products of float32", "kernels of its own", "worst margin"),
        (
            (
                f"**{report.name}**",
                f"{SIGNS['pass'] if report.exit_code == 0 else SIGNS['fail']} {report.verdict}",
                *(_grade(report, dtype) or ("–" if dtype not in report.dtypes else SIGNS["fail"]) for dtype in dtypes),
                ", ".join(f"{name}: {row['class']}" for name, row in report.about["precision"].items()) or "–",
                _kernels(report),
                f"{margin(report.worst.margin)} (`{report.worst.id}`)" if report.worst else "–",
            )
            for report in reports
        ),
    )
    lines += ["", NOTE, "", "## Checks", "", CELLS, ""]
    checks = dict.fromkeys(row for report in reports for row in by_check(report.results))
    tables = [by_check(report.results) for report in reports]
    lines += _table(
        ("level", "check", *(report.name for report in reports)),
        ((level, f"`{check}`", *(_over_dtypes(t.get((level, check), {})) for t in tables)) for level, check in checks),
    )
    lines += ["", "## Where", ""]
    lines += _table(("backend", "run", "suite", "environment"), (_origin(report) for report in reports))
    return "\n".join(map(escaped, lines)) + "\n"


def _grade(report: Report, dtype: str) -> str:
    """The grade of a dtype and the largest share of a budget: "A 0.12"; empty if it has none."""
    grade = report.grade(dtype)
    return f"{grade} {margin(report.used(dtype))}" if grade else ""


def _origin(report: Report) -> tuple[str, str, str, str]:
    run, suite, environment = (report.about[part] for part in ("run", "suite", "environment"))
    return (
        report.name,
        f"{run['profile']}, seed {run['seed']}, on {report.about['subject']['device'] or 'its own device'}",
        f"{suite['version']}, checks {suite['checks_hash'][:12]}",
        ", ".join(f"{name} {value}" for name, value in environment.items() if "not set" not in value),
    )


def _over_dtypes(cells: dict[str, Result]) -> str:
    """The worst result of a check on one subject, over its dtypes."""
    ran = [result for result in cells.values() if result.status not in NOT_RUN]
    if not ran:
        return SIGNS[next(iter(cells.values())).status] if cells else ""
    for status in ("error", "fail", "xpass", "gap"):
        if any(result.status == status for result in ran):
            return SIGNS[status]
    used = max((result.margin or 0.0 for result in ran), default=0.0)
    return margin(used) if used else "exact"


def _kernels(report: Report) -> str:
    ops = report.about["ops"].values()
    return f"{sum(kernel == 'native' for kernel in ops)} of {len(ops)}" if ops else "–"


def _failure(result: Result) -> Iterator[str]:
    yield f"### `{result.id}`: {result.status}"
    yield ""
    failure = result.failure
    if failure is None:
        yield _line(result.reason or STATUSES[result.status])
        return
    yield _line(failure.message)
    details = [("where", failure.where), ("likely", failure.hint), *layer_rows(failure.layers)]
    if result.margin is not None:
        details.insert(0, ("error", f"{margin(result.margin)} times the budget"))
    if failure.case is not None:
        details.append(("smallest case", f"`{json.dumps(failure.case)}`"))
    if failure.command:
        details.append(("again", f"`{failure.command}`"))
    if failure.count:
        details.append(("failed", failure.count))
    for other in failure.others:
        likely = f" Likely: {other.hint}" if other.hint else ""
        details.append(("other failures", f"{other.message} ({other.count}){likely}"))
    if any(text for _, text in details):
        yield ""
    yield from (f"- {name}: {_line(text)}" for name, text in details if text)
    if failure.snippet:
        yield from ("", "```python", *failure.snippet.rstrip("\n").split("\n"), "```")


def _legend(report: Report) -> str:
    signs = (f"{SIGNS[status]} {text}" for status, text in STATUSES.items() if report.counts[status])
    return "; ".join(signs) + f". {NOTE}"


def _cell(result: Result | None) -> str:
    if result is None:
        return ""
    if result.status == "pass":
        return f"{SIGNS['pass']} {result.grade or ''} {margin(result.margin) if result.margin else 'exact'}"
    measured = f" {margin(result.margin)}" if result.status == "fail" and result.margin is not None else ""
    return f"{SIGNS[result.status]}{measured}"


def _gaps(report: Report) -> Iterator[tuple[str, str]]:
    for name, reason, url in gap_rows(report):
        yield name, f"{reason} {url}" if url else reason


def _line(text: str) -> str:
    """The text on one line, without HTML."""
    return " ".join(text.split()).replace("<", "&lt;")


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A table whose cells contain no line break and no unescaped bar."""
    lines = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(_line(cell).replace("|", "\\|") for cell in line) + " |" for line in lines]
