"""CircularOps: the model on a torus, for textures that repeat without a seam."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from vaespec.ops import Array, Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec.tiling.stores import cut


@dataclass(frozen=True)
class CircularOps:
    """The operations of `ops`, but convolutions continue at the other end of a map instead of padding with zeros.

    `wraps_rows`: above the first row comes the last, below the last row the first. `wraps_columns`: likewise, left and
    right. On an axis that does not wrap, the padding is zeros.
    """

    ops: ReferenceOps
    wraps_rows: bool = False
    wraps_columns: bool = True

    def __getattr__(self, name: str) -> Any:
        if name == "ops":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.ops, name)

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """A function (x, params) -> model(x, params, self), compiled as `ops` compiles."""
        return self.ops.compile(_PaddedLayer(model, self.wraps_rows, self.wraps_columns))

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Self, Mapping[str, Array]]:
        """(ops, params) that compute one run: the inference ops of `ops`, with this padding."""
        ops, params = self.ops.inference_ops(params)
        return replace(self, ops=ops), params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), in the way that `ops` runs a layer."""
        return self.ops.run(_PaddedLayer(layer, self.wraps_rows, self.wraps_columns), x, params)

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        """The convolution of `ops`, after the axes that wrap are padded with rows or columns from the other end."""
        rows, columns = padding
        if self.wraps_rows:
            x, rows = self._wrap(x, "H", *rows), (0, 0)
        if self.wraps_columns:
            x, columns = self._wrap(x, "W", *columns), (0, 0)
        return self.ops.conv2d(x, w, b, stride=stride, padding=(rows, columns))

    def _wrap(self, x: Array, side: str, before: int, after: int) -> Array:
        """A map with its last `before` rows ("H") or columns ("W") also in front, its first `after` also behind."""
        axis, x = self.ops.map_layout.index(side), self.ops.to_array(x)
        n = x.shape[axis]
        parts = [cut(x, axis, n - before, n), x, cut(x, axis, 0, after)]
        return self.ops.concat(parts, axis=axis) if before or after else x


@dataclass(frozen=True)
class _PaddedLayer:
    """A layer that puts CircularOps on top of the ops that it is given, so that a backend can compile or run it."""

    layer: Layer
    wraps_rows: bool
    wraps_columns: bool

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Any) -> Array:
        return self.layer(x, params, CircularOps(ops, self.wraps_rows, self.wraps_columns))

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.layer.parameters()
