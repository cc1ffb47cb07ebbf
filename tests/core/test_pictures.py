"""Pictures become arrays, and arrays pictures, with the colours that a viewer sees."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.configs import uniform
from support.png import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, png

from vaespec import InputError
from vaespec.pictures import Pixels, as_rgb, header_size, is_picture, psnr, reading_bytes, to_array, to_pixels

PIXELS = np.rint(uniform("pixels", (6, 9, 3), 0, 255)).astype(np.uint8)


def test_every_byte_survives_the_conversion_and_its_inverse():
    every = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    x = to_array([Image.fromarray(every), Image.fromarray(every[::-1].copy())])
    assert x.shape == (2, 3, 16, 16)
    assert (x.dtype, x.min(), x.max()) == (np.float32, -1, 1)
    np.testing.assert_array_equal(to_pixels(x), np.stack([every, every[::-1]]))


def test_values_beyond_the_range_are_clipped_then_rounded():
    x = np.array([-7.0, -1.0, 0.0, 0.0039, 0.0040, 1.0, 99.0], np.float32).reshape(1, 1, 1, 7)
    assert to_pixels(x).ravel().tolist() == [0, 0, 128, 128, 128, 255, 255]


def test_transparent_pixels_are_white():
    alpha = np.zeros((6, 9, 1), np.uint8)
    alpha[:, 4:] = 255
    (x,) = to_array([Image.fromarray(np.concatenate((PIXELS, alpha), axis=2))])
    assert (x[:, :, :4] == 1).all()
    np.testing.assert_array_equal(to_pixels(x[None])[0, :, 4:], PIXELS[:, 4:])


def test_grey_values_of_sixteen_bits_are_scaled_not_clipped():
    grey = np.array([[0, 257, 32896, 65535]], np.uint16)
    x = to_array([Image.fromarray(grey)])
    assert to_pixels(x)[0, 0, :, 0].tolist() == [0, 1, 128, 255]


def test_a_picture_is_rotated_as_its_exif_says(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise
    Image.fromarray(PIXELS).save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        np.testing.assert_array_equal(to_pixels(to_array([picture]))[0], np.rot90(PIXELS, -1))


def test_floating_point_pictures_are_refused():
    with pytest.raises(InputError, match="mode 'F' has no known white: give 8 or 16 bits per channel"):
        to_array([Image.fromarray(np.zeros((4, 4), np.float32))])


def test_pictures_of_32_bits_are_refused_since_their_white_may_be_255_or_65535():
    with pytest.raises(InputError, match="mode 'I' has no known white"):
        to_array([Image.fromarray(np.zeros((4, 4), np.int32))])


@pytest.mark.parametrize("content", [b"P5 4 1 65535\n\0\0\1\1\x80\x80\xff\xff", b"P2 4 1 65535\n0 257 32896 65535"])
def test_a_pgm_of_16_bits_is_scaled_as_its_header_says(content):
    with Image.open(io.BytesIO(content)) as picture:
        assert picture.mode == "I"
        assert to_pixels(to_array([picture]))[0, 0, :, 0].tolist() == [0, 1, 128, 255]


def test_only_pictures_are_pictures():
    assert is_picture(Image.fromarray(PIXELS))
    assert not any(map(is_picture, (PIXELS, "picture.png", None, Image)))


def test_psnr_by_hand():
    """A difference of 5 everywhere: 10 log₁₀(255² / 25) = 34.151 dB."""
    assert psnr(PIXELS, PIXELS) == float("inf")
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert abs(psnr(grey, grey + 5) - 34.1514) < 1e-4
    assert psnr(grey, grey - 5) == psnr(grey, grey + 5)


# -- orientation -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows_own(tmp_path, orientation, suffix):
    """Pillow turns a TIFF while it reads the pixels, and other formats not."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=exif, **({"quality": 95} if suffix != "tif" else {}))
    with Image.open(path) as picture, Image.open(path) as same:
        same.load()
        expected = np.asarray(ImageOps.exif_transpose(same).convert("RGB"))
        header = header_size(picture)
        rgb = as_rgb(picture)
    np.testing.assert_array_equal(rgb, expected)
    assert header == rgb.shape[:2]
    assert rgb.shape[:2] == ((9, 6) if orientation > 4 else (6, 9))


DAMAGED_EXIF = {
    "no header of a TIFF": b"Exif\0\0M]\0*\0\0\0\x08\0\0",
    "entries cut short": b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30,
    "one byte": b"Exif\0\0I",
    "an offset beyond the end": b"Exif\0\0II*\0\xff\xff\xff\x7f",
    "an orientation of 77": b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x4d\0\0\0\0\0\0\0",
}


