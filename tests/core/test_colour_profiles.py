"""Embedded colour profiles (ICC) are converted to sRGB, or a sentence says why not."""

from __future__ import annotations

import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from support import colour_profiles
from support.colour_profiles import encoded_srgb, grey_profile, in_srgb, rgb_profile, table_profile
from support.picture_files import tiff
from support.png import GREY, RGB, png

from vaespec import InputError
from vaespec.pictures import PictureWarning, as_pixels, profiles, reading, to_array

RNG = np.random.default_rng(0)
VALUES = RNG.integers(0, 256, (40, 50, 3), dtype=np.uint8)
WIDE = rgb_profile("Adobe RGB (1998)")


def stored(values: np.ndarray | Image.Image, profile: bytes, kind: str = "PNG", **options: object) -> Image.Image:
    file, picture = io.BytesIO(), values if isinstance(values, Image.Image) else Image.fromarray(values)
    picture.save(file, kind, icc_profile=profile, **options)
    return Image.open(file)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("name", ["Adobe RGB (1998)", "Display P3"])
def test_colours_are_converted_to_srgb_as_the_published_numbers_say(name, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = as_pixels(stored(VALUES, rgb_profile(name), kind, **options))
    expected = in_srgb(name, VALUES / 255) * 255
    assert np.abs(pixels - expected).max() < 1
    assert np.abs(VALUES - expected).max() > 20


SRGB = {
    "by hand": rgb_profile("sRGB"),
    "littlecms": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}


@pytest.mark.parametrize("profile", SRGB.values(), ids=SRGB)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_profile_that_is_srgb_changes_no_pixel(profile, channels):
    every = np.concatenate((VALUES, np.arange(256, dtype=np.uint8)[:250].reshape(5, 50, 1).repeat(3, axis=2)))
    np.testing.assert_array_equal(
        as_pixels(stored(every, profile), channels), as_pixels(Image.fromarray(every), channels)
    )


def test_16_bits_in_srgb_keep_their_depth():
    values = RNG.integers(0, 65536, (9, 11, 3)).astype(np.uint16)
    chunk = b"x\0\0" + zlib.compress(rgb_profile("sRGB"))
    np.testing.assert_array_equal(as_pixels(Image.open(io.BytesIO(png(values, 16, RGB, iCCP=chunk)))), values)


def test_alpha_is_not_converted():
    rgba = np.dstack((VALUES, VALUES[..., :1]))
    pixels = as_pixels(stored(rgba, WIDE), 4)
    np.testing.assert_array_equal(pixels[..., 3], rgba[..., 3])
    np.testing.assert_array_equal(pixels[..., :3], as_pixels(stored(VALUES, WIDE)))


@pytest.mark.parametrize("mode", ["L", "LA"])
def test_greys_are_converted_by_a_profile_of_greys(mode):
    grey = Image.fromarray(VALUES[..., 0]).convert(mode)
    expected = encoded_srgb(VALUES[..., 0] / 255) * 255
    for channels in (1, 3, 4):
        pixels = as_pixels(stored(grey, grey_profile(1.0)), channels)
        assert np.abs(pixels[..., 0] - expected).max() < 1


def test_greys_are_converted_by_a_profile_of_colours_too():
    grey = as_pixels(stored(VALUES[..., 0], WIDE), 1)[..., 0]
    expected = in_srgb("Adobe RGB (1998)", VALUES[..., :1].repeat(3, axis=2) / 255)[..., 0] * 255
    assert np.abs(grey - expected).max() < 1.5


def test_a_palette_is_converted():
    indexed = Image.fromarray(VALUES).quantize(16)
    pixels = as_pixels(stored(indexed, WIDE))
    expected = in_srgb("Adobe RGB (1998)", np.asarray(indexed.convert("RGB")) / 255) * 255
    assert np.abs(pixels - expected).max() < 1


def test_inks_are_converted_by_the_profile_of_their_press():
    corners = np.tile([20.0, 0.0, 0.0], (16, 1))
    corners[0], corners[8] = [100, 0, 0], [50, 0, 0]  # paper, and full cyan, which this press prints as grey
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[2:, :, 0] = 255
    pixels = as_pixels(stored(Image.fromarray(inks, "CMYK"), table_profile(b"CMYK", corners), "TIFF"))
    light = ((50 + 16) / 116) ** 3  # of L* = 50
    assert (pixels[:2] == 255).all()
    assert np.abs(pixels[2:] - encoded_srgb(np.array(light)) * 255).max() <= 2


BAD = {
    "no profile": (b"junk", "is damaged"),
    "cut": (WIDE[:200], "is damaged"),
    "without a curve": (WIDE.replace(b"rTRC", b"xTRC"), "is damaged"),
    "of greys": (grey_profile(1.8), "is for GRAY pictures, and this one is RGB"),
    "of inks": (table_profile(b"CMYK", np.zeros((16, 3))), "is for CMYK pictures, and this one is RGB"),
    "of a link between devices": (WIDE.replace(b"mntr", b"link"), "is one of class 'link' for 'RGB'"),
    "of another space": (WIDE.replace(b"RGB ", b"HSV "), "is one of class 'mntr' for 'HSV'"),
    "large": (WIDE + bytes(profiles.LARGEST), r"has 4,\d+,\d+ bytes, over 4,194,304"),
}


@pytest.mark.parametrize(("profile", "words"), BAD.values(), ids=BAD)
def test_a_profile_that_cannot_be_used_is_told_and_the_pixels_are_as_they_are(profile, words):
    picture = stored(VALUES, profile, "TIFF")
    with pytest.warns(PictureWarning, match=f"the picture's colour profile {words}.*: its colours are taken as sRGB.$"):
        np.testing.assert_array_equal(as_pixels(picture), VALUES)


def test_damaged_profiles_never_raise_anything_else():
    for i in range(60):
        damaged = bytearray(WIDE)
        for place in RNG.integers(0, len(WIDE), 4):
            damaged[place] = RNG.integers(256)
        pixels = as_pixels(stored(VALUES[:2], bytes(damaged)), 3, lambda line: None)
        assert (pixels.shape, pixels.dtype) == ((2, 50, 3), np.uint8), i


def test_a_profile_that_is_a_bomb_is_refused_in_bounded_memory():
    bomb = png(VALUES, 8, RGB, iCCP=b"x\0\0" + zlib.compress(bytes(20 << 20)))
    tracemalloc.start()
    with pytest.raises(InputError, match="is a damaged picture"), reading("it"):
        Image.open(io.BytesIO(bomb))
    assert tracemalloc.get_traced_memory()[1] < 8 << 20
    tracemalloc.stop()


def test_a_pillow_without_littlecms_is_told(monkeypatch):
    class Missing:
        def __getattr__(self, name):
            raise ImportError("no _imagingcms")

    monkeypatch.setattr(ImageCms, "core", Missing())
    with pytest.warns(PictureWarning, match="needs Pillow's ImageCms, which this Pillow was built without"):
        np.testing.assert_array_equal(as_pixels(stored(VALUES, WIDE)), VALUES)


def deep(kind: str, profile: bytes, channels: int = 3) -> tuple[Image.Image, np.ndarray]:
    """A picture of 16 bits or floats with a profile, and its values from 0 to 1."""
    values = RNG.integers(0, 65536, (9, 11, channels)).astype(np.uint16)
    if kind == "16 bits":
        content = png(values, 16, RGB if channels == 3 else GREY, iCCP=b"x\0\0" + zlib.compress(profile))
    else:
        channels = 1  # floats of three channels are no picture of Pillow's
        floats = (values[..., :1] / np.float32(65535)).astype(np.float32)
        content = tiff(floats, extratags=[(34675, 7, len(profile), profile, True)])
    return Image.open(io.BytesIO(content)), values[..., :channels] / 65535


@pytest.mark.parametrize("name", ["Adobe RGB (1998)", "Display P3"])
@pytest.mark.parametrize("kind", ["16 bits", "floats"])
def test_deep_pictures_are_converted_in_their_depth(kind, name):
    picture, values = deep(kind, rgb_profile(name))
    pixels = as_pixels(picture)
    white = {"16 bits": 65535, "floats": 1}[kind]
    assert pixels.dtype == {"16 bits": np.uint16, "floats": np.float32}[kind]
    expected = in_srgb(name, np.broadcast_to(values, pixels.shape))
    assert np.abs(pixels / white - expected).max() < 2e-3  # half a step of 255, as profiles have 16 bits


def test_primaries_of_srgb_mix_no_deep_colours():
    exchanged = SRGB["littlecms"].replace(b"rXYZ", b"    ").replace(b"gXYZ", b"rXYZ").replace(b"    ", b"gXYZ", 1)
    picture, values = deep("16 bits", exchanged)
    assert np.abs(as_pixels(picture) - values[..., [1, 0, 2]] * 65535).max() <= 1


def test_deep_greys_are_converted_in_their_depth():
    picture, values = deep("16 bits", grey_profile(1.8), channels=1)
    np.testing.assert_allclose(as_pixels(picture, 1) / 65535, encoded_srgb(values ** (461 / 256)), atol=1e-4)


PARAMETERS = [
    (1.8,),
    (2.2, 0.9, 0.1),
    (2.0, 0.8, 0.1, 0.1),
    (3.0, 0.95, 0.05, 0.08, 0.2),
    (2.0, 0.9, 0.0, 0.7, 0.2, 0.02, -0.0876),
]
CURVES = {
    "a table": b"curv" + bytes(4) + struct.pack(">I4H", 4, 0, 9000, 30000, 65535),
    "a line": b"curv" + bytes(8),
    **{f"type {kind}": colour_profiles.parametric(kind, *values) for kind, values in enumerate(PARAMETERS)},
}


@pytest.mark.parametrize("curve", CURVES.values(), ids=CURVES)
def test_curves_of_every_kind_are_those_of_littlecms(curve):
    whole = rgb_profile("sRGB", curve)
    eight = as_pixels(stored(VALUES, whole))
    content = png(VALUES.astype(int) * 257, 16, RGB, iCCP=b"x\0\0" + zlib.compress(whole))
    deep = as_pixels(Image.open(io.BytesIO(content)))
    assert np.abs(eight - deep / 257).max() < 1.1
    assert np.abs(eight.astype(int) - VALUES).max() > 5


@pytest.mark.parametrize("kind", ["16 bits", "floats"])
def test_a_deep_picture_that_is_converted_by_a_table_has_8_bits_and_it_is_told(kind):
    corners = np.array([[L, 0, 0] for L in (0, 30, 60, 70, 20, 50, 80, 100)], float)
    picture, _ = deep(kind, table_profile(b"RGB ", corners, b"mntr"))
    with pytest.warns(PictureWarning, match=f"the picture's {kind} became 8 bits"):
        pixels = as_pixels(picture)
    assert pixels.dtype == np.uint8


def test_the_api_converts_too_and_warns():
    converted = Image.fromarray(as_pixels(stored(VALUES, WIDE)))
    np.testing.assert_array_equal(to_array([stored(VALUES, WIDE)]), to_array([converted]))
    with pytest.warns(PictureWarning, match="is damaged"):
        to_array([stored(VALUES, b"junk")])


def test_the_profiles_of_these_tests_are_valid():
    for name in colour_profiles.PRIMARIES:
        found = ImageCms.ImageCmsProfile(io.BytesIO(rgb_profile(name))).profile
        assert found.is_matrix_shaper
        np.testing.assert_allclose(np.array(found.red_primary[1][:2]), colour_profiles.PRIMARIES[name][0], atol=0.02)
