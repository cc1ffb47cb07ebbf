"""Guesses: the suite's known mistakes, each made in one operation of one layer, compared with the subject's numbers.

A guess that gives the subject's very numbers tells the layer, the part of it and the cause at once. The list of
mistakes is that of `vaespec_conformance.mutants`: nothing is described a second time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from vaespec.analysis.observe import WatchedParams
from vaespec.layers import Sequential
from vaespec.ops import Array, Layer
from vaespec.reference import ReferenceOps
from vaespec_conformance.layers.neutral_weights import Weights
from vaespec_conformance.layers.probing import Answer, Bench, alike, finished, run_half
from vaespec_conformance.mutants import MUTANTS
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.oracle import ORACLE
from vaespec_conformance.subjects.subjects import unaltered

OF_A_WHOLE_HALF = ("model.encode", "model.decode", "model.logvar", "goldens.encode", "goldens.decode")
"""The owners of the mistakes that may be made in encode or decode, but in none of its layers."""
NEAR = 0.02
"""A guess fits if the subject's result is fifty times nearer to it than to the specification."""


@dataclass(frozen=True)
class Guess:
    """A known mistake in one operation of one layer. `part` is the operation's place in the layer, "norm1"."""

    layer: int
    part: str
    cause: str
    call: int
    op: str
    ops: ReferenceOps


@dataclass(frozen=True)
class Evidence:
    """A probe that the subject failed: its weights and input, the subject's result, and the specification's."""

    weights: Weights
    x: np.ndarray
    actual: np.ndarray
    expected: np.ndarray


class OneCall:
    """The specification's ops, with one call of one operation in one layer made by other ops."""

    def __init__(self, ops: ReferenceOps, other: ReferenceOps, op: str, call: int) -> None:
        self.ops, self.other, self.op, self.call, self.calls = ops, other, op, call, -1

    def __getattr__(self, name: str) -> Any:
        if name != self.op:
            return getattr(self.ops, name)
        self.calls += 1
        return getattr(self.other if self.calls == self.call else self.ops, name)


class _Listed:
    """Ops that write down each call: (operation, the parameters that were read last)."""

    def __init__(self, ops: ReferenceOps, read: WatchedParams) -> None:
        self.ops, self.read = ops, read
        self.calls: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        self.calls.append((name, self.read.last))
        return getattr(self.ops, name)


@cache
def _mistaken() -> tuple[tuple[str, str, ReferenceOps], ...]:
    """(operation, cause, changed ops) of every known mistake in an operation of the model."""
    found = []
    for mutant in MUTANTS.values():
        subject: Any = mutant.wrap(ORACLE)
        ops = subject.raw_ops("float64")
        changed = vars(type(ops)).keys() - {"compile", "__module__", "__doc__"}
        if subject.alter is unaltered and len(changed) == 1:
            found.append((changed.pop(), mutant.cause, ops))
    return tuple(found)


def matching_guesses(bench: Bench, candidates: list[int], evidence: Evidence, passed: frozenset[int]) -> list[Guess]:
    """The guesses in the candidates that give the subject's numbers, the nearest first.

    The layers in `passed` return their input with the weights of the evidence, and are left out.
    """
    kept = [i for i in range(len(bench.layers)) if i not in passed]
    layers = tuple(bench.layers[i] for i in kept)
    maps = _inputs(layers, evidence.weights, evidence.x)
    size = float(np.linalg.norm(evidence.actual - evidence.expected))
    fits = []
    for guess in (guess for i in candidates for guess in _guesses(i, bench.layers[i], maps[kept.index(i)], evidence)):
        bench.require_time(evidence.x)
        start = kept.index(guess.layer)
        result = _guessed(layers[start:], guess, maps[start], evidence.weights)
        if result is not None and result.shape == maps[-1].shape:
            distance = float(np.linalg.norm(evidence.actual - alike(finished(result, bench.half), evidence.actual)))
            fits += [(distance, guess)] if distance <= NEAR * size else []
    return [guess for _, guess in sorted(fits, key=lambda fit: fit[0])]


