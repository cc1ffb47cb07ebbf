"""The search for the first wrong layer of a subject: it looks inside if it can, and bisects otherwise."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.analysis.rounding import rounded
from vaespec.attention import Attention
from vaespec.layers import Downsample, Resnet
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.layers.bisection import Bisection
from vaespec_conformance.layers.comparing import compared_layers, first_wrong, owner
from vaespec_conformance.layers.finding import LayerFinding, name_of
from vaespec_conformance.layers.injection import Injection
from vaespec_conformance.layers.known_mistakes import NEAR, Evidence, Guess, matching_guesses, outside
from vaespec_conformance.layers.neutral_weights import Weights, can_scale
from vaespec_conformance.layers.probing import Answer, Bench, TimeUpError
from vaespec_conformance.layers.strips import finding, measured, modelled, seen_finding
from vaespec_conformance.layers.twins import first_resnet, first_resnet_is_right
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, UnansweredError

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
FEWEST = 12
"""A bisection needs at least about so many answers."""
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
    """The first layer of a half, "encoder" or "decoder", whose result leaves its budget; None if none can be named.

    `weights` (canonical) and `x`, images or latents (B, C, H, W), are those of a case that failed; by default several
    are drawn. Only `subject.build(config, weights, dtype)` and the VAE's encode or decode are called. A layer is named
    only if the evidence points to it alone, within `seconds`; only the first, small answer may take longer.
    """
    bench = Bench(subject, config, dtype, half, time.monotonic() + seconds)
    given = [(weights, x)] if weights is not None and x is not None else []
    trials = drawn(config, dtype, half)
    try:
        for trial in chain([next(trials)], given, trials):  # the first answer, of the least size, shows the pace
            if found := _examined(bench, *trial):
                return found
        return _by_sizes(bench)
    except (TimeUpError, NotSupportedError, ConformanceError):
        return None


def _examined(bench: Bench, weights: Weights, x: np.ndarray) -> LayerFinding | None:
    """The first wrong layer with these weights and this input; None also if the subject does not take or answer them.

    Raises UnansweredError: a program that crashed or hung is asked no more.
    """
    try:
        search = _Search(bench, bench.own_weights or weights, x)
        if search.full.right or not search.repeats():
            return None
        return search.from_inside() or search.from_outside()
    except UnansweredError:
        raise
    except (TimeUpError, NotSupportedError, ConformanceError):
        return None


class _Search:
    """The search with one set of weights and one input."""

    def __init__(self, bench: Bench, weights: Weights, x: np.ndarray) -> None:
        self.bench, self.weights, self.x = bench, weights, x
        self.bisection, self.injection = Bisection(bench, weights, x), Injection(bench, weights, x)
        self.full = self.bisection.answer(len(bench.layers) - 1)

    def from_inside(self) -> LayerFinding | None:
        """The first wrong layer from inside; None if the layers cannot be seen, or do not show it."""
        self.bench.require_time(self.x, 2)
        try:
            results = compared_layers(self.bench, self.weights, self.x)
        except (NotSupportedError, UnansweredError):
            raise
        except Exception:  # a subject that cannot be watched is asked from outside
            return None
        wrong = first_wrong(self.bench, results)
        layers = self.bench.layers
        if wrong is None or (owner(layers, wrong.name) is layers[0] and not self._first_alone()) or not self.repeats():
            return None
        how = "seen from inside: the layers before it return what they should"
        return seen_finding(self.bench.half, results, wrong, layers, how)

    def _first_alone(self) -> bool:
        """Whether all is right without what the first layer computes: if not, its input may be wrong already."""
        return not self.bench.own_weights and self.bisection.without(0, up_to=len(self.bench.layers) - 1).right

    def from_outside(self) -> LayerFinding | None:
        """The first wrong layer from outside; None if the evidence does not point to one alone."""
        named = self._named() if self.full.measured else None
        return self.finding(*named) if named and self.repeats() else None

    def repeats(self) -> bool:
        """Whether the first answer comes again. If not, chance or earlier calls decide: no answer proves anything."""
        first, again = self.full.actual, self.bench.ask(self.weights, self.x).actual
        if np.array_equal(again, first, equal_nan=True):
            return True
        error = np.linalg.norm(first - self.full.expected) if self.full.measured else 0.0
        return again.shape == first.shape and bool(np.linalg.norm(again - first) <= NEAR * error)

    def _named(self) -> Named | None:
        if self.full.used < CLEAR or self.bench.own_weights:
            return None
        self.bench.require_time(self.x, FEWEST)
        quiet = self.bisection.answer(-1).right
        found = self._bisected() if quiet else self._injected()
        return None if found is None or outside(self.bench, self.weights, self.x, self.full) else found

    def _bisected(self) -> Named | None:
        """A mistake in a residual branch."""
        k = self.bisection.first_wrong()
        if k is None or self.bisection.answer(k).used < CLEAR * self.bisection.answer(k - 1).used:
            return None
        has_branch = isinstance(self.bench.layers[k], Resnet | Attention)  # if not, both probes have its own weights
        bared = self.bisection.prepares(k - 1) and not self.bisection.prepares(k)
        if not has_branch or (bared and not self.bisection.unprepared(k - 1).right):
            # The last norm may be wrong, and see a faint or far map from here on.
            return self._injected() if self.injection.suspects()[-1] >= self.injection.head else None
        guess = self._guess([k], k)
        proven = guess or self.bisection.without(k, up_to=len(self.bench.layers) - 1).right
        return (k, guess, BISECTED) if proven or not self.bisection.only(k).right else None

    def _injected(self) -> Named | None:
        """A mistake in a convolution on the way, in a skip, in a change of size, or in the last norm."""
        suspects = self.injection.suspects()
        hiding = [k for k in suspects if self._hides(k)]
        if len(hiding) == 1:
            return hiding[0], self._guess(hiding, hiding[0]), HIDDEN
        if guess := self._guess(suspects, suspects[-1]):
            late = guess.layer >= self.injection.head
            return None if late and not first_resnet_is_right(self.injection) else (guess.layer, guess, INJECTED)
        k = self.injection.decided(suspects)
        if k is None or (k > first_resnet(self.injection) and not first_resnet_is_right(self.injection)):
            return None
        return k, None, INJECTED

    def _hides(self, k: int) -> bool:
        """Whether all is right as soon as layer k is silent, and no other layer has its branch."""
        return can_scale(self.bench.layers[k]) and self.bisection.without(k, up_to=-1).right

    def _guess(self, candidates: list[int], k: int) -> Guess | None:
        """The known mistake in a candidate that gives the numbers of the probe "up to k"; None if several layers do."""
        answer = self.bisection.answer(k)
        if not answer.measured:
            return None
        evidence = Evidence(self.bisection.probe(k), self.x, answer.actual, answer.expected)
        fits = matching_guesses(self.bench, candidates, evidence, self.bisection.passed(k))
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
    """The first downsampling that is wrong on an odd number of rows and columns, which no other layer gets.

    The first of all has the image's own size, which may be mistaken outside the layers: only a known mistake names it.
    """
    if bench.half == "decoder" or bench.own_weights:
        return None
    weights, x = next(drawn(bench.config, bench.dtype, bench.half))
    places = [k for k, layer in enumerate(bench.layers) if isinstance(layer, Downsample)]
    trials = [(k, *_odd_in(bench, weights, level, len(x))) for level, k in enumerate(places)]
    wrong = [trial for trial in trials if not trial[2].right]
    if not wrong or len(wrong) == len(trials) > 1 or not wrong[0][2].measured:
        return None
    k, odd, answer = wrong[0]
    guesses = matching_guesses(bench, [k], Evidence(weights, odd, answer.actual, answer.expected), frozenset())
    if not guesses and k == places[0]:
        return None
    part, cause = (guesses[0].part, guesses[0].cause) if guesses else (None, None)
    rows = [(name_of(bench.layers[i]), one.used, one.error) for i, _, one in trials]
    how = "sizes: only maps of odd size in this layer fail"
    return finding(bench.half, name_of(bench.layers[k]), rows, how, part=part, cause=cause)


def _odd_in(bench: Bench, weights: Weights, level: int, batch: int) -> tuple[np.ndarray, Answer]:
    """Images whose maps have odd sizes in one level only, and the answer for them."""
    size = (2**level + bench.config.downsampling_factor * n for n in SIZE)
    drawn = np.random.default_rng(1).uniform(-1, 1, (batch, bench.config.in_channels, *size))
    x = rounded(drawn, bench.dtype)
    return x, bench.ask(weights, x)
