"""The contract between the model and a backend: the operations that the model is written against.

`Ops` is what the model calls. `BandableOps` adds what exact tiling needs to compute the same model in bands of rows.
`vaespec.specification` has the formulas, `vaespec.reference` what a backend inherits.

A backend may hold feature maps in any order of axes, because the model never looks inside one: maps enter through
`from_nchw`, leave through `to_nchw`, and in between the model only calls methods. Every number that changes a result
(eps, scale, padding, stride) is an argument without default: the layer gives it, so that a backend cannot get it wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from vaespec.parameter import Parameter

Array = Any
"""An array of a backend, or whatever the ops at hand compute with: a shape, an interval, a deferred map."""

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns added around a map: ((above, below), (left, right))."""

Sides = tuple[tuple[int, ...], tuple[int, ...]]
"""Positions of rows, or of columns, that are repeated around a map: (before the first one, after the last one)."""

Chunk = tuple[Array, Array, Array]
"""(m, l, o): what a chunk of keys gives for some queries. See Specification.chunked_attention."""

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
"""The operations that take time: a backend has kernels of its own for them, or runs the specification's formulas."""


class Ops(Protocol):
    """What the model calls. Shapes are in reference order: feature maps (B, C, H, W), tokens (B, N, C)."""

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
        """Tokens (B, N, parts · C) -> `parts` arrays (B, N, C)."""

    def scale(self, t: Array, factor: float) -> Array: ...

    def attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V in the backend's best way."""

    def eager_attention(self, q: Array, k: Array, v: Array, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V, with all N × N weights in memory at one time."""

    def chunked_attention(self, q: Array, k: Array, v: Array, *, scale: float, size: int) -> Array:
        """softmax(scale · Q Kᵀ) V, with at most size × size weights in memory at one time."""

    def run(self, layer: Layer, x: Array, params: Mapping[str, Array]) -> Array:
        """layer(x, params, self), for each layer of the model in turn."""


class BandableOps(Ops, Protocol):
    """What BandedOps calls besides the model's operations: to cut and join maps, and to compute an operation in parts.

    `map_layout` and `conv_layout` are the axes of maps ("NCHW", in the backend's order) and of kernels ("OIHW").
    `fixed_shapes` says that every new shape costs a compilation. `wraps_rows` says that a convolution continues at the
    other end of a map instead of padding with rows of zeros.
    """

    map_layout: str
    conv_layout: str
    fixed_shapes: bool
    wraps_rows: bool

    def inference_ops(self, params: Mapping[str, Array]) -> tuple[BandableOps, Mapping[str, Array]]:
        """(ops, params) that compute one run, without gradients."""

    def apply(self, function: Callable[[Any, Mapping[str, Array]], Any], x: Any, params: Mapping[str, Array]) -> Any:
        """function(x, params), in the framework's settings."""

    # -- group norm and attention in parts ---------------------------------------------------------------------

    def channel_statistics(self, x: Array) -> tuple[Array, Array]:
        """Mean and biased variance of every channel of every sample: two arrays (B, C), float32 or wider."""

    def normalize(self, x: Array, mean: Array, sigma2: Array, scale: Array, shift: Array, *, eps: float) -> Array: ...

    def attend_chunk(self, q: Array, k: Array, v: Array, scale: float) -> Chunk: ...

    def merge_chunks(self, one: Chunk, other: Chunk) -> Chunk: ...

    def divide_chunks(self, merged: Chunk, like: Array) -> Array: ...

    # -- parts of arrays -----------------------------------------------------------------------------------------

    def pad_rows(self, x: Array, above: int, below: int, *, stride: int) -> Array:
        """A map with the rows that a convolution of this stride pads it with.

        If x is a part of a map, on one device or in one band, and its rows end where those of the map do, these are
        zeros or copies of rows in x. Rows of the other end (`wraps_rows`) have to be in x already.
        """

    def rows(self, x: Array, start: int, stop: int) -> Array:
        """Rows start … stop - 1 of a map, along its height."""

    def concat(self, parts: Sequence[Array], axis: int) -> Array:
        """Join arrays along an axis of the backend's order; a single array is returned as it is."""

    def zeros_like(self, x: Array) -> Array: ...

    # -- computing now -------------------------------------------------------------------------------------------

    def to_array(self, x: Array) -> Array:
        """x as an array: a map that the backend deferred is computed. Gradients pass, unlike through `materialize`."""

    def materialize(self, x: Array) -> Array:
        """Evaluate x and drop its references to the graph and to its inputs."""

    def to_numpy(self, x: Array) -> Any:
        """Array -> NumPy, or what takes its place on the host: same values, same dtype."""

    def from_host(self, a: Any) -> Array:
        """The inverse of `to_numpy`."""


class Layer(Protocol):
    """A part of the model. See `vaespec.layers`."""

    def __call__(self, x: Array, params: Mapping[str, Array], ops: Ops) -> Array: ...

    def parameters(self) -> Iterator[tuple[str, Parameter]]: ...
