"""Turns an examination into a result, with everything that helps to understand a failure."""

from __future__ import annotations

import json
import shlex
import traceback
from dataclasses import replace
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.checks.model import HALF_OF
from vaespec_conformance.layers import first_wrong_layer
from vaespec_conformance.reports.picture import error_picture
from vaespec_conformance.reports.result import Failure, Result, rounded
from vaespec_conformance.running.agenda import REQUIRED, Item
from vaespec_conformance.running.causes import SEARCHED, Cause, causes
from vaespec_conformance.running.examination import Examination
from vaespec_conformance.running.snippets import snippet
from vaespec_conformance.subjects.capabilities import Gap
from vaespec_conformance.subjects.errors import ConformanceError

SECONDS = 20.0
"""How long the searches for all causes of a check may take together; without a finding they name no layer."""


def outcome(examination: Examination, named: str | None, *, debug: bool = False) -> Result:
    """The result of an examination. `named` is the subject's options on the command line, None if it has none.

    `debug` adds the traceback of what the subject raised.
    """
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
        works=examination.failure is None if item.lacking and examination.examples else None,
        passed=None if item.lacking else tuple(filter(None, examination.passed)) or None,
        failed=None if item.lacking else examination.failed or None,
        not_asked=None if item.lacking else examination.not_asked or None,
        failure=_failure(examination, named, debug) if status in ("fail", "error") else None,
    )


def _status(examination: Examination) -> tuple[str, str | None]:
    """The status, and for gap, xpass, undeclared and not_asked the reason."""
    item, errors = examination.item, [error for _, error in examination.failures]
    if item.lacking:
        return "undeclared", item.lacking
    if any(not isinstance(error, ConformanceError) for error in errors):
        return "error", None
    if not errors and not examination.examples and examination.not_asked:
        return "not_asked", "; ".join(f"{what}: {reason}" for what, reason in examination.not_asked.items())
    if item.gap and not (errors and _core(item)):
        return "gap" if errors else "xpass", _gap_text(item.gap)
    return "fail" if errors else "pass", None


def _core(item: Item) -> bool:
    """Whether no gap can excuse the item."""
    return item.check.core and item.dtype in REQUIRED


def _gap_text(gap: Gap) -> str:
    until = f" (until {gap.until})" if gap.until else ""
    return f"{gap.kind}: {gap.reason}{until}"


def _measured(examination: Examination) -> tuple[float | None, float | None]:
    """The used shares of the budget (L2, greatest); None for a failure that is not a difference of numbers."""
    if not examination.failures:
        return examination.margin
    errors = [error for _, error in examination.failures if isinstance(error, ConformanceError)]
    shares = ([getattr(e, eta) for e in errors if np.isfinite(getattr(e, eta))] for eta in ("eta2", "etainf"))
    return tuple(max(share, default=None) for share in shares)  # type: ignore[return-value]


def _failure(examination: Examination, named: str | None, debug: bool) -> Failure:
    """The first cause, with the others beside it."""
    passed = [case for cases in examination.passed.values() for case in cases]
    found = list(causes(examination.failures, passed))
    seconds = SECONDS / max(1, sum(_evident(cause.error) for cause in found))
    first, *others = (_described(examination, cause, named, debug, seconds) for cause in found)
    return replace(first, others=tuple(others))


def _described(examination: Examination, cause: Cause, named: str | None, debug: bool, seconds: float) -> Failure:
    case, error, item, total = cause.case, cause.error, examination.item, examination.examples
    message = [sentence(str(error) if isinstance(error, ConformanceError) else f"{type(error).__name__}: {error}")]
    if not cause.searched:
        message.append(f"The cause was not searched: {SEARCHED} searches or {SECONDS:g} s are the most for a check.")
    if examination.flaky:
        message.append("It does not fail each time this case is run.")
    if item.gap and _core(item):
        message.append("A gap cannot be declared for what every subject must do.")
    return Failure(
        " ".join(message),
        where=getattr(error, "where", None),
        hint=cause.hint,
        count=f"{cause.count} of {total} cases" if total > 1 else None,
        stage=error.raised[0] if isinstance(error, ConformanceError) and error.raised else None,
        case=json.loads(case.to_json()) if case else None,
        snippet=snippet(examination.subject, item.check, case, item.dtype) if case else None,
        command=_command(item, case, named) if case else None,
        picture=_picture(error),
        trace=_trace(error) if debug else None,
        layers=_layers(examination, case, error, seconds),
    )


def _evident(error: Exception) -> bool:
    """Whether numbers differ, which a search can start from."""
    return isinstance(error, ConformanceError) and error.evidence is not None


def _trace(error: Exception) -> str | None:
    """The traceback of what the subject raised, or of a mistake of the suite; None for a difference of numbers."""
    cause = error.__cause__ if isinstance(error, ConformanceError) else error
    return "".join(traceback.format_exception(cause)) if cause else None


def _layers(examination: Examination, case: Case | None, error: Exception, seconds: float) -> dict[str, Any] | None:
    """The first wrong layer of a whole VAE whose encode or decode is wrong, and the strip over the layers."""
    item, subject = examination.item, examination.subject
    if subject.kind == "backend" or item.check.id not in HALF_OF or case is None or item.lacking:
        return None
    if not _evident(error):
        return None
    half = HALF_OF[item.check.id]
    x, weights = models.given(half, case, item.dtype), models.weights(case, item.dtype)
    found = first_wrong_layer(
        subject, models.config_of(case), item.dtype, half.name, weights=weights, x=x, seconds=seconds
    )
    return found.to_dict() if found else None


def sentence(text: str) -> str:
    """The text with a full stop."""
    return text if text.endswith((".", "!", "?")) else f"{text}."


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
