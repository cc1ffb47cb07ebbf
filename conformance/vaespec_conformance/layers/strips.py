"""The strip of a finding: the error after each layer, in budgets, and the picture of the error in the wrong one."""

from __future__ import annotations

import numpy as np

from vaespec.analysis.rounding import rounding_error
from vaespec_conformance.judging import budgets
from vaespec_conformance.layers.bisection import Bisection
from vaespec_conformance.layers.comparing import Compared, owner
from vaespec_conformance.layers.finding import LayerFinding, name_of
from vaespec_conformance.layers.known_mistakes import Guess, mistaken_maps
from vaespec_conformance.layers.probing import compared
from vaespec_conformance.reports.picture import error_picture
from vaespec_conformance.subjects.errors import ConformanceError

Rows = list[tuple[str, float, ConformanceError | None]]
"""(layer, used share of the budget, the error if it is more than 1)."""


def measured(bisection: Bisection, first: int) -> Rows:
    """The results of the probes up to each layer, from layer `first` on, as far as the time allows."""
    answers = list(enumerate(bisection.strip()))
    layers = bisection.bench.layers
    return [(name_of(layers[i]), answer.used, answer.error) for i, answer in answers[first:] if answer is not None]


def modelled(bisection: Bisection, guess: Guess) -> Rows:
    """The specification with the known mistake against the specification, map by map."""
    bench, (exact, *narrow) = bisection.bench, bisection.maps
    maps = mistaken_maps(bench, guess, exact[guess.layer], bisection.weights)
    rows: Rows = [(name_of(layer), 0.0, None) for layer in bench.layers[: guess.layer]]
    for i, y in enumerate(maps, guess.layer):
        predicted = rounding_error([maps_[i + 1] for maps_ in narrow], exact[i + 1], bench.dtype)
        used, error = compared(y, exact[i + 1], budgets.model(bench.dtype, predicted), "layer")
        rows.append((name_of(bench.layers[i]), used, error))
    return rows


def finding(
    half: str, layer: str, rows: Rows, how: str, *, part: str | None = None, cause: str | None = None
) -> LayerFinding:
    """The finding of a wrong layer, with its row's place and picture."""
    error = next((error for name, _, error in rows if name == layer), None)
    strip = tuple((name, used) for name, used, _ in rows)
    where = error.where if error else None
    return LayerFinding(layer, half, strip, where, how, part or None, cause, _picture(error))


def seen_finding(
    half: str, results: list[Compared], wrong: Compared, layers: tuple[object, ...], how: str
) -> LayerFinding:
    """The finding of a wrong layer, or a part of one, that was seen."""
    whole = {name_of(layer): layer for layer in layers}
    named = name_of(owner(layers, wrong.name))
    rows: Rows = []
    for name in whole:
        inside = [one for one in results if name_of(owner(layers, one.name)) == name]
        if inside:
            rows.append((name, inside[-1].used, inside[-1].error))
    part = wrong.name.removeprefix(named).strip(".")
    mine = (named, wrong.used, wrong.error)  # what the whole layer returns may not be seen
    rows = [mine if name == named and error is None else (name, used, error) for name, used, error in rows]
    return finding(half, named, rows, how, part=part)


def _picture(error: ConformanceError | None) -> str | None:
    """The picture of the error, in units of the budget."""
    if error is None or error.difference is None or not np.isfinite(error.eta2):
        return None
    size = abs(error.difference)
    return error_picture(size / (float(np.sqrt(np.mean(size**2))) / error.eta2))
