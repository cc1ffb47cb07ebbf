"""Before anything else: one known mistake is put into the subject, and must be seen."""

from __future__ import annotations

from typing import Any

from vaespec_conformance import mutants
from vaespec_conformance.examination import examine
from vaespec_conformance.outcome import outcome
from vaespec_conformance.plan import REQUIRED, Item
from vaespec_conformance.registry import CHECKS
from vaespec_conformance.subjects import Subject


def fly(subject: Subject) -> dict[str, Any]:
    """What became of the canary: "caught", "survived", or "not run" where the subject cannot even do wrong."""
    mutant = mutants.canary(subject)
    check = mutant.owner if subject.kind == "backend" else mutant.seen_in_ports
    item = Item(CHECKS[str(check)], REQUIRED[0], None, None)
    result = outcome(examine(mutant.wrap(subject), item, profile="quick", seed=0), None)
    status = {"fail": "caught", "pass": "survived"}.get(result.status, "not run")
    return {"status": status, "mutant": mutant.name, "check": item.id}
