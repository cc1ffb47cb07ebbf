"""The geometry of tiles: that of diffusers if its tiles join, and an error of one sentence if they do not."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import narrow
from support.geometries import geometries

from vaespec import InputError
from vaespec.tiling.geometry import Cut, TileGeometry

SD = narrow((8, 8, 8, 8), sample_size=512)


def diffusers_cuts(sample: int, latent: int, factor: float) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(tile, stride, blend, keep) of tiled_encode and tiled_decode, by the formulas of diffusers 0.42.1."""
    encoding = sample, int(sample * (1 - factor)), int(latent * factor), latent - int(latent * factor)
    decoding = latent, int(latent * (1 - factor)), int(sample * factor), sample - int(sample * factor)
    return encoding, decoding


def numbers(cut: Cut) -> tuple[int, ...]:
    return cut.tile, cut.stride, cut.blend, cut.keep


# -- diffusers' ----------------------------------------------------------------------------------------------------


def test_tiles_of_stable_diffusion_are_those_of_diffusers():
    """By hand: 512 px or 64 latents, a new one every 384 px or 48 latents, faded over 16 latents or 128 px."""
    geometry = TileGeometry.from_config(SD)
    assert geometry == TileGeometry((512, 512), (128, 128), 8)
    assert geometry.encoding == (Cut(tile=512, stride=384, least=8, blend=16, keep=48),) * 2
    assert geometry.decoding == (Cut(tile=64, stride=48, least=1, blend=128, keep=384),) * 2


FACTORS = (0.25, 0.5, 0.75, 0.125, 0.2, 0.3, 0.7, 0.9, 0, 1 / 3)


@given(
    st.integers(1, 5), st.integers(1, 40), st.sampled_from(FACTORS) | st.floats(0, 0.99), st.sampled_from((0, 0, 0, 1))
)
def test_tiles_equal_those_of_diffusers_or_are_refused_if_its_own_do_not_join(levels, size, factor, extra):
    f = 2 ** (levels - 1)
    sample = f * size + extra
    config = narrow((8,) * levels, sample_size=sample)
    encoding, decoding = diffusers_cuts(sample, int(sample / f), factor)
    joined = encoding[1] == f * encoding[3] and decoding[3] == f * decoding[1] and sample == f * int(sample / f)
    if joined:
        geometry = TileGeometry.from_config(config, tile_overlap_factor=factor)
        assert [numbers(cut) for cut in geometry.encoding] == [encoding] * 2
        assert [numbers(cut) for cut in geometry.decoding] == [decoding] * 2
    else:
        with pytest.raises(InputError, match="do not join"):
            TileGeometry.from_config(config, tile_overlap_factor=factor)


@pytest.mark.parametrize("size", [(256, 512), [256, 512]])
def test_height_and_width_may_have_tiles_of_their_own(size):
    config = SD.replace(sample_size=tuple(size))
    assert TileGeometry.from_config(config) == TileGeometry((256, 512), (64, 128), 8)
    geometry = TileGeometry.from_config(SD, tile_sample_min_size=size, tile_overlap_factor=(0.5, 0))
    assert geometry == TileGeometry((256, 512), (128, 0), 8)
    assert geometry.encoding == (Cut(256, 128, 8, 16, 16), Cut(512, 512, 8, 0, 64))


def test_a_sample_size_of_one_number_in_a_list_is_of_both_axes():
    assert TileGeometry.from_config(SD.replace(sample_size=(256,))) == TileGeometry((256, 256), (64, 64), 8)


def test_both_minimum_sizes_may_be_given():
    given = TileGeometry.from_config(SD, tile_sample_min_size=np.int64(256), tile_latent_min_size=32)
    assert given == TileGeometry.from_config(SD.replace(sample_size=256))


# -- refused -------------------------------------------------------------------------------------------------------

MISFITS = {
    "a size that is no multiple of f": (
        (500, None, 0.25),
        "500 px and 62 latents",
        "375 px to keep 47",
        "46 to keep 375",
    ),
    "an overlap of no whole latents": ((80, None, 0.25), "80 px and 10 latents", "60 px to keep 8", "7 to keep 60"),
    "a factor of no whole latents": ((64, None, 0.3), "overlapping by 0.3", "44 px to keep 6", "5 to keep 45"),
    "a latent size of another tile": ((96, 8, 0.25), "96 px and 8 latents", "72 px to keep 6", "6 to keep 72"),
    "a size just below a multiple": ((63, 8, 0.25), "63 px and 8 latents", "47 px to keep 6", "6 to keep 48"),
    "a tile of one latent": ((8, None, 0.25), "8 px and 1 latents", "6 px to keep 1", "0 to keep 6"),
    "a tile of less than a latent": ((4, None, 0.25), "4 px and 0 latents", "3 px to keep 0", "0 to keep 3"),
    "a factor that floats round down": ((80, None, 0.9), "overlapping by 0.9", "7 px to keep 1", "0 to keep 8"),
}
"""(tile_sample_min_size, tile_latent_min_size, tile_overlap_factor) for f = 8, and what the error must say."""


