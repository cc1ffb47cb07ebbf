"""Finds the first wrong layer from what the layers returned: each is compared with the specification's."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import permutations
from typing import Any

import numpy as np

from vaespec.analysis.observe import activations
from vaespec.analysis.rounding import rounding_error, rounding_ops
from vaespec.architecture import HALVES
from vaespec.layers import Sequential
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging import budgets
from vaespec_conformance.layers.hooks import as_numpy, watched
from vaespec_conformance.layers.neutral_weights import Weights
from vaespec_conformance.layers.probing import Bench, compared
from vaespec_conformance.subjects.errors import ConformanceError


@dataclass(frozen=True)
class Compared:
    """What one layer, or one part of it, returned: its name, the used share of its budget, and the error if beyond."""

    name: str
    used: float
    error: ConformanceError | None


def compared_layers(bench: Bench, weights: Weights, x: np.ndarray) -> list[Compared]:
    """The layers of the subject that can be seen, in order, compared with the specification's."""
    found = _results(bench, weights, x)
    if not found:
        return []
    runs = ((ReferenceOps(np), np.float64), *rounding_ops(bench.dtype))
    exact, *rounded = (dict(_activations(bench, weights, x, *run)) for run in runs)
    results = []
    for name, expected in exact.items():
        if name in found and (actual := _arranged(found[name], expected)) is not None:
            predicted = rounding_error([run[name] for run in rounded], expected, bench.dtype)
            budget = budgets.model(bench.dtype, predicted)
            results.append(Compared(name, *compared(actual, expected, budget, name)))
    return results


def first_wrong(bench: Bench, results: list[Compared]) -> Compared | None:
    """The first wrong one, if the layer before it is seen and right, and nothing behind it is right.

    A part whose object returns something else than the specification's part is no evidence: then the layers behind
    it are right.
    """
    layers = [layer.name for layer in bench.layers]
    whole = [one for one in results if one.name in layers]
    right = [i for i, one in enumerate(results) if one.used <= 1 and one.name in layers]
    last = right[-1] if right else -1
    wrong = next((one for one in results[last + 1 :] if one.used > 1), None)
    if wrong is None:
        return None
    at = next(i for i, name in enumerate(layers) if _belongs(wrong.name, bench.layers[i]))
    before = {one.name for one in whole if one.used <= 1}
    return wrong if at == 0 or layers[at - 1] in before else None


def owner(layers: Sequence[Any], name: str) -> Any:
    """The layer that a part belongs to."""
    return next(layer for layer in layers if _belongs(name, layer))


def _belongs(name: str, layer: Any) -> bool:
    parts = {row.rsplit(".", 1)[0] for row, _ in layer.parameters()}
    return name == layer.name or name.startswith(f"{layer.name}.") or any(name.startswith(part) for part in parts)


def _results(bench: Bench, weights: Weights, x: np.ndarray) -> Mapping[str, np.ndarray]:
    """What the subject's layers returned, by diffusers' names: as it says itself, or as it is watched."""
    half, subject = HALVES[bench.half], bench.subject
    if subject.kind == "backend":
        ops = subject.raw_ops(bench.dtype)
        params = ops.load_params(weights, dict(half.build(bench.config).parameters()))
        named = activations(half.build(bench.config), ops.from_numpy(x), params, ops)
        return {name: np.array(ops.to_numpy(y)).astype(np.float64) for name, y in named}
    built = subject.build(bench.config, weights, bench.dtype)
    if callable(getattr(built.vae, "layers", None)):
        given = {name: as_numpy(y) for name, y in built.vae.layers(half.verb, x.astype(built.input_dtype)).items()}
        return {name: y for name, y in given.items() if y is not None}
    return watched(built.vae, partial(getattr(built, half.verb), x), bench.layers, weights)


def _activations(
    bench: Bench, weights: Weights, x: np.ndarray, ops: Any, kind: type[np.floating]
) -> Iterator[tuple[str, np.ndarray]]:
    params = {name: w.astype(kind) for name, w in weights.items()}
    return activations(Sequential(bench.layers), x.astype(kind), params, ops)


def _arranged(actual: np.ndarray, expected: np.ndarray) -> np.ndarray | None:
    """The array in the axes of the expected one: of all orders that fit, the nearest; None if none fits."""
    orders = [actual.transpose(0, *order) for order in permutations(range(1, actual.ndim))]
    fits = [a if a.shape == expected.shape else a.reshape(expected.shape) for a in orders if _fits(a, expected)]
    return min(fits, key=lambda a: float(np.linalg.norm(a - expected)), default=None)


def _fits(a: np.ndarray, expected: np.ndarray) -> bool:
    """Whether an array has the expected shape, or is a map for tokens (B, N, C) in its order of pixels."""
    if a.ndim == expected.ndim:
        return a.shape == expected.shape
    channels_last = a.ndim == 4 and expected.ndim == 3 and (a.shape[0], a.shape[-1]) == expected.shape[::2]
    return channels_last and a.size == expected.size
