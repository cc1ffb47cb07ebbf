"""The specification is diffusers' model: same names, same shapes, same numbers to float64 rounding."""

from __future__ import annotations

from functools import cache

import array_api_compat.numpy as compat_numpy
import array_api_strict
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, images, relative_l2, sizes, uniform
from support.oracle import decoded, diffusers_model, encoded, oracle

from vaespec import AutoencoderKL, DiagonalGaussian, ReferenceOps, decoder, encoder, families, parameters
from vaespec.architecture import count_parameters

BOUND = 1e-13  # relative L2; float64 rounding, measured below 1e-14

# sum(p.numel()) of diffusers 0.42.1 on the meta device.
PUBLISHED_COUNTS = {
    "sd1": 83_653_863,
    "sd2": 83_653_863,
    "sdxl": 83_653_863,
    "playground-v2.5": 83_653_863,
    "sd-x4-upscaler": 55_325_927,
    "ldm3d": 83_660_778,
    "sd3": 83_819_683,
    "flux1": 83_819_683,
    "flux2": 84_046_115,
    "flux2-small-decoder": 62_373_091,
    "cogview3plus": 406_100_643,
    "cogview4": 406_100_643,
    "kl-f4": 55_312_063,
    "kl-f8": 83_653_863,
    "kl-f16": 69_610_963,
    "kl-f32": 103_880_131,
}

each_config = pytest.mark.parametrize("name", CONFIGS)


@cache
def reference(name: str, xp=compat_numpy):
    """(encode, decode) of the specification on a namespace, with the oracle's weights; NumPy in and out."""
    config, (_, weights), ops = CONFIGS[name], oracle(name), ReferenceOps(xp)
    params = ops.load_params(weights, parameters(config))

    def run(model):
        return lambda x: ops.to_numpy(model(ops.from_numpy(x), params, ops))

    return run(encoder(config)), run(decoder(config))


@each_config
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", ["square", "tall", "odd"])
def test_encode_and_decode_agree_with_diffusers(name, size, batch):
    config, (model, _), (encode, decode) = CONFIGS[name], oracle(name), reference(name)
    x = images(config, *sizes(config)[size], batch)
    posterior = DiagonalGaussian(encode(x))
    mean, logvar = encoded(model, x)
    assert relative_l2(posterior.mean, mean) <= BOUND
    assert relative_l2(posterior.logvar, logvar) <= BOUND
    z = uniform(f"latents {size}", mean.shape, -2, 2)
    assert relative_l2(decode(z), decoded(model, z)) <= BOUND


@each_config
def test_names_and_shapes_agree_with_the_state_dict_of_diffusers(name):
    table = {key: parameter.shape for key, parameter in parameters(CONFIGS[name]).items()}
    assert table == {key: tuple(value.shape) for key, value in diffusers_model(CONFIGS[name]).state_dict().items()}


@each_config
def test_the_count_of_trained_parameters_agrees_with_diffusers(name):
    assert count_parameters(CONFIGS[name]) == sum(p.numel() for p in diffusers_model(CONFIGS[name]).parameters())


