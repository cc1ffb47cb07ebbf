"""Tiles of any shape, for hypothesis."""

from __future__ import annotations

from hypothesis import strategies as st

from vaespec.tiling.geometry import TileGeometry


@st.composite
def geometries(draw) -> TileGeometry:
    f = 2 ** draw(st.integers(0, 4))
    tile = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    overlap = [draw(st.integers(0, latents - 1)) for latents in tile]
    return TileGeometry((f * tile[0], f * tile[1]), (f * overlap[0], f * overlap[1]), f)
