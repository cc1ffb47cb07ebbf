"""Mistakes in tiles, bands and slices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import method, named

Share = Callable[[np.ndarray, int], np.ndarray]
HEIGHT, WIDTH = 2, 3


@dataclass(frozen=True)
class Tiles:
    """diffusers' tiling, with a field for each possible mistake; the defaults are right.

    A quarter of a tile overlaps with the next. `share(y, n)` is the weight of row y of the n blended rows of the later
    tile.
    """

    share: Share = lambda y, n: y / n
    axes: tuple[int, ...] = (HEIGHT, WIDTH)  # of blending
    step: int = 0  # added to the distance of two tiles
    overlap: int = 0  # added to the number of blended rows
    keep: int = 0  # added to the number of rows that are kept of a tile
    from_start: bool = False  # whether the first rows of the earlier tile are blended, not its last
    partial: bool = True  # whether the last, shorter tile is computed
    transposed: bool = False  # whether rows and columns of tiles are swapped
    blended_before: bool = True  # whether the earlier tile is already blended itself

    def run(self, decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, tile: int, f: float) -> np.ndarray:
        """decode(z) in tiles of `tile` positions of z; each position becomes f positions of the result."""
        step, extent = tile * 3 // 4 + self.step, int(tile * f) // 4 + self.overlap
        keep = int(tile * f) * 3 // 4 + self.keep
        starts = [range(0, n if self.partial else max(1, n - tile + 1), step) for n in z.shape[2:]]
        tiles = [[decode(z[:, :, i : i + tile, j : j + tile]).astype(np.float64) for j in starts[1]] for i in starts[0]]
        blended = [list(row) for row in tiles]
        before = blended if self.blended_before else tiles
        for i, row in enumerate(tiles):
            for j, y in enumerate(row):
                if i and HEIGHT in self.axes:
                    y = self._blend(before[i - 1][j], y, extent, HEIGHT)
                if j and WIDTH in self.axes:
                    y = self._blend(before[i][j - 1], y, extent, WIDTH)
                blended[i][j] = y
        kept = [[y[:, :, :keep, :keep] for y in row] for row in blended]
        if self.transposed:
            kept = [list(column) for column in zip(*kept, strict=True)]
        return np.concatenate([np.concatenate(row, axis=WIDTH) for row in kept], axis=HEIGHT)

    def _blend(self, a: np.ndarray, b: np.ndarray, extent: int, axis: int) -> np.ndarray:
        n = min(extent, a.shape[axis], b.shape[axis])
        weight = self.share(np.arange(n), n).reshape((n, 1) if axis == HEIGHT else (1, n))
        a, b = np.moveaxis(a, axis, HEIGHT), np.moveaxis(b, axis, HEIGHT)
        weight = np.moveaxis(weight[None, None], axis, HEIGHT)
        end = a[:, :, :n] if self.from_start else a[:, :, a.shape[HEIGHT] - n :]
        y = np.concatenate((end * (1 - weight) + b[:, :, :n] * weight, b[:, :, n:]), axis=HEIGHT)
        return np.moveaxis(y, HEIGHT, axis)


def decode_in_tiles(tiles: Tiles, vae: Any, z: np.ndarray) -> np.ndarray:
    """Decodes latents in tiles."""
    f = vae.config.downsampling_factor
    return tiles.run(vae.decode, z, vae.config.sample_size // f, f)


def encode_in_tiles(tiles: Tiles, vae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Encodes images in tiles."""

    def encode(tile: np.ndarray) -> np.ndarray:
        return np.concatenate(vae.encode(tile), axis=1)

    mean, logvar = np.split(tiles.run(encode, x, vae.config.sample_size, 1 / vae.config.downsampling_factor), 2, axis=1)
    return mean, logvar


