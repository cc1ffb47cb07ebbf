"""L1, structure: operations on small integers, whose products and sums are exact in every dtype.

No tolerance is needed, so a wrong padding, order of axes, stride or bias shows in any precision.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.judging.comparison import integers
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import OPERATION, Margin, check

SAME, NONE, BELOW_AND_RIGHT = ((1, 1), (1, 1)), ((0, 0), (0, 0)), ((0, 1), (0, 1))
CONVOLUTIONS = ((3, 1, SAME), (1, 1, NONE), (3, 2, BELOW_AND_RIGHT), (3, 1, ((1, 0), (1, 1))), (3, 1, ((0, 0), (1, 1))))
"""(kernel, stride, padding) of the convolutions of the model, and of the model in bands of rows."""

MAPS = ((1, 4, 4, 4), (2, 4, 5, 7), (2, 8, 5, 3))
TOKENS = ((1, 4, 4), (2, 6, 4), (1, 7, 8))
"""There are few shapes, shared by many checks, because some backends compile for each shape."""

structure = partial(check, level="L1", subjects=("backend",), examples=OPERATION)
on_maps = partial(structure, cases=cases(shape=among(*MAPS)), pinned=(Case.of(shape=(2, 4, 5, 7), seed=1),))
judge_integers = partial(judge, compare=integers, budget=0.25)


def small(case: Case, what: str, shape: tuple[int, ...], most: int) -> np.ndarray:
    """Integers from -most to most, in float64."""
    return case.rng(what).integers(-most, most + 1, shape).astype(np.float64)


def _compute_conv2d(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """A convolution with |x| ≤ 2, |w| ≤ 1 and at most 8 · 9 products: sums up to 152 are exact even in bfloat16."""
    kernel, stride, padding = case["layer"]
    B, C, H, W = case["shape"]
    x, w = small(case, "x", (B, C, H, W), 2), small(case, "w", (case["out"], C, kernel, kernel), 1)
    b = small(case, "b", (case["out"],), 8)
    return subject.ops(dtype).on_maps("conv2d", x, weights=(w, b), stride=stride, padding=padding)


@structure(
    "structure.conv2d",
    cases=cases(shape=among(*MAPS), out=among(4, 4, 8), layer=among(*CONVOLUTIONS)),
    pinned=tuple(Case.of(shape=(2, 4, 5, 7), out=4, layer=layer, seed=1) for layer in CONVOLUTIONS),
)
def conv2d(subject: Any, case: Case, dtype: str) -> Margin:
    """Convolutions of small integers are exact: padding and its side, stride, order of the kernel's axes, bias."""
    return judge_integers(subject, _compute_conv2d, case, dtype, what="conv2d")


def _compute_linear(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """A linear map with |t| ≤ 2, |w| ≤ 2 and at most 8 products."""
    B, N, C = case["shape"]
    t, w = small(case, "t", (B, N, C), 2), small(case, "w", (case["out"], C), 2)
    weights = (w, small(case, "b", (case["out"],), 8))
    return subject.ops(dtype).on_tokens("linear", t, weights=weights)


@structure(
    "structure.linear",
    cases=cases(shape=among(*TOKENS), out=among(4, 8)),
    pinned=(Case.of(shape=(2, 6, 4), out=4, seed=1),),
)
def linear(subject: Any, case: Case, dtype: str) -> Margin:
    """Linear maps of small integers are exact: the weight is (out, in), and the bias is added."""
    return judge_integers(subject, _compute_linear, case, dtype, what="linear")


def _compute_upsample(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_maps("upsample_nearest2x", small(case, "x", case["shape"], 100))


@on_maps("structure.upsample")
def upsample(subject: Any, case: Case, dtype: str) -> Margin:
    """Upsampling repeats each pixel twice in both directions, and computes nothing."""
    return judge_integers(subject, _compute_upsample, case, dtype, what="upsample_nearest2x")


def _compute_add(subject: Any, case: Case, dtype: str) -> np.ndarray:
    x, y = (small(case, what, case["shape"], 60) for what in "xy")
    return subject.ops(dtype).on_maps("add", x, y)


@on_maps("structure.add")
def add(subject: Any, case: Case, dtype: str) -> Margin:
    """The residual connection adds, and nothing else."""
    return judge_integers(subject, _compute_add, case, dtype, what="add")


def _compute_tokens(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).tokens(small(case, "x", case["shape"], 100))


@on_maps("structure.tokens")
def tokens(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens are the pixels row by row, channels last: (B, H·W, C)."""
    return judge_integers(subject, _compute_tokens, case, dtype, what="tokens")


def _compute_pixels(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).tokens_and_back(small(case, "x", case["shape"], 100))


@on_maps("structure.pixels")
def pixels(subject: Any, case: Case, dtype: str) -> Margin:
    """`pixels` undoes `tokens`."""
    return judge_integers(subject, _compute_pixels, case, dtype, what="pixels of tokens")


def _compute_split(subject: Any, case: Case, dtype: str) -> np.ndarray:
    B, N, C = case["shape"]
    return np.stack(subject.ops(dtype).on_tokens("split", small(case, "t", (B, N, 3 * C), 100), parts=3))


@structure(
    "structure.split",
    cases=cases(shape=among(*TOKENS)),
    pinned=(Case.of(shape=(2, 6, 4), seed=1),),
)
def split(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens are split into parts of neighbouring channels."""
    return judge_integers(subject, _compute_split, case, dtype, what="split")


def _compute_scale(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).on_tokens("scale", small(case, "t", case["shape"], 50), factor=case["factor"])


@structure(
    "structure.scale",
    cases=cases(shape=among(*TOKENS), factor=among(2.0, 0.0, -1.0)),
    pinned=(Case.of(shape=(2, 6, 4), factor=2.0, seed=1),),
)
def scale(subject: Any, case: Case, dtype: str) -> Margin:
    """Tokens are multiplied by a number."""
    return judge_integers(subject, _compute_scale, case, dtype, what="scale")
