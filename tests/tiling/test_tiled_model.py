"""AutoencoderKL in tiles is diffusers' AutoencoderKL in tiles: the same calls, the same numbers, the same tiles."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.banded import CLOSE
from support.configs import narrow, relative_l2, uniform
from support.depth import first
from support.models import array, model
from support.oracle import weighted

from vaespec import AutoencoderKL, InputError, NonFiniteError
from vaespec.model import Model

CONFIG = narrow((8, 12, 12), layers_per_block=1, sample_size=32)  # f = 4
SIZES = {"encode": [(32, 32), (33, 20), (61, 40)], "decode": [(8, 8), (9, 5), (15, 10)]}


@pytest.fixture
def tiles(monkeypatch) -> list[tuple[int, ...]]:
    """The shapes of the inputs that our model runs on."""
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
            for one in models:
                one.enable_tiling()
                (one.enable_slicing if slicing else one.disable_slicing)()
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
    """In diffusers too, tiles start at each stride even if one tile would be enough."""
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


# -- exact -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", first(1, ["swish", "sd"]))
@pytest.mark.parametrize("backend", first(3, ["numpy", "torch", "mlx", "jax"]))  # JAX compiles for each band, a minute
def test_exact_tiling_has_the_results_of_the_whole(backend, name, tmp_path):
    vae = model(name, backend)
    x, z = uniform("x", (2, vae.config.in_channels, 38, 21)), uniform("z", (2, vae.config.latent_channels, 9, 5))
    moments, image = array(vae.encode(x).latent_dist.parameters), array(vae.decode(z).sample)
    for store in ("device", "host", tmp_path):
        vae.enable_tiling("exact", band_rows=5, chunk=7, store=store)
        (vae.enable_slicing if store == "host" else vae.disable_slicing)()
        assert relative_l2(array(vae.encode(x).latent_dist.parameters), moments) <= CLOSE[vae.dtype]
        assert relative_l2(array(vae.decode(z).sample), image) <= CLOSE[vae.dtype]
    assert list(tmp_path.iterdir()) == []


def test_exact_tiling_really_works_in_bands_and_reports_its_progress(models):
    ours, _ = models
    reports: list[tuple[int, int]] = []
    ours.enable_tiling("exact", band_rows=4, progress=lambda done, total: reports.append((done, total)))
    ours.decode(drawn("decode", (15, 10)))
    assert len(reports) > 50
    assert [done for done, _ in reports] == sorted(done for done, _ in reports)
    assert {total for _, total in reports} == {reports[-1][0]}
    ours.disable_tiling()
    ours.decode(drawn("decode", (15, 10)))
    assert reports[-1][0] == reports[-1][1]


def test_a_run_that_is_cancelled_leaves_no_file(models, tmp_path):
    ours, _ = models

    def stop(done: int, total: int) -> None:
        if done > total / 2:
            raise KeyboardInterrupt

    ours.enable_tiling("exact", band_rows=4, store=tmp_path, progress=stop)
    with pytest.raises(KeyboardInterrupt):
        ours.decode(drawn("decode", (15, 10)))
    assert list(tmp_path.iterdir()) == []


def test_wrong_options_of_tiling_are_refused_and_change_nothing(models):
    ours, _ = models
    for wrong, words in (
        (("seamless", {}), "tiling 'seamless': choose True or 'blend', 'exact', 'auto', or False"),
        (
            (True, {"tile_size": 64}),
            "no tile_size=: bands of rows have .*tile_sample_min_size",
        ),
        (("exact", {"tile_size": 64}), "enable_tiling has no tile_size=: bands of rows have band_rows, "),
        ((True, {"band_rows": 4}), r"band_rows: only bands have it; use enable_tiling\('exact', \.\.\.\)"),
        (("exact", {"band_rows": 0}), "bands of 0: expected at least 1"),
    ):
        with pytest.raises(InputError, match=words):
            ours.enable_tiling(wrong[0], **wrong[1])
        assert not ours.use_tiling


def test_a_nonfinite_result_in_bands_names_the_layer_without_a_run_of_the_whole(models, monkeypatch):
    ours, _ = models
    ours.enable_tiling("exact", band_rows=4)
    huge = np.full((1, CONFIG.latent_channels, 9, 5), 1e308)
    monkeypatch.setattr("vaespec.analysis.finite.run_whole", None)
    words = r"the images are not finite: .* in the normalize after reading decoder\.mid"
    with pytest.raises(NonFiniteError, match=words):
        ours.decode(huge)


def test_users_of_diffusers_may_set_the_attribute(models):
    ours, _ = models
    reports: list[int] = []
    ours.enable_tiling("exact", band_rows=4, progress=lambda done, total: reports.append(done))
    ours.use_tiling = False
    ours.decode(drawn("decode", (9, 5)))
    assert not reports
    ours.use_tiling = True
    ours.decode(drawn("decode", (9, 5)))
    assert reports