WRONG: dict[str, tuple[str, Tiles]] = {
    "tiled_decode_swaps_blending_weights": (
        "The blending weights of the two tiles are swapped.",
        Tiles(share=lambda y, n: 1 - y / n),
    ),
    "tiled_decode_counts_rows_from_1": (
        "The blending weight of row y is (y + 1) / n, not y / n.",
        Tiles(share=lambda y, n: (y + 1) / n),
    ),
    "tiled_decode_weights_at_the_middle_of_rows": (
        "The blending weight of row y is (y + ½) / n, not y / n.",
        Tiles(share=lambda y, n: (y + 0.5) / n),
    ),
    "tiled_decode_weights_end_at_1": (
        "The blending weight of row y is y / (n - 1), not y / n.",
        Tiles(share=lambda y, n: y / max(n - 1, 1)),
    ),
    "tiled_decode_does_not_blend": ("Tiles are not blended.", Tiles(axes=())),
    "tiled_decode_blends_in_one_direction": (
        "Tiles are blended with the tile on their left, but not with the tile above.",
        Tiles(axes=(WIDTH,)),
    ),
    "tiled_decode_blends_the_first_rows": (
        "A tile is blended with the first rows of the tile before it, not with its last rows.",
        Tiles(from_start=True),
    ),
    "tiled_decode_blends_with_unblended_tiles": (
        "A tile is blended with its neighbours as they were before they were blended themselves.",
        Tiles(blended_before=False),
    ),
    "tiled_decode_overlap_off_by_one": ("One row too few is blended.", Tiles(overlap=-1)),
    "tiled_decode_swaps_rows_and_columns_of_tiles": ("Rows and columns of tiles are swapped.", Tiles(transposed=True)),
    "tiled_decode_drops_the_last_tile": (
        "The last tile of a row or column, which is shorter, is left out.",
        Tiles(partial=False),
    ),
    "tiled_decode_step_off_by_one": ("Each tile starts one latent too early.", Tiles(step=-1)),
    "tiled_decode_crop_off_by_one": ("One row too many of each tile is kept.", Tiles(keep=1)),
}


def _decoding(tiles: Tiles) -> Any:
    return lambda vae, call, z: decode_in_tiles(tiles, vae, z)


for _name, (_cause, _tiles) in WRONG.items():
    method("tiled_decode", "tiling.decode")(named(_name, _cause, _decoding(_tiles)))


@method("tiled_encode", "tiling.encode")
def tiled_encode_does_not_blend(vae: Any, call: Any, x: np.ndarray) -> Any:
    """Encoded tiles are not blended."""
    return encode_in_tiles(Tiles(axes=()), vae, x)


@method("tiled_encode", "tiling.encode")
def tiled_encode_is_not_tiled(vae: Any, call: Any, x: np.ndarray) -> Any:
    """Images are encoded whole, not in tiles."""
    return vae.encode(x)


@method("banded_encode", "tiling.banded_encode", seen_in_ports=None)
def banded_encode_without_halo(vae: Any, call: Any, x: np.ndarray) -> Any:
    """A band of an image is encoded without the rows of its neighbours."""
    f = vae.config.downsampling_factor
    bands = [vae.encode(x[:, :, i : i + f]) for i in range(0, x.shape[2] // f * f, f)]
    return tuple(np.concatenate(part, axis=HEIGHT) for part in zip(*bands, strict=True))


@method("banded_decode", "tiling.banded_decode", seen_in_ports=None)
def banded_decode_without_halo(vae: Any, call: Any, z: np.ndarray) -> Any:
    """A band of latents is decoded without the rows of its neighbours."""
    return np.concatenate([vae.decode(z[:, :, i : i + 1]) for i in range(z.shape[2])], axis=HEIGHT)


@method("sliced_encode", "tiling.sliced_encode")
def sliced_encode_drops_the_last_item(vae: Any, call: Any, x: np.ndarray) -> Any:
    """Items are encoded in pairs, and the last of an odd number is left out."""
    pairs = [vae.encode(x[i : i + 2]) for i in range(0, len(x) - 1, 2)]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


@method("sliced_decode", "tiling.sliced_decode")
def sliced_decode_repeats_an_item(vae: Any, call: Any, z: np.ndarray) -> Any:
    """The last item of a batch is replaced by the item before it."""
    y = call(z)
    return np.concatenate((y[:-1], y[-2:-1]))
