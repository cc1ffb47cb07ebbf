"""Lazy feature maps and tokens: their rows are computed when somebody reads them, and stored if that costs less."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self
from weakref import WeakSet

import numpy as np

from vaespec.ops import Array
from vaespec.tiling.stores import Read, Store

Compute = Callable[..., Array]
"""compute(start, stop, *reads) -> rows start … stop - 1, from a function for each input that reads its rows."""


@dataclass(eq=False)
class Lazy:
    """`length` rows computed from the rows of `inputs`. `before(input)` is called before rows are first read.

    `cheap`: the rows are computed without a sum (elementwise), so that computing them again costs less than storing
    them. Once `stored`, rows are read from the store, and the inputs are freed.
    """

    length: int
    compute: Compute
    inputs: tuple[Lazy, ...]
    cheap: bool = True
    before: Callable[[Any], object] = lambda source: None
    stored: Store | None = None

    @property
    def cheap_to_read(self) -> bool:
        """Whether a row may be read more than once: no sum is computed for it, here or in the inputs."""
        return self.stored is not None or (self.cheap and all(source.cheap_to_read for source in self.inputs))

    def prepare_inputs(self) -> None:
        """Call `before` on every input that rows are computed from, after preparing the inputs of that input."""
        if self.stored is None:
            for source in self.inputs:
                source.prepare_inputs()
                self.before(source)

    def open(self) -> Read:
        """A function that reads rows, from the top down."""
        if self.stored is not None:
            return self.stored.open()
        self.prepare_inputs()
        compute, reads = self.compute, [source.open() for source in self.inputs]
        return lambda start, stop: compute(start, stop, *reads)

    def open_last(self) -> Read:
        """The last reader before rows are stored: it alone holds the inputs, and frees what it has read of them."""
        read = self.open()
        del self.compute, self.inputs, self.before
        return read

    def derive(self, compute: Compute, *others: Self, **options: Any) -> Self:
        """A map, or tokens, of the same length, computed from the rows of this and of `others`."""
        return type(self)(self.length, compute, (self, *others), **options)


class Tokens(Lazy):
    """Tokens (B, length, C): a row is a token."""


class Map(Lazy):
    """A feature map (B, C, H, W), of which at most `most` rows are computed at one time.

    `statistics` has, for each band that is stored, its number of rows, and the mean and variance of its channels.
    `substitutes` are narrower maps that the map's readers can use in its place: if they are stored, it can be freed.
    """

    def __init__(
        self, shape: tuple[int, int, int, int], most: int, compute: Compute, inputs: tuple[Lazy, ...], **options: Any
    ) -> None:
        super().__init__(shape[2], compute, inputs, **options)
        self.shape, self.most = shape, most
        self.statistics: list[tuple[int, Any, Any]] = []
        self.substitutes: WeakSet[Map] = WeakSet()

    def derive(self, compute: Compute, *others: Self, **options: Any) -> Self:
        """A map of the same shape."""
        return type(self)(self.shape, self.most, compute, (self, *others), **options)

    def stored_inputs(self) -> Iterator[Map]:
        """The stored maps that the rows are computed from, directly or through maps that are not stored."""
        for source in self.inputs:
            if isinstance(source, Map):
                yield from (source,) if source.stored is not None else source.stored_inputs()


def spans(length: int, most: int) -> Iterator[tuple[int, int]]:
    """(start, stop) of the fewest pieces that cover `length` with at most `most` each, in sizes as equal as can be."""
    size = -(-length // -(-length // most))
    for start in range(0, length, size):
        yield start, min(start + size, length)


def merged_statistics(bands: list[tuple[int, np.ndarray, np.ndarray]], groups: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance, per sample and channel, of the group that the channel is in: two of (B, C) float64.

    `bands` are (rows, mean, variance) of each band, mean and variance (B, C). All bands of all channels of a group are
    merged: μ = Σ nᵢ μᵢ / n, σ² = (Σ nᵢ σᵢ² + Σ nᵢ (μᵢ - μ)²) / n. Chan, Golub & LeVeque 1983.
    """
    B, C = bands[0][1].shape
    shape = (len(bands), B, groups, C // groups)
    mean, sigma2 = (np.array(part, np.float64).reshape(shape) for part in list(zip(*bands, strict=True))[1:])
    rows = np.array([band[0] for band in bands], np.float64)
    share = (rows / (rows.sum() * shape[3])).reshape(-1, 1, 1, 1)  # nᵢ / n
    merged = (share * mean).sum(axis=(0, 3), keepdims=True)
    variance = (share * (sigma2 + (mean - merged) ** 2)).sum(axis=(0, 3), keepdims=True)
    return merged.reshape(B, groups).repeat(shape[3], axis=1), variance.reshape(B, groups).repeat(shape[3], axis=1)
