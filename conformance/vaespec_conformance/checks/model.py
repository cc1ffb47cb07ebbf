"""L3: whole models, encoding and decoding."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec_conformance import models
from vaespec_conformance.cases import Case, among, cases
from vaespec_conformance.judge import judge
from vaespec_conformance.registry import MODEL, Margin, check


def _decoded(subject: Any, case: Case, dtype: str) -> np.ndarray:
    config = models.CONFIGS[case["config"]]
    weights = models.weights(config, case["regime"], case, dtype)
    z = rounded(case.rng("z").standard_normal((2, config.latent_channels, *case["size"])), dtype)
    return subject.build(config, weights, dtype).decode(z)


@check(
    "model.decode",
    level="L3",
    examples=MODEL,
    cases=cases(config=among(*models.CONFIGS), regime=among("plain"), size=among((4, 4), (5, 3))),
    pinned=(Case.of(config="two levels", regime="plain", size=(5, 3), seed=1),),
)
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents are decoded to the specification's images, within a few times of what rounding must cost."""
    return judge(subject, _decoded, case, dtype, what="decode")
