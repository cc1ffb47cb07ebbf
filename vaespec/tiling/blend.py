"""Tiles that are run one by one and faded into each other: diffusers' tiling, with the same numbers.

Every tile has its own statistics and attention, so the result differs from that of the whole image, and tones may
change from tile to tile; only memory is saved.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from array_api_compat import array_namespace

from vaespec.arrays import asarray_like
from vaespec.dtypes import narrow, widen
from vaespec.ops import Array
from vaespec.tiling.geometry import Cut
from vaespec.tiling.stores import cut

HEIGHT, WIDTH = 2, 3


def blended(run: Callable[[Array], Array], x: Array, cuts: tuple[Cut, Cut]) -> Array:
    """run(x) from tiles: images -> moments with `geometry.encoding`, latents -> images with `geometry.decoding`.

    x (B, C, H, W) is at least one latent high and wide. Tile (i, j) fades in from the tile above it, then from the tile
    on its left, both taken after fading and before cropping:

        t'[i, j] = fade(t'[i, j - 1], fade(t'[i - 1, j], run(x[i, j]), height), width)

    and the first `keep` rows and columns of each t' are joined. diffusers 0.42 computes t' by writing into tiles that
    their neighbours read later; this function writes to no argument, and float32 results are equal to the bit. A last
    tile too thin for a latent is left out (see `Cut.tiles`); diffusers stops with an error there.
    """
    rows, columns = cuts
    H, W = x.shape[HEIGHT], x.shape[WIDTH]
    xp = array_namespace(x)
    bands: list[Array] = []
    above: list[Array] = []
    for vertical in rows.tiles(H):
        band: list[Array] = []
        for j, horizontal in enumerate(columns.tiles(W)):
            tile = run(x[:, :, vertical, horizontal])
            tile = fade(above[j], tile, rows.blend, HEIGHT) if above else tile
            tile = fade(band[-1], tile, columns.blend, WIDTH) if band else tile
            band.append(tile)
        kept = [cut(cut(tile, HEIGHT, 0, rows.keep), WIDTH, 0, columns.keep) for tile in band]
        bands.append(xp.concat(kept, axis=WIDTH))
        above = band
    return xp.concat(bands, axis=HEIGHT)


def fits(shape: tuple[int, ...], cuts: tuple[Cut, Cut]) -> bool:
    """Whether an array of this shape is no larger than one tile, and need not be cut."""
    rows, columns = cuts
    return rows.tile >= shape[HEIGHT] and columns.tile >= shape[WIDTH]


def fade(a: Array, b: Array, extent: int, axis: int) -> Array:
    """b, with its first n positions on `axis` faded in from the last n of a: (1 - y / n) a + (y / n) b, y = 0 … n - 1.

    n is `extent`, or all of b, which is never larger than a. 16-bit floats are faded in float32.
    """
    xp = array_namespace(b)
    n = min(extent, b.shape[axis])
    share = (np.arange(n) / n).reshape((n, 1) if axis == HEIGHT else (1, n))
    wide = np.float64 if b.dtype == xp.float64 else np.float32
    of_a, of_b = (asarray_like(b, weights.astype(wide)) for weights in (1 - share, share))
    end, start = cut(a, axis, a.shape[axis] - n, a.shape[axis]), cut(b, axis, 0, n)
    faded = narrow(widen(end, xp) * of_a + widen(start, xp) * of_b, b, xp)
    return xp.concat([faded, cut(b, axis, n, b.shape[axis])], axis=axis)
