"""L1, structure: small integers, whose products and sums every dtype holds exactly. No tolerance is needed, so padding,
order of axes, strides and biases show at once, whatever the precision."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec_conformance.cases import Case, among, cases
from vaespec_conformance.comparison import integers
from vaespec_conformance.judge import judge
from vaespec_conformance.registry import OPERATION, Margin, check

SAME, NONE, BELOW_AND_RIGHT = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
LAYERS = ((3, 1, SAME), (1, 1, NONE), (3, 2, BELOW_AND_RIGHT), (3, 1, ((1, 0), (1, 1))), (3, 1, ((0, 1), (1, 1))))
"""(kernel, stride, padding) of the model's convolutions, and of their bands of rows."""


def small(case: Case, what: str, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Integers from -most to most, float64."""
    return case.rng(what).integers(-most, most + 1, shape).astype(np.float64)


def _convolved(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """|x| ≤ 2, |w| ≤ 1 and at most 8 · 9 products: sums up to 152, exact even in bfloat16."""
    kernel, stride, padding = case["layer"]
    B, C, H, W = case["shape"]
    x, w = small(case, "x", (B, C, H, W), 2), small(case, "w", (case["out"], C, kernel, kernel), 1)
    b = small(case, "b", (case["out"],), 8)
    return subject.ops(dtype).on_maps("conv2d", x, weights=(w, b), stride=stride, padding=padding)


@check(
    "structure.conv2d",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(
        shape=among((1, 4, 4, 4), (1, 4, 5, 7), (2, 4, 6, 3), (1, 8, 2, 5), (3, 3, 7, 2)),
        out=among(4, 4, 8),
        layer=among(*LAYERS),
    ),
    pinned=tuple(Case.of(shape=(2, 4, 5, 7), out=4, layer=layer, seed=1) for layer in LAYERS),
)
def conv2d(subject: Any, case: Case, dtype: str) -> Margin:
    """Convolutions of small integers are exact: padding, its side, stride, order of the kernel's axes, bias."""
    return judge(subject, _convolved, case, dtype, what="conv2d", compare=integers, budget=0.25)
