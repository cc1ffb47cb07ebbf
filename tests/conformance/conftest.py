"""A registry that a test fills itself."""

from __future__ import annotations

import pytest

from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.running import runner


@pytest.fixture
def no_checks(monkeypatch):
    """An empty registry. The canary, which needs the suite's own checks, is reported as caught."""
    before = dict(CHECKS)
    CHECKS.clear()
    caught = {"status": "caught", "mutant": "a mutant", "check": "a check"}
    monkeypatch.setattr(runner, "preliminaries", lambda subject: {"canary": caught})
    yield CHECKS
    CHECKS.clear()
    CHECKS.update(before)
