"""L6: a call does what its arguments say, and nothing else: not what was called before, beside it, or with it."""

from __future__ import annotations

import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case, among, cases
from vaespec_conformance.checks.model import built
from vaespec_conformance.judging.comparison import equal
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import EXACT, MODEL, Margin, check
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import given

CASES = cases(config=among("plain", "attentive"), regime=among("plain"), size=among((3, 4)), more=among(0))
PINNED = (Case.of(config="plain", regime="plain", size=(3, 4), more=0, seed=1),)


def _both(vae: Any, case: Case, dtype: str) -> np.ndarray:
    """All that the model gives, in a row."""
    results = *vae.encode(models.images(case, dtype)), vae.decode(models.latents(case, dtype))
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in results])


@check("behaviour.repeatable", level="L6", requires=("deterministic",), examples=MODEL, cases=CASES, pinned=PINNED)
def repeatable(subject: Any, case: Case, dtype: str) -> Margin:
    """The same call gives the same bits again, of the same model and of one built anew."""
    vae = built(subject, case, dtype)
    first = _both(vae, case, dtype)
    equal(_both(vae, case, dtype), first, "the result of the second call")
    return equal(_both(built(subject, case, dtype), case, dtype), first, "the result of the same model built again")


def _alone(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """The second item of a batch, alone. Of the specification, it is known to be what it is in the batch."""
    return built(subject, case, dtype).decode(models.latents(case, dtype)[1:])


@check("behaviour.batch", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def batch(subject: Any, case: Case, dtype: str) -> Margin:
    """An item of a batch is decoded alone to what the specification makes of it."""
    return judge(subject, _alone, case, dtype, what="decode of one item")


@check("behaviour.inputs", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def inputs(subject: Any, case: Case, dtype: str) -> Margin:
    """Images and latents are left as they were."""
    vae = built(subject, case, dtype)
    for name, drawn in (("encode", models.images(case, dtype)), ("decode", models.latents(case, dtype))):
        x = drawn.astype(given(dtype))
        getattr(vae, name)(x)
        equal(x, drawn, f"the argument of {name}, after it,")
    return EXACT


@check("behaviour.results", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def results(subject: Any, case: Case, dtype: str) -> Margin:
    """A result stays what it is when the model is called again, and when its argument is changed."""
    vae, z = built(subject, case, dtype), models.latents(case, dtype).astype(given(dtype))
    result = vae.decode(z)
    before = np.array(result)
    z += 1
    equal(result, before, "a result, after the argument was changed,")
    vae.decode(z)
    return equal(result, before, "a result, after the next call,")


def _strided(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Decoded from latents that lie otherwise in memory."""
    z = models.latents(case, dtype).astype(given(dtype))
    return built(subject, case, dtype).decode(np.asfortranarray(z))


@check("behaviour.strides", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def strides(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents may lie in memory in any order."""
    return judge(subject, _strided, case, dtype, what="decode of latents in Fortran's order")


def _second(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Decoded by a model of the same config as another that is called before and after."""
    other = Case.of(**{**dict(case.items), "seed": case["seed"] + 1000})
    z = models.latents(case, dtype)
    first, second = built(subject, other, dtype), built(subject, case, dtype)
    first.decode(z)
    second.decode(z)
    first.decode(z)
    return second.decode(z)


@check("behaviour.two_models", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def two_models(subject: Any, case: Case, dtype: str) -> Margin:
    """Two models of one config and other weights do not take each other's: not from a cache, nor when traced."""
    return judge(subject, _second, case, dtype, what="decode of the second of two models")


@check("behaviour.state", level="L6", examples=MODEL, cases=CASES, pinned=PINNED)
def state(subject: Any, case: Case, dtype: str) -> Margin:
    """Building and calling a model changes nothing of the process: random states, environment, filters of warnings.

    What a framework keeps besides, a subject may show: `global_state()` of a backend or factory is compared as well.
    """
    _both(built(subject, case, dtype), case, dtype)  # what is done once, when a framework starts, is allowed
    before = _state(subject)
    _both(built(subject, case, dtype), case, dtype)
    after = _state(subject)
    if changed := [what for what in before if before[what] != after[what]]:
        raise ConformanceError(f"a call changed {', '.join(changed)} of the process: expected everything as it was.")
    return EXACT


def _state(subject: Any) -> dict[str, Any]:
    declared = getattr(getattr(subject, "backend", None) or getattr(subject, "maker", None), "global_state", None)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (what others may use)
    return {
        "numpy's random state": (kind, tuple(keys), *rest),
        "Python's random state": random.getstate(),
        "numpy's error handling": np.geterr(),
        "the environment": dict(os.environ),
        "the filters of warnings": list(warnings.filters),
        "the framework's state": declared() if declared else None,
    }


THREADS, CALLS = 4, 8


@check("behaviour.threads", level="L6", requires=("threads",), examples=MODEL, cases=CASES, pinned=PINNED)
def threads(subject: Any, case: Case, dtype: str) -> Margin:
    """Calls of one model from several threads at once give what they give one after the other."""
    vae = built(subject, case, dtype)
    latents = [models.latents(case, dtype) * (1 - i / CALLS) for i in range(CALLS)]
    expected = [vae.decode(z) for z in latents]
    with ThreadPoolExecutor(THREADS) as pool:
        actual = list(pool.map(vae.decode, latents))
    for i, (result, alone) in enumerate(zip(actual, expected, strict=True)):
        equal(result, alone, f"decode of call {i} of {CALLS}, on {THREADS} threads,")
    return EXACT
