"""Maps and tokens that are computed when somebody reads their rows, and kept where that is cheaper than again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from vaespec.ops import Array
from vaespec.tiling.stores import Read, Store

Compute = Callable[..., Array]
"""compute(start, stop, *reads) -> the rows from start to stop - 1, with a function that reads each source."""


class Lazy:
    """`length` rows, made from the rows of `sources`, to each of which `before` is done when rows are wanted.

    `cheap` says that no sum stands between a row and its sources, so that it may be computed for each who reads it.
    Once `kept`, the rows are in a store, and what they were made from is let go.
    """

    def __init__(
        self,
        length: int,
        compute: Compute,
        sources: tuple[Lazy, ...],
        *,
        cheap: bool = True,
        before: Callable[[Any], object] = lambda source: None,
    ) -> None:
        self.length, self.cheap = length, cheap
        self.compute, self.sources, self.before = compute, sources, before
        self.kept: Store | None = None

    @property
    def settled(self) -> bool:
        """Whether a row may be read more than once: no sum is computed for it."""
        return self.kept is not None or (self.cheap and all(source.settled for source in self.sources))

    def ready(self) -> None:
        """Do to the sources what must be done before rows are read."""
        if self.kept is None:
            for source in self.sources:
                source.ready()
                self.before(source)

    def open(self) -> Read:
        """A function that reads rows from the top down."""
        if self.kept is not None:
            return self.kept.open()
        self.ready()
        compute, reads = self.compute, [source.open() for source in self.sources]
        return lambda start, stop: compute(start, stop, *reads)

    def take(self) -> Read:
        """The last reader, before the rows are kept: nothing but it holds what they are made from."""
        read = self.open()
        del self.compute, self.sources, self.before
        return read

    def derive(self, compute: Compute, *others: Self, **how: Any) -> Self:
        """As many rows, made from these and those of others."""
        return type(self)(self.length, compute, (self, *others), **how)


class Tokens(Lazy):
    """Arrays (B, length, C)."""


class Map(Lazy):
    """Maps (B, C, H, W), of which `most` rows are computed at one time.

    `moments` are those of what is kept: rows, and the mean and variance of each. `substitutes` are maps that take the
    place of this one for one of its readers, and less memory.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], most: int, compute: Compute, sources: tuple[Lazy, ...], **how: Any
    ) -> None:
        super().__init__(shape[2], compute, sources, **how)
        self.shape, self.most = shape, most
        self.moments: list[tuple[int, Any, Any]] = []
        self.substitutes: WeakSet[Map] = WeakSet()

    def derive(self, compute: Compute, *others: Self, **how: Any) -> Self:
        """A map of the same shape."""
        return type(self)(self.shape, self.most, compute, (self, *others), **how)

    def roots(self) -> Iterator[Map]:
        """The maps in stores that rows are made from."""
        for source in self.sources:
            if isinstance(source, Map):
                yield from (source,) if source.kept is not None else source.roots()


def spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of as few pieces as cover `length` with at most `most` each, as equal as they can be."""
    size = -(-length // -(-length // most))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def group_moments(parts: list[tuple[int, np.ndarray, np.ndarray]], groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance per sample and channel, (B, C) float64, of the group each channel is in.

    `parts`: (rows, mean, variance) of each band, per sample and channel. All bands of all channels of a group are
    merged: μ = Σ nᵢ μᵢ / n, σ² = (Σ nᵢ σᵢ² + Σ nᵢ (μᵢ - μ)²) / n. Chan, Golub & LeVeque 1983.
    """
    B, C = parts[0][1].shape
    shape = (len(parts), B, groups, C // groups)
    mean, sigma2 = (np.array(part, np.float64).reshape(shape) for part in list(zip(*parts, strict=True))[1:])
    rows = np.array([part[0] for part in parts], np.float64)
    share = (rows / (rows.sum() * shape[3])).reshape(-1, 1, 1, 1)  # nᵢ / n
    merged = (share * mean).sum(axis=(0, 3), keepdims=True)
    variance = (share * (sigma2 + (mean - merged) ** 2)).sum(axis=(0, 3), keepdims=True)
    return merged.reshape(B, groups).repeat(shape[3], axis=1), variance.reshape(B, groups).repeat(shape[3], axis=1)
