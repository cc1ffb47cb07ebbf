"""L9: stored results of diffusers, which show if the specification itself ever changes."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec import parameters
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.goldens import SIZES, golden_images, golden_latents, golden_weights, goldens
from vaespec_conformance.cases.models import CONFIGS
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, WHOLE, Margin, check
from vaespec_conformance.subjects.capabilities import OTHER_WEIGHTS, Terms

golden = partial(
    check,
    level="L9",
    subjects=WHOLE,
    examples=MODEL,
    needs=(OTHER_WEIGHTS,),
    cases=cases(config=among(*SIZES)),
    pinned=tuple(Case.of(config=name, seed=0) for name in ("plain", "attentive", "odd")),
)


def _build(subject: Any, case: Case, dtype: str) -> Any:
    config = CONFIGS[case["config"]]
    weights = golden_weights({name: row.shape for name, row in parameters(config).items()})
    return subject.build(config, weights, dtype)


def _compute_encode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(_build(subject, case, dtype).encode(golden_images(case["config"])), axis=1)


@golden("goldens.encode")
def encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images, of odd sizes as well, become the mean and log-variance that diffusers computes."""

    def expected(terms: Terms) -> np.ndarray:
        moments = goldens()[f"{case['config']}/moments"]
        return np.split(moments, 2, axis=1)[0] if terms.mean_alone else moments

    return judge(subject, _compute_encode, case, dtype, what="encode", expected=expected)


def _compute_decode(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return _build(subject, case, dtype).decode(golden_latents(case["config"]))


@golden("goldens.decode")
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents become the images that diffusers computes."""

    def expected(terms: Terms) -> np.ndarray:
        return goldens()[f"{case['config']}/decoded"]

    return judge(subject, _compute_decode, case, dtype, what="decode", expected=expected)
