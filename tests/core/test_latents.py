"""Latents for the diffusion model: three conventions, each with an exact inverse, and none ever guessed."""

from __future__ import annotations

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import CONFIGS, FLUX2, TINY, images, narrow, uniform

from vaespec import AutoencoderKL, ConfigError, InputError, NonFiniteError, families
from vaespec.latents import denormalize, normalize, patchify, unpatchify

CONVENTIONS = ("sd", "sd3", "playground", "flux2")


def statistics(config, dtype="float64"):
    if config.patch_size is None:
        return {}
    channels = (config.latent_channels * 4,)
    mean, var = uniform("mean", channels), uniform("var", channels, 0.2, 3)
    return {"bn.running_mean": mean.astype(dtype), "bn.running_var": var.astype(dtype)}


@pytest.mark.parametrize("name", CONVENTIONS)
@given(batch=st.integers(1, 3), h=st.integers(1, 3), w=st.integers(1, 3), seed=st.integers(0, 9))
def test_normalize_and_denormalize_are_inverses(name, batch, h, w, seed):
    config, stored = CONFIGS[name], statistics(CONFIGS[name])
    z = uniform(f"z{seed}", (batch, config.latent_channels, 2 * h, 2 * w), -20, 20)
    latents = normalize(z, config, stored)
    np.testing.assert_allclose(denormalize(latents, config, stored), z, rtol=1e-14, atol=1e-14)
    back = normalize(denormalize(latents, config, stored), config, stored)
    np.testing.assert_allclose(back, latents, rtol=1e-13, atol=1e-13)


def test_scale_and_shift_are_those_of_sd3():
    """The pipeline of diffusers: (z - shift_factor) * scaling_factor."""
    z = uniform("z", (2, 16, 3, 4), -5, 5)
    np.testing.assert_allclose(normalize(z, CONFIGS["sd3"], {}), (z - 0.0609) * 1.5305, rtol=1e-15, atol=1e-15)


def test_mean_and_std_are_those_of_playground():
    """pipeline_stable_diffusion_xl.py of diffusers: latents * std / scaling_factor + mean on the way back."""
    config = CONFIGS["playground"]
    latents = uniform("z", (2, 4, 3, 4), -2, 2)
    mean, std = (np.array(values).reshape(1, 4, 1, 1) for values in (config.latents_mean, config.latents_std))
    np.testing.assert_allclose(denormalize(latents, config, {}), latents * std / 0.5 + mean, rtol=1e-14)


def test_flux2_uses_the_statistics_with_the_eps_of_the_config():
    config = CONFIGS["flux2"].replace(batch_norm_eps=0.5)
    z, stored = uniform("z", (1, 8, 4, 6)), statistics(config)
    mean, std = stored["bn.running_mean"], np.sqrt(stored["bn.running_var"] + 0.5)
    expected = (patchify(z, (2, 2)) - mean.reshape(1, -1, 1, 1)) / std.reshape(1, -1, 1, 1)
    np.testing.assert_allclose(normalize(z, config, stored), expected, rtol=1e-14)


@pytest.mark.parametrize("patch", [(2, 2), (1, 2), (3, 2)])
def test_patches_go_to_channels_row_by_row(patch):
    """Channel c·p₁·p₂ + dy·p₂ + dx holds the pixel (dy, dx) of each patch, as in _patchify_latents of diffusers."""
    p1, p2 = patch
    z = uniform("z", (2, 3, 2 * p1, 5 * p2))
    patches = patchify(z, patch)
    assert patches.shape == (2, 3 * p1 * p2, 2, 5)
    for c, dy, dx in np.ndindex(3, p1, p2):
        np.testing.assert_array_equal(patches[:, c * p1 * p2 + dy * p2 + dx], z[:, c, dy::p1, dx::p2])
    np.testing.assert_array_equal(unpatchify(patches, patch), z)


@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_latents_keep_their_dtype(name, dtype):
    config = CONFIGS[name]

    def numpy_array(a):
        return a.astype(getattr(ml_dtypes, dtype, dtype))

    def torch_array(a):
        return torch.tensor(a).to(getattr(torch, dtype))

    for make in (numpy_array, torch_array):
        z = make(uniform("z", (1, config.latent_channels, 2, 2)))
        stored = {key: make(a) for key, a in statistics(config).items()}
        latents = normalize(z, config, stored)
        assert str(latents.dtype).endswith(dtype)
        assert str(denormalize(latents, config, stored).dtype).endswith(dtype)


def test_a_scale_that_is_a_number_of_numpy_does_not_widen_latents():
    config = TINY.replace(scaling_factor=np.float64(0.5), shift_factor=np.float64(0.1))
    assert normalize(np.zeros((1, 4, 2, 2), np.float32), config, {}).dtype == np.float32


