"""How much memory does a run take on a backend? The model with shapes for arrays, whole or in bands of rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from vaespec.analysis.cost import CostOps, Shape
from vaespec.dtypes import storage_dtype
from vaespec.ops import Chunk, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps


class Unmade(Shape):
    """What is computed while a convolution reads it."""


class MemoryOps(CostOps):
    """CostOps as BandedOps needs them, which count what `ops` hold inside an operation as well.

    Where `ops` fuse, what is done while a convolution reads makes no map of its own. `stored_bytes` is the most that
    lay in stores elsewhere, see `Elsewhere`.
    """

    map_layout = "NCHW"
    conv_layout = "OIHW"
    wraps_rows = False

    def __init__(self, ops: ReferenceOps) -> None:
        super().__init__(storage_dtype(ops.dtype).itemsize)
        self.ops, self.fused = ops, ops.fuses
        self.fixed_shapes, self.on_host = ops.fixed_shapes, ops.on_host
        self.elsewhere = self.stored_bytes = 0

    def briefly(self, held: int) -> None:
        """So many bytes more, for a moment."""
        self._hold(held)
        self._hold(-held)

    def store(self, change: int) -> None:
        """So many bytes more, or fewer, elsewhere."""
        self.elsewhere += change
        self.stored_bytes = max(self.stored_bytes, self.elsewhere)

    # -- what the backend's operations need inside --------------------------------------------------------------

    def conv2d(self, x: Shape, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> Shape:
        y = super().conv2d(x, w, b, stride=stride, padding=padding)
        op = "norm_act_conv2d" if isinstance(x, Unmade) else "conv2d"
        self.briefly(self.ops.workspace(op, x.shape, y.shape, w.shape))
        return y

    def group_norm(self, x: Shape, scale: Parameter, shift: Parameter, *, groups: int, eps: float) -> Shape:
        normed = super().group_norm
        return Unmade(x.shape, x.memory) if self.fused else normed(x, scale, shift, groups=groups, eps=eps)

    def silu(self, x: Shape) -> Shape:
        return x if self.fused else super().silu(x)

    mish = gelu = relu = silu

    def add(self, x: Shape, y: Shape) -> Shape:
        return y if self.fused else super().add(x, y)

    def upsample_nearest2x(self, x: Shape) -> Shape:
        B, C, H, W = x.shape
        return Shape((B, C, 2 * H, 2 * W), x.memory) if self.fused else super().upsample_nearest2x(x)

    def attention(self, q: Shape, k: Shape, v: Shape, *, scale: float) -> Shape:
        y = super().attention(q, k, v, scale=scale)
        self.briefly(self.ops.workspace("attention", q.shape, y.shape))
        return y

    # -- what BandedOps calls beside the operations -------------------------------------------------------------

    def inference_ops(self, params: Mapping[str, Any]) -> tuple[Self, Mapping[str, Any]]:
        return self, params

    def materialize(self, x: Any) -> Any:
        return x

    to_array = to_numpy = from_host = materialize

    def channel_statistics(self, x: Shape) -> tuple[np.ndarray, np.ndarray]:
        self.briefly(self.ops.workspace("channel_statistics", x.shape, x.shape))
        return np.zeros(x.shape[:2]), np.zeros(x.shape[:2])

    def normalize(self, x: Shape, mean: Any, sigma2: Any, scale: Any, shift: Any, *, eps: float) -> Shape:
        if self.fused:
            return Unmade(x.shape, x.memory)
        y = self.array(*x.shape)
        self.briefly(self.ops.workspace("normalize", x.shape, y.shape))
        return y

    def attend_chunk(self, q: Shape, k: Shape, v: Shape, scale: float) -> tuple[Shape, Shape, Shape]:
        (B, n, C), m = q.shape, k.shape[1]
        logits, weights = self.array(B, n, m), self.array(B, n, m)
        del logits, weights
        return self.array(B, n, 1), self.array(B, n, 1), self.array(B, n, C)

    def merge_chunks(self, one: Chunk, other: Chunk) -> Chunk:
        scaled = self.array(*one[2].shape), self.array(*one[2].shape)
        m, l, o = (self.array(*part.shape) for part in one)
        del scaled
        return m, l, o

    def divide_chunks(self, merged: Chunk, like: Shape) -> Shape:
        return self.array(*like.shape)

    def zeros_like(self, x: Shape) -> Shape:
        return self.array(*x.shape)

    def rows(self, x: Shape, start: int, stop: int) -> Shape:
        return x[(slice(None), slice(None), slice(start, stop), ...)]

    def concat(self, parts: Sequence[Shape], axis: int) -> Shape:
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.array(*shape)


class Elsewhere:
    """A store that takes no memory of the device: see vaespec.tiling.stores."""

    def __init__(self, ops: MemoryOps, axis: int) -> None:
        self.ops, self.axis = ops, axis
        self.rows = self.row = 0

    def append(self, rows: Shape) -> None:
        self.shape = list(rows.shape)
        held = math.prod(rows.shape) * self.ops.bytes_per_number
        self.rows, self.row = self.rows + rows.shape[self.axis], held // rows.shape[self.axis]
        self.ops.briefly(held)  # in the order of the file
        self.ops.store(held)

    def open(self) -> Any:
        """As many rows as are asked for, in new arrays."""

        def read(start: int, stop: int) -> Shape:
            self.shape[self.axis] = stop - start
            self.ops.briefly((stop - start) * self.row)
            return self.ops.array(*self.shape)

        return read

    def __del__(self) -> None:
        self.ops.store(-self.rows * self.row)
