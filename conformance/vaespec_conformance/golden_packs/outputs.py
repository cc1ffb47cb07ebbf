"""The outputs of a pack and their budgets: the specification in float64, and with every result rounded to a dtype."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from vaespec import AutoencoderConfig, DiagonalGaussian
from vaespec.analysis.cost import CostOps, FakeArray
from vaespec.analysis.observe import WITH_PARAMETERS, WatchedOps, activations
from vaespec.analysis.rounding import GRIDS, rounded, rounding_error
from vaespec.architecture import ENCODER, HALVES, Half
from vaespec.layers import Conv, Sequential
from vaespec.reference import ReferenceOps
from vaespec_conformance.judging import budgets

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Output:
    """A result under its name, as float64, and the budget of its relative L2 error."""

    name: str
    array: np.ndarray
    budget: float


def outputs(config: AutoencoderConfig, weights: Arrays, inputs: Arrays, dtype: str, per_layer: bool) -> list[Output]:
    """The outputs of both halves, in the order in which they are computed.

    The encoder's are moments, mean and logvar, the decoder's is sample; with `per_layer`, the result of each layer
    stands before them. One thread computes, since the order of sums must not depend on how many there are.
    """
    wide = {name: w.astype(np.float64) for name, w in weights.items()}
    with threadpool_limits(1):
        return [
            output
            for half in HALVES.values()
            for output in _half(half, half.build(config), inputs[half.source].astype(np.float64), wide, dtype)
            if per_layer or output.name in ("moments", "mean", "logvar", "sample")
        ]


def _half(half: Half, model: Sequential, x: np.ndarray, weights: Arrays, dtype: str) -> Iterator[Output]:
    runs = [_layers(model, x, weights, ReferenceOps(np)), *_inexact(model, x, weights, dtype)]
    last: tuple[np.ndarray, ...] = ()
    for results in zip(*runs, strict=True):
        (name, *_), last = zip(*results, strict=True)
        yield _output(name, last, dtype)
    if half is not ENCODER:
        yield _output("sample", last, dtype)
        return
    yield _output("moments", last, dtype)
    for part in ("mean", "logvar"):
        yield _output(part, [getattr(DiagonalGaussian(moments), part) for moments in last], dtype)


def _inexact(model: Sequential, x: np.ndarray, weights: Arrays, dtype: str) -> list[Iterator[tuple[str, np.ndarray]]]:
    """The runs that predict the error of a dtype, as `predicted_error` does; float64's is 2⁻²⁹ of float32's."""
    if dtype in ("float16", "bfloat16"):
        return [_layers(model, x, weights, WatchedOps(ReferenceOps(np), _rounding(dtype, grid))) for grid in GRIDS]
    narrow = {name: w.astype(np.float32) for name, w in weights.items()}
    return [_layers(model, x.astype(np.float32), narrow, ReferenceOps(InOrder(), "float32"))]


def _rounding(dtype: str, grid: float) -> Callable[[str, np.ndarray], np.ndarray]:
    """Rounds each result as RoundingOps does, by way of float32: exact halves are then even on every machine."""
    return lambda _, y: rounded(rounded(y, "float32"), dtype, grid)


class InOrder:
    """NumPy, with sums of products added one by one, and exponentials rounded from float64.

    So the error of float32, and with it the budgets, are the same with any BLAS and on any CPU.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(np, name)

    def matmul(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Sums in the order of the inner axis."""
        total = a[..., :, :1] * b[..., :1, :]
        for k in range(1, a.shape[-1]):
            total += a[..., :, k : k + 1] * b[..., k : k + 1, :]
        return total

    def exp(self, x: np.ndarray) -> np.ndarray:
        """e^x in the dtype of x."""
        return np.exp(x.astype(np.float64)).astype(x.dtype)


def _layers(model: Sequential, x: np.ndarray, weights: Arrays, ops: Any) -> Iterator[tuple[str, np.ndarray]]:
    """(name, result) of what has a name in diffusers' model: the layers, and the owners of parameters inside them."""
    layers: tuple[Any, ...] = model.layers
    names = {name.rpartition(".")[0] for name, _ in model.parameters()} | {layer.name for layer in layers}
    return ((name, y) for name, y in activations(model, x, weights, ops) if name in names)


def _output(name: str, results: Sequence[np.ndarray], dtype: str) -> Output:
    """The first result is exact, the others are not. Three digits of a budget are the same with any NumPy."""
    exact, *others = results
    predicted = rounding_error(others, exact, dtype)
    return Output(name, exact, float(f"{budgets.model(dtype, predicted):.2e}"))


def layer_shapes(config: AutoencoderConfig, size: tuple[int, int]) -> Iterator[tuple[int, ...]]:
    """The shapes of what `per_layer` adds for an image of `size`; nothing is computed."""
    for half in HALVES.values():
        ops, model = CostOps(1), half.build(config)
        table, x = dict(model.parameters()), ops.array(*half.input_shape(config, 1, *size))
        for layer in model.layers:
            shapes: list[tuple[int, ...]] = []

            def watch(op: str, y: FakeArray, shapes: list[tuple[int, ...]] = shapes) -> FakeArray:
                if op in WITH_PARAMETERS:
                    shapes.append(y.shape)
                return y

            x = layer(x, table, WatchedOps(ops, watch))
            yield from shapes
            if not isinstance(layer, Conv):  # whose result has been seen
                yield x.shape


def count(shapes: Iterator[tuple[int, ...]]) -> int:
    """How many numbers arrays of these shapes hold."""
    return sum(map(math.prod, shapes))
