"""What an operation reads: a map as it is, or one that is normalised and activated while it is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from vaespec_numpy.strips import side_by_side

Activation = Callable[[np.ndarray, np.ndarray], object]
"""Of `source` into `out`, of equal shapes."""


@dataclass(frozen=True)
class Source:
    """A map x (B, H, W, C), read in parts."""

    x: np.ndarray

    def fill(self, item: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """A part of an item, into `out` (rows, columns, C)."""
        out[...] = self.x[item, rows, columns]

    def whole(self) -> np.ndarray:
        """All of it: a map."""
        return self.x


@dataclass(frozen=True)
class Normalised(Source):
    """act((x - centre) · factor + shift): centre and factor (B, C), shift (C,)."""

    centre: np.ndarray
    factor: np.ndarray
    shift: np.ndarray
    activation: Activation | None = None

    def fill(self, item: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """A part of an item, into `out` (rows, columns, C)."""
        y = out if self.activation is None else np.empty_like(out)
        np.subtract(self.x[item, rows, columns], self.centre[item], out=y)
        y *= self.factor[item]
        y += self.shift
        if self.activation is not None:
            self.activation(y, out)

    def whole(self) -> np.ndarray:
        """All of it: a map."""
        y = np.empty_like(self.x)
        for item, out in enumerate(y):

            def strip(rows: slice, item: int = item, out: np.ndarray = out) -> None:
                self.fill(item, rows, slice(None), out[rows])

            side_by_side(strip, len(out), out[0].size)
        return y


def window(source: Source, item: int, corner: tuple[int, int], stride: int, out: np.ndarray) -> np.ndarray:
    """Fills `out` (rows, columns, C): out[i, j] = x[item, top + stride · i, left + stride · j], or 0 beyond x."""
    (_, H, W, _), (top, left) = source.x.shape, corner
    rows, columns = _inside(top, stride, out.shape[0], H), _inside(left, stride, out.shape[1], W)
    out[: rows.start] = out[rows.stop :] = 0
    out[rows, : columns.start] = out[rows, columns.stop :] = 0
    inside = out[rows, columns]
    if inside.size:
        source.fill(item, _taken(top, stride, rows), _taken(left, stride, columns), inside)
    return out


def _inside(first: int, stride: int, count: int, length: int) -> slice:
    """Which of 0 … count - 1 have 0 <= first + stride · i < length."""
    start, stop = (min(max(-(-(edge - first) // stride), 0), count) for edge in (0, length))
    return slice(start, stop)


def _taken(first: int, stride: int, part: slice) -> slice:
    """first + stride · i for every i of a part."""
    return slice(first + stride * part.start, first + stride * (part.stop - 1) + 1, stride)
