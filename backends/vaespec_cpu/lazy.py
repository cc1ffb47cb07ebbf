"""Lazy feature maps: what an operation reads is normalized, activated, upsampled or convolved while it is read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from vaespec.ops import Sides
from vaespec_cpu.memory import Array, fresh
from vaespec_cpu.threads import side_by_side

PIECE = 1 << 17  # elements


@dataclass(frozen=True)
class Activation:
    """act(y), computed as `from_scaled(scale · y, out)`: the step that produces y multiplies by `scale` for free."""

    from_scaled: Callable[[Array, Array], object]
    scale: float = 1.0


@dataclass(frozen=True)
class LazyMap:
    """A map x (B, H, W, C), read in parts. Subclasses compute what is read."""

    x: Array

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of the map that readers see."""
        B, H, W, C = self.x.shape
        return B, H, W, C

    def fill(self, item: int, rows: slice, columns: slice, out: Array) -> None:
        """Write a part of an item into `out` (rows, columns, C)."""
        out[...] = self.x[item, rows, columns]

    def whole(self) -> Array:
        """Return the map as an array."""
        return self.x


class PendingMap(LazyMap):
    """A map that is not computed yet."""

    def whole(self) -> Array:
        """Compute the map."""
        y = fresh(self.shape, self.x.dtype)
        for item, out in enumerate(y):

            def strip(rows: slice, item: int = item, out: Array = out) -> None:
                self.fill(item, rows, slice(0, self.shape[2]), out[rows])

            side_by_side(strip, len(out), out[0].size)
        return y


