"""The checks pass correct subjects with room to spare, and compare with diffusers' numbers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.configs import relative_l2
from support.oracle import decoded, diffusers_model, encoded

from vaespec.registry import get_backend
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.goldens import FILE, goldens
from vaespec_conformance.checks import behaviour
from vaespec_conformance.judging.comparison import equal, within
from vaespec_conformance.judging.registry import CHECKS, DTYPES, LEVELS
from vaespec_conformance.subjects.errors import ConformanceError, blamed
from vaespec_conformance.subjects.numpy_facade import VaeFacade
from vaespec_conformance.subjects.oracle import ORACLE, ReferenceBackend
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject

ROOM = 0.75
"""The share of a budget that a correct subject may use."""

CORRECT = {name: BackendSubject(get_backend(name)) for name in ("numpy", "torch", "mlx")}
CORRECT["reference"] = BackendSubject(ReferenceBackend())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", CORRECT)
def test_correct_backends_pass_every_pinned_case_with_a_quarter_of_the_budget_left(name, dtype):
    subject = CORRECT[name]
    if dtype not in subject.capabilities.dtypes:
        pytest.skip("not a dtype of this backend")
    for check in CHECKS.values():
        if check.concerns(subject, dtype):
            for case in check.pinned_in(dtype):
                assert max(check.run(subject, case, dtype)) <= ROOM, f"{check.id} {case.to_json()}"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("check", ["ops.conv2d", "ops.group_norm", "ops.attention", "blocks.resnet", "model.logvar"])
def test_a_backend_that_compiles_passes_too(check, dtype):
    subject = BackendSubject(get_backend("jax"))
    for case in CHECKS[check].pinned:
        assert max(CHECKS[check].run(subject, case, dtype)) <= ROOM


@pytest.mark.parametrize("name", CHECKS)
@settings(max_examples=10)
@given(data=st.data())
def test_every_drawn_case_is_json_and_passes(name, data):
    check = CHECKS[name]
    case = data.draw(check.cases)
    assert Case.from_json(case.to_json()) == case
    if check.concerns(CORRECT["numpy"], "float32"):
        assert max(check.run(CORRECT["numpy"], case, "float32")) <= ROOM


@pytest.mark.parametrize("check", CHECKS.values(), ids=CHECKS.keys())
def test_a_check_explains_itself_and_pins_its_worst_cases(check):
    assert len(check.explain) > 20
    assert check.explain.endswith(".")
    assert check.level in LEVELS
    assert check.pinned
    assert all(json.loads(case.to_json()) for case in check.pinned)


@pytest.mark.parametrize("config", models.CONFIGS)
def test_the_oracle_computes_what_diffusers_computes(config):
    """In float64, for every regime of weights; roundings add up with the number of levels."""
    model = diffusers_model(models.CONFIGS[config])
    for regime in models.REGIMES:
        case = Case.of(config=config, regime=regime, size=(2, 4), more=1, seed=3)
        weights = models.weights(case, "float32")
        model.load_state_dict({name: torch.tensor(w) for name, w in weights.items()}, strict=True)
        ours = ORACLE.build(models.CONFIGS[config], weights, "float64")
        x, z = models.images(case, "float32"), models.latents(case, "float32")
        for mine, theirs in zip(
            (*ours.encode(x), ours.decode(z)), (*encoded(model, x), decoded(model, z)), strict=True
        ):
            # PyTorch computes the variance in one pass, with an error of (μ / σ)² roundings
            one_pass = {"offset": 1e-12, "far": models.FAR**2 * 2.0**-53}
            assert relative_l2(mine, theirs) < one_pass.get(regime, 1e-14 * models.CONFIGS[config].levels)


def test_the_goldens_are_small_and_name_the_version_of_diffusers():
    assert FILE.stat().st_size < 150_000
    assert str(goldens()["version"]) == "0.42.1"


def test_each_regime_has_the_size_that_it_states():
    """The input of the first norm has a deviation of 10⁻³ or 100, or a mean of many deviations."""
    for regime, deviation, ratio in (("plain", 1, 1), ("faint", 1e-3, 1), ("loud", 100, 1), ("offset", 1, 20)):
        case = Case.of(config="plain", regime=regime, size=(3, 4), more=0, seed=0)
        w, b = (models.weights(case, "float64")[f"encoder.conv_in.{leaf}"] for leaf in ("weight", "bias"))
        x = ORACLE.ops("float64").on_maps(
            "conv2d", models.images(case, "float64"), weights=(w, b), stride=1, padding=((1, 1), (1, 1))
        )
        assert deviation / 4 < x.std() < deviation * 4
        assert ratio / 4 < abs(x.mean()) / x.std() + 0.9 < ratio * 4


# -- failures ----------------------------------------------------------------------------------------------------------


def test_a_wrong_number_is_reported_with_its_place():
    expected = np.ones((2, 3, 4, 5))
    actual = expected.copy()
    actual[1, 2, 0, :] += 0.5
    with pytest.raises(ConformanceError, match=r"^decode is off by 0\.1") as raised:
        within(actual, expected, 1e-3, "decode")
    assert raised.value.where == "worst at (1, 2, 0, 0), at the border only, in 1 of 2 items and 1 of 3 channels"
    assert raised.value.eta2 > 100
    np.testing.assert_allclose(raised.value.difference, actual - expected)


def test_one_wrong_pixel_of_many_is_caught():
    expected = np.ones((1, 1, 300, 300))
    actual = expected.copy()
    actual[0, 0, 299, 299] += 0.1
    with pytest.raises(ConformanceError, match="off by"):
        within(actual, expected, 2e-3, "decode")


def test_nonfinite_numbers_and_other_shapes_are_reported():
    with pytest.raises(ConformanceError, match=r"1 of 2 numbers that are NaN or infinite"):
        equal(np.array([1.0, np.nan]), np.ones(2), "x")
    with pytest.raises(ConformanceError, match=r"of shape \(3,\): expected \(2,\)"):
        equal(np.ones(3), np.ones(2), "x")


def test_an_exception_of_the_subject_is_its_failure_and_no_error_of_the_suite():
    with pytest.raises(ConformanceError, match="decode raised ZeroDivisionError: division by zero"), blamed("decode"):
        1 / 0  # noqa: B018

    class Three:
        def encode(self, x):
            return x, x, x

    with pytest.raises(ConformanceError, match="expected a pair of arrays"):
        VaeFacade(Three(), np.float32).encode(np.zeros(1))
    with pytest.raises(ConformanceError, match="decode raised AttributeError"):
        VaeFacade(Three(), np.float32).decode(np.zeros(1))


def test_the_state_that_a_framework_exposes_is_compared():
    class Leaky:
        calls = 0

        def global_state(self):
            Leaky.calls += 1
            return Leaky.calls

        def __getattr__(self, name):
            return getattr(get_backend("numpy"), name)

    (case,) = CHECKS["behaviour.state"].pinned
    with pytest.raises(ConformanceError, match="changed the framework's state"):
        behaviour.state(BackendSubject(Leaky()), case, "float32")


def test_a_port_has_the_features_that_its_methods_show():
    features = PortSubject.of(CORRECT["numpy"]).capabilities.features
    assert {"tiling", "sample", "weights", "threads"} <= features

    class Bare:
        def encode(self, x): ...
        def decode(self, z): ...

    assert PortSubject(lambda config, weights: Bare(), "bare").capabilities.features == {"deterministic", "threads"}
