"""L8: compiling changes how long a call takes, and nothing else."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.model import ONE_MODEL, build_model
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import MODEL, Margin, check
from vaespec_conformance.subjects.errors import ConformanceError

compiled = partial(
    check,
    level="L8",
    examples=MODEL,
    cases=cases(config=among("plain"), regime=among("plain", "faint"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)


def _compute_eagerly(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images decoded layer by layer, without compiling."""
    vae = build_model(subject, case, dtype)
    decode = vae.eager_decode if subject.kind == "backend" else vae.decode
    return decode(models.latents(case, dtype))


@compiled("compiled.eager", subjects=("backend",))
def eager(subject: Any, case: Case, dtype: str) -> Margin:
    """Layers that run one by one, without compiling, give the specification's numbers as well."""
    return judge(subject, _compute_eagerly, case, dtype, what="decode without compiling")


def _compute_after_other_shapes(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images decoded after latents of another shape with as many numbers, and after a smaller batch."""
    vae, z = build_model(subject, case, dtype), models.latents(case, dtype)
    vae.decode(z.transpose(0, 1, 3, 2))
    vae.decode(z[:1])
    return vae.decode(z)


@compiled("compiled.shapes")
def shapes(subject: Any, case: Case, dtype: str) -> Margin:
    """A program compiled for one shape is not used for another shape of as many numbers, or for another batch size."""
    return judge(subject, _compute_after_other_shapes, case, dtype, what="decode after one of another shape")


def _compute_after_other_dtypes(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images decoded after the same model was called in the subject's other dtypes."""
    others = [other for other in ("bfloat16", "float16", "float32") if other in subject.capabilities.dtypes]
    config, weights, z = models.config_of(case), models.weights(case, dtype), models.latents(case, dtype)
    for other in others:
        if other != dtype:
            subject.build(config, weights, other).decode(z)
    return subject.build(config, weights, dtype).decode(z)


@compiled("compiled.dtypes", subjects=("backend",))
def dtypes(subject: Any, case: Case, dtype: str) -> Margin:
    """A program compiled for one dtype is not used for another: precision and dtype of the result show it."""
    actual = _compute_after_other_dtypes(subject, case, dtype).dtype.name
    if actual != dtype:
        raise ConformanceError(f"decode in {dtype}, after other dtypes, gave {actual}: expected {dtype}.")
    return judge(subject, _compute_after_other_dtypes, case, dtype, what="decode after other dtypes")
