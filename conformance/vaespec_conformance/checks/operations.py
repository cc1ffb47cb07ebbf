"""L1, precision: each operation of a backend, on inputs that show its known mistakes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.structure import BELOW_AND_RIGHT, NONE, SAME
from vaespec_conformance.checks.table import check_rows
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import elementwise
from vaespec_conformance.judging.judge import judge, specified
from vaespec_conformance.judging.registry import OPERATION, Margin, check

precision = partial(check, level="L1", subjects=("backend",), examples=OPERATION)


def normal(case: Case, what: str, shape: tuple[int, ...], dtype: str, size: float = 1.0) -> np.ndarray:
    """Normal numbers N(0, size²), rounded to the dtype."""
    return rounded(size * case.rng(what).standard_normal(shape), dtype)


# -- products --------------------------------------------------------------------------------------------------------


def _compute_conv2d(subject: Any, case: Case, dtype: str) -> np.ndarray:
    (kernel, stride, padding), (B, C, H, W), O = case["layer"], case["shape"], case["out"]
    x, w = normal(case, "x", (B, C, H, W), dtype), normal(case, "w", (O, C, kernel, kernel), dtype, 1 / kernel / C**0.5)
    weights = (w, normal(case, "b", (O,), dtype, 0.1))
    return subject.ops(dtype).on_maps("conv2d", x, weights=weights, stride=stride, padding=padding)


@precision(
    "ops.conv2d",
    cases=cases(
        shape=among((1, 4, 4, 4), (2, 32, 5, 7), (1, 64, 6, 6)),
        out=among(4, 32),
        layer=among((1, 1, NONE), (3, 1, SAME), (3, 2, BELOW_AND_RIGHT)),
    ),
    pinned=(Case.of(shape=(2, 32, 5, 7), out=32, layer=(3, 1, SAME), seed=1),),
)
def conv2d(subject: Any, case: Case, dtype: str) -> Margin:
    """Convolutions keep the precision of their dtype: no TF32 or bfloat16 for float32, sums in float32 or better."""
    return judge(subject, _compute_conv2d, case, dtype, what="conv2d", budget=budgets.contraction(dtype))


def _compute_linear(subject: Any, case: Case, dtype: str) -> np.ndarray:
    (B, N, C), O = case["shape"], case["out"]
    t, w = normal(case, "t", (B, N, C), dtype), normal(case, "w", (O, C), dtype, C**-0.5)
    return subject.ops(dtype).on_tokens("linear", t, weights=(w, normal(case, "b", (O,), dtype, 0.1)))


@precision(
    "ops.linear",
    cases=cases(shape=among((1, 4, 4), (2, 9, 64), (1, 30, 256)), out=among(4, 64)),
    pinned=(Case.of(shape=(2, 9, 64), out=64, seed=1),),
)
def linear(subject: Any, case: Case, dtype: str) -> Margin:
    """Linear maps keep the precision of their dtype, as convolutions do."""
    return judge(subject, _compute_linear, case, dtype, what="linear", budget=budgets.contraction(dtype))


# -- normalization ---------------------------------------------------------------------------------------------------

EPS = 1e-6  # of every norm of this VAE
REGIMES = {  # standard deviation, and mean in deviations
    "plain": (1.0, 0.5),
    "faint": (1e-3, 0.5),
    "offset": (1.0, 30.0),
    "far": (1.0, 1e3),
    "loud": (300.0, 0.5),
}


def norm_input(case: Case, dtype: str) -> np.ndarray:
    """A map whose items, groups and channels differ in size and mean, to show statistics of the wrong numbers."""
    sigma, ratio = REGIMES[case["regime"]]
    B, C, H, W = case["shape"]
    rng = case.rng("x")
    x = rng.standard_normal((B, C, H, W)) * rng.uniform(0.5, 1.5, (B, C, 1, 1)) + rng.uniform(-0.5, 0.5, (B, C, 1, 1))
    x = x * np.geomspace(1, 1.5, B).reshape(B, 1, 1, 1) + ratio * rng.uniform(0.8, 1.0, (B, 1, 1, 1))
    return rounded(sigma * x, dtype)


def _affine(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray]:
    C = case["shape"][1]
    scale, shift = case.rng("scale").uniform(0.5, 1.5, C), case.rng("shift").uniform(-0.5, 0.5, C)
    return rounded(scale, dtype), rounded(shift, dtype)


def conditioning(x: np.ndarray, groups: int) -> float:
    """κ = max (|μ| + σ) / √(σ² + ε) over samples and groups."""
    x_g = x.reshape(len(x), groups, -1)
    mu, sigma2 = x_g.mean(-1), x_g.var(-1)
    return float(((abs(mu) + np.sqrt(sigma2)) / np.sqrt(sigma2 + EPS)).max())


def _compute_group_norm(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, weights = norm_input(case, dtype), _affine(case, dtype)
    return subject.ops(dtype).on_maps("group_norm", x, weights=weights, groups=case["groups"], eps=EPS)


@precision(
    "ops.group_norm",
    cases=cases(
        shape=among((2, 8, 5, 3), (1, 16, 3, 7), (3, 8, 1, 1), (2, 32, 9, 8)),
        groups=among(2, 4, 4),
        regime=among(*REGIMES),
    ),
    pinned=(
        *(Case.of(shape=(2, 8, 5, 3), groups=4, regime=regime, seed=1) for regime in REGIMES),
        Case.of(shape=(3, 8, 1, 1), groups=2, regime="plain", seed=1),
        # the mean, rounded to bfloat16, leaves little else, and a variance in one pass is off by 2 to 4 budgets
        Case.of(shape=(2, 32, 9, 8), groups=4, regime="far", seed=8),
        Case.of(shape=(1, 16, 3, 7), groups=4, regime="far", seed=10),
    ),
)
def group_norm(subject: Any, case: Case, dtype: str) -> Margin:
    """Group normalization: eps 1e-6 inside the root, groups of neighbouring channels, biased and centred variance.

    A map with a deviation of 1e-3 shows a wrong eps, which a deviation of 1 hides in rounding. A mean of 1000
    deviations shows a variance that is not centred. Groups of few numbers show an unbiased variance. An amplitude of
    300 shows statistics in 16 bits.
    """
    budget = budgets.group_norm(dtype, conditioning(norm_input(case, dtype), case["groups"]))
    return judge(subject, _compute_group_norm, case, dtype, what="group_norm", budget=budget)


def _compute_channel_statistics(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """(2, B, C): means in deviations of their channel, and variances relative to the true variances."""
    x = norm_input(case, dtype)
    mean, sigma2 = subject.ops(dtype).channel_statistics(x)
    true = x.var((2, 3))
    return np.stack((mean.astype(np.float64) / np.sqrt(true), sigma2.astype(np.float64) / true))


@precision(
    "ops.moments",
    requires=("banding",),
    cases=cases(
        shape=among((1, 4, 4, 4), (2, 8, 5, 3), (2, 32, 9, 8)), regime=among("plain", "faint", "offset", "loud")
    ),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "faint", "offset", "loud")),
)
def channel_statistics(subject: Any, case: Case, dtype: str) -> Margin:
    """Mean and biased, centred variance of each channel, in float32 or better for any storage dtype."""
    x = norm_input(case, dtype)
    mean, sigma = x.mean((2, 3)), x.std((2, 3))
    bound = budgets.moments(dtype, float((abs(mean) / sigma).max()))
    return judge(
        subject, _compute_channel_statistics, case, dtype, what="channel_statistics", budget=bound, compare=elementwise
    )


def _compute_normalize(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, wide = norm_input(case, dtype), np.float64 if dtype == "float64" else np.float32
    statistics = x.mean((2, 3)).astype(wide), x.var((2, 3)).astype(wide)
    return subject.ops(dtype).normalize(x, *statistics, weights=_affine(case, dtype), eps=EPS)


@precision(
    "ops.normalize",
    requires=("banding",),
    cases=cases(shape=among((1, 4, 4, 4), (2, 8, 5, 3)), regime=among("plain", "faint", "offset")),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "faint")),
)
def normalize(subject: Any, case: Case, dtype: str) -> Margin:
    """normalize uses the given mean and variance of each channel of each sample."""
    x = norm_input(case, dtype)
    budget = budgets.group_norm(dtype, conditioning(x, x.shape[1]))
    return judge(subject, _compute_normalize, case, dtype, what="normalize", budget=budget)


# -- activations -----------------------------------------------------------------------------------------------------


def _activation_input(case: Case, dtype: str) -> np.ndarray:
    """Numbers of both signs: around 1, or of every magnitude that matters to exponentials and 16 bits."""
    rng = case.rng("x")
    size = 1.0 if case["regime"] == "plain" else 10.0 ** rng.uniform(-4, 4, case["shape"])
    return rounded(size * rng.standard_normal(case["shape"]).clip(-4, 4), dtype)


def _compute_activation(op: str, subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_maps(op, _activation_input(case, dtype))


ACTIVATIONS = {
    "silu": "SiLU is x σ(x), without overflow; it is not GELU, and no hard or fast approximation.",
    "mish": "Mish is x tanh(log(1 + eˣ)), without overflow.",
    "gelu": "GELU is ½ x (1 + erf(x / √2)): the exact form, not the approximation by tanh.",
    "relu": "ReLU is max(x, 0): exactly 0 for negative x.",
}


COMPUTES = {op: partial(_compute_activation, op) for op in ACTIVATIONS}


def judge_activation(op: str, subject: Any, case: Case, dtype: str) -> Margin:
    """Judges each element by its own bound."""
    x = abs(_activation_input(case, dtype))
    cancelled = x if op == "gelu" else np.minimum(x, 20) / 16
    bound = budgets.activation(dtype, specified(COMPUTES[op], case, dtype), cancelled)
    return judge(subject, COMPUTES[op], case, dtype, what=op, budget=bound, compare=elementwise)


check_rows(
    "ops",
    ACTIVATIONS,
    judge_activation,
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among((1, 4, 4, 4), (2, 8, 5, 3)), regime=among("plain", "every magnitude")),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "every magnitude")),
)


# -- attention -------------------------------------------------------------------------------------------------------

STEEPNESS = (4.0, 0.5, 60.0, 60.0)
"""Standard deviations of the logits: 0.5 as in a new VAE; at 4 the softmax selects; at 60 e^logit overflows."""


def _attention_input(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q and k whose logits have the deviation of the case, and v."""
    size = case["steepness"] ** 0.5  # logits are sums of C products times C^-½: of deviation size²
    q, k = (normal(case, what, case["shape"], dtype, size) for what in "qk")
    return q, k, normal(case, "v", case["shape"], dtype)


