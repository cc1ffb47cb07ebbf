"""Pictures are read in the channels of the model and in the depth of their files."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps
from support.configs import narrow
from support.picture_files import drawing, tiff
from support.png import GREY, GREY_ALPHA, RGB, RGBA, png

import vaespec
from vaespec import InputError
from vaespec.pictures import Pixels, SquaredError, as_pixels, psnr, reading_bytes, to_array, to_pixels
from vaespec.pictures.values import scaled, with_channels

RNG = np.random.default_rng(0)
COLOURS = {1: GREY, 2: GREY_ALPHA, 3: RGB, 4: RGBA}
WHITE = {"uint8": 255, "uint16": 65535, "float32": 1}


def opened(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def as_rgba(samples: np.ndarray) -> np.ndarray:
    """Samples (H, W, 1 to 4) with every channel, by hand."""
    colours, alpha = (samples[..., :-1], samples[..., -1:]) if samples.shape[2] in (2, 4) else (samples, None)
    rgb = colours.repeat(3, axis=2) if colours.shape[2] == 1 else colours
    opaque = np.full_like(rgb[..., :1], WHITE[samples.dtype.name])
    return np.concatenate((rgb, opaque if alpha is None else alpha), axis=2)


# -- channels ----------------------------------------------------------------------------------------------------

MODES = ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")


def every_mode(mode: str) -> Image.Image:
    via = {"PA": "P", "La": "LA", "RGBa": "RGBA", "LAB": "RGB"}.get(mode)
    return drawing(via).convert(mode) if via else drawing(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_picture_of_any_mode_has_as_many_channels_as_the_model(mode):
    picture = every_mode(mode)
    grey, rgb, rgba = (as_pixels(picture, channels) for channels in (1, 3, 4))
    assert [a.shape for a in (grey, rgb, rgba)] == [(16, 24, channels) for channels in (1, 3, 4)]
    np.testing.assert_array_equal(grey[..., 0], np.asarray(Image.fromarray(rgb).convert("L")))
    straight = picture.convert({"La": "LA", "LAB": "RGB"}.get(mode, mode))
    np.testing.assert_array_equal(rgba, np.asarray(straight.convert("RGBA")))
    on_white = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), Image.fromarray(rgba)).convert("RGB")
    np.testing.assert_array_equal(rgb, np.asarray(on_white))


def test_a_palette_with_a_transparent_index_keeps_it_in_four_channels():
    indices = np.array([[0, 1], [2, 1]], np.uint8)
    picture = Image.fromarray(indices).convert("P")
    picture.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=1)
    assert as_pixels(opened(file.getvalue()), 4)[..., 3].tolist() == [[255, 0], [255, 0]]


def model(in_channels: int, out_channels: int | None = None) -> vaespec.AutoencoderKL:
    config = narrow((8, 8), latent_channels=2, in_channels=in_channels, out_channels=out_channels or in_channels)
    return vaespec.AutoencoderKL.from_config(config, backend="numpy")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_a_model_takes_pictures_in_its_channels(channels):
    vae, picture = model(channels), drawing("RGBA")
    x = {1: "L", 3: "RGB", 4: "RGBA"}[channels]
    laid = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    values = np.asarray((picture if channels == 4 else laid.convert("RGB")).convert(x)).reshape(16, 24, channels)
    images = (values.transpose(2, 0, 1)[None] / np.float32(127.5) - 1).astype(np.float32)
    expected = vae.encode(images).latent_dist.mean
    for pictures in (picture, [picture]):
        np.testing.assert_array_equal(vae.encode(pictures).latent_dist.mean, expected)
    if channels == 4:
        assert (images[:, 3].min(), images[:, 3].max()) != (1, 1)


def test_pictures_with_and_without_alpha_are_one_batch():
    x = to_array([drawing("RGBA"), drawing("RGB"), drawing("L")], 4)
    assert x.shape == (3, 4, 16, 24)
    assert (x[1:, 3] == 1).all()


# -- 16 bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize("samples", COLOURS)
def test_a_png_of_16_bits_keeps_every_bit(samples, interlaced):
    values = RNG.integers(0, 65536, (9, 11, samples)).astype(np.uint16)
    content = png(values, 16, COLOURS[samples], interlaced)
    pixels = as_pixels(opened(content), 4)
    assert pixels.dtype == np.uint16
    np.testing.assert_array_equal(pixels, as_rgba(values))
    x = to_array([opened(content)], 4)
    np.testing.assert_array_equal(x, as_rgba(values).transpose(2, 0, 1)[None] / np.float32(32767.5) - 1)


@pytest.mark.parametrize("samples", [1, 3])
def test_only_the_colour_that_is_transparent_in_all_16_bits_is(samples):
    values = RNG.integers(0, 65536, (9, 11, samples)).astype(np.uint16)
    values[0, :4] = key = values[5, 5]
    values[1, :4] = key ^ 1  # with the same upper byte
    tRNS = key.astype(">u2").tobytes()
    alpha = as_pixels(opened(png(values, 16, COLOURS[samples], tRNS=tRNS)), 4)[..., 3]
    np.testing.assert_array_equal(alpha == 0, (values == key).all(axis=2))


def test_16_bits_are_laid_on_white_and_made_grey_in_16_bits():
    values = RNG.integers(0, 65536, (9, 11, 4)).astype(np.uint16)
    colours, alpha = values[..., :3].astype(float), values[..., 3:] / 65535
    laid = np.rint(colours * alpha + 65535 * (1 - alpha))
    content = png(values, 16, RGBA)
    np.testing.assert_array_equal(as_pixels(opened(content), 3), laid)
    assert np.abs(as_pixels(opened(content), 1)[..., 0] - laid @ [0.299, 0.587, 0.114]).max() <= 1


def test_the_values_of_8_bits_are_the_same_in_16():
    every = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(Pixels.of(every)[...], Pixels.of(every.astype(np.uint16) * 257)[...])
    np.testing.assert_array_equal(scaled(every.astype(np.uint16) * 257, np.dtype(np.uint8)), every)


def test_pictures_of_different_depths_are_one_batch_in_the_greatest():
    deep = RNG.integers(0, 65536, (16, 24, 3)).astype(np.uint16)
    both = to_array([drawing(), opened(png(deep, 16, RGB))])
    np.testing.assert_array_equal(both[:1], to_array([drawing()]))
    np.testing.assert_array_equal(both[1:], Pixels.of(deep)[...])


def test_a_picture_that_was_read_before_is_taken_as_pillow_has_it():
    picture = opened(png(RNG.integers(0, 65536, (9, 11, 3)), 16, RGB))
    picture.load()
    assert as_pixels(picture).dtype == np.uint8


def test_a_picture_is_left_as_it_was_and_can_be_read_again():
    picture = opened(png(RNG.integers(0, 65536, (9, 11, 3)), 16, RGB))
    first, second = as_pixels(picture), as_pixels(picture)
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(np.asarray(picture), np.asarray(first.astype(int) >> 8))  # Pillow's own, of 8 bits


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tiff"])
def test_deep_pictures_are_rotated_as_their_exif_says(tmp_path, orientation, kind):
    values = RNG.integers(0, 65536, (6, 9, 3)).astype(np.uint16)
    if kind == "png":
        exif = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01" + bytes((0, orientation, 0, 0)) + bytes(4)
        picture = opened(png(values, 16, RGB, eXIf=exif))
    else:
        picture = opened(tiff(values, extratags=[(274, 3, 1, orientation, True)]))
    marks = Image.fromarray((values >> 8).astype(np.uint8))
    marks.getexif()[0x0112] = orientation
    np.testing.assert_array_equal(as_pixels(picture) >> 8, np.asarray(ImageOps.exif_transpose(marks)))


# -- TIFF --------------------------------------------------------------------------------------------------------

LAYOUTS = {
    "one strip": {},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 32)},
    "deflated strips": {"rowsperstrip": 5, "compression": "zlib"},
    "deflated tiles of differences": {"tile": (16, 16), "compression": "zlib", "predictor": True},
    "big-endian": {"byteorder": ">", "compression": "zlib"},
}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "picture.tif"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("samples", COLOURS)
@pytest.mark.parametrize("dtype", ["float32", "uint16"])
def test_a_tiff_of_floats_or_16_bits_keeps_every_bit(path, dtype, samples, layout):
    from vaespec.cli.picture_files import read

    values = RNG.integers(0, 65536, (19, 37, samples)).astype(np.uint16)
    if dtype == "float32":
        values = (values / np.float32(40000)).astype(np.float32)  # beyond 1, which is kept
        layout = layout if "predictor" not in layout else {"tile": (16, 16), "compression": "zlib"}
    path.write_bytes(tiff(values, **layout))
    pixels = read(path, 4)
    assert pixels.dtype == dtype
    np.testing.assert_array_equal(pixels, as_rgba(values))


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_floats_of_other_sizes_are_read_as_float32(path, dtype):
    from vaespec.cli.picture_files import read

    values = RNG.random((5, 7, 3)).astype(dtype)
    path.write_bytes(tiff(values))
    np.testing.assert_array_equal(read(path), values.astype(np.float32))


def test_channels_that_are_apart_in_the_file_are_joined(path):
    import tifffile

    from vaespec.cli.picture_files import read

    values = RNG.random((3, 19, 37)).astype(np.float32)
    tifffile.imwrite(path, values, photometric="rgb", planarconfig="separate", rowsperstrip=4)
    np.testing.assert_array_equal(read(path), values.transpose(1, 2, 0))


def test_the_difference_of_floats_is_undone_as_libtiff_does(path):
    """libtiff, in Pillow, reads grey floats; three bands of grey are how it would read colours."""
    from vaespec.cli.picture_files import read

    values = RNG.random((19, 37)).astype(np.float32)
    Image.fromarray(values).save(path, compression="tiff_lzw", tiffinfo={317: 3})
    with Image.open(path) as picture:
        assert picture.tag_v2[317] == 3
        np.testing.assert_array_equal(np.asarray(picture), values)
    np.testing.assert_array_equal(read(path, 1)[..., 0], values)


def test_alpha_that_was_multiplied_into_the_colours_is_divided_out(path):
    import tifffile

    from vaespec.cli.picture_files import read

    values = RNG.uniform(0.1, 1, (5, 7, 4)).astype(np.float32)
    multiplied = np.concatenate((values[..., :3] * values[..., 3:], values[..., 3:]), axis=2)
    tifffile.imwrite(path, multiplied, photometric="rgb", extrasamples=["assocalpha"])
    np.testing.assert_allclose(read(path, 4), values, rtol=1e-6)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.nan, "has NaN or infinite numbers"),
        (np.inf, "has NaN or infinite numbers"),
        (255, "floats up to 255, but 1"),
    ],
)
def test_floats_that_are_no_colours_are_refused(value, message):
    values = np.full((8, 8, 1), value, np.float32)
    with pytest.raises(InputError, match=message):
        to_array([opened(tiff(values))])


def test_floats_from_memory_have_no_known_white():
    """Pillow's own conversion to floats gives 0 to 255, a file of floats has 0 to 1."""
    with pytest.raises(InputError, match="mode 'F' has no known white: give 8 or 16 bits per channel, or an array in"):
        to_array([drawing("L").convert("F")])


