"""What does each operation compute? Runs the model, and looks at the results of operations and of layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vaespec.layers import Params, Sequential
from vaespec.ops import Array, Layer, Ops
from vaespec.reference import ReferenceOps

WITH_PARAMETERS = ("conv2d", "group_norm", "linear")
NAMES = {
    **dict.fromkeys(WITH_PARAMETERS, "{part}"),
    **dict.fromkeys(("attention", "eager_attention", "chunked_attention"), "{layer}.attention"),
    **dict.fromkeys(("silu", "mish", "gelu", "relu", "upsample_nearest2x", "scale", "add"), "{part}.{op}"),
}
"""The names of results in `activations`: `part` is the owner of the parameters that were read last in the `layer`.

What only reorders numbers (tokens, pixels, split) has none.
"""


class WatchedOps:
    """Passes each result of `ops` to watch(name of the operation, result), and goes on with what `watch` returns."""

    def __init__(self, ops: Ops, watch: Callable[[str, Array], Array]) -> None:
        self.ops, self.watch = ops, watch

    def run(self, layer: Layer, x: Array, params: Params) -> Array:
        """layer(x, params, self), in the settings of `ops`."""
        ops: Any = self.ops
        return ops.apply(lambda x, params: layer(x, params, self), x, params)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(self.ops, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            y = op(*args, **kwargs)
            return tuple(self.watch(name, part) for part in y) if isinstance(y, tuple) else self.watch(name, y)

        return watched


def activations(model: Sequential, x: Array, params: Params, ops: ReferenceOps) -> Iterator[tuple[str, Array]]:
    """(name, result) of every layer when `model` runs on x, an array (B, C, H, W) of the backend, in order.

    One layer of `model` is computed at a time, and its results are freed when they were read. Maps are (B, C, H, W),
    tokens (B, N, C).
    """
    x = ops.from_nchw(x)
    for layer in model.layers:
        results: dict[str, Array] = {}
        with np.errstate(over="ignore", invalid="ignore"):  # to be seen in the results
            x = _run(layer, x, params, ops, results)
        while results:
            name = next(iter(results))
            yield name, results.pop(name)


def _run(layer: Any, x: Array, params: Params, ops: ReferenceOps, results: dict[str, Array]) -> Array:
    """The result of a layer, after the results inside it, and itself, are in `results` by name."""
    watched = WatchedParams(params, layer.name)
    last: tuple[str, Any] = "", None

    def watch(op: str, y: Array) -> Array:
        nonlocal last
        if op in NAMES:
            part = watched.last.removesuffix(".weight").removesuffix(".bias")
            results[NAMES[op].format(part=part, layer=layer.name, op=op)] = _out(y, ops)
            last = op, y
        return y

    y = WatchedOps(ops, watch).run(layer, x, watched)
    if last[1] is y and last[0] not in WITH_PARAMETERS:
        results.popitem()  # what a layer returns has the layer's name
    results.setdefault(layer.name, _out(y, ops))
    return y


def _out(y: Array, ops: ReferenceOps) -> Array:
    """A map as (B, C, H, W), or tokens, in the dtype that the model stores."""
    return ops.materialize(ops.to_nchw(y) if y.ndim == 4 else ops.cast(y))


class WatchedParams(dict[str, Array]):
    """Parameters that remember the last name that was read, at first `last`: it names the layer at work."""

    def __init__(self, params: Params, last: str = "") -> None:
        super().__init__(params)
        self.last = last

    def __getitem__(self, name: str) -> Array:
        self.last = name
        return super().__getitem__(name)
