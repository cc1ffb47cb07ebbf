"""`vaespec conformance`: does a backend, or a user's VAE, compute the same as the specification?"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer

from vaespec.cli.console import print_json, print_lines, print_table, progress
from vaespec.cli.failures import InvalidRequestError
from vaespec.cli.options import example
from vaespec.errors import VaespecError
from vaespec_conformance import require_hypothesis
from vaespec_conformance.commands import options
from vaespec_conformance.reports.report import Report
from vaespec_conformance.running.request import Request

KINDS = {"backend": "--backend", "port": "--port", "program": "--program", "program_serve": "--program-serve"}
"""The options that name a subject; a run has one of them."""


def register(app: typer.Typer) -> None:
    """Adds the command to vaespec's; the entry point in the group `vaespec.commands` names this function."""
    app.command(epilog=example("vaespec conformance --backend numpy --html report.html"))(conformance)


@contextmanager
def usage_errors() -> Iterator[None]:
    """Raises InvalidRequestError, which ends with exit code 2, if a run cannot begin."""
    try:
        yield
    except (VaespecError, OSError) as error:
        raise InvalidRequestError(error) from error


@usage_errors()
def conformance(
    context: typer.Context,
    backend: options.Backend = None,
    port: options.Port = None,
    program: options.Program = None,
    program_serve: options.ProgramServe = None,
    device: options.Device = None,
    precision: options.Precision = "highest",
    profile: options.Profile = "default",
    dtype: options.Dtypes = None,
    level: options.Levels = None,
    check: options.Checks = None,
    case: options.Case = None,
    seed: options.Seed = None,
    time_limit: options.TimeLimit = None,
    jobs: options.Jobs = None,
    report: options.JsonFile = None,
    markdown: options.MarkdownFile = None,
    html: options.HtmlFile = None,
    seconds: options.Seconds = False,
    as_json: options.Json = False,
    matrix: options.Matrix = None,
    self_check: options.SelfCheck = False,
    list_: options.List = False,
    explain: options.Explain = None,
) -> None:
    """Compare a backend, or a whole VAE of yours, with the specification, within what rounding may cost.

    Exit codes: 0 conformant; 1 something failed; 2 the request is invalid, or the subject cannot be imported; 3 the run
    examined too little for a pass to mean anything.
    """
    require_hypothesis()
    if list_ or explain:
        return _show_checks(explain)
    if matrix:
        return _print_matrix(matrix)
    if self_check:
        raise typer.Exit(_check_itself(backend, port or program or program_serve, device, tuple(dtype or ())))
    programs = {"program": program, "program_serve": program_serve}
    subject = {"backend": backend, "port": port, "device": device, "precision": precision, **programs}
    selection = {"dtypes": tuple(dtype or ()), "levels": level, "checks": tuple(check or ()), "case": case}
    run = {"profile": profile, "time_limit": time_limit, "jobs": jobs, "debug": context.find_root().params["debug"]}
    request = _request(seed, **run, **subject, **selection)
    raise typer.Exit(_examine(request, report, markdown, html, seconds=seconds, as_json=as_json))


def _request(seed: int | None, **fields: Any) -> Request:
    """The request of the options; raises a usage error if they contradict each other."""
    if sum(fields[kind] is not None for kind in KINDS) != 1:
        raise typer.BadParameter("name one of them: the subject to examine.", param_hint=" / ".join(KINDS.values()))
    if fields["profile"] not in options.PROFILES:
        choices = ", ".join(options.PROFILES)
        raise typer.BadParameter(f"{fields['profile']!r}: choose {choices}.", param_hint="--profile")
    if fields["backend"] is None and fields["device"]:
        kind = "port" if fields["port"] else "program"
        raise typer.BadParameter(f"a {kind} chooses its device itself.", param_hint="--device")
    if seed is None:
        seed = secrets.randbelow(options.SEEDS) if fields["profile"] == "thorough" else 0
    return Request(seed=seed, **fields)


def _examine(
    request: Request, json: Path | None, markdown: Path | None, html: Path | None, *, seconds: bool, as_json: bool
) -> int:
    """Runs the suite, prints a summary, writes the requested files, and returns the exit code."""
    from vaespec_conformance.reports.html import to_html
    from vaespec_conformance.reports.markdown import to_markdown
    from vaespec_conformance.reports.summary import print_summary
    from vaespec_conformance.reports.writing import write_texts
    from vaespec_conformance.running.isolated import run_isolated

    with progress(f"examining {request.subject}") as step:
        report = run_isolated(request, lambda place, total: step())
    if as_json:
        print_json(report.to_dict(seconds=seconds))
    else:
        print_summary(report)
    texts = {json: report.to_json(seconds=seconds), markdown: to_markdown(report), html: to_html(report)}
    write_texts({path: text for path, text in texts.items() if path is not None})  # after the summary, if they fail
    return report.exit_code


def _print_matrix(paths: list[Path]) -> None:
    from vaespec_conformance.reports.markdown import matrix

    print(matrix([Report.read(path) for path in paths]), end="")


def _show_checks(name: str | None) -> None:
    from vaespec_conformance.judging.registry import CHECKS, LEVELS
    from vaespec_conformance.running.agenda import Selection

    if name is None:
        rows = [
            [c.level, c.id, " ".join(c.subjects), " ".join(c.requires), c.explain.split("\n")[0]]
            for c in sorted(CHECKS.values(), key=lambda c: c.level)
        ]
        print_table(("level", "check", "subjects", "requires", "examines"), rows)
        return
    Selection(checks=(name,))  # raises AgendaError if there is no such check
    check = CHECKS[name.partition("[")[0]]
    print(f"{check.id}, {check.level} ({LEVELS[check.level]}), since {check.since}\n\n{check.explain}")


def _check_itself(backend: str | None, port: str | None, device: str | None, dtypes: tuple[str, ...]) -> int:
    from vaespec_conformance.running.agenda import Selection
    from vaespec_conformance.running.selfcheck import self_check
    from vaespec_conformance.subjects.loading import load_backend

    if port:
        raise typer.BadParameter(
            "mistakes are put into a backend, not into a port or a program.", param_hint="--self-check"
        )
    Selection(dtypes=dtypes)  # raises AgendaError if there is no such dtype
    with progress("putting mistakes in") as step:
        result = self_check(load_backend(backend or "numpy", device), dtypes, step)
    print_lines(*result.lines())
    return result.exit_code