def _compute_attention(subject: Any, case: Case, dtype: str) -> np.ndarray:
    q, k, v = _attention_input(case, dtype)
    chunk = {"size": case["size"]} if case["kind"] == "chunked_attention" else {}
    return subject.ops(dtype).on_tokens(case["kind"], q, k, v, scale=case["shape"][2] ** -0.5, **chunk)


@precision(
    "ops.attention",
    cases=cases(
        shape=among((1, 4, 8), (2, 12, 16), (1, 30, 64)),
        steepness=among(*STEEPNESS),
        kind=among("attention", "attention", "eager_attention", "chunked_attention"),
        size=among(4, 5),
    ),
    pinned=tuple(
        Case.of(shape=(2, 12, 16), steepness=steepness, kind=kind, size=5, seed=1)
        for kind, steepness in (
            ("attention", 0.5),
            ("attention", 4.0),
            ("attention", 60.0),
            ("eager_attention", 4.0),
            ("chunked_attention", 60.0),
        )
    ),
)
def attention(subject: Any, case: Case, dtype: str) -> Margin:
    """softmax(scale · Q Kᵀ) V over the keys of each item: by the backend's fastest way, eagerly, and in chunks.

    The scale is an argument, the largest logit is subtracted, and exponentials and sums are in float32 or better.
    Logits with a deviation of 4 show TF32 products, which nearly equal weights hide; with 60 they overflow.
    """
    q, k, _ = _attention_input(case, dtype)
    scale = case["shape"][2] ** -0.5
    largest = scale * float(np.matmul(abs(q), abs(k).transpose(0, 2, 1)).max())
    budget = budgets.attention(dtype, largest, case["steepness"])
    return judge(subject, _compute_attention, case, dtype, what=case["kind"], budget=budget)
