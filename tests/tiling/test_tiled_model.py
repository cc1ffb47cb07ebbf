"""AutoencoderKL in tiles is diffusers' AutoencoderKL in tiles: the same calls, the same numbers, the same tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from configs import narrow, relative_l2, uniform
from models import array
from oracle import weighted

from vaespec import AutoencoderKL, InputError
from vaespec.model import Model

CONFIG = narrow((8, 12, 12), layers_per_block=1, sample_size=32)  # f = 4
SIZES = {"encode": [(32, 32), (33, 20), (61, 40)], "decode": [(8, 8), (9, 5), (15, 10)]}


@pytest.fixture
def tiles(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of what our model runs on."""
    shapes, run = [], Model.run
    monkeypatch.setattr(Model, "run", lambda self, half, x: shapes.append(tuple(x.shape)) or run(self, half, x))
    return shapes


@pytest.fixture
def models() -> tuple[AutoencoderKL, torch.nn.Module]:
    theirs, weights = weighted(CONFIG)
    return AutoencoderKL(CONFIG, weights, backend="numpy", dtype="float64"), theirs.requires_grad_(False)


def results(model, direction: str, x, method: str = "{}") -> np.ndarray:
    call = getattr(model, method.format(direction))
    if isinstance(model, torch.nn.Module):
        x = torch.tensor(x)
    return array(call(x).latent_dist.parameters if direction == "encode" else call(x).sample)


def drawn(direction: str, size: tuple[int, int], batch: int = 2) -> np.ndarray:
    channels = CONFIG.in_channels if direction == "encode" else CONFIG.latent_channels
    return uniform(f"{direction}{size}", (batch, channels, *size))


@pytest.mark.parametrize("direction", SIZES)
def test_tiling_slicing_and_both_are_those_of_diffusers(models, tiles, direction):
    ours, theirs = models
    for size in SIZES[direction]:
        for slicing in (False, True):
            for model in models:
                model.enable_tiling()
                (model.enable_slicing if slicing else model.disable_slicing)()
            x = drawn(direction, size)
            tiles.clear()
            assert relative_l2(results(ours, direction, x), results(theirs, direction, x)) <= 1e-13
            whole = max(size) <= (32 if direction == "encode" else 8)
            assert (len(tiles) == (2 if slicing else 1)) == whole
            assert {shape[0] for shape in tiles} == {1 if slicing else 2}
        ours.disable_tiling(), theirs.disable_tiling(), tiles.clear()
        assert relative_l2(results(ours, direction, x), results(theirs, direction, x)) <= 1e-13
        assert len(tiles) == 2


@pytest.mark.parametrize("direction", SIZES)
def test_tiled_calls_cut_whatever_the_size(models, tiles, direction):
    """In diffusers too, tiles start at each stride even where one would do."""
    ours, theirs = models
    x = drawn(direction, (30, 32) if direction == "encode" else (7, 8))
    expected = theirs.tiled_decode(torch.tensor(x)).sample if direction == "decode" else None
    if direction == "encode":
        expected = theirs._tiled_encode(torch.tensor(x))
    assert relative_l2(results(ours, direction, x, "tiled_{}"), array(expected)) <= 1e-13
    assert len(tiles) == 4
    assert isinstance(getattr(ours, f"tiled_{direction}")(x, return_dict=False), tuple)


def test_latents_and_calls_go_through_tiles(models, tiles):
    ours, _ = models
    ours.enable_tiling(tile_sample_min_size=(16, 24), tile_overlap_factor=(0.25, 0.5))
    images = drawn("encode", (40, 40), 1)
    z = ours.encode_latents(images)
    assert max(shape[2] for shape in tiles) == 16
    assert max(shape[3] for shape in tiles) == 24
    tiles.clear()
    assert ours.decode_latents(z).shape == images.shape
    assert len(tiles) > 1
    tiles.clear()
    ours.enable_tiling(False)
    assert ours(images).sample.shape == images.shape
    assert len(tiles) == 2


def test_tiles_that_do_not_join_are_refused_when_they_are_set(models):
    ours, _ = models
    with pytest.raises(InputError, match=r"tiles of 30 px and 7 latents in height do not join at f=4"):
        ours.enable_tiling(tile_sample_min_size=30)
    assert not ours.use_tiling


def test_a_sample_size_that_makes_no_tiles_matters_only_to_tiling():
    odd = AutoencoderKL.from_config(CONFIG.replace(sample_size=30), backend="numpy")
    assert odd(drawn("encode", (40, 40), 1)).sample.shape == (1, CONFIG.out_channels, 40, 40)
    with pytest.raises(InputError, match="do not join"):
        odd.enable_tiling()
