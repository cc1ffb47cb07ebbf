"""`vaespec conformance`: does a backend, or somebody's VAE, compute what the specification says?"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from vaespec.cli import options
from vaespec.cli.console import print_json, print_table, progress
from vaespec.cli.failures import in_words
from vaespec.cli.paths import written
from vaespec.errors import VaespecError
from vaespec_conformance import require_hypothesis

_SUBJECT, _RUN, _REPORT, _SUITE = "Who is examined", "What is run", "What is written", "About the suite"
PROFILES = ("quick", "default", "thorough")
SEEDS = 2**32


def register(app: typer.Typer) -> None:
    """Add the command to vaespec's; what the entry point in the group `vaespec.commands` names."""
    app.command(epilog=options.example("vaespec conformance --backend numpy --html report.html"))(conformance)


def conformance(
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            "-b",
            metavar="NAME",
            help="An installed backend, or where one is: package.module:object, file.py:object.",
            rich_help_panel=_SUBJECT,
        ),
    ] = None,
    port: Annotated[
        str | None,
        typer.Option(
            "--port",
            metavar="PLACE",
            help="A whole VAE: package.module:build or file.py:build, called with a config and weights.",
            rich_help_panel=_SUBJECT,
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", metavar="NAME", help="Of a backend; by default its best.", rich_help_panel=_SUBJECT),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(
            "--precision",
            metavar="highest|default",
            help="What float32 is asked of a backend.",
            rich_help_panel=_SUBJECT,
        ),
    ] = "highest",
    profile: Annotated[
        str,
        typer.Option(
            "--profile", metavar="|".join(PROFILES), help="How many cases each check has.", rich_help_panel=_RUN
        ),
    ] = "default",
    dtype: Annotated[
        list[str] | None,
        typer.Option("--dtype", metavar="NAME", help="Only this one; again for more.", rich_help_panel=_RUN),
    ] = None,
    level: Annotated[
        str | None,
        typer.Option("--level", metavar="L0-L8", help="Only these: L1, L0-L3, or L1,L4.", rich_help_panel=_RUN),
    ] = None,
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check", metavar="ID", help="Only this one, as ID or ID[DTYPE]; again for more.", rich_help_panel=_RUN
        ),
    ] = None,
    case: Annotated[
        str | None,
        typer.Option("--case", metavar="JSON", help="One case of one check in one dtype.", rich_help_panel=_RUN),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            max=SEEDS - 1,
            help="Which cases are drawn. 0 if not given, and drawn for the thorough profile.",
            rich_help_panel=_RUN,
            show_default=False,
        ),
    ] = None,
    time_limit: Annotated[
        float | None,
        typer.Option(
            "--time-limit", metavar="S", min=0.1, help="Seconds for a check, by the profile.", rich_help_panel=_RUN
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            metavar="N",
            min=1,
            help="Processes that share the checks: two for a backend on the CPU, else one.",
            rich_help_panel=_RUN,
        ),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Write the report as JSON.", rich_help_panel=_REPORT)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", metavar="FILE", help="As Markdown.", rich_help_panel=_REPORT)
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="As one page, to look at.", rich_help_panel=_REPORT)
    ] = None,
    seconds: Annotated[
        bool, typer.Option("--seconds", help="Put the time of each check in the JSON too.", rich_help_panel=_REPORT)
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the JSON instead of a summary.", rich_help_panel=_REPORT)
    ] = False,
    matrix: Annotated[
        list[Path] | None,
        typer.Option(
            "--matrix",
            metavar="FILE",
            help="Run nothing: print the table of these JSON reports, in Markdown. Again for each.",
            rich_help_panel=_REPORT,
        ),
    ] = None,
    self_check: Annotated[
        bool,
        typer.Option(
            "--self-check",
            help="Put every known mistake into a subject that passes (numpy, if none is named) and see that it fails.",
            rich_help_panel=_SUITE,
        ),
    ] = False,
    list_: Annotated[bool, typer.Option("--list", help="List the checks.", rich_help_panel=_SUITE)] = False,
    explain: Annotated[
        str | None, typer.Option("--explain", metavar="ID", help="Say what a check is about.", rich_help_panel=_SUITE)
    ] = None,
) -> None:
    """Compare a backend, or a whole VAE of yours, with the specification, within what rounding may cost.

    Exit code 0: conformant. 1: something failed. 2: wrongly asked, or the subject cannot be imported. 3: the run looked
    at too little for a pass to mean anything.
    """
    with _usage_errors():
        require_hypothesis()
        if list_ or explain:
            _show_checks(explain)
        elif matrix:
            _print_matrix(matrix)
        elif self_check:
            raise typer.Exit(_check_itself(backend, port, device, dtype or []))
        else:
            asked = _request(
                backend=backend,
                port=port,
                device=device,
                precision=precision,
                profile=profile,
                seed=seed,
                dtypes=tuple(dtype or ()),
                levels=level,
                checks=tuple(check or ()),
                case=case,
                time_limit=time_limit,
                jobs=jobs,
            )
            raise typer.Exit(_examine(asked, report, markdown, html, seconds=seconds, as_json=as_json))


