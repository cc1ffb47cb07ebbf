"""Turns an examination into a result, with everything that helps to understand a failure."""

from __future__ import annotations

import json
import shlex

import numpy as np

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.mutants import hints
from vaespec_conformance.reports.picture import error_picture
from vaespec_conformance.reports.report import Failure, Result, rounded
from vaespec_conformance.running.agenda import REQUIRED, Item
from vaespec_conformance.running.examination import Examination
from vaespec_conformance.running.snippets import snippet
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import Gap


def outcome(examination: Examination, named: str | None) -> Result:
    """The result of an examination. `named` is the subject's options on the command line, None if it has none."""
    item = examination.item
    status, reason = _status(examination)
    eta2, etainf = _measured(examination) if status in ("pass", "fail") else (None, None)
    return Result(
        *item.place,
        status,
        examples=examination.examples,
        required=examination.required,
        eta2=rounded(eta2),
        etainf=rounded(etainf),
        reason=reason,
        url=item.gap.url if item.gap else None,
        works=examination.failure is None if item.lacking else None,
        failure=_failure(examination, named) if status in ("fail", "error") else None,
    )


def _status(examination: Examination) -> tuple[str, str | None]:
    """The status, and for gap, xpass and undeclared the reason."""
    item = examination.item
    error = examination.failure and examination.failure[1]
    if item.lacking:
        return "undeclared", item.lacking
    if error is not None and not isinstance(error, ConformanceError):
        return "error", None
    if item.gap and not (error and _core(item)):
        return "gap" if error else "xpass", _gap_text(item.gap)
    return "fail" if error else "pass", None


def _core(item: Item) -> bool:
    """Whether no gap can excuse the item."""
    return item.check.core and item.dtype in REQUIRED


def _gap_text(gap: Gap) -> str:
    until = f" (until {gap.until})" if gap.until else ""
    return f"{gap.kind}: {gap.reason}{until}"


def _measured(examination: Examination) -> tuple[float | None, float | None]:
    """The used shares of the budget (L2, greatest); None for a failure that is not a difference of numbers."""
    if examination.failure is None:
        return examination.margin
    error = examination.failure[1]
    assert isinstance(error, ConformanceError)
    return tuple(None if np.isinf(eta) else eta for eta in (error.eta2, error.etainf))  # type: ignore[return-value]


def _failure(examination: Examination, named: str | None) -> Failure:
    assert examination.failure
    (case, error), item = examination.failure, examination.item
    message = [str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}"]
    if examination.flaky:
        message.append("It does not fail each time this case is run.")
    if item.gap and _core(item):
        message.append("A gap cannot be declared for what every subject must do.")
    return Failure(
        " ".join(message),
        where=getattr(error, "where", None),
        hint=hints.likely(error) if isinstance(error, ConformanceError) else None,
        case=json.loads(case.to_json()) if case else None,
        snippet=snippet(examination.subject, item.check, case, item.dtype) if case else None,
        command=_command(item, case, named) if case else None,
        picture=_picture(error),
    )


def _command(item: Item, case: Case, named: str | None) -> str | None:
    """The command that runs the case again."""
    if named is None:
        return None
    return f"vaespec conformance {named} --check {shlex.quote(item.id)} --case {shlex.quote(case.to_json())}"


def _picture(error: Exception) -> str | None:
    """A picture of the error in units of the budget of the measure, L2 or greatest, that exceeds it."""
    difference = getattr(error, "difference", None)
    if difference is None or not difference.size:
        return None
    assert isinstance(error, ConformanceError)
    size = np.abs(np.asarray(difference, np.float64))
    rms, greatest = float(np.sqrt(np.mean(size**2))), float(size.max())
    if np.isinf(error.etainf):  # no error is allowed: every difference is beyond the budget
        return error_picture(np.where(size > 0, 1 + size / (greatest or 1.0), 0.0))
    return error_picture(size / (rms / error.eta2 if error.eta2 > 1 else greatest / error.etainf))
