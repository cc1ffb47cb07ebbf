"""L8: what diffusers gave, frozen: should the specification ever change, this says so."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec import parameters
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.cases.goldens import SIZES, golden_images, golden_latents, golden_weights, goldens
from vaespec_conformance.cases.models import CONFIGS
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, Margin, check


def _built(subject: Any, case: Case, dtype: str) -> Any:
    config = CONFIGS[case["config"]]
    weights = golden_weights({name: row.shape for name, row in parameters(config).items()})
    return subject.build(config, weights, dtype)


def _encoded(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return np.concatenate(_built(subject, case, dtype).encode(golden_images(case["config"])), axis=1)


def _decoded(subject: Any, case: Case, dtype: str) -> np.ndarray:
    return _built(subject, case, dtype).decode(golden_latents(case["config"]))


frozen = partial(
    check,
    level="L8",
    examples=MODEL,
    cases=cases(config=among(*SIZES)),
    pinned=tuple(Case.of(config=name, seed=0) for name in SIZES),
)


@frozen("goldens.encode")
def encode(subject: Any, case: Case, dtype: str) -> Margin:
    """Mean and log-variance of diffusers, of odd images as well."""
    return judge(subject, _encoded, case, dtype, what="encode", expected=goldens()[f"{case['config']}/moments"])


@frozen("goldens.decode")
def decode(subject: Any, case: Case, dtype: str) -> Margin:
    """Images of diffusers, of the latents of odd images as well."""
    return judge(subject, _decoded, case, dtype, what="decode", expected=goldens()[f"{case['config']}/decoded"])
