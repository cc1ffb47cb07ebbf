"""The report as one HTML page without network or script; light or dark like the reader's system."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Any

from vaespec.escaping import escaped
from vaespec_conformance.judging.registry import LEVELS
from vaespec_conformance.reports.report import Report, by_check, by_level
from vaespec_conformance.reports.result import STATUSES, Result
from vaespec_conformance.reports.text import (
    MARKS,
    NOTE,
    environment_rows,
    gap_rows,
    grade_text,
    layer_rows,
    margin,
    precision_rows,
    subject_rows,
)

STYLE = Path(__file__).with_name("report.css")


def to_html(report: Report) -> str:
    """The page: the verdict, the failures, every margin, and the subject and its environment."""
    title = escape(f"{report.name}: {report.verdict}")
    parts = (_verdict(report), _failures(report), _matrix(report), _tables(report), _gaps(report))
    page = (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{title}</title>\n'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in parts if part)
        + "\n</main>\n</body>\n</html>\n"
    )
    return "\n".join(map(escaped, page.split("\n")))


def _verdict(report: Report) -> str:
    name, verdict = escape(report.name), report.verdict
    counts = "".join(
        f'<div class="tile"><b class="{status}">{count}</b>{escape(status)}</div>'
        for status, count in report.counts.items()
        if count
    )
    label = report.about["subject"].get("label")
    labelled = f'<span class="label">{escape(label)}</span>' if label else ""
    sentence = escape(report.headline.split(". ", 1)[1])
    return (
        f'<header class="{verdict}">\n<h1>{name}<span class="verdict">{verdict}</span>{labelled}</h1>\n'
        f"<p>{sentence}</p>\n"
        f'<div class="glance">{_overview(report)}<div class="tiles">{counts}</div></div>\n</header>'
    )


def _overview(report: Report) -> str:
    """A table of levels and dtypes: how many checks passed of how many."""
    head = "".join(f"<th>{escape(dtype)}</th>" for dtype in report.dtypes)
    rows = []
    for level, cells in by_level(report).items():
        shown = "".join(_share(cells.get(dtype, [])) for dtype in report.dtypes)
        rows.append(f"<tr><th>{level}  {escape(LEVELS[level])}</th>{shown}</tr>")
    grades = "".join(_grade(report, dtype) for dtype in report.dtypes)
    return (
        f'<table class="overview">\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + f'\n<tr><th>grade</th>{grades}</tr>\n</tbody></table>\n<p class="note">{NOTE}</p>'
    )


def _grade(report: Report, dtype: str) -> str:
    """The grade of a dtype, with its reason."""
    return f"<td>{escape(grade_text(report, dtype))}</td>" if report.grade(dtype) else "<td>–</td>"


def _share(results: list[Result]) -> str:
    if not results:
        return "<td></td>"
    passed = sum(result.status in ("pass", "gap") for result in results)
    mark = "pass" if passed == len(results) else "fail"
    return f'<td class="{mark}">{MARKS[mark]} {passed}/{len(results)}</td>'


# -- failures ----------------------------------------------------------------------------------------------------


def _failures(report: Report) -> str:
    if not report.bad:
        return ""
    cards = "\n".join(_card(result, opened=number == 0) for number, result in enumerate(report.bad))
    return f"<section>\n<h2>What did not pass</h2>\n{cards}\n</section>"


def _card(result: Result, *, opened: bool) -> str:
    """One failure: the message, the picture of the error, the likely cause, and two ways to reproduce it."""
    failure = result.failure
    head = f'<h3>{escape(result.id)} <span class="chip {result.status}">{result.status}</span></h3>'
    if failure is None:
        return f'<article class="{result.status}">\n{head}\n<p>{escape(result.reason or "")}</p>\n</article>'
    facts = [("Where", failure.where), ("Likely", failure.hint), ("Failed", failure.count)]
    facts += [("And", f"{o.message} {f'Likely: {o.hint}' if o.hint else ''} ({o.count})") for o in failure.others]
    if result.margin is not None:
        facts.insert(0, ("Error", f"{margin(result.margin)} times the budget"))
    facts += [(name.capitalize(), text) for name, text in layer_rows(failure.layers) if name != "layers"]
    listed = "".join(f"<dt>{name}</dt><dd>{escape(text)}</dd>" for name, text in facts if text)
    picture = (
        f'<figure><img alt="map of the error" src="{escape(failure.picture)}"><figcaption>'
        '<i class="within"></i>within the budget <i class="beyond"></i>beyond it</figcaption></figure>'
        if failure.picture
        else ""
    )
    case = f"<h4>Smallest case</h4><pre>{escape(json.dumps(failure.case))}</pre>" if failure.case is not None else ""
    command = f"<h4>This case alone</h4><pre>{escape(failure.command)}</pre>" if failure.command else ""
    snippet = f"<h4>Without the suite</h4><pre>{escape(failure.snippet)}</pre>" if failure.snippet else ""
    return (
        f'<article class="{result.status}">\n{head}\n<p>{escape(failure.message)}</p>\n'
        f'<div class="facts">{picture}<dl>{listed}</dl></div>\n'
        f"{_strip(failure.layers)}{_details(case + command + snippet, opened)}</article>"
    )


def _strip(layers: Mapping[str, Any] | None) -> str:
    """The strip as a row of cells, each with its layer and its used share as a title."""
    if layers is None:
        return ""
    cells = "".join(_layer(layer, used, layer == layers["layer"]) for layer, used in layers["strip"])
    picture = layers.get("picture")
    figure = (
        f'<figure><img alt="map of the error in the first wrong layer" src="{escape(picture)}">'
        "<figcaption>the error in the first wrong layer</figcaption></figure>"
        if picture
        else ""
    )
    return f'<div class="strip"><span>input</span>{cells}<span>output</span></div>\n{figure}\n'


def _layer(layer: str, used: float, first: bool) -> str:
    mark = "first beyond" if first else "beyond" if used > 1 else "within"
    shown = "far beyond the budget" if used >= 1e300 else f"{margin(used)} of the budget"
    return f'<i class="{mark}" title="{escape(f"{layer}: {shown}", quote=True)}"></i>'


def _details(content: str, opened: bool) -> str:
    mark = " open" if opened else ""
    return f"<details{mark}>\n<summary>See it again</summary>\n{content}\n</details>\n" if content else ""


# -- every margin ------------------------------------------------------------------------------------------------


def _matrix(report: Report) -> str:
    dtypes = tuple(dict.fromkeys(result.dtype for result in report.results))
    head = "".join(f"<th>{escape(dtype)}</th>" for dtype in dtypes)
    rows, level_before = [], None
    for (level, check), cells in by_check(report.results).items():
        if level != level_before:
            heading = escape(f"{level}  {LEVELS.get(level, '')}")
            rows.append(f'<tr class="level"><th colspan="{len(dtypes) + 1}">{heading}</th></tr>')
            level_before = level
        shown = "".join(_cell(cells.get(dtype)) for dtype in dtypes)
        rows.append(f"<tr><th>{escape(check)}</th>{shown}</tr>")
    legend = " · ".join(f"{MARKS[status]} {escape(text)}" for status, text in STATUSES.items() if report.counts[status])
    return (
        "<section>\n<h2>How much of each budget was used</h2>\n"
        f'<p class="note">A full bar is the whole budget, computed for each case. {legend}</p>\n'
        f'<div class="wide"><table class="matrix">\n<thead><tr><th></th>{head}</tr></thead>\n<tbody>\n'
        + "\n".join(rows)
        + "\n</tbody>\n</table></div>\n</section>"
    )


def _cell(result: Result | None) -> str:
    if result is None:
        return "<td></td>"
    title = escape(_tooltip(result), quote=True)
    if result.margin is None or result.status not in ("pass", "fail"):
        return f'<td class="{result.status}" title="{title}">{MARKS[result.status]}</td>'
    if result.status == "pass" and result.margin == 0:
        return f'<td class="pass" title="{title}">exact</td>'
    width = min(100.0, 100 * result.margin)
    return (
        f'<td class="{result.status}" title="{title}"><span class="bar"><i style="width:{width:.0f}%"></i></span>'
        f"<span>{margin(result.margin)}</span></td>"
    )


def _tooltip(result: Result) -> str:
    """The text that is shown when the pointer rests on a cell."""
    parts = [result.id, STATUSES[result.status], f"{result.examples} examples"]
    if result.eta2 is not None:
        parts.append(f"L2 {margin(result.eta2)}, greatest {margin(result.etainf)} of the budget")
    if result.reason:
        parts.append(result.reason)
    return "; ".join(parts)


# -- the subject and its environment -----------------------------------------------------------------------------


def _tables(report: Report) -> str:
    ops: Mapping[str, str] = report.about["ops"]
    tables = [
        ("Subject", _facts(subject_rows(report))),
        ("Precision of float32", _facts(precision_rows(report))),
        ("Operations", _facts((op, provenance) for op, provenance in ops.items())),
        ("Environment", _facts(environment_rows(report))),
    ]
    boxes = "\n".join(f"<div>\n<h2>{name}</h2>\n{table}\n</div>" for name, table in tables if table)
    return f'<section class="boxes">\n{boxes}\n</section>'


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    cells = "\n".join(f"<tr><th>{escape(name)}</th><td>{escape(value)}</td></tr>" for name, value in rows)
    return f'<table class="facts">\n{cells}\n</table>' if cells else ""


def _gaps(report: Report) -> str:
    items = "\n".join(
        f"<li><b>{escape(name)}</b>: {escape(reason)}{_link(url)}</li>" for name, reason, url in gap_rows(report)
    )
    return f"<section>\n<h2>Declared gaps and missing claims</h2>\n<ul>\n{items}\n</ul>\n</section>" if items else ""


def _link(url: str | None) -> str:
    """A link to an issue; an address that is not http or https is plain text."""
    if not url:
        return ""
    shown = escape(url, quote=True)
    return f' <a href="{shown}">{shown}</a>' if url.startswith(("https://", "http://")) else f" {shown}"
