"""L1, precision: each operation of a backend, at the inputs that show its known mistakes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.checks.structure import BELOW_AND_RIGHT, NONE, SAME
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import elementwise
from vaespec_conformance.judging.judge import judge, specified
from vaespec_conformance.judging.registry import OPERATION, Margin, check


def normal(case: Case, what: str, shape: tuple[int, ...], dtype: str, size: float = 1.0) -> np.ndarray:
    """N(0, size²), as the dtype holds it."""
    return rounded(size * case.rng(what).standard_normal(shape), dtype)


# -- products --------------------------------------------------------------------------------------------------------


def _convolved(subject: Any, case: Case, dtype: str) -> np.ndarray:
    (kernel, stride, padding), (B, C, H, W), O = case["layer"], case["shape"], case["out"]
    x, w = normal(case, "x", (B, C, H, W), dtype), normal(case, "w", (O, C, kernel, kernel), dtype, 1 / kernel / C**0.5)
    weights = (w, normal(case, "b", (O,), dtype, 0.1))
    return subject.ops(dtype).on_maps("conv2d", x, weights=weights, stride=stride, padding=padding)


@check(
    "ops.conv2d",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(
        shape=among((1, 4, 4, 4), (2, 32, 5, 7), (1, 64, 6, 6)),
        out=among(4, 32),
        layer=among((1, 1, NONE), (3, 1, SAME), (3, 2, BELOW_AND_RIGHT)),
    ),
    pinned=(Case.of(shape=(2, 32, 5, 7), out=32, layer=(3, 1, SAME), seed=1),),
)
def conv2d(subject: Any, case: Case, dtype: str) -> Margin:
    """Convolutions keep the precision of their dtype: float32 is not TF32 or bfloat16, sums are float32 or better."""
    return judge(subject, _convolved, case, dtype, what="conv2d", budget=budgets.contraction(dtype))


def _mapped(subject: Any, case: Case, dtype: str) -> np.ndarray:
    (B, N, C), O = case["shape"], case["out"]
    t, w = normal(case, "t", (B, N, C), dtype), normal(case, "w", (O, C), dtype, C**-0.5)
    return subject.ops(dtype).on_tokens("linear", t, weights=(w, normal(case, "b", (O,), dtype, 0.1)))


@check(
    "ops.linear",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among((1, 4, 4), (2, 9, 64), (1, 30, 256)), out=among(4, 64)),
    pinned=(Case.of(shape=(2, 9, 64), out=64, seed=1),),
)
def linear(subject: Any, case: Case, dtype: str) -> Margin:
    """Linear maps keep the precision of their dtype, as convolutions do."""
    return judge(subject, _mapped, case, dtype, what="linear", budget=budgets.contraction(dtype))


# -- normalisation ---------------------------------------------------------------------------------------------------

EPS = 1e-6  # of every norm of this VAE
REGIMES = {  # standard deviation, and mean in deviations
    "plain": (1.0, 0.5),
    "faint": (1e-3, 0.5),
    "offset": (1.0, 30.0),
    "far": (1.0, 1e3),
    "loud": (300.0, 0.5),
}


def to_normalise(case: Case, dtype: str) -> np.ndarray:
    """A map whose items, groups and channels differ in size and mean, so that statistics of the wrong numbers show."""
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


def _normalised(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, weights = to_normalise(case, dtype), _affine(case, dtype)
    return subject.ops(dtype).on_maps("group_norm", x, weights=weights, groups=case["groups"], eps=EPS)


@check(
    "ops.group_norm",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(
        shape=among((2, 8, 5, 3), (1, 16, 3, 7), (3, 8, 1, 1), (2, 32, 9, 8)),
        groups=among(2, 4, 4),
        regime=among(*REGIMES),
    ),
    pinned=(
        *(Case.of(shape=(2, 8, 5, 3), groups=4, regime=regime, seed=1) for regime in REGIMES),
        Case.of(shape=(3, 8, 1, 1), groups=2, regime="plain", seed=1),
        # where the mean rounds to bfloat16 such that little but it is left, and one pass is off by 2 to 4 budgets
        Case.of(shape=(2, 32, 9, 8), groups=4, regime="far", seed=8),
        Case.of(shape=(1, 16, 3, 7), groups=4, regime="far", seed=10),
    ),
)
def group_norm(subject: Any, case: Case, dtype: str) -> Margin:
    """Group normalisation: eps 1e-6 inside the root, groups of neighbouring channels, biased and centred variance.

    Maps with a deviation of 1e-3 show a wrong eps, which is lost in rounding at 1; a mean of 1000 deviations shows a
    variance that is not centred; a few numbers in a group show an unbiased one; an amplitude of 300, statistics in 16
    bits.
    """
    budget = budgets.group_norm(dtype, conditioning(to_normalise(case, dtype), case["groups"]))
    return judge(subject, _normalised, case, dtype, what="group_norm", budget=budget)


def _moments(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """(2, B, C): means in deviations of their channel, and variances relative to the true ones."""
    x = to_normalise(case, dtype)
    mean, sigma2 = subject.ops(dtype).channel_statistics(x)
    true = x.var((2, 3))
    return np.stack((mean.astype(np.float64) / np.sqrt(true), sigma2.astype(np.float64) / true))


@check(
    "ops.moments",
    level="L1",
    subjects=("backend",),
    requires=("banding",),
    examples=OPERATION,
    cases=cases(
        shape=among((1, 4, 4, 4), (2, 8, 5, 3), (2, 32, 9, 8)), regime=among("plain", "faint", "offset", "loud")
    ),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "faint", "offset", "loud")),
)
def moments(subject: Any, case: Case, dtype: str) -> Margin:
    """Mean and biased variance of each channel, centred, in float32 or better whatever the storage."""
    x = to_normalise(case, dtype)
    mean, sigma = x.mean((2, 3)), x.std((2, 3))
    bound = budgets.moments(dtype, float((abs(mean) / sigma).max()))
    return judge(subject, _moments, case, dtype, what="moments", budget=bound, compare=elementwise)


def _from_moments(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, wide = to_normalise(case, dtype), np.float64 if dtype == "float64" else np.float32
    statistics = x.mean((2, 3)).astype(wide), x.var((2, 3)).astype(wide)
    return subject.ops(dtype).normalize(x, *statistics, weights=_affine(case, dtype), eps=EPS)


@check(
    "ops.normalize",
    level="L1",
    subjects=("backend",),
    requires=("banding",),
    examples=OPERATION,
    cases=cases(shape=among((1, 4, 4, 4), (2, 8, 5, 3)), regime=among("plain", "faint", "offset")),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "faint")),
)
def normalize(subject: Any, case: Case, dtype: str) -> Margin:
    """A normalisation whose moments are known, each channel of each sample by its own."""
    x = to_normalise(case, dtype)
    budget = budgets.group_norm(dtype, conditioning(x, x.shape[1]))
    return judge(subject, _from_moments, case, dtype, what="normalize", budget=budget)


# -- activations -----------------------------------------------------------------------------------------------------


def _signal(case: Case, dtype: str) -> np.ndarray:
    """Numbers of both signs: around 1, or of all the magnitudes that exponentials and 16 bits have to do with."""
    rng = case.rng("x")
    size = 1.0 if case["regime"] == "plain" else 10.0 ** rng.uniform(-4, 4, case["shape"])
    return rounded(size * rng.standard_normal(case["shape"]).clip(-4, 4), dtype)


def _activated(op: str, subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_maps(op, _signal(case, dtype))


ACTIVATIONS = {
    "silu": "x σ(x), which neither overflows nor writes over its argument; not GELU, not its hard or fast likenesses.",
    "mish": "x tanh(log(1 + eˣ)), which does not overflow.",
    "gelu": "½ x (1 + erf(x / √2)): the exact form, not the one with tanh.",
    "relu": "max(x, 0): nothing leaks through where x is negative.",
}


def _register(op: str, explain: str) -> None:
    compute = partial(_activated, op)

    def run(subject: Any, case: Case, dtype: str) -> Margin:
        x = abs(_signal(case, dtype))
        cancelled = x if op == "gelu" else np.minimum(x, 20) / 16
        bound = budgets.activation(dtype, specified(compute, case, dtype), cancelled)
        return judge(subject, compute, case, dtype, what=op, budget=bound, compare=elementwise)

    run.__doc__ = explain
    check(
        f"ops.{op}",
        level="L1",
        subjects=("backend",),
        examples=OPERATION,
        cases=cases(shape=among((1, 4, 4, 4), (2, 8, 5, 3)), regime=among("plain", "every magnitude")),
        pinned=tuple(Case.of(shape=(2, 8, 5, 3), regime=regime, seed=1) for regime in ("plain", "every magnitude")),
    )(run)


for _op, _explain in ACTIVATIONS.items():
    _register(_op, _explain)


# -- attention -------------------------------------------------------------------------------------------------------

STEEPNESS = (4.0, 0.5, 60.0, 60.0)
"""Standard deviations of the logits: 0.5 is what a new VAE has, at 4 the softmax chooses, at 60 e^logit overflows."""


def _queries(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q, k of logits with the deviation that the case wants, and v."""
    size = case["steepness"] ** 0.5  # logits are sums of C products times C^-½: of deviation size²
    q, k = (normal(case, what, case["shape"], dtype, size) for what in "qk")
    return q, k, normal(case, "v", case["shape"], dtype)


def _attended(subject: Any, case: Case, dtype: str) -> np.ndarray:
    q, k, v = _queries(case, dtype)
    chunk = {"size": case["size"]} if case["kind"] == "chunked_attention" else {}
    return subject.ops(dtype).on_tokens(case["kind"], q, k, v, scale=case["shape"][2] ** -0.5, **chunk)


@check(
    "ops.attention",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
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
    """softmax(scale · Q Kᵀ) V over the keys of each item, in the backend's best way, eagerly, and in chunks.

    The scale is an argument, the greatest logit is subtracted, and exponentials and sums are float32 or better. Logits
    of a deviation of 4 show TF32 products, which nearly equal weights hide; those of 60 overflow.
    """
    q, k, _ = _queries(case, dtype)
    scale = case["shape"][2] ** -0.5
    largest = scale * float(np.matmul(abs(q), abs(k).transpose(0, 2, 1)).max())
    budget = budgets.attention(dtype, largest, case["steepness"])
    return judge(subject, _attended, case, dtype, what=case["kind"], budget=budget)