@dataclass(frozen=True)
class Normalized(PendingMap):
    """act((x - centre) · factor + shift): x (B, H, W, C), centre and factor (B, C), shift (C,)."""

    centre: Array
    factor: Array
    shift: Array
    activation: Activation | None = None

    def fill(self, item: int, rows: slice, columns: slice, out: Array) -> None:
        """Write a part of an item into `out` (rows, columns, C), a few rows at a time, which stay in the cache."""
        x, height = self.x[item, rows, columns], max(1, PIECE // out[0].size)
        centre, factor, shift = (np.tile(values, (out.shape[1], 1)) for values in self._affine(item))
        for i in range(0, len(out), height):
            part = out[i : i + height]
            y = part if self.activation is None else np.empty_like(part)
            np.subtract(x[i : i + height], centre, out=y)
            y *= factor
            y += shift
            if self.activation is not None:
                self.activation.from_scaled(y, part)

    def _affine(self, item: int) -> tuple[Array, Array, Array]:
        """Centre, factor and shift (C,) of an item, with the factor and the shift scaled for the activation."""
        scale = self.x.dtype.type(1.0 if self.activation is None else self.activation.scale)
        return self.centre[item], scale * self.factor[item], scale * self.shift


@dataclass(frozen=True)
class Upsampled2x(PendingMap):
    """Rows of u[i, j] = x[i // 2, j // 2], the nearest upsampling of x: y[i, j] = u[above + i, j], i < height.

    `above` rows of u are left out before the first row of y. So a band of u is described without being computed.
    """

    above: int
    height: int

    @classmethod
    def of(cls, x: Array) -> Upsampled2x:
        """Describe all rows."""
        return cls(x, 0, 2 * x.shape[1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of the map that readers see."""
        B, _, W, C = self.x.shape
        return B, self.height, 2 * W, C

    def fill(self, item: int, rows: slice, columns: slice, out: Array) -> None:
        """Write a part of an item into `out` (rows, columns, C)."""
        i = (np.arange(rows.start, rows.stop, rows.step) + self.above) // 2
        j = np.arange(columns.start, columns.stop, columns.step) // 2
        out[...] = self.x[item, i[:, None], j]

    def rows(self, start: int, stop: int) -> Upsampled2x:
        """Rows start … stop - 1, not computed yet."""
        return Upsampled2x(self.x, self.above + start, stop - start)

    def ends(self, zeros: tuple[int, int]) -> bool:
        """Whether x itself ends at each side that is padded with zeros (above, below)."""
        above, below = zeros
        return not (above and self.above) and not (below and self.above + self.height < 2 * self.x.shape[1])


@dataclass(frozen=True)
class Surrounded(PendingMap):
    """A map with some of its `rows` and `columns` repeated around it: the positions of those in front, and behind."""

    source: LazyMap
    rows: Sides = ((), ())
    columns: Sides = ((), ())

    @classmethod
    def of(cls, source: LazyMap, axis: str, sides: Sides) -> Surrounded:
        """Surround a map, or a map that is surrounded along the other axis, with rows ("H") or columns ("W")."""
        surrounded = source if isinstance(source, Surrounded) else cls(source.x, source)
        return replace(surrounded, rows=sides) if axis == "H" else replace(surrounded, columns=sides)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of the map that readers see."""
        B, H, W, C = self.source.shape
        return B, H + sum(map(len, self.rows)), W + sum(map(len, self.columns)), C

    def fill(self, item: int, rows: slice, columns: slice, out: Array) -> None:
        """Write a part of an item into `out` (rows, columns, C)."""
        _, H, W, _ = self.source.shape
        for (i, of_rows), (j, of_columns) in product(_pieces(rows, self.rows, H), _pieces(columns, self.columns, W)):
            self.source.fill(item, of_rows, of_columns, out[i, j])


def _pieces(part: slice, sides: Sides, length: int) -> Iterator[tuple[slice, slice]]:
    """Yield the pieces of a part of a surrounded axis: where each stands in the part, and in the `length` inside."""
    (before, after), step = sides, part.step or 1
    positions = range(part.start, part.stop, step)
    first, last = (len(range(part.start, min(part.stop, len(before) + n), step)) for n in (0, length))
    if first < last:
        start = positions[first] - len(before)
        yield slice(first, last), slice(start, start + step * (last - first - 1) + 1, step)
    for i in (*range(first), *range(last, len(positions))):
        repeated = before[positions[i]] if i < first else after[positions[i] - len(before) - length]
        yield slice(i, i + 1), slice(repeated, repeated + 1)


class Convolved:
    """The result (B, H, W, C) of a convolution. The first reader computes it; then its input is freed.

    `compute(residual)` returns the result plus a residual map, if any.
    """

    def __init__(self, compute: Callable[[Array | None], Array]) -> None:
        self.compute: Callable[[Array | None], Array] | None = compute

    def whole(self) -> Array:
        """Return the map, for any number of readers."""
        if self.compute is not None:
            self.y = self.plus(None)
        return self.y

    def plus(self, residual: Array | None) -> Array:
        """Return the map plus a residual, added while the map is stored, for its only reader."""
        assert self.compute is not None, "a convolution that was read already"
        y, self.compute = self.compute(residual), None
        return y

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, W, C)."""
        return self.whole().shape


def whole(x: Any) -> Any:
    """Return a map as an array, computed if it is not yet."""
    return x.whole() if isinstance(x, LazyMap | Convolved) else x


def window(source: LazyMap, item: int, corner: tuple[int, int], stride: int, out: Array) -> Array:
    """Fill `out` (rows, columns, C): out[i, j] = x[item, top + stride · i, left + stride · j], or 0 beyond x."""
    (_, H, W, _), (top, left) = source.shape, corner
    rows, columns = _inside(top, stride, out.shape[0], H), _inside(left, stride, out.shape[1], W)
    out[: rows.start] = out[rows.stop :] = 0
    out[rows, : columns.start] = out[rows, columns.stop :] = 0
    inside = out[rows, columns]
    if inside.size:
        source.fill(item, _read(top, stride, rows), _read(left, stride, columns), inside)
    return out


def _inside(first: int, stride: int, count: int, length: int) -> slice:
    """The i of 0 … count - 1 with 0 <= first + stride · i < length."""
    start, stop = (min(max(-(-(edge - first) // stride), 0), count) for edge in (0, length))
    return slice(start, stop)


def _read(first: int, stride: int, part: slice) -> slice:
    """The indices first + stride · i for every i of a part."""
    return slice(first + stride * part.start, first + stride * (part.stop - 1) + 1, stride)