@pytest.mark.parametrize("exif", DAMAGED_EXIF.values(), ids=DAMAGED_EXIF)
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_a_picture_with_damaged_exif_is_read_upright_and_without_a_warning(tmp_path, exif, suffix, recwarn):
    path = tmp_path / f"odd.{suffix}"
    Image.fromarray(PIXELS).save(path, exif=exif)
    with Image.open(path) as picture:
        recwarn.clear()  # of opening it, which is the caller's
        assert Pixels([picture]).shape == (1, 3, 6, 9)
        assert header_size(picture) == (6, 9)
    assert not recwarn.list


# -- transparency, by hand ---------------------------------------------------------------------------------------

RNG = np.random.default_rng(0)


def shown(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as picture:
        return as_rgb(picture).astype(int)


def with_key(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values, with more pixels that equal the one at (5, 5), and that one."""
    values[0, :4] = values[5, 5]
    return values, values[5, 5]


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_grey_that_is_transparent_is_white(depth):
    grey, key = with_key(RNG.integers(0, 2**depth, (9, 11, 1)))
    content = png(grey, depth, GREY, tRNS=int(key[0]).to_bytes(2, "big"))
    expected = np.where(grey == key, 255, np.rint(grey * 255 / (2**depth - 1)))
    np.testing.assert_array_equal(shown(content), np.repeat(expected, 3, axis=2))


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_that_is_transparent_is_white(depth):
    colours, key = with_key(RNG.integers(0, 2**depth, (9, 11, 3)))
    content = png(colours, depth, RGB, tRNS=key.astype(">u2").tobytes())
    expected = np.where((colours == key).all(axis=2, keepdims=True), 255, colours * 255 / (2**depth - 1))
    assert np.abs(shown(content) - expected).max() <= (0 if depth == 8 else 1)  # Pillow takes the upper byte of 16 bits


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("colour", "channels"), [(GREY_ALPHA, 1), (RGBA, 3)])
def test_an_alpha_channel_is_laid_on_white(depth, colour, channels):
    values = RNG.integers(0, 2**depth, (9, 11, channels + 1))
    alpha = values[..., -1:] / (2**depth - 1)
    expected = np.rint(values[..., :-1] * 255 / (2**depth - 1) * alpha + 255 * (1 - alpha))
    assert np.abs(shown(png(values, depth, colour)) - expected).max() <= (0 if depth == 8 else 1)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("alphas", ["one index", "an alpha for each"])
def test_a_palette_with_transparency_is_laid_on_white(depth, alphas):
    palette, indices = RNG.integers(0, 256, (2**depth, 3)), RNG.integers(0, 2**depth, (9, 11, 1))
    alpha = np.full(2**depth, 255)
    alpha[1] = 0
    if alphas == "an alpha for each":
        alpha[:-1] = RNG.integers(1, 255, 2**depth - 1)
    content = png(
        indices, depth, PALETTE, PLTE=palette.astype(np.uint8).tobytes(), tRNS=alpha.astype(np.uint8).tobytes()
    )
    a = alpha[indices] / 255
    np.testing.assert_array_equal(shown(content), np.rint(palette[indices[..., 0]] * a + 255 * (1 - a)))


@pytest.mark.parametrize("mode", ["La", "LA", "RGBa", "RGBA", "PA"])
def test_every_mode_with_alpha_is_laid_on_white(mode):
    assert (as_rgb(Image.new(mode, (3, 2))) == 255).all()


# -- damage and memory -------------------------------------------------------------------------------------------


def test_a_damaged_picture_is_an_input_error_from_python_too(tmp_path):
    Image.fromarray(np.tile(PIXELS, (20, 20, 1))).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    half = Image.open(io.BytesIO(content[: len(content) // 2]))
    with half, pytest.raises(InputError, match="the input is a damaged picture"):
        Pixels([half])


@pytest.mark.parametrize(
    ("mode", "suffix", "least"),
    [("1", "png", 4), ("L", "png", 4), ("RGB", "png", 7), ("RGBA", "png", 7), ("RGB", "webp", 16), ("RGB", "jp2", 19)],
)
def test_the_bytes_of_reading_count_the_picture_the_decoder_and_the_copy(tmp_path, mode, suffix, least):
    Image.new(mode, (30, 20)).save(tmp_path / f"picture.{suffix}")
    with Image.open(tmp_path / f"picture.{suffix}") as picture:
        assert reading_bytes(picture, 0) == least * 600


def test_a_compressed_tiff_is_in_memory_while_it_is_decoded(tmp_path):
    Image.new("RGB", (30, 20)).save(tmp_path / "lzw.tif", compression="tiff_lzw")
    with Image.open(tmp_path / "lzw.tif") as picture:
        assert reading_bytes(picture, 5000) == 4 * 600 + 5000


def test_pixels_that_were_read_are_not_copied():
    assert np.shares_memory(Pixels.of(PIXELS).values, PIXELS)
    np.testing.assert_array_equal(Pixels.of(PIXELS)[...], to_array([Image.fromarray(PIXELS)]))
