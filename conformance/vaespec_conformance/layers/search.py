"""The search for the first wrong layer of a subject: it looks inside if it can, and bisects otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.layers import Downsample
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.layers.bisection import Bisection
from vaespec_conformance.layers.comparing import first_wrong, look
from vaespec_conformance.layers.finding import LayerFinding, name_of
from vaespec_conformance.layers.injection import Injection
from vaespec_conformance.layers.known_mistakes import Evidence, Guess, fitting, outside
from vaespec_conformance.layers.neutral_weights import Weights, can_scale
from vaespec_conformance.layers.probing import Bench, TimeUpError
from vaespec_conformance.layers.strips import finding, measured, modelled, seen_finding
from vaespec_conformance.subjects.errors import NotSupportedError

SECONDS = 60.0
"""A search that takes longer names nothing."""
REGIMES = ("plain", "faint", "sharp", "offset")
SIZE = (2, 3)
"""Latents of the trials: small, since the search runs the specification some fifty times."""
CLEAR = 3.0
"""A result is clearly wrong from so many budgets on, and clearly worse from so many times the error on."""
BISECTED = "bisection: the result is right as long as this layer adds nothing, and wrong with its own weights"
HIDDEN = "bisection: the result is right with this layer as an identity, and wrong with its own weights"
INJECTED = "injection: a signal that starts behind this layer arrives unharmed, and one before it does not"
Trial = tuple[Weights, np.ndarray]
Named = tuple[int, Guess | None, str]
"""A layer's number, the known mistake that explains it, and how it was found."""


def first_wrong_layer(
    subject: Any,
    config: AutoencoderConfig,
    dtype: str = "float32",
    half: str = "decoder",
    *,
    weights: Weights | None = None,
    x: np.ndarray | None = None,
    seconds: float = SECONDS,
) -> LayerFinding | None:
    """The first layer of a half, "encoder" or "decoder", whose result leaves its budget; None if none can be told.

    `weights` (canonical) and `x`, images or latents (B, C, H, W), are those of a case that failed; by default several
    are drawn. Only `subject.build(config, weights, dtype)` and the VAE's encode or decode are called. A layer is named
    only if the evidence points to it alone, within `seconds`.
    """
    bench = Bench(subject, config, dtype, half, time.monotonic() + seconds)
    given = [(weights, x)] if weights is not None and x is not None else []
    try:
        for trial in (*given, *drawn(config, dtype, half)):
            search = _Search(bench, *trial)
            if not search.full.right and (found := search.seen() or search.found()):
                return found
        return _by_sizes(bench)
    except (TimeUpError, NotSupportedError):
        return None


