"""PaddingOps: convolutions that continue a map beyond its borders with rows and columns of the map itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from vaespec.errors import InputError
from vaespec.ops import Array, Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps

Positions = Callable[[int, int, int], tuple[Sequence[int], Sequence[int]]]
"""positions(n, before, after) -> which of n rows stand before the first, and which behind the last."""

SOURCES: Mapping[str, Positions] = {
    "circular": lambda n, before, after: (range(n - before, n), range(after)),
    "reflect": lambda n, before, after: (range(before, 0, -1), range(n - 2, n - 2 - after, -1)),
    "replicate": lambda n, before, after: ((0,) * before, (n - 1,) * after),
}
"""Where a map continues: at its other end; mirrored at its border, which is not repeated; with its border repeated."""

PADDINGS = ("zeros", *SOURCES)
"""PyTorch's names of `padding_mode`."""


@dataclass(frozen=True)
class PaddingOps:
    """The operations of `ops`, but convolutions pad with rows and columns of the map, as `height` and `width` say.

    Each is one of PADDINGS. Convolutions of stride 2 wrap around if it is "circular", else they pad with zeros, which
    diffusers adds apart from the convolution, whatever the `padding_mode`.
    """

    ops: ReferenceOps
    height: str = "zeros"
    width: str = "zeros"

    def __getattr__(self, name: str) -> Any:
        if name == "ops":  # not set yet, while a copy is made
            raise AttributeError(name)
        return getattr(self.ops, name)

    @property
    def wraps_rows(self) -> bool:
        """Whether rows continue at the other end of a map: bands read them there."""
        return self.height == "circular"

    def require_size(self, height: int, width: int, what: str) -> None:
        """Raises InputError if a map of this size cannot be padded; `what` names the input that leads to such a map."""
        for name, size, padding in (("row", height, self.height), ("column", width, self.width)):
            if padding == "reflect" and size < 2:
                raise InputError(
                    f"{what}: a feature map would have {size} {name}, but padding 'reflect' mirrors at least 2 {name}s;"
                    " use larger images or tiles, or padding 'replicate'."
                )

    def padded(self, ops: Any) -> Any:
        """Other ops, with this padding."""
        return replace(self, ops=ops)

    def compile(self, model: Layer) -> Callable[[Array, Mapping[str, Array]], Array]:
        """A function (x, params) -> model(x, params, self), compiled as `ops` compiles."""
        return self.ops.compile(_PaddedLayer(model, self.height, self.width))

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[Self, Mapping[str, Array]]:
        """(ops, params) that compute one run: the inference ops of `ops`, with this padding."""
        ops, params = self.ops.inference_ops(params)
        return replace(self, ops=ops), params

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), in the way that `ops` runs a layer."""
        return self.ops.run(_PaddedLayer(layer, self.height, self.width), x, params)

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array:
        """The convolution of `ops`, after the map was padded with what are not zeros."""
        x, zeros = self._pad(x, stride, padding)
        return self.ops.conv2d(x, w, b, stride=stride, padding=zeros)

    def pad_rows(self, x: Array, above: int, below: int, *, stride: int) -> Array:
        """A map with the rows that `conv2d` pads it with."""
        x, ((above, below), _) = self._pad(x, stride, ((above, below), (0, 0)))
        return self.ops.pad_rows(x, above, below, stride=stride)

    def _pad(self, x: Array, stride: int, padding: Padding) -> tuple[Array, Padding]:
        """A map for a convolution, with its own rows and columns around it, and the zeros that are left to add."""
        zeros = list(padding)
        for i, (axis, mode) in enumerate((("H", self.height), ("W", self.width))):
            if any(padding[i]) and (mode == "circular" or (mode != "zeros" and stride == 1)):
                x = self.ops.to_array(x) if mode == "circular" else x  # for the same bits whole and in bands
                before, after = SOURCES[mode](self._side(x, axis), *padding[i])
                x = self.ops.surround(x, axis=axis, sides=(tuple(before), tuple(after)))
                zeros[i] = (0, 0)
        return x, (zeros[0], zeros[1])

    def _side(self, x: Array, axis: str) -> int:
        """The height ("H") or the width ("W") of a map. Raises InputError if it is too small for the padding."""
        height, width = (x.shape[self.ops.map_layout.index(side)] for side in "HW")
        self.require_size(height, width, "inputs")
        return height if axis == "H" else width


@dataclass(frozen=True)
class _PaddedLayer:
    """A layer that puts PaddingOps on top of the ops that it is given, so that a backend can compile or run it."""

    layer: Layer
    height: str
    width: str

    @property
    def name(self) -> Any:
        """The name of the layer inside, for ops that look at layers."""
        return getattr(self.layer, "name", "")

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Any) -> Array:
        return self.layer(x, params, PaddingOps(ops, self.height, self.width))

    def parameters(self) -> Iterator[tuple[str, Parameter]]:
        return self.layer.parameters()
