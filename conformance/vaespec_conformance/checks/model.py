"""L3: whole models: encoding, decoding, and what is made of the posterior."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import elementwise
from vaespec_conformance.judging.judge import judge, specified
from vaespec_conformance.judging.registry import MODEL, Margin, check

SIZES = ((3, 4), (2, 3))
CONFIGS = ("plain", "attentive", "plain", "bare")


def pinned(**fields: Any) -> tuple[Case, ...]:
    """One of each regime and config."""
    chosen = [*(("plain", regime) for regime in models.REGIMES), ("attentive", "sharp"), ("bare", "plain")]
    return tuple(Case.of(config=config, regime=regime, size=(3, 4), **fields, seed=1) for config, regime in chosen)


def built(subject: Any, case: Case, dtype: str) -> Any:
    """The case's model, by the subject."""
    return subject.build(models.CONFIGS[case["config"]], models.weights(case, dtype), dtype)


def _encoded(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(built(subject, case, dtype).encode(models.images(case, dtype)), axis=1)


@check(
    "model.encode",
    level="L3",
    examples=MODEL,
    cases=cases(config=among(*CONFIGS), regime=among(*models.REGIMES), size=among(*SIZES), more=among(0, 0, 1)),
    pinned=(
        *pinned(more=0),
        Case.of(config="plain", regime="plain", size=(2, 3), more=1, seed=1),
        Case.of(config="plain", regime="plain", size=(1, 1), more=0, seed=1),
    ),
)
def encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images become the mean and log-variance of the specification, to a few times of what rounding must cost.

    The weights are made to show mistakes that ordinary ones hide: see `models.REGIMES`. An odd row or column of pixels
    is left out of the latents, not padded or refused.
    """
    return judge(subject, _encoded, case, dtype, what="encode")


def _decoded(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return built(subject, case, dtype).decode(models.latents(case, dtype))


@check(
    "model.decode",
    level="L3",
    examples=MODEL,
    cases=cases(config=among(*CONFIGS), regime=among(*models.REGIMES), size=among(*SIZES)),
    pinned=pinned(),
)
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents become the specification's images, to a few times of what rounding must cost; they are not clipped."""
    return judge(subject, _decoded, case, dtype, what="decode")


def _saturated(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Log-variances around ±50: the last bias of the encoder is changed by that."""
    weights = models.weights(case, dtype)
    last = "quant_conv.bias" if "quant_conv.bias" in weights else "encoder.conv_out.bias"
    half = len(weights[last]) // 2
    weights[last] = rounded(weights[last] + np.repeat((0.0, 50.0), half) * np.tile((1, -1), half), dtype)
    vae = subject.build(models.CONFIGS[case["config"]], weights, dtype)
    return vae.encode(models.images(case, dtype))[1]


@check(
    "model.logvar",
    level="L3",
    examples=MODEL,
    cases=cases(config=among("plain", "bare"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),),
)
def logvar(subject: Any, case: Case, dtype: str) -> Margin:
    """Log-variances are cut to [-30, 20]: -30 and 20 are exactly that."""
    expected = specified(_saturated, case, dtype)
    bound = np.full(expected.shape, budgets.EPS[dtype])
    return judge(subject, _saturated, case, dtype, what="logvar", budget=bound, compare=elementwise)


def _sampled(subject: Any, case: Case, dtype: str) -> np.ndarray:
    config = models.CONFIGS[case["config"]]
    noise = rounded(case.rng("noise").standard_normal((2, config.latent_channels, *case["size"])), dtype)
    return built(subject, case, dtype).sample(models.images(case, dtype), noise)


@check(
    "model.sample",
    level="L3",
    requires=("sample",),
    examples=MODEL,
    cases=cases(config=among("plain", "bare"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),),
)
def sample(subject: Any, case: Case, dtype: str) -> Margin:
    """A sample is mean + e^(logvar / 2) · noise, of the noise that is given."""
    return judge(subject, _sampled, case, dtype, what="sample")


def _scaled(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return built(subject, case, dtype).encode_latents(models.images(case, dtype))


def _unscaled(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return built(subject, case, dtype).decode_latents(models.latents(case, dtype))


scaled = partial(
    check,
    level="L3",
    requires=("latents",),
    examples=MODEL,
    cases=cases(config=among("bare", "plain"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=tuple(Case.of(config=config, regime="plain", size=(3, 4), more=0, seed=1) for config in ("plain", "bare")),
)


@scaled("model.encode_latents")
def encode_latents(subject: Any, case: Case, dtype: str) -> Margin:
    """The diffusion model's latents are (z - shift) · scale, and z · scale where there is no shift."""
    return judge(subject, _scaled, case, dtype, what="encode_latents")


@scaled("model.decode_latents")
def decode_latents(subject: Any, case: Case, dtype: str) -> Margin:
    """They are decoded after z / scale + shift."""
    return judge(subject, _unscaled, case, dtype, what="decode_latents")