@contextmanager
def _usage_errors() -> Iterator[None]:
    """What cannot be begun has exit code 2: 1 is for a subject that failed."""
    try:
        yield
    except (VaespecError, OSError) as error:
        print(f"vaespec: error: {in_words(error)}", file=sys.stderr)
        raise typer.Exit(2) from None


def _request(*, seed: int | None, **asked: Any) -> Any:
    """What was asked for, as a value; a usage error where it makes no sense."""
    import secrets

    from vaespec_conformance.running.request import Request

    if (asked["backend"] is None) == (asked["port"] is None):
        raise typer.BadParameter("name one of the two: what is to be examined.", param_hint="--backend / --port")
    if asked["profile"] not in PROFILES:
        raise typer.BadParameter(f"{asked['profile']!r}: choose {', '.join(PROFILES)}.", param_hint="--profile")
    if asked["port"] and asked["device"]:
        raise typer.BadParameter("a port chooses its device itself.", param_hint="--device")
    if seed is None:
        seed = secrets.randbelow(SEEDS) if asked["profile"] == "thorough" else 0
    return Request(seed=seed, **asked)


def _examine(
    asked: Any, json_file: Path | None, markdown: Path | None, html: Path | None, *, seconds: bool, as_json: bool
) -> int:
    """Run, write what is to be written, print a summary; the exit code."""
    from vaespec_conformance.reports.html import to_html
    from vaespec_conformance.reports.markdown import to_markdown
    from vaespec_conformance.reports.summary import print_summary
    from vaespec_conformance.running.isolated import run_isolated

    with progress(f"examining {asked.backend or asked.port}") as step:
        found = run_isolated(asked, lambda place, total: step())
    if as_json:
        print_json(found.to_dict(seconds=seconds))
    else:
        print_summary(found)
    for path, text in (  # after the summary: what has been found is told, wherever it can be written
        (json_file, found.to_json(seconds=seconds)),
        (markdown, to_markdown(found)),
        (html, to_html(found)),
    ):
        if path is not None:
            with written(path) as part:
                part.write_text(text, encoding="utf-8")
    return found.exit_code


def _print_matrix(paths: list[Path]) -> None:
    from vaespec_conformance.reports.markdown import matrix
    from vaespec_conformance.reports.report import Report

    reports = []
    for path in paths:
        try:
            reports.append(Report.from_json(path.read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError) as error:
            raise VaespecError(f"{path} is no report of this suite: {error}") from error
    print(matrix(reports), end="")


def _show_checks(name: str | None) -> None:
    from vaespec_conformance.judging.registry import CHECKS, LEVELS
    from vaespec_conformance.running.agenda import Selection

    if name is None:
        rows = [
            [c.level, c.id, " ".join(c.subjects), " ".join(c.requires), c.explain.split("\n")[0]]
            for c in sorted(CHECKS.values(), key=lambda c: c.level)
        ]
        print_table(("level", "check", "of", "requires", "what"), rows)
        return
    Selection(checks=(name,))
    found = CHECKS[name.partition("[")[0]]
    print(f"{found.id}, {found.level} ({LEVELS[found.level]}), since {found.since}\n\n{found.explain}")


def _check_itself(backend: str | None, port: str | None, device: str | None, dtypes: list[str]) -> int:
    from vaespec_conformance.running.agenda import Selection
    from vaespec_conformance.running.selfcheck import self_check
    from vaespec_conformance.subjects.loading import load_backend

    if port:
        raise typer.BadParameter("mistakes are put into a backend, not into a port.", param_hint="--self-check")
    Selection(dtypes=tuple(dtypes))
    with progress("putting mistakes in") as step:
        found = self_check(load_backend(backend or "numpy", device), dtypes, step)
    print("\n".join(found.lines()))
    return found.exit_code
