"""NaN and infinity are reported with their position, and never become a black picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, drawn_weights, images, uniform
from support.models import array, each_backend, tiny
from support.oracle import oracle

from vaespec import (
    AutoencoderKL,
    NonFiniteError,
    parameters,
)


@each_backend
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_bad_pixel_is_reported_with_its_index(backend, bad):
    x = images(TINY, 8, 8, batch=2)
    x[1, 2, 3, 4] = x[1, 2, 7, 7] = bad
    with pytest.raises(NonFiniteError, match=r"the images hold 2 NaN or infinite numbers, .* index \(1, 2, 3, 4\)"):
        tiny(backend).encode(x)
    with pytest.raises(NonFiniteError, match=r"the images hold 2 NaN .* \(1, 2, 3, 4\)"):
        tiny(backend).encode(torch.tensor(x))


@each_backend
def test_a_bad_latent_is_reported_with_its_index(backend):
    z = uniform("z", (1, 4, 2, 2))
    z[0, 3, 1, 0] = np.nan
    with pytest.raises(
        NonFiniteError, match=r"the latents hold NaN or an infinite number at index \(0, 3, 1, 0\): give finite"
    ):
        tiny(backend).decode(z)


@each_backend
@pytest.mark.parametrize(
    "name", ["decoder.mid_block.attentions.0.to_v.weight", "decoder.conv_in.weight", "decoder.conv_norm_out.bias"]
)
def test_a_bad_weight_is_named(backend, name):
    weights = tiny().weights()
    weights[name] = weights[name].copy()
    weights[name].flat[0] = np.nan
    vae = AutoencoderKL(TINY, weights, backend=backend, device="cpu")
    with pytest.raises(NonFiniteError, match=f"the images are not finite: .* the weight {name}"):
        vae.decode(uniform("z", (1, 4, 2, 2)))


@each_backend
def test_a_bad_weight_of_the_encoder_does_not_affect_the_decoder(backend):
    weights = tiny().weights()
    weights["encoder.conv_in.bias"] = np.full_like(weights["encoder.conv_in.bias"], np.inf)
    vae = AutoencoderKL(TINY, weights, backend=backend, device="cpu")
    assert np.isfinite(array(vae.decode(uniform("z", (1, 4, 2, 2))).sample)).all()
    with pytest.raises(NonFiniteError, match=r"the moments are not finite: .* the weight encoder\.conv_in\.bias"):
        vae.encode(images(TINY, 8, 8))


def large(name: str, factor: float) -> dict[str, np.ndarray]:
    weights = drawn_weights({key: parameter.shape for key, parameter in parameters(TINY).items()})
    weights[name] = weights[name] * factor
    return weights


@each_backend
def test_an_overflow_names_the_layer(backend):
    """Weights up to 3e38 fit float32; the sum of 144 products with them does not."""
    name = "decoder.up_blocks.0.resnets.1.conv2.weight"
    vae = AutoencoderKL(TINY, large(name, 2e39), backend=backend, device="cpu")
    with pytest.raises(
        NonFiniteError, match=rf"first appears in the conv2d after reading {name.removesuffix('.weight')}\."
    ):
        vae.decode(uniform("z", (1, 4, 2, 2), -2, 2))


def test_an_overflow_of_torch_in_float16_names_the_layer():
    """Residual maps of a few thousand, times 100, exceed the range of float16 (65,504), but not that of float32.

    PyTorch's own operations store them in float16, the CPU engine in float32.
    """
    name, z = "decoder.up_blocks.0.resnets.1.conv2.weight", uniform("z", (1, 4, 2, 2), -2, 2)
    for precision, dtype in (("highest", "float32"), ("default", "float16")):
        vae = AutoencoderKL(TINY, large(name, 1e5), backend="torch", device="cpu", dtype=dtype, precision=precision)
        assert np.isfinite(array(vae.decode(z).sample)).all()
    options = {"backend": "torch", "device": "cpu", "dtype": "float16", "precision": "highest"}
    vae = AutoencoderKL(TINY.replace(force_upcast=False), large(name, 1e5), **options)
    words = "conv2d after reading decoder.up_blocks.0.resnets.1.conv2.bias; float16 is too narrow for many models: try "
    with pytest.raises(NonFiniteError, match=f"{words}bfloat16 or float32, or register_to_config"):
        vae.decode(z)
    vae.enable_tiling("exact", band_rows=1)
    with pytest.raises(NonFiniteError, match=words):
        vae.decode(z)


@each_backend
def test_a_result_beyond_float16_is_reported(backend):
    vae = AutoencoderKL(TINY, large("decoder.conv_out.weight", 5e4), backend=backend, device="cpu", dtype="float16")
    with pytest.raises(NonFiniteError, match=r"the images are not finite.*float16 is too narrow"):
        vae.decode(uniform("z", (1, 4, 2, 2), -2, 2))


@each_backend
def test_a_weight_beyond_float16_is_named(backend):
    weights = large("decoder.conv_in.bias", 1e6)
    with pytest.raises(NonFiniteError, match=r"decoder\.conv_in\.bias"):
        AutoencoderKL(TINY, weights, backend=backend, device="cpu", dtype="float16").decode(np.zeros((1, 4, 2, 2)))


@each_backend
def test_images_beyond_float16_are_reported(backend):
    with pytest.raises(NonFiniteError, match="float16"):
        tiny(backend, "float16").encode(np.full((1, 3, 8, 8), 1e6))


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_count_of_batches_survives_sixteen_bits(backend, dtype):
    weights = dict(oracle("flux2")[1]) | {"bn.num_batches_tracked": np.array(1_234_567, np.int64)}
    vae = AutoencoderKL(CONFIGS["flux2"], weights, backend=backend, device="cpu", dtype=dtype)
    assert int(vae.weights()["bn.num_batches_tracked"]) == 1_234_567
    assert np.isfinite(array(vae.decode(uniform("z", (1, 8, 2, 2))).sample)).all()