def outside(bench: Bench, weights: Weights, x: np.ndarray, answer: Answer) -> bool:
    """Whether a known mistake outside the layers gives the subject's numbers: then no layer is wrong."""
    size = float(np.linalg.norm(answer.actual - answer.expected))
    for mutant in MUTANTS.values():
        subject: Any = mutant.wrap(ORACLE)
        if subject.alter is unaltered or mutant.owner not in OF_A_WHOLE_HALF:
            continue
        bench.require_time(x)
        altered = subject.replace(alter=partial(_remembering, subject.alter, x, answer.expected))
        try:
            with np.errstate(all="ignore"):
                result = alike(run_half(altered, bench.config, weights, "float64", bench.half, x), answer.actual)
        except ConformanceError:  # a mistake that stops the specification
            continue
        if result.shape == answer.actual.shape and np.linalg.norm(answer.actual - result) <= NEAR * size:
            return True
    return False


class _Remembered:
    """A VAE that knows its result for x: most mistakes outside the layers are made in the result."""

    def __init__(self, vae: Any, x: np.ndarray, y: np.ndarray) -> None:
        self.vae, self.x, self.y = vae, x, y

    def encode(self, x: np.ndarray) -> Any:
        """The mean and the log-variance."""
        return np.split(self.y, 2, axis=1) if np.array_equal(x, self.x) else self.vae.encode(x)

    def decode(self, z: np.ndarray) -> Any:
        """The images."""
        return self.y if np.array_equal(z, self.x) else self.vae.decode(z)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)


def _remembering(alter: Any, x: np.ndarray, y: np.ndarray, factory: Any) -> Any:
    return alter(lambda config, weights, dtype: _Remembered(factory(config, weights, dtype), x, y))


def _guesses(i: int, layer: Any, x: np.ndarray, evidence: Evidence) -> Iterator[Guess]:
    """Every known mistake in every operation of layer i."""
    read = WatchedParams(evidence.weights, layer.name)
    listed = _Listed(ReferenceOps(np), read)
    layer(x, read, listed)
    counts: dict[str, int] = {}
    for op, last in listed.calls:
        call = counts[op] = counts.get(op, -1) + 1
        part = _part(layer.name, op, last)
        yield from (Guess(i, part, cause, call, op, ops) for name, cause, ops in _mistaken() if name == op)


def _guessed(layers: tuple[Any, ...], guess: Guess, x: Array, weights: Weights) -> np.ndarray | None:
    """The result of the layers with the mistake in the first; None if it stops the model."""
    ops: Any = OneCall(ReferenceOps(np), guess.ops, guess.op, guess.call)
    try:
        with np.errstate(all="ignore"):
            y = layers[0](np.array(x), weights, ops)
            return np.asarray(Sequential(layers[1:])(y, weights, ReferenceOps(np)))
    except Exception:  # a mistake that stops the specification is no guess
        return None


def mistaken_maps(bench: Bench, guess: Guess, x: Array, weights: Weights) -> Iterator[np.ndarray]:
    """The results of the guess's layer, which has the input x, and of the layers behind it, with the mistake."""
    ops: Any = OneCall(ReferenceOps(np), guess.ops, guess.op, guess.call)
    for layer in bench.layers[guess.layer :]:
        x = layer(np.array(x), weights, ops)
        ops = ReferenceOps(np)
        yield np.asarray(x)


def _inputs(layers: tuple[Layer, ...], weights: Weights, x: np.ndarray) -> list[np.ndarray]:
    """The input of each layer."""
    maps, ops = [x], ReferenceOps(np)
    for layer in layers:
        maps.append(layer(maps[-1], weights, ops))
    return maps


def _part(layer: str, op: str, last: str) -> str:
    """The part of a layer: "norm1", "conv2", "to_q"; the operation's name where it belongs to no parameters."""
    owner = last.removesuffix(".weight").removesuffix(".bias")
    part = owner.removeprefix(layer).strip(".")
    if op in ("conv2d", "group_norm", "linear"):
        return part if owner.startswith(layer) else ""
    return {"silu": f"{part}.silu" if owner.startswith(layer) else "silu"}.get(op, op)
