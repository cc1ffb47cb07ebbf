"""Pictures on the command line in the channels of the model, and with --depth."""

from __future__ import annotations

import io
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import skimage.io
import tifffile
from PIL import Image
from safetensors.numpy import load_file
from support.colour_profiles import rgb_profile
from support.configs import narrow
from support.picture_files import drawing, tiff
from support.png import RGB, png
from support.workplace import MODEL, error, files, picture, pixels, run, saved, vae

from vaespec import InputError
from vaespec.cli import picture_files
from vaespec.cli.picture_writing import Depth, require_room, write_rows
from vaespec.pictures import Pixels, to_pixels

RNG = np.random.default_rng(0)
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def model(in_channels: int, out_channels: int | None = None) -> tuple[str, ...]:
    """The options of a saved model."""
    config = narrow((8, 8), latent_channels=2, in_channels=in_channels, out_channels=out_channels or in_channels)
    saved(config, Path("weights-of-channels"))
    return ("--weights", "weights-of-channels", "--backend", "numpy")


@pytest.mark.parametrize("channels", MODES)
def test_pictures_go_in_and_come_out_in_the_channels_of_the_model(channels):
    options = model(channels)
    drawing("RGBA").save("cat.png")
    run("encode", "cat.png", *options)
    run("decode", "latents.safetensors", *options)
    run("roundtrip", "cat.png", "--output", "trip", *options)
    ours = vae("weights-of-channels")
    expected = to_pixels(ours(drawing("RGBA"))[0])[0]
    for name in ("cat-vae.png", "trip/cat-vae.png"):
        with Image.open(name) as written:
            assert written.mode == MODES[channels]
            assert np.abs(np.asarray(written).reshape(expected.shape).astype(int) - expected).max() <= 1
    run("compare", "cat.png", "--tiling", *options)
    assert pixels("vaespec-tiling.png").shape[2] == 3


@pytest.mark.parametrize(("in_channels", "out_channels"), [(4, 3), (3, 4), (1, 3)])
def test_a_roundtrip_of_other_channels_is_compared_with_the_picture_in_them(in_channels, out_channels):
    options = model(in_channels, out_channels)
    drawing("RGBA").save("cat.png")
    row = json.loads(run("roundtrip", "cat.png", "--json", *options).stdout)["pictures"][0]
    original = picture_files.read(Path("cat.png"), out_channels).astype(float)
    error_of_pixels = np.mean((pixels("cat-vae.png") - original) ** 2)
    assert row["psnr"] == pytest.approx(10 * np.log10(255**2 / error_of_pixels))


@pytest.mark.parametrize("command", ["encode", "roundtrip", "compare"])
def test_other_channels_than_those_of_pictures_are_refused_before_any_work(command):
    options = model(2)
    picture("cat.png")
    words = "2 channels in and 2 out, but pictures have 3, or 1 (grey) or 4 (with alpha): use the Python API"
    assert words in error(command, "cat.png", *options, *(["--tiling"] if command == "compare" else []))


def test_decoding_needs_only_the_channels_that_come_out():
    run("encode", picture("cat.png", 16, 16), *model(3, 2))
    assert "3 channels in and 2 out, but pictures have" in error("decode", "latents.safetensors", *model(3, 2))
    run("decode", "latents.safetensors", *model(2, 3))


# -- depth -------------------------------------------------------------------------------------------------------

READERS = {"16": lambda path: skimage.io.imread(path), "float": lambda path: tifffile.imread(path)}


@pytest.mark.parametrize("depth", READERS)
@pytest.mark.parametrize("channels", MODES)
def test_results_are_written_in_the_depth_that_is_asked_for(channels, depth):
    options, suffix = model(channels), Depth(depth).suffix
    picture("cat.png", 24, 16)
    run("encode", "cat.png", *options)
    run("decode", "latents.safetensors", "--depth", depth, *options)
    run("roundtrip", "cat.png", "--depth", depth, "--output", "trip", *options)
    ours = vae("weights-of-channels")
    with Image.open("cat.png") as opened:
        expected = to_pixels(ours(opened)[0], depth)[0]
    for folder in (".", "trip"):
        path = Path(folder, f"cat-vae{suffix}")
        readings = [picture_files.read(path, channels)]
        if depth == "float" or channels == 1:  # imageio gives 16-bit colours in 8 bits
            readings.append(READERS[depth](path).reshape(expected.shape))
        for written in readings:
            assert written.dtype == expected.dtype
            np.testing.assert_allclose(written / 1.0, expected / 1.0, atol=2e-5 if depth == "float" else 2)
    assert files() >= {f"cat-vae{suffix}", f"trip/cat-vae{suffix}"}


def test_the_usual_depth_is_8_and_its_files_are_those_of_pillow():
    run("encode", picture("cat.png", 24, 16), *MODEL)
    run("decode", "latents.safetensors", "--output", "usual", *MODEL)
    run("decode", "latents.safetensors", "--output", "eight", "--depth", "8", *MODEL)
    Image.fromarray(pixels("usual/cat-vae.png")).save("pillow.png", format="PNG")
    assert Path("usual/cat-vae.png").read_bytes() == Path("eight/cat-vae.png").read_bytes()
    assert Path("usual/cat-vae.png").read_bytes() == Path("pillow.png").read_bytes()


def test_an_unknown_depth_is_a_usage_error():
    assert "--depth" in run("roundtrip", picture("cat.png"), "--depth", "12", *MODEL, code=2).stderr


