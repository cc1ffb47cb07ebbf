"""Before the checks: puts a known mistake into the subject, which must be detected, and measures its float32."""

from __future__ import annotations

from typing import Any

from vaespec.backend import PRECISIONS
from vaespec.errors import BackendError
from vaespec_conformance import mutants
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.reports.result import rounded
from vaespec_conformance.running.agenda import REQUIRED, Item
from vaespec_conformance.running.case_selection import pinned_cases
from vaespec_conformance.running.examination import examine
from vaespec_conformance.running.facts import environment
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

PRODUCTS = ("ops.conv2d", "ops.linear")


def preliminaries(subject: Subject) -> dict[str, Any]:
    """The canary, the precision, and the environment with the frameworks that the canary has shown."""
    caught = canary(subject)
    return {"canary": caught, "precision": precision(subject), "environment": dict(environment(subject))}


def canary(subject: Subject) -> dict[str, Any]:
    """Puts a known mistake into the subject, and runs a case that the unchanged subject passes.

    The status is "caught", "survived", or "not run" if the unchanged subject passes no case.
    """
    for mutant in mutants.canaries(subject):
        check = CHECKS[str(mutant.owner if subject.kind == "backend" else mutant.seen_in_ports)]
        item = Item(check, REQUIRED[0])
        for case in pinned_cases(subject, check, item.dtype, "quick"):
            if _status(subject, item, case) == "pass":
                status = {"fail": "caught", "pass": "survived"}.get(
                    _status(mutant.wrap(subject), item, case), "not run"
                )
                return {"status": status, "mutant": mutant.name, "check": item.id}
    return {"status": "not run", "mutant": mutant.name, "check": item.id}


def _status(subject: Subject, item: Item, case: Case) -> str:
    """The status of one case, without a search for causes."""
    examination = examine(subject, item, profile="quick", seed=0, case=case, shrink=False)
    errors = [error for _, error in examination.failures]
    if errors:
        return "fail" if all(isinstance(error, ConformanceError) for error in errors) else "error"
    return "pass" if examination.examples else "not_asked"


def precision(subject: Subject) -> dict[str, Any]:
    """Measures a backend's float32 products in each precision that can be requested; empty for a port."""
    if not isinstance(subject, BackendSubject):
        return {}
    return {precision: _measured(subject, precision) for precision in PRECISIONS}


def _measured(subject: BackendSubject, precision: str) -> dict[str, Any]:
    try:
        subject.backend.ops(subject.device or subject.capabilities.devices[0], "float32", precision)
        error = max(_error(subject.replace(precision=precision), check) for check in PRODUCTS)
    except BackendError:
        return {"class": "not available", "error": None}
    except Exception:  # the checks report it
        return {"class": "not measured", "error": None}
    return {"class": budgets.product_class(error) or "worse than bfloat16", "error": rounded(error)}


def _error(subject: BackendSubject, check: str) -> float:
    """The greatest relative L2 of the pinned cases of an operation that sums products."""
    margins = []
    for case in CHECKS[check].pinned:
        try:
            margins.append(CHECKS[check].run(subject, case, "float32").eta2)
        except ConformanceError as error:
            margins.append(error.eta2)
    return max(margins) * budgets.contraction("float32")