class _Search:
    """The search with one set of weights and one input."""

    def __init__(self, bench: Bench, weights: Weights, x: np.ndarray) -> None:
        self.bench, self.weights, self.x = bench, weights, x
        self.bisection, self.injection = Bisection(bench, weights, x), Injection(bench, weights, x)
        self.full = self.bisection.answer(len(bench.layers) - 1)

    def seen(self) -> LayerFinding | None:
        """The first wrong layer from inside; None if the layers cannot be seen, or do not show it."""
        try:
            seen = look(self.bench, self.weights, self.x)
        except Exception:  # a subject that cannot be watched is asked from outside
            return None
        wrong = first_wrong(self.bench, seen)
        how = "seen from inside: the layers before it return what they should"
        return seen_finding(self.bench.half, seen, wrong, self.bench.layers, how) if wrong else None

    def found(self) -> LayerFinding | None:
        """The first wrong layer from outside; None if the evidence does not point to one alone."""
        named = self._named() if self.full.measured else None
        return named and self.finding(*named)

    def _named(self) -> Named | None:
        if self.full.used < CLEAR:
            return None
        quiet = self.bisection.answer(-1).right
        found = self._bisected() if quiet else self._injected()
        return None if found is None or outside(self.bench, self.weights, self.x, self.full) else found

    def _bisected(self) -> Named | None:
        """A mistake in a residual branch."""
        k = self.bisection.first_wrong()
        if k is None or self.bisection.answer(k).used < CLEAR * self.bisection.answer(k - 1).used:
            return None
        if self.bisection.prepares(k - 1) and not self.bisection.prepares(k):
            alone = self.bisection.without(k, up_to=len(self.bench.layers) - 1).right
            if not alone and self.injection.suspects()[-1] >= self.injection.head:
                return self._injected()  # the last norm is wrong, and sees a faint or far map from here on
        return k, self._guess([k], k), BISECTED

    def _injected(self) -> Named | None:
        """A mistake in a convolution on the way, in a skip, in a change of size, or in the last norm."""
        suspects = self.injection.suspects()
        hiding = [k for k in suspects if self._hides(k)]
        if len(hiding) == 1:
            return hiding[0], self._guess(hiding, hiding[0]), HIDDEN
        if guess := self._guess(suspects, suspects[-1]):
            return guess.layer, guess, INJECTED
        k = self.injection.decided(suspects)
        return None if k is None else (k, None, INJECTED)

    def _hides(self, k: int) -> bool:
        """Whether all is right as soon as layer k is silent, and no other layer has its branch."""
        return can_scale(self.bench.layers[k]) and self.bisection.without(k, up_to=-1).right

    def _guess(self, candidates: list[int], k: int) -> Guess | None:
        """The known mistake in a candidate that gives the numbers of the probe "up to k"; None if several layers do."""
        answer = self.bisection.answer(k)
        if not answer.measured or answer.actual is None:
            return None
        evidence = Evidence(self.bisection.probe(k), self.x, answer.actual, answer.expected)
        fits = fitting(self.bench, candidates, evidence, self.bisection.passed(k))
        return fits[0] if fits and len({guess.layer for guess in fits}) == 1 else None

    def finding(self, k: int, guess: Guess | None, how: str) -> LayerFinding:
        """The finding, with the error after each layer and its place in the wrong one."""
        silenced = self.bisection.answer(-1).right
        rows = (
            modelled(self.bisection, guess)
            if guess and not silenced
            else measured(self.bisection, 0 if silenced else k)
        )
        name = name_of(self.bench.layers[k])
        part, cause = (guess.part, guess.cause) if guess else (None, None)
        return finding(self.bench.half, name, rows, how, part=part, cause=cause)


def drawn(config: AutoencoderConfig, dtype: str, half: str) -> Iterator[Trial]:
    """Weights and an input in each regime that shows mistakes of its own."""
    for regime in REGIMES:
        case = Case.of(config=json.dumps(config.to_dict()), regime=regime, size=SIZE, more=0, seed=1)
        yield models.weights(case, dtype), (models.images if half == "encoder" else models.latents)(case, dtype)


def _by_sizes(bench: Bench) -> LayerFinding | None:
    """The first downsampling that is wrong on an odd number of rows and columns, which no other layer gets."""
    weights, x = next(drawn(bench.config, bench.dtype, bench.half))
    layers = bench.layers if bench.half == "encoder" else ()
    rng = np.random.default_rng(1)
    places = [i for i, layer in enumerate(layers) if isinstance(layer, Downsample)]
    strip = []
    for level, k in enumerate(places):
        size = tuple(2**level + bench.config.downsampling_factor * n for n in SIZE)
        answer = bench.ask(weights, rng.uniform(-1, 1, (*x.shape[:2], *size)))
        strip.append((k, answer))
    wrong = [(k, answer) for k, answer in strip if not answer.right]
    if not wrong or len(wrong) == len(strip) > 1:
        return None
    rows = [(name_of(layers[k]), answer.used, answer.error) for k, answer in strip]
    return finding(bench.half, name_of(layers[wrong[0][0]]), rows, "sizes: only maps of odd size in this layer fail")
