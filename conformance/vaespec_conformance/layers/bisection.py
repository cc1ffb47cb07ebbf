"""Bisection: real weights up to a layer, quiet layers behind it. The first layer that makes the result wrong is named.

The probe "up to k" has the real weights in layers 0 … k; the layers behind k add nothing in their residual branches,
and carry the map of layer k to the last norm and convolution. Nothing is inverted: the specification computes the same
probe. If "up to k - 1" is right and "up to k" is wrong, the mistake is in what layer k hid when it was quiet.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.layers import NormAct
from vaespec_conformance.layers.neutral_weights import Weights, can_scale, idle, own, quiet, scaled, silent
from vaespec_conformance.layers.probing import Answer, Bench, TimeUpError, runs
from vaespec_conformance.subjects.errors import ConformanceError, UnansweredError

FAINTEST, FARTHEST = 0.05, 5.0
"""A map is prepared for the last norm if its deviation is smaller, or its mean is more deviations away from 0."""


@dataclass(frozen=True)
class Bisection:
    """The probes of one half with one set of weights and one input."""

    bench: Bench
    weights: Weights
    x: np.ndarray
    answers: dict[int, Answer] = field(default_factory=dict, compare=False)

    def answer(self, k: int) -> Answer:
        """The probe with real weights in layers 0 … k; -1 is the probe in which every layer is quiet."""
        if k not in self.answers:
            begun = (k + 1, [maps[k + 1] for maps in self.maps])
            self.answers[k] = self.bench.ask(self.probe(k), self.x, self.passed(k), begun)
        return self.answers[k]

    def without(self, k: int, *, up_to: int) -> Answer:
        """The probe "up to `up_to`", but with a silent layer k."""
        chosen = self.probe(up_to) | silent(self.bench.layers[k])
        passed = self.passed(up_to) | ({k} if idle(self.bench.layers[k]) else set())
        return self.bench.ask(chosen, self.x, passed)

    def only(self, k: int) -> Answer:
        """The probe with real weights in layer k, and quiet layers before and behind it."""
        passed = frozenset(i for i in self.passed(-1) if i != k)
        return self.bench.ask(self.probe(-1) | own(self.bench.layers[k], self.weights), self.x, passed)

    def prepares(self, k: int) -> bool:
        """Whether the probe "up to k" has a map prepared for the last norm."""
        return bool(self._prepared(self.probe(k), k))

    def passed(self, k: int) -> frozenset[int]:
        """The layers that return their input in the probe "up to k"."""
        layers = self.bench.layers
        return frozenset(i for i in range(k + 1, len(layers)) if idle(layers[i]))

    @cached_property
    def maps(self) -> list[list[np.ndarray]]:
        """The input of each layer with real weights, and the last result, in each run of the specification."""
        found = []
        for run in runs(self.bench.dtype):
            maps = [self.x]
            for layer in self.bench.layers:
                maps.append(run((layer,), self.weights, maps[-1]))
            found.append(maps)
        return found

    def unprepared(self, k: int) -> Answer:
        """The probe "up to k" whose map is not prepared for the last norm."""
        return self.bench.ask(self._up_to(k), self.x, self.passed(k))

    def probe(self, k: int) -> Weights:
        """The weights of the probe "up to k"."""
        chosen = self._up_to(k)
        return chosen | {name: rounded(w, self.bench.dtype) for name, w in self._prepared(chosen, k).items()}

    def _up_to(self, k: int) -> Weights:
        chosen = dict(self.weights)
        for layer in self.bench.layers[k + 1 :]:
            chosen |= quiet(layer, self.weights)
        return chosen

    def first_wrong(self) -> int | None:
        """The first k for which "up to k" is wrong and "up to k - 1" is right. "up to -1" must be right."""
        right, wrong = -1, len(self.bench.layers) - 1
        if self.answer(wrong).right:
            return None
        while wrong - right > 1:
            middle = (right + wrong) // 2
            right, wrong = (middle, wrong) if self.answer(middle).right else (right, middle)
        return wrong

    def strip(self) -> list[Answer | None]:
        """The answers of the probes up to each layer; None if the time was up, or if the subject raised."""
        answers: list[Answer | None] = []
        for k in range(len(self.bench.layers)):
            try:
                answers.append(self.answer(k))
            except UnansweredError:
                raise
            except (TimeUpError, ConformanceError):
                answers.append(None)
        return answers

    def _body(self) -> tuple[Any, ...]:
        """The layers before the last norm."""
        layers = self.bench.layers
        return layers[: next(i for i, layer in enumerate(layers) if isinstance(layer, NormAct))]

    def _prepared(self, chosen: Weights, k: int) -> Weights:
        """Weights of the last convolution on the way that bring a faint or a far map to where the last norm is at ease.

        Otherwise a mistake of the last norm (its eps, its variance) hides those before it in every probe.
        """
        body = self._body()
        able = [i for i in range(k + 1, len(body)) if can_scale(body[i])]
        if not able:
            return {}
        waking = [i for i in range(k + 1, len(body)) if not idle(body[i])]
        run, start = runs("float64")[0], self.maps[0][k + 1]
        mean, deviation = _statistics(run(tuple(body[i] for i in waking), chosen, start))
        if deviation > FAINTEST and abs(mean).max() < FARTHEST * deviation:
            return {}
        at = body[able[-1]]
        there = run(tuple(body[i] for i in waking), chosen | silent(at), start)
        mean, deviation = _statistics(there)
        return scaled(at, 1 / deviation if deviation > 0 else 1.0, mean)


def _statistics(x: np.ndarray) -> tuple[np.ndarray, float]:
    """The mean of each channel, and the deviation around them."""
    mean = x.mean((0, 2, 3))
    return mean, float((x - mean[:, np.newaxis, np.newaxis]).std())
