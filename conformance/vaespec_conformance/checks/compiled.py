"""L7: compiling changes how long it takes, and nothing else."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.checks.model import built
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, Margin, check
from vaespec_conformance.subjects.errors import ConformanceError

CASES = cases(config=among("plain"), regime=among("plain", "faint"), size=among((3, 4)), more=among(0))
PINNED = (Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),)


def _eager(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Layer by layer, not compiled."""
    vae = built(subject, case, dtype)
    decode = vae.eager_decode if subject.kind == "backend" else vae.decode
    return decode(models.latents(case, dtype))


@check("compiled.eager", level="L7", subjects=("backend",), examples=MODEL, cases=CASES, pinned=PINNED)
def eager(subject: Any, case: Case, dtype: str) -> Margin:
    """Layers that are called one by one, not compiled, give the specification's numbers as well."""
    return judge(subject, _eager, case, dtype, what="decode without compiling")


def _turned(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Decoded after latents of as many numbers in another shape, and of another dtype."""
    vae, z = built(subject, case, dtype), models.latents(case, dtype)
    vae.decode(z.transpose(0, 1, 3, 2))
    vae.decode(z[:1])
    return vae.decode(z)


@check("compiled.shapes", level="L7", examples=MODEL, cases=CASES, pinned=PINNED)
def shapes(subject: Any, case: Case, dtype: str) -> Margin:
    """What was compiled for one shape is not used for another of as many numbers, or for another batch."""
    return judge(subject, _turned, case, dtype, what="decode after one of another shape")


def _after_twin(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Decoded by a model whose twin in another dtype, of those that the subject has, was called before."""
    others = [other for other in ("bfloat16", "float16", "float32") if other in subject.capabilities.dtypes]
    config, weights, z = models.CONFIGS[case["config"]], models.weights(case, dtype), models.latents(case, dtype)
    for other in others:
        if other != dtype:
            subject.build(config, weights, other).decode(z)
    return subject.build(config, weights, dtype).decode(z)


@check("compiled.dtypes", level="L7", subjects=("backend",), examples=MODEL, cases=CASES, pinned=PINNED)
def dtypes(subject: Any, case: Case, dtype: str) -> Margin:
    """What was compiled for one dtype is not used for another: neither its precision, nor the dtype of its results."""
    found = _after_twin(subject, case, dtype).dtype.name
    if found != dtype:
        raise ConformanceError(f"decode in {dtype}, after other dtypes, gave {found}: expected {dtype}.")
    return judge(subject, _after_twin, case, dtype, what="decode after other dtypes")
