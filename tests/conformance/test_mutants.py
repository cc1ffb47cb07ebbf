"""The suite itself: each known mistake is caught by the check that owns it, and each correct variant passes."""

from __future__ import annotations

import json
import os

import diffusers
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.depth import first

from vaespec.registry import get_backend
from vaespec_conformance.cases import models
from vaespec_conformance.checks.weights import legacy_names
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.mutants import BENIGN, MUTANTS, Mutant, canaries, hints, owned_by
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject

NUMPY = BackendSubject(get_backend("numpy"))
HIDDEN_IN_PORTS = {
    ("group_norm_variance_in_one_pass", "bfloat16"): "16 bits hold no mean of a thousand deviations",
    ("group_norm_variance_in_one_pass", "float16"): "16 bits hold no mean of a thousand deviations",
}

each_mutant = pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())


@pytest.fixture(autouse=True)
def _state_restored():
    """Removes what a mutant leaves in the process, which is its mistake."""
    yield
    os.environ.pop("VAESPEC_CONFORMANCE_MUTANT", None)


def caught(check: str, subject: Subject, dtype: str) -> ConformanceError | None:
    """The error that a check raises in one of its pinned cases, which every profile runs."""
    for case in CHECKS[check].pinned_in(dtype):
        try:
            CHECKS[check].run(subject, case, dtype)
        except ConformanceError as error:
            return error
    return None


def mistaken_port(mutant: Mutant) -> PortSubject:
    """A port with a mistake."""
    of_backend = "backend" in CHECKS[mutant.owner].subjects
    return PortSubject.of(mutant.wrap(NUMPY)) if of_backend else mutant.wrap(PortSubject.of(NUMPY))


def base(check: str) -> Subject:
    """The correct subject of a check: a backend, or a port if the check is only for ports."""
    return NUMPY if "backend" in CHECKS[check].subjects else PortSubject.of(NUMPY)


@each_mutant
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "float64"])
def test_each_mistake_is_caught_by_its_owner_except_in_dtypes_where_it_is_none(mutant, dtype):
    error = caught(mutant.owner, mutant.wrap(base(mutant.owner)), dtype)
    assert (error is None) == (dtype in mutant.equivalent_in), error


@each_mutant
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_each_mistake_that_shows_in_a_port_is_caught_in_a_port(mutant, dtype):
    if mutant.seen_in_ports is None or dtype in mutant.equivalent_in:
        pytest.skip("does not show in a port")
    error = caught(mutant.seen_in_ports, mistaken_port(mutant), dtype)
    assert (error is None) == ((mutant.name, dtype) in HIDDEN_IN_PORTS)


def test_there_are_at_least_seventy_mistakes_and_every_check_owns_one():
    assert len(MUTANTS) >= 70
    assert [name for name in CHECKS if not owned_by(name)] == []


def test_no_mistake_is_equivalent_in_all_dtypes_and_each_equivalence_has_a_reason():
    for mutant in MUTANTS.values():
        assert len(mutant.equivalent_in) < 4, mutant.name
        assert all(mutant.equivalent_in.values()), mutant.name


@pytest.mark.parametrize("name", first(4, (name for name in BENIGN if name != "built_from_older_names")))
def test_a_correct_variant_passes_every_check(name):
    variant = BENIGN[name]
    for dtype in {"float32", "bfloat16", "float64"}.intersection(variant.dtypes):
        for check in CHECKS.values():
            if check.level in ("L1", "L2", "L3", "L4") and check.concerns(NUMPY, dtype):
                assert caught(check.id, variant.wrap(NUMPY), dtype) is None, f"{check.id}[{dtype}]"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_port_that_reads_older_names_correctly_passes(dtype):
    port = BENIGN["built_from_older_names"].wrap(PortSubject.of(NUMPY))
    assert caught("weights.legacy_names", port, dtype) is None
    assert caught("model.decode", port, dtype) is None


def test_diffusers_reads_the_older_names_as_the_same_weights(tmp_path):
    """The older names come from our own table; diffusers reads them independently of it."""
    case = CHECKS["weights.legacy_names"].pinned[0]
    config, weights = models.CONFIGS[case["config"]], models.weights(case, "float32")
    old = legacy_names(weights, axes=2)
    assert len(old.keys() - weights.keys()) == 16  # weight and bias of four projections, in both halves
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
    save_file({name: w.astype(np.float32) for name, w in old.items()}, tmp_path / "diffusion_pytorch_model.safetensors")
    state = diffusers.AutoencoderKL.from_pretrained(tmp_path, low_cpu_mem_usage=False).state_dict()
    assert state.keys() == weights.keys()
    for name, w in weights.items():
        np.testing.assert_array_equal(state[name].numpy(), w)


@pytest.mark.parametrize("subject", [NUMPY, PortSubject.of(NUMPY)], ids=["backend", "port"])
def test_each_canary_is_caught_by_the_check_it_names(subject):
    for mutant in canaries(subject):
        check = mutant.owner if subject.kind == "backend" else mutant.seen_in_ports
        assert caught(check, subject, "float32") is None
        assert caught(check, mutant.wrap(subject), "float32")


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("group_norm_eps_1e_5", "eps is 1e-5, not 1e-6."),
        ("conv2d_without_bias", "The bias is not added."),
        ("conv2d_in_tf32", "Convolutions multiply in TF32, which keeps 11 bits of each factor."),
        ("attention_without_scale", "The logits are not scaled."),
        (
            "attention_without_subtracting_the_largest_logit",
            "Exponentials overflow, because the largest logit is not subtracted first.",
        ),
        ("tiled_decode_overlap_off_by_one", "One row too few is blended."),
        ("decode_reverses_channels", "decode returns the colour channels in reverse order: BGR for RGB."),
        ("encode_does_not_clamp_logvar", "The log-variance is not clamped to [-30, 20]."),
    ],
)
def test_a_failure_names_the_likely_cause(name, cause):
    mutant = MUTANTS[name]
    error = caught(mutant.owner, mutant.wrap(NUMPY), "float32")
    assert error is not None
    assert hints.likely(error) == cause


def test_a_failure_unlike_every_known_mistake_has_no_likely_cause():
    strange = MUTANTS["sample_draws_its_own_noise"].wrap(NUMPY)
    error = caught("model.sample", strange, "float32")
    assert error is not None
    assert hints.likely(error) is None
