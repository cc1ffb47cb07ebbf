"""L2: each layer of the model on the operations of a backend."""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.attention import Attention
from vaespec.layers import Downsample, Resnet, Sequential, Upsample
from vaespec.ops import Layer
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.table import check_rows
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import BLOCK, Margin

C = 16
LAYERS: dict[str, tuple[str, Layer]] = {
    "resnet": (
        "A resnet normalizes, activates and convolves its input twice, and adds the result to its input.",
        Resnet("layer", C, C, 4, "silu"),
    ),
    "shortcut": (
        "A resnet that changes the number of channels adds a 1 × 1 convolution of its input.",
        Resnet("layer", C, 8, 4, "silu"),
    ),
    "attention": (
        "An attention layer attends over the pixels of its normalized input, and adds the result to its input.",
        Attention("layer", C, 4),
    ),
    "downsample": (
        "Downsampling turns n into ⌊n / 2⌋, for odd n as well: zeros are added below and on the right only.",
        Downsample("layer", C),
    ),
    "upsample": (
        "Upsampling turns n into 2 n: each pixel is repeated, then the map is convolved.",
        Upsample("layer", C),
    ),
}
MODELS = {name: Sequential((layer,)) for name, (_, layer) in LAYERS.items()}


def _weights(layer: Any, case: Case, dtype: str) -> dict[str, np.ndarray]:
    rng = case.rng("weights")
    drawn = {name: rng.standard_normal(row.shape) / max(1, row.fan_in) ** 0.5 for name, row in layer.parameters()}
    return {name: rounded(w, dtype) for name, w in drawn.items()}


def _input(case: Case, dtype: str) -> np.ndarray:
    return rounded(case.rng("x").standard_normal((2, C, *case["size"])), dtype)


def _compute_layer(layer: Sequential, subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).layer(layer, _input(case, dtype), _weights(layer, case, dtype))


COMPUTES = {name: partial(_compute_layer, layer) for name, layer in MODELS.items()}


@lru_cache(256)
def _predicted(layer: Sequential, case: Case, dtype: str) -> float:
    return predicted_error(layer, _input(case, dtype), _weights(layer, case, dtype), dtype)


def judge_layer(name: str, subject: Any, case: Case, dtype: str) -> Margin:
    """Judges one layer by what rounding must cost it."""
    budget = budgets.model(dtype, _predicted(MODELS[name], case, dtype))
    return judge(subject, COMPUTES[name], case, dtype, what=name, budget=budget)


check_rows(
    "blocks",
    {name: explain for name, (explain, _) in LAYERS.items()},
    judge_layer,
    level="L2",
    subjects=("backend",),
    examples=BLOCK,
    cases=cases(size=among((4, 4), (5, 6))),
    pinned=(Case.of(size=(5, 6), seed=1),),
)
