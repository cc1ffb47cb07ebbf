"""L1, precision: each operation of a backend, at the inputs that show its known mistakes."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance import budgets
from vaespec_conformance.cases import Case, among, cases
from vaespec_conformance.judge import judge
from vaespec_conformance.registry import OPERATION, Margin, check

GROUP_NORM_EPS = 1e-6
REGIMES = {  # standard deviation, mean / deviation
    "plain": (1.0, 0.5),
    "faint": (1e-3, 0.5),
    "offset": (1.0, 30.0),
    "far": (1.0, 1e3),
    "loud": (300.0, 0.5),
}


def _to_normalise(case: Case, dtype: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x, scale, shift). Items differ in size and groups in mean, so that statistics of the wrong numbers show."""
    sigma, ratio = REGIMES[case["regime"]]
    B, C, H, W = case["shape"]
    rng = case.rng("x")
    x = rng.standard_normal((B, C, H, W)) * rng.uniform(0.5, 1.5, (B, C, 1, 1))
    x = sigma * (x * np.geomspace(1, 1.5, B).reshape(B, 1, 1, 1) + ratio * rng.uniform(0.8, 1.0, (B, 1, 1, 1)))
    scale, shift = case.rng("scale").uniform(0.5, 1.5, C), case.rng("shift").uniform(-0.5, 0.5, C)
    return rounded(x, dtype), rounded(scale, dtype), rounded(shift, dtype)


def _normalised(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, scale, shift = _to_normalise(case, dtype)
    how = {"groups": case["groups"], "eps": GROUP_NORM_EPS}
    return subject.ops(dtype).on_maps("group_norm", x, weights=(scale, shift), **how)


def conditioning(x: np.ndarray, groups: int) -> float:
    """κ = max (|μ| + σ) / √(σ² + ε) over samples and groups."""
    x_g = x.reshape(len(x), groups, -1)
    mu, sigma2 = x_g.mean(-1), x_g.var(-1)
    return float(((abs(mu) + np.sqrt(sigma2)) / np.sqrt(sigma2 + GROUP_NORM_EPS)).max())


@check(
    "ops.group_norm",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(
        shape=among((2, 8, 4, 4), (2, 8, 5, 3), (1, 16, 3, 7), (3, 8, 1, 1), (2, 32, 9, 8)),
        groups=among(2, 4, 4),
        regime=among(*REGIMES),
    ),
    pinned=tuple(Case.of(shape=(2, 8, 5, 3), groups=4, regime=regime, seed=1) for regime in REGIMES),
)
def group_norm(subject: Any, case: Case, dtype: str) -> Margin:
    """Group normalisation: eps 1e-6 inside the root, groups of neighbouring channels, biased and centred variance.

    Maps with a deviation of 1e-3 show a wrong eps, which is lost in rounding at 1; a mean of 1000 deviations shows a
    variance that is not centred; a few numbers in a group show an unbiased one; an amplitude of 300, statistics in 16
    bits.
    """
    budget = budgets.group_norm(dtype, conditioning(_to_normalise(case, dtype)[0], case["groups"]))
    return judge(subject, _normalised, case, dtype, what="group_norm", budget=budget)
