"""How much memory does a run take on a backend? The model on fake arrays, whole or in bands of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from vaespec.analysis.cost import Allocation, CostOps, FakeArray
from vaespec.dtypes import storage_dtype
from vaespec.ops import Chunk, Padding, Sides
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps


def shape_ops(ops: Any) -> MemoryOps:
    """Return ops that count the memory of a run on `ops`: the backend's own, if it offers `shape_ops()`."""
    return ops.shape_ops() if hasattr(ops, "shape_ops") else MemoryOps(ops)


class CeilingError(Exception):
    """A run that needs more memory than `MemoryOps.ceiling`."""


class MemoryOps(CostOps):
    """CostOps that BandedOps can use, and that also count what an operation of `ops` holds while it computes.

    `stored_bytes` is the most that stores outside the device held at one time: see `Elsewhere`. If `stores_count`, what
    they hold is memory of the process as well: files in memory. Raises CeilingError above `ceiling` bytes.
    `itemsize` is that of a number of a map, by default as it is stored.
    """

    map_layout = "NCHW"
    conv_layout = "OIHW"
    wraps_rows = False

    def __init__(self, ops: ReferenceOps, itemsize: int = 0) -> None:
        self.result_itemsize = storage_dtype(ops.dtype).itemsize
        super().__init__(itemsize or self.result_itemsize)
        self.ops = ops
        self.fixed_shapes, self.on_host = ops.fixed_shapes, ops.on_host
        self.elsewhere = self.stored_bytes = 0
        self.stores_count, self.ceiling = False, math.inf

    def _hold(self, change: int) -> None:
        super()._hold(change)
        if change > 0 and self.held_bytes > self.ceiling:
            raise CeilingError

    def briefly(self, held: int) -> None:
        """Hold so many bytes more, for a moment."""
        self._hold(held)
        self._hold(-held)

    def store(self, change: int) -> None:
        """Store so many bytes more, or fewer, outside the device."""
        self.elsewhere += change
        self.stored_bytes = max(self.stored_bytes, self.elsewhere)
        if self.stores_count:
            self._hold(change)

    # -- what the backend's operations hold while they compute --------------------------------------------------

    def to_nchw(self, x: FakeArray) -> FakeArray:
        """A result that is stored in fewer bytes than maps is an array of its own."""
        same = self.bytes_per_number == self.result_itemsize
        return x if same else FakeArray(x.shape, Allocation(self, x.size * self.result_itemsize))

    def wide_weight(self, w: Parameter) -> FakeArray | None:
        """The copy of a weight in the dtype of the maps, while an operation uses it; None if it is stored so."""
        return None if self.bytes_per_number == self.result_itemsize else self.array(*w.shape)

    def conv2d(self, x: FakeArray, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> FakeArray:
        wide = self.wide_weight(w)
        y = super().conv2d(x, w, b, stride=stride, padding=padding)
        self.briefly(self.ops.workspace("conv2d", x.shape, y.shape, w.shape))
        del wide
        return y

    def linear(self, t: FakeArray, w: Parameter, b: Parameter | None) -> FakeArray:
        wide = self.wide_weight(w)
        y = super().linear(t, w, b)
        del wide
        return y

    def attention(self, q: FakeArray, k: FakeArray, v: FakeArray, *, scale: float) -> FakeArray:
        y = super().attention(q, k, v, scale=scale)
        self.briefly(self.ops.workspace("attention", q.shape, y.shape))
        return y

    # -- what BandedOps calls besides the operations ------------------------------------------------------------

    def inference_ops(self, params: Mapping[str, Any]) -> tuple[Self, Mapping[str, Any]]:
        return self, params

    def apply(self, function: Callable[[Any, Mapping[str, Any]], Any], x: Any, params: Mapping[str, Any]) -> Any:
        return function(x, params)

    def materialize(self, x: Any) -> Any:
        return x

    to_array = to_numpy = from_host = materialize

    def channel_statistics(self, x: FakeArray) -> tuple[np.ndarray, np.ndarray]:
        self.briefly(self.ops.workspace("channel_statistics", x.shape, x.shape))
        return np.zeros(x.shape[:2]), np.zeros(x.shape[:2])

    def normalize(self, x: FakeArray, mean: Any, sigma2: Any, scale: Any, shift: Any, *, eps: float) -> FakeArray:
        y = self.array(*x.shape)
        self.briefly(self.ops.workspace("normalize", x.shape, y.shape))
        return y

    def attend_chunk(
        self, q: FakeArray, k: FakeArray, v: FakeArray, scale: float
    ) -> tuple[FakeArray, FakeArray, FakeArray]:
        (B, n, C), m = q.shape, k.shape[1]
        logits, weights = self.array(B, n, m), self.array(B, n, m)
        del logits, weights
        return self.array(B, n, 1), self.array(B, n, 1), self.array(B, n, C)

    def merge_chunks(self, one: Chunk, other: Chunk) -> Chunk:
        scaled = self.array(*one[2].shape), self.array(*one[2].shape)
        m, l, o = (self.array(*part.shape) for part in one)
        del scaled
        return m, l, o

    def divide_chunks(self, merged: Chunk, like: FakeArray) -> FakeArray:
        return self.array(*like.shape)

    def pad_rows(self, x: FakeArray, above: int, below: int, *, stride: int) -> FakeArray:
        B, C, H, W = x.shape
        return self.array(B, C, above + H + below, W) if above or below else x

    def surround(self, x: FakeArray, *, axis: str, sides: Sides) -> FakeArray:
        return self.array(*surrounded_shape(x.shape, axis, sides))

    def zeros_like(self, x: FakeArray) -> FakeArray:
        return self.array(*x.shape)

    def rows(self, x: FakeArray, start: int, stop: int) -> FakeArray:
        return x[(slice(None), slice(None), slice(start, stop), ...)]

    def concat(self, parts: Sequence[FakeArray], axis: int) -> FakeArray:
        if len(parts) == 1:
            return parts[0]
        shape = list(parts[0].shape)
        shape[axis] = sum(part.shape[axis] for part in parts)
        return self.array(*shape)


def surrounded_shape(shape: tuple[int, ...], axis: str, sides: Sides) -> tuple[int, ...]:
    """Return the shape (B, C, H, W) of a map with rows or columns around it."""
    return tuple(n + (name == axis) * sum(map(len, sides)) for name, n in zip("NCHW", shape, strict=True))


class Elsewhere:
    """A store outside the device's memory: see vaespec.tiling.stores."""

    def __init__(self, ops: MemoryOps, axis: int) -> None:
        self.ops, self.axis = ops, axis
        self.rows = self.row = 0

    def append(self, rows: FakeArray) -> None:
        self.shape = list(rows.shape)
        held = math.prod(rows.shape) * self.ops.bytes_per_number
        self.rows, self.row = self.rows + rows.shape[self.axis], held // rows.shape[self.axis]
        self.ops.briefly(held)  # a copy, in the order of the file
        self.ops.store(held)

    def open(self) -> Any:
        """Return a function that reads rows into new arrays."""

        def read(start: int, stop: int) -> FakeArray:
            self.shape[self.axis] = stop - start
            self.ops.briefly((stop - start) * self.row)
            return self.ops.array(*self.shape)

        return read

    def __del__(self) -> None:
        self.ops.store(-self.rows * self.row)
