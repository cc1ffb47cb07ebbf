"""Mistakes in cutting an image into tiles and in putting them together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import method

Share = Callable[[np.ndarray, int], np.ndarray]
HEIGHT, WIDTH = 2, 3


@dataclass(frozen=True)
class Tiles:
    """diffusers' tiling, with everything that can be done otherwise as a field; as it stands, it is right.

    A quarter of a tile overlaps with the next. `share(y, n)` is the weight of the y-th of n rows of the later tile.
    """

    share: Share = lambda y, n: y / n
    axes: tuple[int, ...] = (HEIGHT, WIDTH)
    step: int = 0  # added to the distance of two tiles
    overlap: int = 0  # to how much of them is faded
    keep: int = 0  # to how much of each is kept, and the next cut by
    from_start: bool = False  # faded with the first rows of the tile before, not its last
    partial: bool = True  # whether a last, thinner tile is made
    transposed: bool = False  # whether tiles are put together in columns for rows
    blended_before: bool = True  # whether a tile is faded with its neighbour as that is after fading

    def run(self, decode: Callable[[np.ndarray], np.ndarray], z: np.ndarray, tile: int, f: float) -> np.ndarray:
        """decode(z) from tiles of `tile` positions of z, each making f of the result."""
        step, extent = tile * 3 // 4 + self.step, int(tile * f) // 4 + self.overlap
        keep = int(tile * f) * 3 // 4 + self.keep
        starts = [range(0, n if self.partial else max(1, n - tile + 1), step) for n in z.shape[2:]]
        made = [[decode(z[:, :, i : i + tile, j : j + tile]).astype(np.float64) for j in starts[1]] for i in starts[0]]
        faded = [list(row) for row in made]
        before = faded if self.blended_before else made
        for i, row in enumerate(made):
            for j, tile_ in enumerate(row):
                if i and HEIGHT in self.axes:
                    tile_ = self._fade(before[i - 1][j], tile_, extent, HEIGHT)
                if j and WIDTH in self.axes:
                    tile_ = self._fade(before[i][j - 1], tile_, extent, WIDTH)
                faded[i][j] = tile_
        kept = [[tile_[:, :, :keep, :keep] for tile_ in row] for row in faded]
        if self.transposed:
            kept = [list(column) for column in zip(*kept, strict=True)]
        return np.concatenate([np.concatenate(row, axis=WIDTH) for row in kept], axis=HEIGHT)

    def _fade(self, a: np.ndarray, b: np.ndarray, extent: int, axis: int) -> np.ndarray:
        n = min(extent, a.shape[axis], b.shape[axis])
        weight = self.share(np.arange(n), n).reshape((n, 1) if axis == HEIGHT else (1, n))
        a, b = np.moveaxis(a, axis, HEIGHT), np.moveaxis(b, axis, HEIGHT)
        weight = np.moveaxis(weight[None, None], axis, HEIGHT)
        end = a[:, :, :n] if self.from_start else a[:, :, a.shape[HEIGHT] - n :]
        y = np.concatenate((end * (1 - weight) + b[:, :, :n] * weight, b[:, :, n:]), axis=HEIGHT)
        return np.moveaxis(y, HEIGHT, axis)


def decoded(tiles: Tiles, vae: Any, z: np.ndarray) -> np.ndarray:
    """tiled_decode of a VAE, by these tiles."""
    f = vae.config.downsampling_factor
    return tiles.run(vae.decode, z, vae.config.sample_size // f, f)


def encoded(tiles: Tiles, vae: Any, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """tiled_encode of a VAE, by these tiles."""

    def encode(tile: np.ndarray) -> np.ndarray:
        return np.concatenate(vae.encode(tile), axis=1)

    mean, logvar = np.split(tiles.run(encode, x, vae.config.sample_size, 1 / vae.config.downsampling_factor), 2, axis=1)
    return mean, logvar


NO_HALO = "bands do not see their neighbours"

WRONG = {
    "weights swapped": ("the two tiles' weights are swapped", Tiles(share=lambda y, n: 1 - y / n)),
    "weights (y + 1) / n": ("rows are counted from 1", Tiles(share=lambda y, n: (y + 1) / n)),
    "weights (y + ½) / n": ("weights are those of the middle of a row", Tiles(share=lambda y, n: (y + 0.5) / n)),
    "weights y / (n - 1)": ("weights end at 1", Tiles(share=lambda y, n: y / max(n - 1, 1))),
    "not faded": ("tiles are not faded", Tiles(axes=())),
    "faded in one direction": ("tiles are faded side by side, not one above the other", Tiles(axes=(WIDTH,))),
    "the wrong rows": ("tiles are faded with the first rows of the one before", Tiles(from_start=True)),
    "faded with what was not": ("tiles are faded with their neighbours before those are", Tiles(blended_before=False)),
    "overlap off by one": ("one row too few is faded", Tiles(overlap=-1)),
    "rows and columns of tiles": ("rows and columns of tiles are swapped", Tiles(transposed=True)),
    "no last tile": ("the last tile, which is cut short, is left out", Tiles(partial=False)),
    "step off by one": ("tiles begin one latent too early", Tiles(step=-1)),
    "crop off by one": ("one row too many of a tile is kept", Tiles(keep=1)),
}


def _register(name: str, cause: str, tiles: Tiles) -> None:
    @method("tiled_decode", name=name, owner="tiling.decode", cause=cause)
    def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
        return decoded(tiles, vae, z)


for _name, (_cause, _tiles) in WRONG.items():
    _register(_name, _cause, _tiles)


@method("tiled_encode", name="not faded", owner="tiling.encode", cause="tiles are not faded")
def _(vae: Any, call: Any, x: np.ndarray) -> Any:
    return encoded(Tiles(axes=()), vae, x)


@method("tiled_encode", name="the whole", owner="tiling.encode", cause="images are encoded whole, not in tiles")
def _(vae: Any, call: Any, x: np.ndarray) -> Any:
    return vae.encode(x)


@method(
    "banded_encode",
    name="no halo",
    owner="tiling.banded_encode",
    seen_in_ports=None,
    cause="bands do not see their neighbours",
)
def _(vae: Any, call: Any, x: np.ndarray) -> Any:
    f = vae.config.downsampling_factor
    bands = [vae.encode(x[:, :, i : i + f]) for i in range(0, x.shape[2] // f * f, f)]
    return tuple(np.concatenate(part, axis=HEIGHT) for part in zip(*bands, strict=True))


@method(
    "banded_decode",
    name="no halo",
    owner="tiling.banded_decode",
    seen_in_ports=None,
    cause="bands do not see their neighbours",
)
def _(vae: Any, call: Any, z: np.ndarray) -> Any:
    return np.concatenate([vae.decode(z[:, :, i : i + 1]) for i in range(z.shape[2])], axis=HEIGHT)


@method("sliced_encode", name="the last item", owner="tiling.sliced_encode", cause="the last item is left out of pairs")
def _(vae: Any, call: Any, x: np.ndarray) -> Any:
    pairs = [vae.encode(x[i : i + 2]) for i in range(0, len(x) - 1, 2)]
    return tuple(np.concatenate(part) for part in zip(*pairs, strict=True))


@method("sliced_decode", name="the last item twice", owner="tiling.sliced_decode", cause="the last item is another's")
def _(vae: Any, call: Any, z: np.ndarray) -> Any:
    y = call(z)
    return np.concatenate((y[:-1], y[-2:-1]))
