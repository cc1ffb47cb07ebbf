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


def window(source: Source, item: int, corner: tuple[int, int], out: np.ndarray) -> np.ndarray:
    """Fills `out` (rows, columns, C) from an item, beginning at its row and column `corner`; zeros beyond its edges."""
    (_, H, W, _), (rows, columns, _), (top, left) = source.x.shape, out.shape, corner
    above, below = (min(max(edge - top, 0), rows) for edge in (0, H))
    before, behind = (min(max(edge - left, 0), columns) for edge in (0, W))
    out[:above] = out[below:] = 0
    out[above:below, :before] = out[above:below, behind:] = 0
    inside = out[above:below, before:behind]
    if inside.size:
        source.fill(item, slice(top + above, top + below), slice(left + before, left + behind), inside)
    return out