@pytest.mark.parametrize(("sizes", "words"), [(sizes, words) for sizes, *words in MISFITS.values()], ids=MISFITS)
def test_tiles_that_do_not_join_are_refused_with_their_numbers(sizes, words):
    sample, latent, factor = sizes
    with pytest.raises(InputError) as error:
        TileGeometry.from_config(
            SD, tile_sample_min_size=sample, tile_latent_min_size=latent, tile_overlap_factor=factor
        )
    for phrase in (*words, "f=8", "multiples of 8 px"):
        assert phrase in str(error.value)


def test_the_axis_that_does_not_join_is_named():
    with pytest.raises(InputError, match="500 px and 62 latents in width"):
        TileGeometry.from_config(SD, tile_sample_min_size=(512, 500))


@pytest.mark.parametrize("factor", [-0.25, 1, 1.5, float("nan")])
def test_a_tile_cannot_overlap_all_of_the_next_or_less_than_nothing(factor):
    with pytest.raises(
        InputError, match=re.escape(f"tile_overlap_factor={factor} in height: expected a number from 0")
    ):
        TileGeometry.from_config(SD, tile_overlap_factor=factor)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tile_sample_min_size": 512.0}, "tile_sample_min_size=512.0"),
        ({"tile_sample_min_size": True}, "tile_sample_min_size=True"),
        ({"tile_sample_min_size": (512, 512, 512)}, "tile_sample_min_size=(512, 512, 512)"),
        ({"tile_latent_min_size": "64"}, "tile_latent_min_size='64'"),
        ({"tile_overlap_factor": None}, "tile_overlap_factor=None"),
    ],
)
def test_a_size_that_is_neither_a_number_nor_a_pair_is_refused(fields, words):
    with pytest.raises(InputError, match=re.escape(f"{words}: expected")):
        TileGeometry.from_config(SD, **fields)


@pytest.mark.parametrize(
    ("tile", "overlap"), [((64, 60), (16, 16)), ((64, 64), (16, 12)), ((64, 64), (16, 64)), ((64, 64), (16, -8))]
)
def test_a_users_own_tiles_are_whole_latents_that_overlap_in_part(tile, overlap):
    words = f"tiles of {tile[1]} px in width that overlap by {overlap[1]} px: expected multiples of f=8"
    with pytest.raises(InputError, match=re.escape(words)):
        TileGeometry(tile, overlap, 8)


@pytest.mark.parametrize("size", [0, -8])
def test_a_tile_has_a_size(size):
    with pytest.raises(InputError, match=f"{size} px"):
        TileGeometry((size, 64), (0, 0), 8)
    with pytest.raises(InputError, match=f"{size} px"):
        TileGeometry.from_config(SD, tile_sample_min_size=size)


# -- cutting -------------------------------------------------------------------------------------------------------


@given(geometry=geometries(), latents=st.integers(1, 60), beyond=st.integers(0, 15))
def test_the_kept_parts_of_tiles_cover_each_latent_once(geometry, latents, beyond):
    """Image of f · latents px and a rest: output positions kept are, in order, all of them; both directions alike."""
    f = geometry.f
    for cut, decoded in zip(geometry.encoding, geometry.decoding, strict=True):
        encoding = cut.tiles(f * latents + beyond % f)
        kept = [min(cut.keep, (tile.stop - tile.start) // f) for tile in encoding]
        assert min(kept) >= 1
        assert sum(kept) == latents
        assert [tile.start // f for tile in encoding] == [sum(kept[:i]) for i in range(len(kept))]
        decoding = decoded.tiles(latents)
        assert [(tile.start, tile.stop) for tile in decoding] == [
            (tile.start // f, tile.stop // f) for tile in encoding
        ]
        assert [min(decoded.keep, f * (tile.stop - tile.start)) for tile in decoding] == [f * n for n in kept]


@given(geometry=geometries(), size=st.integers(1, 400))
def test_tiles_are_within_the_axis_and_leave_out_less_than_a_latent(geometry, size):
    for cut in (*geometry.encoding, *geometry.decoding):
        tiles = cut.tiles(max(size, cut.least))
        assert tiles[0].start == 0
        assert max(size, cut.least) - tiles[-1].stop < cut.least
        assert all(cut.least <= tile.stop - tile.start <= cut.tile for tile in tiles)
        assert {later.start - tile.start for tile, later in pairwise(tiles)} <= {cut.stride}
