"""L6: a model uses the weights that it was built from, and no others."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st

from vaespec.analysis.rounding import rounded
from vaespec.architecture import DECODER, ENCODER, HALVES
from vaespec.weights.dialects import DIFFUSERS_DEPRECATED
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.strategies import among, cases
from vaespec_conformance.checks.model import ONE_MODEL
from vaespec_conformance.judging.comparison import equal
from vaespec_conformance.judging.judge import judge
from vaespec_conformance.judging.registry import EXACT, MODEL, WHOLE, Margin, check
from vaespec_conformance.subjects.capabilities import OTHER_WEIGHTS
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, UnansweredError
from vaespec_conformance.subjects.subjects import input_dtype, unaltered

OF = {ENCODER.name: ("encoder.", "quant_conv."), DECODER.name: ("decoder.", "post_quant_conv.")}
"""Half -> how the names of its weights begin. A port with one half need not read those of the other."""
FAULTS = ("missing", "unexpected", "misshapen")
MODELS: dict[str, Any] = {
    "config": among("plain", "odd"),
    "regime": among("plain"),
    "size": among((3, 4)),
    "more": among(0),
}


@check(
    "weights.strict",
    level="L6",
    subjects=WHOLE,
    needs=(OTHER_WEIGHTS,),
    examples=MODEL,
    cases=cases(**MODELS, fault=among(*FAULTS), which=st.integers(0, 200)),
    pinned=tuple(
        Case.of(config="plain", regime="plain", size=(3, 4), more=0, fault=fault, which=which, seed=1)
        for fault in FAULTS
        for which in (1, 40, 100)
    ),
)
def strict(subject: Any, case: Case, dtype: str) -> Margin:
    """Weights with a missing tensor, an unexpected one, or one of another shape are refused; good ones are accepted.

    A port that accepts them uses random numbers or zeros instead, and its images are only a little wrong.
    """
    weights, fault = models.weights(case, dtype), case["fault"]
    halves = _use(subject, case, weights, dtype)  # an exception satisfies the check only if good weights raise none
    names = [name for name in weights if len(halves) == len(HALVES) or name.startswith(OF[halves[0]])]
    name = names[case["which"] % len(names)]
    if fault == "missing":
        del weights[name]
    elif fault == "unexpected":
        weights[f"{name}_2"] = weights[name]
    else:
        weights[name] = weights[name].reshape(1, *weights[name].shape)
    try:
        accepted = _use(subject, case, weights, dtype) == halves
    except UnansweredError:  # a program that crashed refused nothing
        raise
    except (ConformanceError, NotSupportedError):  # any exception of the subject: see `blamed`
        return EXACT
    if accepted:
        raise ConformanceError(f"weights with {name} {fault} were accepted: expected an exception that names it.")
    return EXACT


def _use(subject: Any, case: Case, weights: dict[str, np.ndarray], dtype: str) -> list[str]:
    """Builds the model and runs the halves that it has, since a port may read its weights in a call: their names.

    Raises NotSupportedError if it has none.
    """
    vae, halves, refusals = subject.build(models.config_of(case), weights, dtype), [], []
    for name, half in HALVES.items():
        try:
            getattr(vae, half.verb)(models.given(half, case, dtype))
            halves.append(name)
        except NotSupportedError as refusal:
            refusals.append(refusal)
    if not halves:
        raise refusals[0]
    return halves


@check(
    "weights.kept",
    level="L6",
    requires=("weights",),
    needs=(OTHER_WEIGHTS,),
    examples=MODEL,
    cases=cases(**MODELS),
    pinned=(ONE_MODEL,),
)
def kept(subject: Any, case: Case, dtype: str) -> Margin:
    """weights() returns the names, shapes and numbers that the model was built from, rounded to its dtype."""
    weights = models.weights(case, "float32")
    returned = subject.build(models.config_of(case), weights, dtype).weights()
    if returned.keys() != weights.keys():
        names = ", ".join(sorted(returned.keys() ^ weights.keys())[:3])
        raise ConformanceError(f"weights() returned other names than it was built from: {names}.")
    for name, w in weights.items():
        equal(returned[name], rounded(w, dtype), f"the weight {name}")
    return EXACT


def legacy_names(weights: dict[str, np.ndarray], axes: int) -> dict[str, np.ndarray]:
    """Weights under the names of diffusers before 0.18; kernels are (O, I), or (O, I, 1, 1) as in even older files."""
    renamed = {}
    for name, w in weights.items():
        old = DIFFUSERS_DEPRECATED.stored(name, 0)  # no level of a name differs
        renamed[old] = w.reshape(*w.shape, 1, 1) if old != name and w.ndim == 2 and axes == 4 else w
    return renamed


def _compute_from_legacy_names(subject: Any, case: Case, dtype: str) -> np.ndarray:
    """Images decoded by a port built from the older names; the specification, which does not read them, from the newer.

    A mistake in how it is built does read them.
    """
    weights, config = models.weights(case, dtype), models.config_of(case)
    reads = subject.kind == "port" or subject.alter is not unaltered
    named = legacy_names(weights, case["axes"]) if reads else weights
    return subject.build(config, named, dtype).decode(models.latents(case, dtype))


@check(
    "weights.legacy_names",
    level="L6",
    needs=(OTHER_WEIGHTS,),
    subjects=("port",),
    requires=("legacy_names",),
    examples=MODEL,
    cases=cases(**{**MODELS, "config": among("plain")}, axes=among(2, 4)),
    pinned=tuple(Case.of(config="plain", regime="plain", size=(3, 4), more=0, axes=axes, seed=1) for axes in (2, 4)),
)
def legacy(subject: Any, case: Case, dtype: str) -> Margin:
    """query, key, value and proj_attn are read as to_q, to_k, to_v and to_out.0, as (O, I) or (O, I, 1, 1)."""
    return judge(
        subject, _compute_from_legacy_names, case, dtype, what="decode, built from the names of before diffusers 0.18,"
    )


@check("weights.owned", level="L6", needs=(OTHER_WEIGHTS,), examples=MODEL, cases=cases(**MODELS), pinned=(ONE_MODEL,))
def owned(subject: Any, case: Case, dtype: str) -> Margin:
    """A model does not change when the arrays that it was built from are changed."""
    given = input_dtype(dtype)
    weights: dict[str, np.ndarray] = {name: np.array(w, given) for name, w in models.weights(case, dtype).items()}
    z, arrays = models.latents(case, dtype), list(weights.values())  # a loader may empty the dictionary
    vae = subject.build_from(models.config_of(case), weights, dtype)
    before = vae.decode(z)
    for w in arrays:
        np.add(w, 1, out=w)
    return equal(vae.decode(z), before, "decode, after the arrays that the model was built from were changed,")
