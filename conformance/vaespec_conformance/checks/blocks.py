"""L2: each layer of the model on the operations of a backend."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import numpy as np

from vaespec.analysis.rounding import predicted_error, rounded
from vaespec.attention import Attention
from vaespec.layers import Resnet, Sequential, Upsample, downsample
from vaespec.ops import Layer
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import BLOCK, Margin, check

C = 16
LAYERS: dict[str, tuple[str, Layer]] = {
    "resnet": ("conv1 of normalised maps, twice, is added to its input.", Resnet("layer", C, C, 4, "silu")),
    "shortcut": (
        "A resnet that changes the width adds what a 1 × 1 convolution makes of its input.",
        Resnet("layer", C, 8, 4, "silu"),
    ),
    "attention": ("Attention over the pixels of normalised maps is added to its input.", Attention("layer", C, 4)),
    "downsample": (
        "n becomes ⌊n / 2⌋, of odd n as well: zeros are added below and on the right only.",
        downsample("layer", C),
    ),
    "upsample": ("n becomes 2 n: pixels are doubled, then convolved.", Upsample("layer", C)),
}


def _weights(layer: Any, case: Case, dtype: str) -> dict[str, np.ndarray]:
    rng = case.rng("weights")
    drawn = {name: rng.standard_normal(row.shape) / max(1, row.fan_in) ** 0.5 for name, row in layer.parameters()}
    return {name: rounded(w, dtype) for name, w in drawn.items()}


def _input(case: Case, dtype: str) -> np.ndarray:
    return rounded(case.rng("x").standard_normal((2, C, *case["size"])), dtype)


def _applied(layer: Sequential, subject: Any, case: Case, dtype: str) -> np.ndarray:
    return subject.ops(dtype).layer(layer, _input(case, dtype), _weights(layer, case, dtype))


@lru_cache(256)
def _predicted(layer: Sequential, case: Case, dtype: str) -> float:
    return predicted_error(layer, _input(case, dtype), _weights(layer, case, dtype), dtype)


def _register(name: str, explain: str, layer: Sequential) -> None:
    compute: Callable[..., np.ndarray] = partial(_applied, layer)

    def run(subject: Any, case: Case, dtype: str) -> Margin:
        budget = budgets.model(dtype, _predicted(layer, case, dtype))
        return judge(subject, compute, case, dtype, what=name, budget=budget)

    run.__doc__ = explain
    check(
        f"blocks.{name}",
        level="L2",
        subjects=("backend",),
        examples=BLOCK,
        cases=cases(size=among((4, 4), (5, 6))),
        pinned=(Case.of(size=(5, 6), seed=1),),
    )(run)


for _name, (_explain, _layer) in LAYERS.items():
    _register(_name, _explain, Sequential((_layer,)))
