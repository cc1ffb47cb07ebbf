"""The snippet of a failure runs alone, computes the same as the specification, and shows the mistake."""

from __future__ import annotations

import numpy as np
import pytest
from support import subjects_of_all_kinds as subjects

from vaespec import backends
from vaespec.registry import get_backend
from vaespec_conformance import BackendSubject, PortSubject
from vaespec_conformance.running.agenda import agenda
from vaespec_conformance.running.snippets import FORMULAS, snippet

LONGEST = 15
BACKENDS = [info.name for info in backends()]


def items(subject, dtype="float32"):
    """The items of operations in a dtype."""
    return [item for item in agenda(subject) if item.check.level == "L1" and item.dtype == dtype]


def printed(text, capsys):
    exec(compile(text, "snippet", "exec"), {})
    return float(capsys.readouterr().out)


@pytest.mark.parametrize("name", BACKENDS)
def test_each_snippet_of_a_good_backend_is_short_and_shows_no_mistake(name, capsys):
    subject = BackendSubject(get_backend(name), "cpu")
    checks = set()
    for item in items(subject):
        for case in item.check.pinned:
            text = snippet(subject, item.check, case, "float32")
            if text is not None:
                assert len([line for line in text.splitlines() if line]) <= LONGEST, text
                assert all(len(line) <= 120 for line in text.splitlines())
                assert printed(text, capsys) < 1e-3, text  # 16 u κ is 8e-4 where the mean is 857 deviations
                checks.add(item.check.id)
    assert {f"ops.{op}" for op in ("conv2d", "linear", "group_norm", "silu", "mish", "gelu", "attention")} <= checks
    assert {f"structure.{op}" for op in ("conv2d", "linear", "upsample", "add", "scale")} <= checks


def test_the_snippet_of_a_mistake_shows_it(capsys):
    wrong, good = (BackendSubject(kind()) for kind in (subjects.Wrong, subjects.Good))
    (item,) = (item for item in items(wrong, "float16") if item.check.id == "ops.group_norm")
    (faint,) = (case for case in item.check.pinned if case["regime"] == "faint")
    errors = [printed(snippet(subject, item.check, faint, "float16"), capsys) for subject in (wrong, good)]
    assert errors[0] > 0.1
    assert errors[1] < 1e-3


@pytest.mark.parametrize("check", ["model.encode[float32]", "model.decode[float32]"])
def test_the_snippet_of_a_port_builds_it_and_compares_it_without_the_suite(check, capsys):
    port = PortSubject(subjects.port, f"{subjects.__file__}:port")
    (item,) = (item for item in agenda(port) if item.id == check)
    text = snippet(port, item.check, item.check.pinned[0], "float32")
    assert "vaespec_conformance" not in text
    assert printed(text, capsys) < 1e-5


def test_every_formula_belongs_to_an_operation():
    from vaespec import ReferenceOps

    assert all(hasattr(ReferenceOps(np), op) for op in FORMULAS)
