"""The numbers and facts of a report as text, shared by every output format."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from vaespec.escaping import escaped
from vaespec_conformance.judging import budgets
from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import STATUSES, Failure, Result

MARKS = {"pass": "✓", "fail": "✗", "error": "!", "gap": "⚠", "xpass": "⇡", "undeclared": "–", "not_asked": "○"}
COLUMNS = 100
NOTE = (
    "Grade A: no check used more than half of its budget. B: three quarters. C: more, which is still a pass. "
    "The budget of a whole model is 128 times the error that rounding must cause in float32 and float64, 4 times in "
    "16 bits."
)

WITHIN, BEYOND = "▁▂▃▄▅", "█"
"""Characters for a used share from 0 to 1, and for more than the budget."""


def margin(used: float | None) -> str:
    """A share of the budget as text: "0.41", "3.2", "570", "2e6"."""
    if used is None:
        return "unknown"
    if used >= 1e5:
        return f"{used:.0e}".replace("e+0", "e").replace("e+", "e")
    return f"{used:.2g}" if used < 100 else f"{used:.0f}"


def grade_text(report: Report, dtype: str) -> str:
    """A grade with its reason: "A (0.12 of the budget used; a model's error is 15 times that of rounding, of 128)"."""
    used, times = report.used(dtype), report.times_rounding(dtype)
    model = (
        f"; a model's error is {margin(times)} times that of rounding, of {budgets.MODEL[dtype]:.0f}" if times else ""
    )
    return f"{report.grade(dtype)} ({margin(used)} of the budget used{model})"


def subject_rows(report: Report) -> Iterator[tuple[str, str]]:
    """The subject, and how it was examined."""
    subject, run, suite = (report.about[part] for part in ("subject", "run", "suite"))
    yield "kind", subject["kind"]
    if subject["distribution"]:
        yield "from", subject["distribution"]
    if subject["device"]:
        yield "device", subject["device"]
    yield "claims", ", ".join(report.about["claims"]["dtypes"]) or "nothing"
    yield "features", ", ".join(report.about["claims"]["features"]) or "none"
    yield "profile", f"{run['profile']}, seed {run['seed']}"
    if run["selection"]:
        yield "only", ", ".join(f"{field} {', '.join(names)}" for field, names in run["selection"].items())
    canary = report.about["canary"]
    yield "canary", f"{canary['mutant']}: {canary['status']}" if canary["mutant"] else canary["status"]
    yield "suite", f"{suite['version']}, checks {suite['checks_hash'][:12]}"


def precision_rows(report: Report) -> Iterator[tuple[str, str]]:
    """The measured class and error of float32 products, for each precision."""
    for precision, measured in report.about["precision"].items():
        error = "" if measured["error"] is None else f" ({measured['error']:.1e})"
        yield precision, measured["class"] + error


def gap_rows(report: Report) -> Iterator[tuple[str, str, str | None]]:
    """(check, reason, link) of each declared gap; (claim, how many of its checks work, None) of each missing claim."""
    for result in report.results:
        if result.status in ("gap", "xpass"):
            yield result.id, result.reason or "", result.url
    unclaimed: dict[str, list[bool]] = {}
    for result in report.results:
        if result.status == "undeclared":
            unclaimed.setdefault(result.reason or "", []).extend([result.works] if result.works is not None else [])
    for reason, works in unclaimed.items():
        tried = f"{sum(works)} of {len(works)} checks pass the one case that was tried" if works else "not tried"
        yield reason, tried, None
    for what, reason in report.left_out.items():
        yield what, f"not asked: {reason}", None


def environment_rows(report: Report) -> Iterator[tuple[str, str]]:
    """Versions, machine, and the environment variables that change results."""
    yield from report.about["environment"].items()


def failure_lines(result: Result) -> Iterator[str]:
    """A failure, with everything that helps to find its cause, in characters that are safe to print."""
    return map(escaped, _failure_lines(result))


def _failure_lines(result: Result) -> Iterator[str]:
    failure = result.failure
    yield f"{MARKS[result.status]} {result.id}: {result.status}"
    if failure is None:
        yield f"  {STATUSES[result.status]}: {result.reason}"
        return
    yield from _described(failure)
    for other in failure.others:
        yield "  other failures of this check:"
        yield from textwrap.indent("\n".join(_described(other)), "  ").split("\n")
    if failure.trace:
        yield from textwrap.indent(failure.trace.rstrip("\n"), "  ").split("\n")


def _described(failure: Failure) -> Iterator[str]:
    """One cause: the message, and what helps to find it."""
    yield from textwrap.wrap(failure.message, COLUMNS, initial_indent="  ", subsequent_indent="  ")
    if failure.count:
        yield f"  failed: {failure.count}"
    if failure.where:
        yield f"  where:  {failure.where}"
    if failure.hint:
        yield f"  likely: {failure.hint}"
    for name, text in layer_rows(failure.layers):
        yield f"  {name}: {text}"
    if failure.case is not None:
        yield f"  case:   {json.dumps(failure.case)}"
    if failure.command:
        yield f"  again:  {failure.command}"
    if failure.snippet:
        yield "  without the suite:"
        yield from textwrap.indent(failure.snippet.rstrip("\n"), "    ").split("\n")


def _first_wrong(layers: Mapping[str, Any]) -> str:
    """The first wrong layer in words: its name, how far it is off, where, and how it was found."""
    name = f"{layers['layer']}.{layers['part']}" if layers.get("part") else layers["layer"]
    used = next((used for layer, used in layers["strip"] if layer == layers["layer"]), None)
    facts = [f"{margin(used)} budgets" if used and 1 < used < 1e300 else "", layers.get("where") or "", layers["how"]]
    return f"{name} ({'; '.join(fact for fact in facts if fact)})"


def _strip(layers: Mapping[str, Any]) -> str:
    """The strip as one line of blocks, with the names of its ends; empty if no layer was measured."""
    strip = layers["strip"]
    if not strip:
        return ""
    blocks = "".join(BEYOND if used > 1 else WITHIN[min(4, int(5 * used))] for _, used in strip)
    return f"{strip[0][0]} {blocks} {strip[-1][0]} ({BEYOND} is beyond the budget)"


def layer_rows(layers: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    """(name, text) of what was found out about the layers; nothing if none could be named."""
    if layers is None:
        return
    yield "first wrong layer", _first_wrong(layers)
    if layers.get("cause"):
        yield "likely in it", layers["cause"]
    if line := _strip(layers):
        yield "layers", line
