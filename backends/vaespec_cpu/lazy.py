"""What an operation reads: a map, or what becomes one while it is read: normalised, activated, doubled, convolved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec_cpu.threads import fresh, side_by_side

PIECE = 1 << 17  # elements


@dataclass(frozen=True)
class Activation:
    """act(y), as `of_scaled(scale · y, out)`, into an array of its shape: where y is made, scaling it is free."""

    of_scaled: Callable[[np.ndarray, np.ndarray], object]
    scale: float = 1.0


@dataclass(frozen=True)
class Source:
    """A map x (B, H, W, C), read in parts."""

    x: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of what is read."""
        B, H, W, C = self.x.shape
        return B, H, W, C

    def fill(self, item: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """A part of an item, into `out` (rows, columns, C)."""
        out[...] = self.x[item, rows, columns]

    def whole(self) -> np.ndarray:
        """All of it: a map."""
        return self.x


class Unmade(Source):
    """A map that is not there yet."""

    def whole(self) -> np.ndarray:
        """All of it: a map."""
        y = fresh(self.shape, self.x.dtype)
        for item, out in enumerate(y):

            def strip(rows: slice, item: int = item, out: np.ndarray = out) -> None:
                self.fill(item, rows, slice(0, self.shape[2]), out[rows])

            side_by_side(strip, len(out), out[0].size)
        return y


@dataclass(frozen=True)
class Normalised(Unmade):
    """act((x - centre) · factor + shift): x (B, H, W, C), centre and factor (B, C), shift (C,)."""

    centre: np.ndarray
    factor: np.ndarray
    shift: np.ndarray
    activation: Activation | None = None

    def fill(self, item: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """A part of an item, into `out` (rows, columns, C); some rows at a time, which stay in the cache meanwhile."""
        x, high = self.x[item, rows, columns], max(1, PIECE // out[0].size)
        centre, factor, shift = (np.tile(of_channels, (out.shape[1], 1)) for of_channels in self._affine(item))
        for i in range(0, len(out), high):
            part = out[i : i + high]
            y = part if self.activation is None else np.empty_like(part)
            np.subtract(x[i : i + high], centre, out=y)
            y *= factor
            y += shift
            if self.activation is not None:
                self.activation.of_scaled(y, part)

    def _affine(self, item: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Centre, factor and shift of an item's channels, to what its activation takes."""
        scale = self.x.dtype.type(1.0 if self.activation is None else self.activation.scale)
        return self.centre[item], scale * self.factor[item], scale * self.shift


@dataclass(frozen=True)
class Doubled(Unmade):
    """x with every pixel twice along both sides: `height` rows of that, but for the first `above`."""

    above: int
    height: int

    @classmethod
    def of(cls, x: np.ndarray) -> Doubled:
        """All rows."""
        return cls(x, 0, 2 * x.shape[1])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, H, W, C) of what is read."""
        B, _, W, C = self.x.shape
        return B, self.height, 2 * W, C

    def fill(self, item: int, rows: slice, columns: slice, out: np.ndarray) -> None:
        """A part of an item, into `out` (rows, columns, C)."""
        i = (np.arange(rows.start, rows.stop, rows.step) + self.above) // 2
        j = np.arange(columns.start, columns.stop, columns.step) // 2
        out[...] = self.x[item, i[:, None], j]

    def rows(self, start: int, stop: int) -> Doubled:
        """Rows start … stop - 1, not computed yet."""
        return Doubled(self.x, self.above + start, stop - start)

    def ends(self, zeros: tuple[int, int]) -> bool:
        """Whether x does where so many zeros lie (above, below)."""
        above, below = zeros
        return not (above and self.above) and not (below and self.above + self.height < 2 * self.x.shape[1])


class Convolved:
    """The result (B, H, W, C) of a convolution, computed by the first who reads it; then its source is let go.

    `compute(residual)` adds a map to it, or none.
    """

    def __init__(self, compute: Callable[[np.ndarray | None], np.ndarray]) -> None:
        self.compute: Callable[[np.ndarray | None], np.ndarray] | None = compute

    def whole(self) -> np.ndarray:
        """The map, for any number of readers."""
        if self.compute is not None:
            self.y = self.plus(None)
        return self.y

    def plus(self, residual: np.ndarray | None) -> np.ndarray:
        """The map with another added as it is stored, for the only reader."""
        assert self.compute is not None, "a convolution that was read already"
        y, self.compute = self.compute(residual), None
        return y

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, H, W, C)."""
        return self.whole().shape


def whole(x: Any) -> Any:
    """A map, made if it is none yet."""
    return x.whole() if isinstance(x, Source | Convolved) else x


def window(source: Source, item: int, corner: tuple[int, int], stride: int, out: np.ndarray) -> np.ndarray:
    """Fills `out` (rows, columns, C): out[i, j] = x[item, top + stride · i, left + stride · j], or 0 beyond x."""
    (_, H, W, _), (top, left) = source.shape, corner
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
