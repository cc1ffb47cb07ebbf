"""L3: whole models: encode, decode, the posterior and latents."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.architecture import HALVES
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import elementwise
from vaespec_conformance.judging.judge import judge, require_change, specified
from vaespec_conformance.judging.registry import MODEL, WHOLE, Limited, Margin, check
from vaespec_conformance.subjects.capabilities import LACKING, LOGVAR, OTHER_WEIGHTS
from vaespec_conformance.subjects.errors import NotSupportedError

SIZES = ((3, 4), (2, 3))
CONFIGS = ("plain", "attentive", *models.CONFIGS)
EVEN = (2, 4)
"""Latents of the configs with four levels: even, as FLUX.2's patches have to be, and few, since the maps are wide."""


def _case(config: str, regime: str, **fields: Any) -> Case:
    size = EVEN if models.CONFIGS[config].levels == 4 else (3, 4)
    return Case.of(config=config, regime=regime, size=size, **fields, seed=1)


def pinned(**fields: Any) -> tuple[Case, ...]:
    """A case for each regime, and for what a dtype may change: the logits of attention, and an activation."""
    chosen = [*(("plain", regime) for regime in models.REGIMES), ("attentive", "sharp"), ("mish", "plain")]
    return tuple(_case(config, regime, **fields) for config, regime in chosen)


def other_configs(**fields: Any) -> tuple[Limited, ...]:
    """A case for each config that is not among `pinned`; in float32, since the topology is the same in every dtype."""
    return tuple(
        Limited(_case(name, "plain", **fields)) for name in models.CONFIGS if name not in ("plain", "attentive", "mish")
    )


ONE_MODEL = Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1)


HALF_OF = {f"model.{half.verb}": half for half in HALVES.values()}
"""Check -> the half that it runs."""


def build_model(subject: Any, case: Case, dtype: str) -> Any:
    """The subject's model with the config and weights of a case."""
    return subject.build(models.config_of(case), models.weights(case, dtype), dtype)


def _compute_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(build_model(subject, case, dtype).encode(models.images(case, dtype)), axis=1)


@check(
    "model.encode",
    level="L3",
    subjects=WHOLE,
    examples=MODEL,
    cases=cases(config=among(*CONFIGS), regime=among(*models.REGIMES), size=among(*SIZES), more=among(0, 0, 1)),
    pinned=(
        *pinned(more=0),
        Case.of(config="plain", regime="plain", size=(2, 3), more=1, seed=1),
        Case.of(config="plain", regime="plain", size=(1, 1), more=0, seed=1),
    ),
    limited=other_configs(more=0),
)
def encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images become the specification's mean and log-variance, within a few times the error that rounding must cause.

    The weights show mistakes that ordinary weights hide: see `models.REGIMES`. An odd row or column of pixels is left
    out of the latents, not padded or refused.
    """
    margin = judge(subject, _compute_encode, case, dtype, what="encode")
    require_change(subject, _compute_encode, case, dtype, what="encode")
    return margin


def _compute_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return build_model(subject, case, dtype).decode(models.latents(case, dtype))


@check(
    "model.decode",
    level="L3",
    subjects=WHOLE,
    examples=MODEL,
    cases=cases(config=among(*CONFIGS), regime=among(*models.REGIMES), size=among(*SIZES)),
    pinned=pinned(),
    limited=other_configs(),
)
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents become the specification's images, unclipped, within a few times the error that rounding must cause."""
    margin = judge(subject, _compute_decode, case, dtype, what="decode")
    require_change(subject, _compute_decode, case, dtype, what="decode")
    return margin


def _compute_saturated_logvar(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Log-variances around ±50, from a last bias of the encoder that is changed by ±50."""
    weights, last = models.weights(case, dtype), models.last_bias(models.config_of(case))
    half = len(weights[last]) // 2
    weights[last] = rounded(weights[last] + np.repeat((0.0, 50.0), half) * np.tile((1, -1), half), dtype)
    moments = subject.build(models.config_of(case), weights, dtype).encode(models.images(case, dtype))
    if len(moments) == 1:
        raise NotSupportedError("encode returns the mean alone", LACKING[LOGVAR])
    return moments[1]


@check(
    "model.logvar",
    level="L3",
    subjects=WHOLE,
    needs=(LOGVAR, OTHER_WEIGHTS),
    examples=MODEL,
    cases=cases(config=among("plain", "odd"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)
def logvar(subject: Any, case: Case, dtype: str) -> Margin:
    """The log-variance is clamped to [-30, 20], to exactly -30 and 20."""
    expected = specified(_compute_saturated_logvar, case, dtype)
    bound = np.full(expected.shape, budgets.EPS[dtype])
    return judge(subject, _compute_saturated_logvar, case, dtype, what="logvar", budget=bound, compare=elementwise)


def _compute_sample(subject: Any, case: Case, dtype: str) -> np.ndarray:
    config = models.config_of(case)
    noise = rounded(case.rng("noise").standard_normal((2, config.latent_channels, *case["size"])), dtype)
    return build_model(subject, case, dtype).sample(models.images(case, dtype), noise)


@check(
    "model.sample",
    level="L3",
    requires=("sample",),
    examples=MODEL,
    cases=cases(config=among("plain", "odd"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)
def sample(subject: Any, case: Case, dtype: str) -> Margin:
    """A sample is mean + e^(logvar / 2) · noise, with the given noise."""
    return judge(subject, _compute_sample, case, dtype, what="sample")


def _compute_encode_latents(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return build_model(subject, case, dtype).encode_latents(models.images(case, dtype))


def _compute_decode_latents(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return build_model(subject, case, dtype).decode_latents(models.diffusion_latents(case, dtype))


latents = partial(
    check,
    level="L3",
    requires=("latents",),
    examples=MODEL,
    cases=cases(config=among("plain", "odd", "flux1", "flux2"), regime=among("plain"), size=among(EVEN), more=among(0)),
    pinned=tuple(_case(config, "plain", more=0) for config in ("plain", "odd")),
    limited=tuple(Limited(_case(config, "plain", more=0)) for config in ("flux1", "flux2")),
)


@latents("model.encode_latents")
def encode_latents(subject: Any, case: Case, dtype: str) -> Margin:
    """encode_latents returns (z - shift) · scale, or z · scale if the config has no shift.

    FLUX.2's are cut into 2 × 2 patches, and normalized by the stored mean and variance of each channel of them.
    """
    return judge(subject, _compute_encode_latents, case, dtype, what="encode_latents")


@latents("model.decode_latents")
def decode_latents(subject: Any, case: Case, dtype: str) -> Margin:
    """decode_latents undoes `model.encode_latents`, then decodes: z / scale + shift, or FLUX.2's patches."""
    return judge(subject, _compute_decode_latents, case, dtype, what="decode_latents")