@each_config
def test_the_size_of_latents_is_the_image_size_over_the_factor_rounded_down(name):
    config = CONFIGS[name]
    height, width = sizes(config)["odd"]
    mean = DiagonalGaussian(reference(name)[0](images(config, height, width))).mean
    f = config.downsampling_factor
    assert mean.shape == (1, config.latent_channels, height // f, width // f)


def test_every_family_is_in_the_table_of_counts():
    assert set(families.names()) == set(PUBLISHED_COUNTS)


@pytest.mark.parametrize("family", PUBLISHED_COUNTS)
def test_a_family_has_its_published_parameter_count(family):
    assert count_parameters(families.config(family)) == PUBLISHED_COUNTS[family]


@pytest.mark.parametrize("family", PUBLISHED_COUNTS)
def test_a_family_at_full_width_has_the_names_and_shapes_of_diffusers(family):
    with torch.device("meta"):
        model = diffusers_model(families.config(family))
    table = {key: parameter.shape for key, parameter in parameters(families.config(family)).items()}
    assert table == {key: tuple(value.shape) for key, value in model.state_dict().items()}


@each_config
def test_the_same_code_runs_on_array_api_strict(name):
    config = CONFIGS[name]
    x = images(config, *sizes(config)["odd"])
    (encode, decode), (strict_encode, strict_decode) = reference(name), reference(name, array_api_strict)
    moments = encode(x)
    assert relative_l2(strict_encode(x), moments) <= BOUND
    z = moments[:, : config.latent_channels]
    assert relative_l2(strict_decode(z), decode(z)) <= BOUND


def locked(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.setflags(write=False)
    return a


@pytest.mark.parametrize("name", ["sd", "kl-f16", "flux2"])
def test_the_specification_runs_on_read_only_arrays(name):
    config, (_, weights), ops = CONFIGS[name], oracle(name), ReferenceOps(compat_numpy)
    params = {key: locked(a) for key, a in ops.load_params(weights, parameters(config)).items()}
    x = locked(images(config, *sizes(config)["odd"]))
    moments = encoder(config)(x, params, ops)
    np.testing.assert_array_equal(moments, reference(name)[0](x))
    z = locked(moments[:, : config.latent_channels])
    np.testing.assert_array_equal(decoder(config)(z, params, ops), reference(name)[1](z))


@pytest.mark.parametrize("name", ["sd", "kl-f16", "flux2", "gelu", "mish", "relu"])
def test_the_numpy_backend_runs_on_read_only_arrays(name):
    config, (_, weights) = CONFIGS[name], oracle(name)
    vae = AutoencoderKL(config, {k: locked(a) for k, a in weights.items()}, backend="numpy", dtype="float64")
    params = {key: locked(a) for key, a in vae.functional().params.items()}
    x = locked(images(config, *sizes(config)["odd"]))
    moments = vae.functional().encode(params, x).latent_dist.parameters
    np.testing.assert_array_equal(moments, vae.encode(x).latent_dist.parameters)
    z = locked(moments[:, : config.latent_channels])
    np.testing.assert_array_equal(vae.functional().decode(params, z).sample, vae.decode(z).sample)


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["sd", "kl-f16", "flux2", "relu", "grey-in-colour-out"])
def test_no_argument_is_ever_written_to(name, backend):
    config, (_, weights) = CONFIGS[name], oracle(name)
    f = config.downsampling_factor
    given = {key: a.copy() for key, a in weights.items()}
    vae = AutoencoderKL(config, given, backend=backend, dtype="float64")
    x, z = images(config, f, 2 * f), uniform("z", (1, config.latent_channels, 1, 1))
    x_native, z_native = vae._model.ops.from_numpy(x.copy()), vae._model.ops.from_numpy(z.copy())
    vae.encode(x_native).latent_dist.sample(seed=0)
    vae.decode(z_native)
    np.testing.assert_array_equal(vae.to_numpy(x_native), x)
    np.testing.assert_array_equal(vae.to_numpy(z_native), z)
    for key, a in weights.items():
        np.testing.assert_array_equal(given[key], a)
        np.testing.assert_array_equal(vae.weights()[key], a)


@pytest.mark.parametrize("name", ["flux2", "flux2-small-decoder"])
def test_flux2_latents_agree_with_the_pipeline_of_diffusers(name):
    """pipeline_flux2.py of diffusers 0.42.1: _encode_vae_image, and the end of __call__."""
    config, (model, weights) = CONFIGS[name], oracle(name)
    vae = AutoencoderKL(config, weights, backend="numpy", dtype="float64")
    x = images(config, 32, 48, batch=2)
    mean = model.bn.running_mean.view(1, -1, 1, 1)
    std = torch.sqrt(model.bn.running_var.view(1, -1, 1, 1) + model.config.batch_norm_eps)
    with torch.no_grad():
        z = model.encode(torch.tensor(x)).latent_dist.mode()
        B, C, h, w = z.shape
        patches = z.view(B, C, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(B, C * 4, h // 2, w // 2)
        latents = (patches - mean) / std
        back = (latents * std + mean).reshape(B, C, 2, 2, h // 2, w // 2).permute(0, 1, 4, 2, 5, 3).reshape(B, C, h, w)
        expected = model.decode(back).sample
    assert relative_l2(vae.encode_latents(x), latents.numpy()) <= BOUND
    assert relative_l2(vae.decode_latents(latents.numpy()), expected.numpy()) <= BOUND
