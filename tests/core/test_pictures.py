"""Pictures become arrays, and arrays pictures, with the colours that a viewer sees."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from support.configs import uniform

from vaespec import InputError
from vaespec.pictures import is_picture, psnr, to_array, to_pixels

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


def test_only_pictures_are_pictures():
    assert is_picture(Image.fromarray(PIXELS))
    assert not any(map(is_picture, (PIXELS, "picture.png", None, Image)))


def test_psnr_by_hand():
    """A difference of 5 everywhere: 10 log₁₀(255² / 25) = 34.151 dB."""
    assert psnr(PIXELS, PIXELS) == float("inf")
    grey = np.full((4, 4, 3), 100, np.uint8)
    assert abs(psnr(grey, grey + 5) - 34.1514) < 1e-4
    assert psnr(grey, grey - 5) == psnr(grey, grey + 5)
