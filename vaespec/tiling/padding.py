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
    """`ops`, whose convolutions go on at the other end where they would pad with zeros.

    From the last of the `rows` to the first, from the last of the `columns` to the first, or both.
    """

    ops: ReferenceOps
    rows: bool = False
    columns: bool = True

    def __getattr__(self, name: str) -> Any:
        if name == "ops":  # while it is being copied
            raise AttributeError(name)
        return getattr(self.ops, name)

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """(x, params) -> model(x, params, self), made ready as `ops` makes it."""
        return self.ops.compile(_Wrapping(model, self.rows, self.columns))

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Self, Mapping[str, Array]]:
        """On what `ops` have for it."""
        ops, params = self.ops.inference_ops(params)
        return replace(self, ops=ops), params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), as `ops` runs a layer."""
        return self.ops.run(_Wrapping(layer, self.rows, self.columns), x, params)

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        """With rows and columns of the other end in place of zeros."""
        vertical, horizontal = padding
        if self.rows:
            x, vertical = self._wrapped(x, "H", *vertical), (0, 0)
        if self.columns:
            x, horizontal = self._wrapped(x, "W", *horizontal), (0, 0)
        return self.ops.conv2d(x, w, b, stride=stride, padding=(vertical, horizontal))

    def _wrapped(self, x: Array, letter: str, before: int, after: int) -> Array:
        axis, x = self.ops.map_layout.index(letter), x[(...,)]  # an array, if it was something that makes one
        n = x.shape[axis]
        parts = [cut(x, axis, n - before, n), x, cut(x, axis, 0, after)]
        return self.ops.xp.concat(parts, axis=axis) if before or after else x


@dataclass(frozen=True)
class _Wrapping:
    """A layer that computes with CircularOps of whatever ops it is given: what it is compiled for, or evaluated by."""

    layer: Layer
    rows: bool
    columns: bool

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Any) -> Array:
        return self.layer(x, params, CircularOps(ops, self.rows, self.columns))

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.layer.parameters()
