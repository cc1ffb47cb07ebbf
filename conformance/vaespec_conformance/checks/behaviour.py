"""L7: a call does what its arguments say and nothing else, whatever was called before it or runs beside it."""

from __future__ import annotations

import os
import random
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np

from vaespec.architecture import DECODER, ENCODER, HALVES
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.model import ONE_MODEL, build_model
from vaespec_conformance.judging.comparison import equal
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import EXACT, MODEL, WHOLE, Margin, check
from vaespec_conformance.subjects.capabilities import QUIET_BUILDING
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import input_dtype

behaviour = partial(
    check,
    level="L7",
    examples=MODEL,
    cases=cases(config=among("plain", "attentive"), regime=among("plain"), size=among((3, 4)), more=among(0)),
    pinned=(ONE_MODEL,),
)


def _encode_and_decode(vae: Any, case: Case, dtype: str) -> np.ndarray:
    """All results of the halves of a model, in one array."""
    results: list[np.ndarray] = []
    if vae.has(ENCODER):
        results += vae.encode(models.images(case, dtype))
    if vae.has(DECODER) or not results:
        results.append(vae.decode(models.latents(case, dtype)))
    return np.concatenate([np.asarray(part, np.float64).ravel() for part in results])


@behaviour("behaviour.repeatable", subjects=WHOLE, requires=("deterministic",))
def repeatable(subject: Any, case: Case, dtype: str) -> Margin:
    """The second of two equal calls gives the same bits, and so does a model that is built again."""
    vae = build_model(subject, case, dtype)
    first = _encode_and_decode(vae, case, dtype)
    equal(_encode_and_decode(vae, case, dtype), first, "the result of the second call")
    again = _encode_and_decode(build_model(subject, case, dtype), case, dtype)
    return equal(again, first, "the result of the same model built again")


def _compute_second_item(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """The second item of a batch, decoded alone. The specification decodes it to the same numbers in a batch."""
    return build_model(subject, case, dtype).decode(models.latents(case, dtype)[1:])


@behaviour("behaviour.batch", subjects=WHOLE)
def batch(subject: Any, case: Case, dtype: str) -> Margin:
    """An item of a batch, decoded alone, gives the specification's image."""
    return judge(subject, _compute_second_item, case, dtype, what="decode of one item")


@behaviour("behaviour.inputs")
def inputs(subject: Any, case: Case, dtype: str) -> Margin:
    """encode and decode do not change their arguments."""
    vae = build_model(subject, case, dtype)
    for half in filter(vae.has, HALVES.values()):
        drawn = models.given(half, case, dtype)
        x = drawn.astype(input_dtype(dtype))
        getattr(vae, half.verb)(x)
        equal(x, drawn, f"the argument of {half.verb}, after it,")
    return EXACT


@behaviour("behaviour.results")
def results(subject: Any, case: Case, dtype: str) -> Margin:
    """A result does not change when the model is called again or when the argument is changed."""
    vae, z = build_model(subject, case, dtype), models.latents(case, dtype).astype(input_dtype(dtype))
    result = vae.decode(z)
    before = np.array(result)
    z += 1
    equal(result, before, "a result, after the argument was changed,")
    vae.decode(z)
    return equal(result, before, "a result, after the next call,")


def _compute_from_fortran_order(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images decoded from latents that are stored in Fortran order."""
    z = models.latents(case, dtype).astype(input_dtype(dtype))
    return build_model(subject, case, dtype).decode(np.asfortranarray(z))


@behaviour("behaviour.strides")
def strides(subject: Any, case: Case, dtype: str) -> Margin:
    """Latents may be stored in memory in any order."""
    return judge(subject, _compute_from_fortran_order, case, dtype, what="decode of latents in Fortran's order")


def _compute_second_model(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images from the second of two models of one config; the first is called before it and after it."""
    other = Case.of(**{**dict(case.items), "seed": case["seed"] + 1000})
    z = models.latents(case, dtype)
    first, second = build_model(subject, other, dtype), build_model(subject, case, dtype)
    first.decode(z)
    second.decode(z)
    first.decode(z)
    return second.decode(z)


@behaviour("behaviour.two_models", subjects=WHOLE)
def two_models(subject: Any, case: Case, dtype: str) -> Margin:
    """Two models of one config keep their own weights: no cache and no compiled program mixes them up."""
    return judge(subject, _compute_second_model, case, dtype, what="decode of the second of two models")


@behaviour("behaviour.state")
def state(subject: Any, case: Case, dtype: str) -> Margin:
    """Building and calling a model leaves the process as it was: random states, environment, warning filters.

    A port whose framework draws seeds when a model is built declares that it lacks "quiet building"; calls never may.
    A backend or factory may expose the state of its framework as `global_state()`; it is compared as well.
    """
    _encode_and_decode(build_model(subject, case, dtype), case, dtype)  # a framework may change state when it starts
    loud = QUIET_BUILDING in subject.capabilities.lacks
    vae = build_model(subject, case, dtype) if loud else None
    before = _process_state(subject)
    _encode_and_decode(vae or build_model(subject, case, dtype), case, dtype)
    after = _process_state(subject)
    if changed := [part for part in before if before[part] != after[part]]:
        raise ConformanceError(f"a call changed {', '.join(changed)} of the process: expected everything as it was.")
    return EXACT


def _process_state(subject: Any) -> dict[str, Any]:
    global_state = getattr(getattr(subject, "backend", None) or getattr(subject, "maker", None), "global_state", None)
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002  (what others may use)
    return {
        "numpy's random state": (kind, tuple(keys), *rest),
        "Python's random state": random.getstate(),
        "numpy's error handling": np.geterr(),
        "the environment": dict(os.environ),
        "the filters of warnings": list(warnings.filters),
        "the framework's state": global_state() if global_state else None,
    }


THREADS, CALLS = 4, 8


@behaviour("behaviour.threads", requires=("threads",))
def threads(subject: Any, case: Case, dtype: str) -> Margin:
    """Calls of one model from several threads at once give the same numbers as one call after the other."""
    vae = build_model(subject, case, dtype)
    latents = [models.latents(case, dtype) * (1 - i / CALLS) for i in range(CALLS)]
    expected = [vae.decode(z) for z in latents]
    with ThreadPoolExecutor(THREADS) as pool:
        actual = list(pool.map(vae.decode, latents))
    for i, (result, alone) in enumerate(zip(actual, expected, strict=True)):
        equal(result, alone, f"decode of call {i} of {CALLS}, on {THREADS} threads,")
    return EXACT
