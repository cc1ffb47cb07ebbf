"""L1, structure: small integers, whose products and sums every dtype holds exactly.

No tolerance is needed, so padding, order of axes, strides and biases show at once, whatever the precision.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.judging.comparison import integers
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import OPERATION, Margin, check

SAME, NONE, BELOW_AND_RIGHT = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
CONVOLUTIONS = ((3, 1, SAME), (1, 1, NONE), (3, 2, BELOW_AND_RIGHT), (3, 1, ((1, 0), (1, 1))), (3, 1, ((0, 0), (1, 1))))
"""(kernel, stride, padding) of the model's convolutions, and of those of its bands of rows."""

MAPS = ((1, 4, 4, 4), (2, 4, 5, 7), (2, 8, 5, 3))
TOKENS = ((1, 4, 4), (2, 6, 4), (1, 7, 8))
"""Few, and the same in many checks, since some backends compile for each."""


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
    cases=cases(shape=among(*MAPS), out=among(4, 4, 8), layer=among(*CONVOLUTIONS)),
    pinned=tuple(Case.of(shape=(2, 4, 5, 7), out=4, layer=layer, seed=1) for layer in CONVOLUTIONS),
)
def conv2d(subject: Any, case: Case, dtype: str) -> Margin:
    """Convolutions of small integers are exact: padding, its side, stride, order of the kernel's axes, bias."""
    return judge(subject, _convolved, case, dtype, what="conv2d", compare=integers, budget=0.25)


def _mapped(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """|t| ≤ 2, |w| ≤ 2 and at most 8 products."""
    B, N, C = case["shape"]
    t, w = small(case, "t", (B, N, C), 2), small(case, "w", (case["out"], C), 2)
    weights = (w, small(case, "b", (case["out"],), 8))
    return subject.ops(dtype).on_tokens("linear", t, weights=weights)


@check(
    "structure.linear",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*TOKENS), out=among(4, 8)),
    pinned=(Case.of(shape=(2, 6, 4), out=4, seed=1),),
)
def linear(subject: Any, case: Case, dtype: str) -> Margin:
    """Linear maps of small integers are exact: the weight is (out, in), and the bias is added."""
    return judge(subject, _mapped, case, dtype, what="linear", compare=integers, budget=0.25)


def _doubled(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_maps("upsample_nearest2x", small(case, "x", case["shape"], 100))


@check(
    "structure.upsample",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*MAPS)),
    pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),),
)
def upsample(subject: Any, case: Case, dtype: str) -> Margin:
    """Doubling repeats each pixel twice in each direction, and computes nothing."""
    return judge(subject, _doubled, case, dtype, what="upsample_nearest2x", compare=integers, budget=0.25)


def _added(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, y = (small(case, what, case["shape"], 60) for what in "xy")
    return subject.ops(dtype).on_maps("add", x, y)


@check(
    "structure.add",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*MAPS)),
    pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),),
)
def add(subject: Any, case: Case, dtype: str) -> Margin:
    """The residual connection adds, and nothing else."""
    return judge(subject, _added, case, dtype, what="add", compare=integers, budget=0.25)


def _tokens(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).tokens(small(case, "x", case["shape"], 100))


@check(
    "structure.tokens",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*MAPS)),
    pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),),
)
def tokens(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens are the pixels row by row, channels last: (B, H·W, C)."""
    return judge(subject, _tokens, case, dtype, what="tokens", compare=integers, budget=0.25)


def _pixels(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).tokens_and_back(small(case, "x", case["shape"], 100))


@check(
    "structure.pixels",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*MAPS)),
    pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),),
)
def pixels(subject: Any, case: Case, dtype: str) -> Margin:
    """`pixels` undoes `tokens`."""
    return judge(subject, _pixels, case, dtype, what="pixels of tokens", compare=integers, budget=0.25)


def _thirds(subject: Any, case: Case, dtype: str) -> np.ndarray:
    B, N, C = case["shape"]
    return np.stack(subject.ops(dtype).on_tokens("split", small(case, "t", (B, N, 3 * C), 100), parts=3))


@check(
    "structure.split",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*TOKENS)),
    pinned=(Case.of(shape=(2, 6, 4), seed=1),),
)
def split(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens are split into parts of neighbouring channels."""
    return judge(subject, _thirds, case, dtype, what="split", compare=integers, budget=0.25)


def _scaled(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_tokens("scale", small(case, "t", case["shape"], 50), factor=case["factor"])


@check(
    "structure.scale",
    level="L1",
    subjects=("backend",),
    examples=OPERATION,
    cases=cases(shape=among(*TOKENS), factor=among(2.0, 0.0, -1.0)),
    pinned=(Case.of(shape=(2, 6, 4), factor=2.0, seed=1),),
)
def scale(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens times a number."""
    return judge(subject, _scaled, case, dtype, what="scale", compare=integers, budget=0.25)