@pytest.mark.parametrize("depth", ["16", "float"])
@pytest.mark.parametrize("channels", MODES)
def test_written_rows_are_what_independent_readers_see(depth, channels):
    shape, path = (70, 50, channels), Path(f"rows{Depth(depth).suffix}")
    values = RNG.integers(0, 65536, shape).astype(np.uint16)
    values = values if depth == "16" else values.astype(np.float32) / 40000 - 1
    assert write_rows(path, [values[:1], values[1:40], values[40:]], Depth(depth)) == (70, 50)
    if depth == "float":
        np.testing.assert_array_equal(tifffile.imread(path).reshape(shape), values)
    else:
        with Image.open(path) as opened:  # of colours the upper bytes
            seen = np.asarray(opened).reshape(shape)
        np.testing.assert_array_equal(seen, values if channels == 1 else values >> 8)
    np.testing.assert_array_equal(picture_files.read(path, channels), values)


@pytest.mark.parametrize("depth", ["16", "float"])
def test_rows_are_written_one_part_after_the_other(depth):
    dtype = np.uint16 if depth == "16" else np.float32
    parts = (np.full((16, 256, 3), i, dtype) for i in range(64))
    whole = 64 * 16 * 256 * 3 * np.dtype(dtype).itemsize
    tracemalloc.start()
    write_rows(Path("long").with_suffix(Depth(depth).suffix), parts, Depth(depth))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < whole / 2


def test_floats_of_more_than_4_gib_are_refused_before_any_work():
    require_room(Path("a.png"), 20_000, 20_000, 3, Depth.SIXTEEN)
    with pytest.raises(InputError, match=r"a.tif of 20000 x 20000 px would exceed the 4 GiB of a TIFF: give"):
        require_room(Path("a.tif"), 20_000, 20_000, 3, Depth.FLOAT)


def test_a_result_that_fails_half_way_leaves_no_file():
    def parts():
        yield np.zeros((4, 4, 3), np.float32)
        raise RuntimeError("half way")

    with pytest.raises(RuntimeError):
        write_rows(Path("half.tif"), parts(), Depth.FLOAT)
    assert "half.tif" not in files()


# -- what is read ------------------------------------------------------------------------------------------------


def test_deep_files_are_encoded_in_their_depth():
    values = RNG.integers(0, 65536, (16, 24, 3)).astype(np.uint16)
    floats = (values / np.float32(65535)).astype(np.float32)
    Path("deep.png").write_bytes(png(values, 16, RGB))
    Path("deep.tif").write_bytes(tiff(values))
    Path("floats.tif").write_bytes(tiff(floats, compression="zlib"))
    run("encode", "deep.png", "deep.tif", "floats.tif", "--raw", *MODEL)
    tensors = load_file("latents.safetensors")
    expected = np.asarray(vae().encode(Pixels.of(values)[...])[0].mode())[0]
    for name in ("0-deep", "1-deep", "2-floats"):
        np.testing.assert_allclose(tensors[name], expected, atol=1e-5)


def test_a_profile_that_is_not_used_is_told_on_stderr_with_the_name_of_the_picture():
    drawing().save("odd.png", icc_profile=b"junk")
    drawing().save("wide.png", icc_profile=rgb_profile("Display P3"))
    for command in ("roundtrip", "encode"):
        told = run(command, "odd.png", "wide.png", *MODEL).stderr
        assert told.startswith(f"{command}: odd.png: the picture's colour profile is damaged")
        assert told.count("\n") == 1


def test_a_name_in_a_line_about_a_profile_does_not_control_the_terminal():
    drawing().save("a.png", icc_profile=b"junk")
    Path("a.png").rename("\x1b[31mred.png")
    told = run("roundtrip", "\x1b[31mred.png", *MODEL).stderr
    assert "\x1b" not in told
    assert "red.png: the picture's colour profile" in told


def test_a_tiff_of_floats_that_announces_more_than_it_has_is_refused():
    whole = bytearray(tiff(RNG.random((16, 24, 3)).astype(np.float32)))
    with tifffile.TiffFile(io.BytesIO(bytes(whole))) as file:
        tags = file.pages[0].tags
        places = [(tags[name].offset + 8, tags[name].dtype) for name in ("ImageWidth", "ImageLength", "RowsPerStrip")]
    for place, kind in places:
        whole[place : place + 4] = (60_000).to_bytes(2 if kind == 3 else 4, "little").ljust(4, b"\0")
    Path("huge.tif").write_bytes(whole)
    assert "huge.tif announces 60000 x 60000 px in" in error("roundtrip", "huge.tif", *MODEL)


@pytest.mark.parametrize("value", [np.nan, 200])
def test_floats_that_are_no_colours_fail_their_picture_alone(value):
    picture("cat.png")
    Path("bad.tif").write_bytes(tiff(np.full((16, 16, 3), value, np.float32)))
    told = run("roundtrip", "cat.png", "bad.tif", *MODEL, code=1).stderr
    assert told.startswith("vaespec: error: bad.tif: the picture has ")
    assert "cat-vae.png" in files()


def test_memory_is_forecast_for_the_depth_of_a_picture():
    Path("deep.png").write_bytes(png(RNG.integers(0, 65536, (20, 30, 3)), 16, RGB))
    header = picture_files.read_header(Path("deep.png"))
    assert (header.value_bytes, header.reading_bytes) == (2, {1: 10 * 600, 3: 14 * 600, 4: 16 * 600})
