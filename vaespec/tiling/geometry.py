"""The geometry of blended tiles: their size and overlap, checked when given, and how an axis is cut into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError

AXES = ("height", "width")


class Cut(NamedTuple):
    """How one axis is cut, in one direction: px to latents, or latents to px.

    `tile`, `stride` and `least` count positions of the input, `blend` and `keep` positions of the output: tiles start
    `stride` apart, are faded over `blend` and keep their first `keep`, the distance between two starts.
    """

    tile: int
    stride: int
    least: int
    blend: int
    keep: int

    def tiles(self, size: int) -> list[slice]:
        """The tiles of an axis of `size`, the last ones cut short by its end.

        A tile starts at each multiple of `stride` that leaves at least `least` (f px or one latent): thinner tiles make
        no latent, and stop diffusers with an error. So every size is covered: ⌊size / f⌋ latents or f · size px remain.
        """
        starts = range(0, size - self.least + 1, self.stride)
        return [slice(start, min(start + self.tile, size)) for start in starts]

    def thinnest(self, size: int) -> int:
        """The smallest of the tiles of an axis of `size`."""
        return min(tile.stop - tile.start for tile in self.tiles(size))


@dataclass(frozen=True)
class TileGeometry:
    """Tiles of `tile` px, each sharing `overlap` px with the next: (height, width), in multiples of f.

    Tiles are whole latents, so that both directions are cut alike: a tile is tile / f latents, and a new one starts
    every (tile - overlap) / f. Raises InputError for any other size.
    """

    tile: tuple[int, int]
    overlap: tuple[int, int]
    f: int

    def __post_init__(self) -> None:
        for name in ("tile", "overlap"):
            object.__setattr__(self, name, _pair(name, getattr(self, name)))
        for axis, tile, overlap in zip(AXES, self.tile, self.overlap, strict=True):
            if not 0 <= overlap < tile or tile % self.f or overlap % self.f:
                raise InputError(
                    f"tiles of {tile} px in {axis} that overlap by {overlap} px: expected multiples of f={self.f} px, "
                    "the overlap smaller than the tile."
                )

    @classmethod
    def from_config(
        cls,
        config: AutoencoderConfig,
        tile_sample_min_size: int | Sequence[int] | None = None,
        tile_latent_min_size: int | Sequence[int] | None = None,
        tile_overlap_factor: float | Sequence[float] = 0.25,
    ) -> TileGeometry:
        """diffusers' tiles: sample_size px, or tile_sample_min_size if given, and a share of that for the overlap.

        Each is one number, or a pair (height, width); tile_latent_min_size is ⌊tile_sample_min_size / f⌋ if not given.
        Raises InputError if diffusers' rounding leaves gaps between tiles, or a stride of zero.
        """
        f = config.downsampling_factor
        size = config.sample_size if tile_sample_min_size is None else tile_sample_min_size
        tile = _pair("tile_sample_min_size", size)
        latent_size = [px // f for px in tile] if tile_latent_min_size is None else tile_latent_min_size
        latents = _pair("tile_latent_min_size", latent_size)
        factor = _pair("tile_overlap_factor", tile_overlap_factor, (int, float))
        height, width = (_overlap(*axis, f) for axis in zip(AXES, tile, latents, factor, strict=True))
        return cls(tile, (height, width), f)

    @property
    def encoding(self) -> tuple[Cut, Cut]:
        """The cuts of images, for an encoder: (rows, columns)."""
        return self._cuts(read=1, write=self.f)

    @property
    def decoding(self) -> tuple[Cut, Cut]:
        """The cuts of latents, for a decoder: (rows, columns)."""
        return self._cuts(read=self.f, write=1)

    def _cuts(self, read: int, write: int) -> tuple[Cut, Cut]:
        """The cuts, if a position of the input stands for `read` px, and a position of the output for `write` px."""
        rows, columns = (
            Cut(tile // read, (tile - overlap) // read, self.f // read, overlap // write, (tile - overlap) // write)
            for tile, overlap in zip(self.tile, self.overlap, strict=True)
        )
        return rows, columns


def _overlap(axis: str, tile: int, latents: int, factor: float, f: int) -> int:
    """The overlap in px of diffusers' tiles. diffusers rounds four numbers down, each by itself; they must agree.

    Images are cut every ⌊tile (1 - factor)⌋ px, and latents - ⌊latents · factor⌋ latents of each tile are kept; latents
    are cut every ⌊latents (1 - factor)⌋, and tile - ⌊tile · factor⌋ px are kept.
    """
    if not 0 <= factor < 1:
        raise InputError(f"tile_overlap_factor={factor} in {axis}: expected a number from 0 to below 1.")
    encoder_stride, encoder_keep = int(tile * (1 - factor)), latents - int(latents * factor)
    decoder_stride, decoder_keep = int(latents * (1 - factor)), tile - int(tile * factor)
    if (encoder_stride, decoder_keep) != (f * encoder_keep, f * decoder_stride):  # equal only if tile = f · latents
        raise InputError(
            f"tiles of {tile} px and {latents} latents in {axis} do not join at f={f}, overlapping by {factor}: images "
            f"would be cut every {encoder_stride} px to keep {encoder_keep} latents a tile, latents every "
            f"{decoder_stride} to keep {decoder_keep} px; choose a tile whose size and overlap are multiples of {f} px."
        )
    return tile - decoder_keep


def _pair(name: str, value: Any, kinds: tuple[type, ...] = (int, np.integer)) -> tuple[Any, Any]:
    """(height, width) from one number or two. Raises InputError for anything else."""
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    if len(values) not in (1, 2) or not all(isinstance(v, kinds) and not isinstance(v, bool) for v in values):
        raise InputError(f"{name}={value!r}: expected a number, or a pair of them (height, width).")
    return values[0], values[-1]
