"""The options of `vaespec conformance`, each defined once; their panels are the groups of the help page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

SUBJECT, RUN, REPORT, SUITE = "Who is examined", "What is run", "What is written", "About the suite"
PROFILES = ("quick", "default", "thorough")
SEEDS = 2**32


def option(panel: str, name: str, metavar: str | None, help: str, **settings: Any) -> Any:
    """A Typer option in a panel of the help page; `name` may hold two names, separated by a space."""
    return typer.Option(*name.split(), metavar=metavar, help=help, rich_help_panel=panel, **settings)


Backend = Annotated[
    str | None,
    option(
        SUBJECT,
        "--backend -b",
        "NAME",
        "An installed backend, or where one is: package.module:object, file.py:object.",
    ),
]
Port = Annotated[
    str | None,
    option(
        SUBJECT,
        "--port",
        "PLACE",
        "A whole VAE: package.module:build or file.py:build, called with a config and weights.",
    ),
]
Program = Annotated[
    str | None,
    option(
        SUBJECT,
        "--program",
        "COMMAND",
        'A program in any language, started for each batch of cases: "./my_vae {request} {answer}".',
    ),
]
ProgramServe = Annotated[
    str | None,
    option(SUBJECT, "--program-serve", "COMMAND", "The same, one process that reads requests from its stdin."),
]
Device = Annotated[str | None, option(SUBJECT, "--device", "NAME", "Device of a backend; by default its best.")]
Precision = Annotated[
    str, option(SUBJECT, "--precision", "highest|default", "Precision that is requested of a backend in float32.")
]

Profile = Annotated[str, option(RUN, "--profile", "|".join(PROFILES), "How many cases each check has.")]
Dtypes = Annotated[list[str] | None, option(RUN, "--dtype", "NAME", "Only this one; again for more.")]
Levels = Annotated[str | None, option(RUN, "--level", "L0-L9", "Only these: L1, L0-L3, or L1,L4.")]
Checks = Annotated[list[str] | None, option(RUN, "--check", "ID", "Only this one, as ID or ID[DTYPE]; again for more.")]
Case = Annotated[str | None, option(RUN, "--case", "JSON", "One case of one check in one dtype.")]
Seed = Annotated[
    int | None,
    option(
        RUN,
        "--seed",
        "N",
        "Which cases are drawn. 0 if not given, and drawn for the thorough profile.",
        min=0,
        max=SEEDS - 1,
        show_default=False,
    ),
]
TimeLimit = Annotated[
    float | None, option(RUN, "--time-limit", "S", "Seconds for a check, or a program's batch.", min=0.1)
]
Jobs = Annotated[
    int | None,
    option(RUN, "--jobs", "N", "Processes that share the checks: two for a backend on the CPU, else one.", min=1),
]

JsonFile = Annotated[Path | None, option(REPORT, "--report", "FILE", "Write the report as JSON.")]
MarkdownFile = Annotated[Path | None, option(REPORT, "--markdown", "FILE", "As Markdown.")]
HtmlFile = Annotated[Path | None, option(REPORT, "--html", "FILE", "As one page, to look at.")]
Seconds = Annotated[bool, option(REPORT, "--seconds", None, "Put the time of each check in the JSON too.")]
Json = Annotated[bool, option(REPORT, "--json", None, "Print the JSON instead of a summary.")]
Matrix = Annotated[
    list[Path] | None,
    option(
        REPORT,
        "--matrix",
        "FILE",
        "Run nothing: print the table of these JSON reports, in Markdown. Again for each.",
    ),
]

SelfCheck = Annotated[
    bool,
    option(
        SUITE,
        "--self-check",
        None,
        "Put every known mistake into a subject that passes (numpy, if none is named) and see that it fails.",
    ),
]
List = Annotated[bool, option(SUITE, "--list", None, "List the checks.")]
Explain = Annotated[str | None, option(SUITE, "--explain", "ID", "Say what a check is about.")]
