"""Probes: a subject's whole half with chosen weights, against the specification with the same weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from vaespec import AutoencoderConfig
from vaespec.analysis.rounding import rounding_error, rounding_ops
from vaespec.architecture import HALVES
from vaespec.layers import Sequential
from vaespec.posterior import DiagonalGaussian
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging import budgets
from vaespec_conformance.judging.comparison import within
from vaespec_conformance.layers.neutral_weights import Weights
from vaespec_conformance.subjects.errors import ConformanceError, blamed


class TimeUpError(Exception):
    """The time for a search is up."""


@dataclass(frozen=True)
class Answer:
    """The subject's result of a probe, the expected one, and the used share of the budget.

    `error` is the difference, with its place; None if the result is within the budget.
    """

    used: float
    actual: np.ndarray
    expected: np.ndarray
    error: ConformanceError | None

    @property
    def right(self) -> bool:
        """Whether the result is within the budget."""
        return self.used <= 1

    @property
    def measured(self) -> bool:
        """Whether the result has the right shape."""
        return self.actual.shape == self.expected.shape


@dataclass
class Bench:
    """One half of a subject, to be asked with chosen weights until the deadline, in seconds of time.monotonic()."""

    subject: Any
    config: AutoencoderConfig
    dtype: str
    half: str
    deadline: float
    pace: float = field(default=0.0, init=False)
    """The most seconds that an answer took for each number of the input."""

    @cached_property
    def layers(self) -> tuple[Any, ...]:
        """The layers of the half, in order."""
        return HALVES[self.half].build(self.config).layers

    @cached_property
    def own_weights(self) -> Weights:
        """The only weights that the subject has; empty if it takes any. With only these, nothing can be bisected."""
        return dict(self.subject.own_weights(self.config, self.dtype))

    def ask(
        self, weights: Weights, x: np.ndarray, passed: frozenset[int] = frozenset(), begun: Begun | None = None
    ) -> Answer:
        """Runs the subject and the specification. Weights are in the dtype.

        Raises TimeUpError if the deadline would pass meanwhile, and what the subject raises.

        `passed` are the numbers of the layers that return their input with these weights, bit by bit: the
        specification leaves them out. `begun` is what it has computed already.
        """
        self.require_time(x)
        began = time.monotonic()
        first, maps = begun or (0, [x] * len(runs(self.dtype)))
        layers = tuple(layer for i, layer in enumerate(self.layers) if i >= first and i not in passed)
        with threadpool_limits(1, "blas"):  # the maps are small
            results = [run(layers, weights, y) for run, y in zip(runs(self.dtype), maps, strict=True)]
        actual = run_half(self.subject, self.config, weights, self.dtype, self.half, x)
        self.pace = max(self.pace, (time.monotonic() - began) / x.size)
        return self._judged(actual, [finished(result, self.half) for result in results])

    def require_time(self, x: np.ndarray, answers: int = 1) -> None:
        """Raises TimeUpError if so many answers for x would take until after the deadline, by the slowest so far."""
        if time.monotonic() + answers * self.pace * x.size > self.deadline:
            raise TimeUpError

    def _judged(self, actual: np.ndarray, results: list[np.ndarray]) -> Answer:
        expected, *narrow = (alike(result, actual) for result in results)
        budget = budgets.model(self.dtype, rounding_error(narrow, expected, self.dtype))
        used, error = compared(actual, expected, budget, self.half)
        return Answer(used, actual, expected, error)


def compared(
    actual: np.ndarray, expected: np.ndarray, budget: float, what: str
) -> tuple[float, ConformanceError | None]:
    """The used share of the budget, and the error if it is more than 1; inf for NaN or another shape."""
    try:
        return max(within(actual, expected, budget, what)), None
    except ConformanceError as error:
        return max(error.eta2, error.etainf), error


Run = Callable[[tuple[Any, ...], Weights, np.ndarray], np.ndarray]
"""(layers, weights, x) -> the result of the layers."""
Begun = tuple[int, list[np.ndarray]]
"""A layer's number, and its input in each of the runs."""


@cache
def runs(dtype: str) -> tuple[Run, ...]:
    """The specification, then the runs that show the error of rounding."""
    return tuple(partial(_run, ops, kind) for ops, kind in ((ReferenceOps(np), np.float64), *rounding_ops(dtype)))


def _run(ops: Any, kind: type[np.floating], layers: tuple[Any, ...], weights: Weights, x: np.ndarray) -> np.ndarray:
    narrow = {name: weights[name].astype(kind) for layer in layers for name, _ in layer.parameters()}
    return np.asarray(Sequential(layers)(x.astype(kind), narrow, ops))


def finished(y: np.ndarray, half: str) -> np.ndarray:
    """What a half returns for the result of its last layer: the encoder its mean and its clamped log-variance."""
    if half == "decoder":
        return y
    posterior = DiagonalGaussian(y)
    return np.concatenate([posterior.mean, posterior.logvar], axis=1)


def alike(result: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """A half's result, or the mean alone if `actual`, the subject's result, is that."""
    mean = actual.ndim == result.ndim and result.shape[1] == 2 * actual.shape[1]
    return result[:, : actual.shape[1]] if mean else result


def run_half(
    subject: Any, config: AutoencoderConfig, weights: Weights, dtype: str, half: str, x: np.ndarray
) -> np.ndarray:
    """The subject's images, or its mean and log-variance, one after the other."""
    vae = subject.build(config, weights, dtype)
    if half == "decoder":
        return np.asarray(vae.decode(x))
    with blamed("encode"):  # the two may have other shapes
        return np.concatenate(vae.encode(x), axis=1)
