"""WatchedOps: the ops of a backend, with a function that sees every result and may replace it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vaespec.layers import Params
from vaespec.ops import Array, Layer, Ops


class WatchedOps:
    """Passes each result of `ops` to watch(name of the operation, result), and goes on with what `watch` returns."""

    def __init__(self, ops: Ops, watch: Callable[[str, Array], Array]) -> None:
        self.ops, self.watch = ops, watch

    def run(self, layer: Layer, x: Array, params: Params) -> Array:
        return layer(x, params, self)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        op = getattr(self.ops, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            y = op(*args, **kwargs)
            return tuple(self.watch(name, part) for part in y) if isinstance(y, tuple) else self.watch(name, y)

        return watched
