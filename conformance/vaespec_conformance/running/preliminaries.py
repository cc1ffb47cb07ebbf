"""Before the checks: a known mistake is put into the subject and must be seen, and float32 is measured."""

from __future__ import annotations

from typing import Any

from vaespec.backend import PRECISIONS
from vaespec.errors import BackendError
from vaespec_conformance import mutants
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.reports.report import rounded
from vaespec_conformance.running.agenda import REQUIRED, Item
from vaespec_conformance.running.examination import examine
from vaespec_conformance.running.outcome import outcome
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

CLASSES = {"float32": 2e-5, "tf32": 1.5e-3, "bfloat16": 1.2e-2}
"""Greatest relative L2 of a sum of products whose factors have so many bits; see budgets.contraction."""
PRODUCTS = ("ops.conv2d", "ops.linear")


def preliminaries(subject: Subject) -> dict[str, Any]:
    """What a report says of the canary and of the precision."""
    return {"canary": canary(subject), "precision": precision(subject)}


def canary(subject: Subject) -> dict[str, Any]:
    """What became of it: "caught", "survived", or "not run" where the check could not be done."""
    mutant = mutants.canary(subject)
    check = mutant.owner if subject.kind == "backend" else mutant.seen_in_ports
    item = Item(CHECKS[str(check)], REQUIRED[0], None, None)
    result = outcome(examine(mutant.wrap(subject), item, profile="quick", seed=0, shrink=False), None)
    status = {"fail": "caught", "pass": "survived"}.get(result.status, "not run")
    return {"status": status, "mutant": mutant.name, "check": item.id}


def precision(subject: Subject) -> dict[str, Any]:
    """What float32 is worth in a backend's products, for each precision that can be asked for; nothing for a port."""
    if not isinstance(subject, BackendSubject):
        return {}
    return {asked: _measured(subject, asked) for asked in PRECISIONS}


def _measured(subject: BackendSubject, asked: str) -> dict[str, Any]:
    try:
        subject.backend.ops(subject.device or subject.capabilities.devices[0], "float32", asked)
        error = max(_error(subject.replace(precision=asked), check) for check in PRODUCTS)
    except BackendError:
        return {"class": "not available", "error": None}
    except Exception:  # the checks tell what it raises
        return {"class": "not measured", "error": None}
    fitting = (name for name, greatest in CLASSES.items() if error <= greatest)
    return {"class": next(fitting, "worse than bfloat16"), "error": rounded(error)}


def _error(subject: BackendSubject, check: str) -> float:
    """The relative L2 of the pinned cases of an operation that sums products."""
    used = []
    for case in CHECKS[check].pinned:
        try:
            used.append(CHECKS[check].run(subject, case, "float32").eta2)
        except ConformanceError as error:
            used.append(error.eta2)
    return max(used) * budgets.contraction("float32")