# -- back, and figures -------------------------------------------------------------------------------------------


def test_results_have_the_depth_that_was_asked_for():
    x = np.array([-1.5, -1, 0, 1, 1.5], np.float32).reshape(1, 1, 1, 5)
    assert to_pixels(x, "16").ravel().tolist() == [0, 0, 32768, 65535, 65535]
    assert to_pixels(x, "float").ravel().tolist() == [-0.25, 0, 0.5, 1, 1.25]
    assert [to_pixels(x, depth).dtype.name for depth in ("8", "16", "float")] == ["uint8", "uint16", "float32"]
    deep = np.arange(65536, dtype=np.uint16).reshape(1, 256, 256, 1)
    np.testing.assert_array_equal(to_pixels(Pixels.of(deep[0])[...], "16"), deep)


def test_the_ratio_of_two_depths_counts_white_as_one():
    grey = np.full((4, 4, 3), 100, np.uint8)
    deep = grey.astype(np.uint16) * 257
    assert psnr(grey, deep) == psnr(deep, (grey / np.float32(255)).astype(np.float32)) == float("inf")
    assert abs(psnr(deep, (grey + 5).astype(np.uint8)) - 34.1514) < 1e-3
    parts = SquaredError()
    parts.add(grey[:1], grey[:1] + 5)
    parts.add(grey[1:], grey[1:] + 5)
    assert parts.psnr() == psnr(grey, grey + 5)


def test_the_bytes_of_reading_count_the_depth():
    values = RNG.integers(0, 65536, (20, 30, 3)).astype(np.uint16)
    assert reading_bytes(opened(png(values, 16, RGB)), 0, 4) == (4 + 4 + 8) * 600  # two of Pillow's and four channels
    assert reading_bytes(opened(png(values[..., :1], 16, GREY)), 0, 1) == (2 + 2) * 600
    assert reading_bytes(opened(tiff(values, rowsperstrip=20)), 0) == (2 * 12 + 6) * 600


def test_every_alpha_over_every_value_is_pillows_own():
    value, alpha = np.meshgrid(np.arange(256, dtype=np.uint8), np.arange(256, dtype=np.uint8))
    rgba = np.stack([value, value, value, alpha], axis=-1)
    laid = Image.alpha_composite(Image.new("RGBA", (256, 256), "white"), Image.fromarray(rgba)).convert("RGB")
    np.testing.assert_array_equal(with_channels(rgba, 3), np.asarray(laid))
