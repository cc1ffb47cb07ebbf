"""The contract: the operations that the model is written against.

`Ops` is what the model calls. `BandableOps` is what exact tiling needs besides. The formulas are in
`vaespec.specification`; `vaespec.reference` adds what a backend inherits.

Feature maps are (B, C, H, W) here; a backend may hold them in another order, because the model never looks: it enters
through `from_nchw`, leaves through `to_nchw`, and only calls methods in between. Numbers that change the result (eps,
scale, padding, stride) have no default: the layer gives them, so that a backend cannot get them wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from vaespec.parameter import Parameter

Array = Any
Padding = tuple[tuple[int, int], tuple[int, int]]
"""Zeros added ((above, below), (left, right))."""

KERNELS = (
    "conv2d",
    "group_norm",
    "silu",
    "mish",
    "gelu",
    "relu",
    "add",
    "upsample_nearest2x",
    "linear",
    "attention",
)
"""The operations that compute: a backend has kernels of its own for them, or runs the reference's."""


class Ops(Protocol):
    """What the model calls. Shapes are given in reference order: maps (B, C, H, W), tokens (B, N, C)."""

    def from_nchw(self, x: Array) -> Array:
        """(B, C, H, W) array of the backend -> map, in the dtype the model computes in."""

    def to_nchw(self, x: Array) -> Array:
        """Map -> (B, C, H, W) array of the backend, in the dtype the model stores."""

    def conv2d(self, x: Array, w: Array, b: Array, *, stride: int, padding: Padding) -> Array: ...

    def group_norm(self, x: Array, scale: Array, shift: Array, *, groups: int, eps: float) -> Array: ...

    def silu(self, x: Array) -> Array: ...

    def mish(self, x: Array) -> Array: ...

    def gelu(self, x: Array) -> Array: ...

    def relu(self, x: Array) -> Array: ...

    def add(self, x: Array, y: Array) -> Array: ...

    def upsample_nearest2x(self, x: Array) -> Array: ...

    def tokens(self, x: Array) -> Array:
        """Map -> (B, H·W, C), pixels row by row."""

    def pixels(self, t: Array, like: Array) -> Array:
        """(B, H·W, C) -> map with the height and width of `like`: the inverse of `tokens`."""

    def linear(self, t: Array, w: Array, b: Array | None) -> Array: ...

    def split(self, t: Array, parts: int) -> tuple[Array, ...]:
        """Tokens (B, N, parts · C) -> as many of (B, N, C)."""

    def scale(self, t: Array, factor: float) -> Array: ...

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V in the backend's best way."""

    def eager_attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """The same, with all N × N weights at one time."""

    def chunked_attention(self, q: Array, k: Array, v: Array, *, scale: float, size: int) -> Array:
        """The same, with never more than size × size weights."""

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self): the place to look at each layer, or to do something after it."""


class Layer(Protocol):
    """A part of the model. See `vaespec.layers`."""

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Ops) -> Array: ...

    def parameters(self) -> Iterator[tuple[str, Parameter]]: ...
