"""The suite is examined: each known mistake is caught by the check it is for, and what is only different passes."""

from __future__ import annotations

import os

import pytest

from vaespec.registry import get_backend
from vaespec_conformance.checks import weights
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.mutants import BENIGN, MUTANTS, canary, owned_by
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject

NUMPY = BackendSubject(get_backend("numpy"))
IN_16_BITS = ("bfloat16", "float16")
HIDDEN_IN_PORTS = {
    ("group_norm: statistics in 16 bits", "bfloat16"): "their error is that of some more roundings",
}

each_mutant = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())


@pytest.fixture(autouse=True)
def _state_restored():
    """Some mutants change the process, which is their mistake."""
    yield
    os.environ.pop("VAESPEC_CONFORMANCE_MUTANT", None)


def caught(check: str, subject: Subject, dtype: str) -> ConformanceError | None:
    """What a check's pinned cases, which every profile runs, say of a subject."""
    for case in CHECKS[check].pinned:
        try:
            CHECKS[check].run(subject, case, dtype)
        except ConformanceError as error:
            return error
    return None


def base(check: str) -> Subject:
    """What a mistake is put into: a backend, unless the check is for ports alone."""
    return NUMPY if "backend" in CHECKS[check].subjects else PortSubject.of(NUMPY)


@each_mutant
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_each_mistake_is_caught_by_its_owner_but_where_it_is_none(mutant, dtype):
    error = caught(mutant.owner, mutant.wrap(base(mutant.owner)), dtype)
    assert (error is None) == (dtype in mutant.equivalent_in), error


@each_mutant
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_mistake_that_ports_can_show_is_caught_in_a_port(mutant, dtype):
    if mutant.seen_in_ports is None or dtype in mutant.equivalent_in:
        pytest.skip("not to be seen in a port")
    of_backend = "backend" in CHECKS[mutant.owner].subjects
    port = PortSubject.of(mutant.wrap(NUMPY)) if of_backend else mutant.wrap(PortSubject.of(NUMPY))
    error = caught(mutant.seen_in_ports, port, dtype)
    assert (error is None) == ((mutant.name, dtype) in HIDDEN_IN_PORTS)


def test_there_are_as_many_mistakes_as_promised_and_every_check_has_one():
    assert len(MUTANTS) >= 70
    assert [name for name in CHECKS if not owned_by(name)] == []


def test_a_mistake_is_no_mistake_in_one_dtype_or_two_but_never_in_all():
    for mutant in MUTANTS.values():
        assert len(mutant.equivalent_in) < 4, mutant.name
        assert all(mutant.equivalent_in.values()), "a reason"


@pytest.mark.parametrize("name", [name for name in BENIGN if name != "build: older names"])
def test_what_is_right_by_another_way_passes(name):
    variant = BENIGN[name]
    for dtype in {"float32", "bfloat16", "float64"}.intersection(variant.dtypes):
        for check in CHECKS.values():
            if check.level in ("L1", "L2", "L3", "L4") and check.concerns(NUMPY, dtype):
                assert caught(check.id, variant.wrap(NUMPY), dtype) is None, f"{check.id}[{dtype}]"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_older_names_that_are_read_rightly_pass(dtype):
    port = BENIGN["build: older names"].wrap(PortSubject.of(NUMPY))
    assert caught("weights.legacy_names", port, dtype) is None
    assert caught("model.decode", port, dtype) is None


def test_older_names_and_newer_name_the_same_weights():
    names = {f"mid.attentions.0.{new}.weight": None for new in weights.LEGACY}
    assert len(weights.LEGACY) == len(names) == 4


@pytest.mark.parametrize("subject", [NUMPY, PortSubject.of(NUMPY)], ids=["backend", "port"])
def test_the_canary_is_caught_by_the_check_it_names(subject):
    mutant = canary(subject)
    check = mutant.owner if subject.kind == "backend" else mutant.seen_in_ports
    assert caught(check, subject, "float32") is None
    assert caught(check, mutant.wrap(subject), "float32")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("group_norm: eps × 10", "eps is 1e-5, not 1e-6"),
        ("conv2d: no bias", "the bias is not added"),
        ("conv2d: TF32", "products are TF32's: 11 bits of each factor"),
        ("attention: no scale", "logits are not scaled"),
        (
            "attention: greatest logit not subtracted",
            "exponentials overflow, since the greatest logit is not subtracted",
        ),
        ("tiled_decode: overlap off by one", "one row too few is faded"),
        ("decode: colours reversed", "colours are in reverse order"),
        ("encode: log-variance not cut", "log-variances are not cut to [-30, 20]"),
    ],
)
def test_a_failure_names_the_likely_cause(name, hint):
    mutant = MUTANTS[name]
    error = caught(mutant.owner, mutant.wrap(NUMPY), "float32")
    assert error is not None
    assert error.hint == hint


def test_a_failure_like_no_known_mistake_has_no_hint():
    strange = MUTANTS["sample: noise of its own"].wrap(NUMPY)
    error = caught("model.sample", strange, "float32")
    assert error is not None
    assert error.hint is None