@pytest.mark.parametrize("name", CONVENTIONS)
def test_latents_are_the_same_on_array_api_strict(name):
    config = CONFIGS[name]
    z = uniform("z", (2, config.latent_channels, 4, 6))
    strict = {key: array_api_strict.asarray(a) for key, a in statistics(config).items()}
    latents = normalize(array_api_strict.asarray(z), config, strict)
    np.testing.assert_allclose(np.asarray(latents), normalize(z, config, statistics(config)), rtol=1e-15)
    np.testing.assert_allclose(np.asarray(denormalize(latents, config, strict)), z, rtol=1e-13, atol=1e-14)


def test_an_unknown_scale_raises_an_error_with_the_families_that_fit():
    with pytest.raises(ConfigError, match=r"sd1 \(0.18215\), sd2 \(0.18215\), sdxl \(0.13025\).*pass family="):
        normalize(np.zeros((1, 4, 1, 1)), families.config("kl-f8"), {})
    with pytest.raises(ConfigError, match="no published family with a scale has these shapes; pass family="):
        denormalize(np.zeros((1, 4, 1, 1)), TINY.replace(scaling_factor=None), {})


def test_a_model_of_unknown_scale_encodes_but_does_not_normalize():
    vae = AutoencoderKL.from_config(TINY.replace(scaling_factor=None), backend="numpy")
    x = images(TINY, 8, 8).astype(np.float32)
    z = vae.encode(x).latent_dist.mode()
    assert vae.decode(z).sample.shape == x.shape
    with pytest.raises(ConfigError, match="scaling factor of these weights is not known"):
        vae.encode_latents(x)
    with pytest.raises(ConfigError, match="scaling factor of these weights is not known"):
        vae.decode_latents(z)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", CONVENTIONS)
def test_a_model_decodes_what_it_encodes_through_either_pair(name, backend):
    vae = AutoencoderKL.from_config(CONFIGS[name], backend=backend, dtype="float64")
    x = images(CONFIGS[name], 16, 32, batch=2)
    posterior = vae.encode(x).latent_dist
    raw = vae.to_numpy(vae.decode(posterior.sample(seed=4)).sample)
    scaled = vae.to_numpy(vae.decode_latents(vae.encode_latents(x, seed=4)))
    np.testing.assert_allclose(scaled, raw, rtol=1e-10, atol=1e-12)
    mode = vae.to_numpy(vae.decode_latents(vae.encode_latents(x)))
    np.testing.assert_allclose(mode, vae.to_numpy(vae(x).sample), rtol=1e-10, atol=1e-12)


def test_latents_that_no_patch_fits_are_refused_in_words():
    vae = AutoencoderKL.from_config(narrow((8, 8), **FLUX2), backend="numpy")
    with pytest.raises(InputError, match="patch"):
        vae.encode_latents(images(vae.config, 6, 8).astype(np.float32))


@pytest.mark.parametrize(("name", "channels"), [("sd", 4), ("flux2", 32)])
def test_diffusion_latents_of_the_wrong_channels_are_refused(name, channels):
    vae = AutoencoderKL.from_config(CONFIGS[name], backend="numpy")
    with pytest.raises(InputError, match=f"expected {channels} channels, got 7"):
        vae.decode_latents(np.zeros((1, 7, 2, 2), np.float32))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("name", CONVENTIONS)
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "mlx"])
def test_finite_latents_that_overflow_when_they_are_unscaled_are_reported_as_such(name, backend):
    """Without a warning of NumPy, and with the index in the latents that the decoder would get."""
    config = CONFIGS[name]
    config = config if config.scaling_factor is None else config.replace(scaling_factor=0.5)
    vae = AutoencoderKL.from_config(config, backend=backend)
    stored = {key: np.full_like(a, 4.0) for key, a in vae.weights().items() if key.startswith("bn.running_var")}
    vae = vae if not stored else AutoencoderKL(config, {**vae.weights(), **stored}, backend=backend)
    z = np.zeros((1, config.latent_channels * (4 if stored else 1), 4, 4), np.float32)
    z[0, -1, 3, 2] = 3e38
    with pytest.raises(
        NonFiniteError, match="the latents, unscaled in float32, hold NaN or an infinite number at index"
    ):
        vae.decode_latents(z)
    with pytest.raises(NonFiniteError, match="unscaled in float32"):
        list(vae.decode_bands(z, normalized=True))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("backend", ["numpy", "torch", "jax", "mlx"])
def test_latents_that_overflow_when_they_are_normalized_are_reported(backend):
    vae = AutoencoderKL.from_config(TINY.replace(scaling_factor=1e38, shift_factor=100.0), backend=backend)
    with pytest.raises(
        NonFiniteError, match=r"the latents, normalized in float32, hold .* NaN or infinite numbers, the first at"
    ):
        vae.encode_latents(images(TINY, 8, 8).astype(np.float32))
