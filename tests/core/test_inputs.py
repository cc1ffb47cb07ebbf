"""The inputs that a model accepts, and the errors for all others."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from PIL import Image
from support.configs import CONFIGS, TINY, images, relative_l2, uniform
from support.models import EXACT, array, each_backend, model, tiny
from support.oracle import decoded, encoded, oracle

import vaespec
from vaespec import (
    InputError,
)


@each_backend
@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((3, 8, 8)), r"images of shape \(3, 8, 8\): expected \(B, 3, height, width\)"),
        (np.zeros((1, 1, 3, 8, 8)), r"images of shape \(1, 1, 3, 8, 8\)"),
        (np.float64(1.0), "images"),
        (np.zeros((1, 4, 8, 8)), r"images of shape \(1, 4, 8, 8\): expected 3 channels, got 4\.$"),
        (np.zeros((1, 8, 8, 3)), r"expected 3 channels, got 8 \(channels come before height and width\)"),
        (np.zeros((1, 3, 8, 8), np.uint8), r"images of dtype uint8: expected floats in \[-1, 1\].*x / 127.5 - 1"),
        (np.zeros((1, 3, 8, 8), bool), "images of dtype bool"),
        (np.zeros((1, 3, 8, 8), complex), "images of dtype complex128"),
        (np.zeros((1, 3, 8, 8), object), "images of dtype object"),
        (np.zeros((1, 3, 1, 8)), "images of 1 x 8: expected at least 2 x 2"),
        (np.zeros((1, 3, 8, 0)), "images of 8 x 0: expected at least 2 x 2"),
        (np.zeros((0, 3, 8, 8)), r"images of shape \(0, 3, 8, 8\): the batch is empty"),
        ([], "images are a list: expected an array"),
        ([np.zeros((3, 8, 8))], "images are a list: expected an array"),
        (None, "images are a NoneType"),
        ("cat.png", "images are a str"),
        (torch.zeros(3, 8, 8), r"images of shape \(3, 8, 8\)"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.int64), "images of dtype .*int64"),
    ],
)
def test_images_that_do_not_fit_are_refused_in_words(backend, x, words):
    with pytest.raises(InputError, match=words):
        tiny(backend).encode(x)


@each_backend
@pytest.mark.parametrize(
    ("z", "words"),
    [
        (np.zeros((4, 8, 8)), r"latents of shape \(4, 8, 8\): expected \(B, 4, height, width\)"),
        (np.zeros((1, 3, 8, 8)), "expected 4 channels, got 3"),
        (np.zeros((1, 8, 8, 4)), "channels come before height and width"),
        (np.zeros((1, 4, 0, 8)), "latents of 0 x 8: expected at least 1 x 1"),
        (np.zeros((0, 4, 8, 8)), "the batch is empty"),
        ([], "latents are a list"),
    ],
)
def test_latents_that_do_not_fit_are_refused_in_words(backend, z, words):
    vae = tiny(backend)
    for decode in (vae.decode, vae.decode_latents):
        with pytest.raises(InputError, match=words):
            decode(z)


@each_backend
def test_integer_latents_are_refused_without_talk_of_pixels(backend):
    with pytest.raises(InputError, match="latents of dtype int64: expected floats") as caught:
        tiny(backend).decode(np.zeros((1, 4, 2, 2), np.int64))
    assert "127.5" not in str(caught.value)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16"])
@each_backend
def test_arrays_of_either_framework_may_enter_either_backend(backend, dtype):
    """The model rounds its input at most to float32."""
    vae = tiny(backend)
    x = images(TINY, 8, 12).astype(getattr(ml_dtypes, dtype, dtype))
    expected = array(vae.encode(x.astype(np.float32)).latent_dist.parameters)
    tensor = torch.tensor(x.astype(np.float64)).to(getattr(torch, dtype))
    for given in (x, tensor):
        np.testing.assert_array_equal(array(vae.encode(given).latent_dist.parameters), expected)


def test_a_tensor_with_a_gradient_is_not_cut_off_silently():
    with pytest.raises(InputError, match=r"images on cpu cannot be read as an array .*requires grad"):
        tiny("numpy").encode(torch.zeros((1, 3, 8, 8), requires_grad=True))


@each_backend
def test_arrays_of_the_other_framework_may_be_latents(backend):
    vae, z = tiny(backend), uniform("z", (1, 4, 2, 3)).astype(np.float32)
    np.testing.assert_array_equal(array(vae.decode(torch.tensor(z)).sample), array(vae.decode(z).sample))


@each_backend
def test_strides_do_not_matter(backend):
    vae = model(backend=backend)
    big = images(CONFIGS["sd"], 40, 36, batch=4)
    nhwc = np.ascontiguousarray(big.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    flipped = big[::-1, ::-1, ::-1, ::-1]
    for x in (nhwc, flipped, big[::2, :, 3:19, 1::2], np.asfortranarray(big), np.broadcast_to(big[:1], big.shape)):
        assert not x.flags.c_contiguous
        expected = array(vae.encode(x.copy(order="C")).latent_dist.parameters)
        assert relative_l2(array(vae.encode(x).latent_dist.parameters), expected) <= EXACT[vae.dtype]
    tensor = torch.tensor(big).permute(0, 1, 3, 2)[:, :, 2:34:2]
    expected = array(vae.encode(tensor.contiguous()).latent_dist.parameters)
    assert relative_l2(array(vae.encode(tensor).latent_dist.parameters), expected) <= EXACT[vae.dtype]


@each_backend
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "1", "CMYK"])
def test_pictures_of_any_mode_are_images(backend, mode):
    pixels = np.rint(uniform("pixels", (16, 24, 3), 0, 255)).astype(np.uint8)
    picture = Image.fromarray(pixels).convert(mode)
    vae = tiny(backend)
    x = np.asarray(picture.convert("RGB")).transpose(2, 0, 1)[None] / np.float32(127.5) - np.float32(1)
    expected = array(vae.encode(x.astype(np.float32)).latent_dist.mean)
    np.testing.assert_array_equal(array(vae.encode(picture).latent_dist.mean), expected)
    both = array(vae.encode([picture, picture]).latent_dist.mean)
    np.testing.assert_allclose(both, np.concatenate([expected] * 2), rtol=1e-4, atol=1e-5)


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(InputError, match=r"pictures of sizes \[\(8, 8\), \(9, 8\)\] in one batch"):
        tiny().encode([Image.new("RGB", (9, 8)), Image.new("RGB", (8, 8))])


def test_a_picture_is_refused_by_a_model_of_other_channels():
    with pytest.raises(InputError, match="expected 6 channels, got 3"):
        tiny(config=CONFIGS["six-channel-images"]).encode(Image.new("RGB", (8, 8)))


@each_backend
@pytest.mark.parametrize(("height", "width"), [(8, 8), (8, 1000), (1000, 8), (15, 23)])
def test_images_in_images_out(backend, height, width):
    vae, x = model(backend=backend, dtype="float32"), images(CONFIGS["sd"], height, width)
    posterior = vae.encode(x).latent_dist
    assert tuple(posterior.mean.shape) == (1, 4, height // 8, width // 8)
    pictures = vae.decode(posterior.mode()).sample
    assert tuple(pictures.shape) == (1, 3, height // 8 * 8, width // 8 * 8)
    mean, _ = encoded(oracle("sd")[0], x)
    assert relative_l2(array(posterior.mean), mean) <= EXACT["float32"]
    assert relative_l2(array(pictures), decoded(oracle("sd")[0], array(posterior.mean))) <= EXACT["float32"]


@each_backend
@pytest.mark.parametrize("name", ["sd", "a-group-per-channel", "kl-f32", "one-level"])
def test_one_latent_makes_an_image(backend, name):
    config = CONFIGS[name]
    z, f = uniform("z", (1, config.latent_channels, 1, 1)), config.downsampling_factor
    vae = model(name, backend)
    pictures = array(vae.decode(z).sample)
    assert pictures.shape == (1, config.out_channels, f, f)
    expected = array(model(name, "numpy").decode(z).sample)
    assert relative_l2(pictures, expected) <= EXACT[vae.dtype]


class Broken:
    """An array in name only."""

    def __array__(self, *args, **kwargs):
        raise KeyError("gone")


@pytest.mark.parametrize(
    ("images", "words"),
    [
        (np.ma.masked_array(np.zeros((1, 3, 16, 16), np.float32), mask=True), "images are a masked array: give all"),
        (Broken(), "images cannot be read as an array .*gone"),
    ],
    ids=["masked", "broken"],
)
def test_what_only_resembles_an_array_is_refused(images, words):
    with pytest.raises(InputError, match=words):
        vaespec.load("tiny", backend="numpy").encode(images)
