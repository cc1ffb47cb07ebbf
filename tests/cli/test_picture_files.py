"""Picture files are untrusted: what is opened, what is refused, and whose size counts."""

from __future__ import annotations

import logging
import os
import socket
import struct
import subprocess
import sys
import tracemalloc
import warnings
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from support.workplace import MODEL, error, files, picture, pixels, run

from vaespec import InputError
from vaespec.cli import picture_files
from vaespec.weights.containers.tensor_file import StoredTensors

# -- one source of the size --------------------------------------------------------------------------------------


def turned(name: str, orientation: int) -> Path:
    path, exif = picture(name, 24, 16), Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as upright:
        upright.load()
        upright.save(path, exif=exif)
    return path


@pytest.mark.parametrize("suffix", ["tif", "jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_picture_that_its_exif_turns_can_be_encoded_and_decoded(orientation, suffix):
    path = turned(f"cat.{suffix}", orientation)
    run("encode", path, *MODEL)
    run("decode", "latents.safetensors", "--output", "two", *MODEL)
    run("roundtrip", path, "--output", "one", *MODEL)
    assert pixels("two/cat-vae.png").shape == pixels("one/cat-vae.png").shape == (24, 16, 3)
    assert np.abs(pixels("two/cat-vae.png").astype(int) - pixels("one/cat-vae.png")).max() <= 1


@pytest.mark.parametrize("size", [(8, 20), (40, 12)])
@pytest.mark.parametrize("pad", ["floor", "edge"])
def test_a_picture_replaced_after_its_header_was_read_is_stored_with_the_size_of_its_pixels(monkeypatch, size, pad):
    picture("cat.png", 16, 12), picture("other.png", *size, seed=1)
    read_headers = picture_files.read_headers

    def then_replaced(paths, failures):
        headers = read_headers(paths, failures)
        os.replace("other.png", "cat.png")
        return headers

    with monkeypatch.context() as patch:
        patch.setattr(picture_files, "read_headers", then_replaced)
        run("encode", "cat.png", "--pad", pad, *MODEL)
    run("decode", "latents.safetensors", *MODEL)
    assert pixels("cat-vae.png").shape == (size[1], size[0], 3)


def test_compare_takes_its_tiles_from_the_pixels_that_were_read(monkeypatch):
    picture("cat.png", 64, 64), picture("other.png", 40, 40)
    read_header = picture_files.read_header
    monkeypatch.setattr(
        picture_files, "read_header", lambda path: (read_header(path), os.replace("other.png", "cat.png"))[0]
    )
    assert "blended tiles of 16 px" in run("compare", "cat.png", "--tiling", *MODEL).stdout


# -- formats -----------------------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize("command", ["roundtrip", "encode", "compare"])
@pytest.mark.parametrize("name", ["photo.png", "photo.eps"])
def test_a_picture_that_is_postscript_starts_no_program(monkeypatch, command, name):
    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **kwargs: started.append(args))
    monkeypatch.setattr(subprocess, "Popen", lambda *args, **kwargs: started.append(args))
    Path(name).write_bytes(EPS)
    options = ["--tiling"] if command == "compare" else []
    message = error(command, name, *options, *MODEL)
    assert f"{name} is not a picture of a kind that is read: give a PNG, JPEG, WEBP, AVIF, TIFF, GIF" in message
    assert started == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of formats that Pillow will drop
def test_only_the_formats_of_the_list_are_opened():
    Image.init()
    written = {}
    for kind in sorted(set(Image.SAVE) & set(Image.OPEN)):
        for mode in ("RGB", "L", "1", "P"):
            try:
                Image.new(mode, (32, 32)).save(f"picture.{kind}", format=kind)
                written[kind] = f"picture.{kind}"
                break
            except (OSError, ValueError, KeyError, TypeError):
                continue
    assert written.keys() > {"EPS", "SGI", "PCX", "PNG", "TIFF"}
    for kind, name in written.items():
        if kind in (*picture_files.FORMATS, "MPO"):
            assert picture_files.read(Path(name)).shape == (32, 32, 3), kind
        else:
            assert not picture_files.is_picture(Path(name)), kind


def test_the_help_lists_the_formats():
    for command in ("roundtrip", "encode"):
        assert "JPEG2000" in run(command, "--help").stdout


# -- what is no regular file -------------------------------------------------------------------------------------

unix = pytest.mark.skipif(sys.platform == "win32", reason="no such files on Windows")


@unix
@pytest.mark.parametrize("kind", ["pipe", "socket", "device", "link to a pipe"])
@pytest.mark.parametrize("command", ["roundtrip", "encode", "decode"])
def test_what_may_never_end_is_refused_at_once(kind, command):
    if kind == "socket":
        with socket.socket(socket.AF_UNIX) as holder:
            holder.bind("cat.png")
    elif kind == "device":
        Path("cat.png").symlink_to("/dev/null")
    else:
        os.mkfifo("pipe.png")
        Path("cat.png").symlink_to("pipe.png")
    words = "device: " if command == "decode" else "cat.png is a pipe, a socket or a device: save the picture in a file"
    assert words in error(command, "cat.png", *MODEL)


@unix
def test_a_pipe_that_takes_the_place_of_a_picture_is_refused_at_once(monkeypatch):
    """Between the look at the file and its opening."""
    picture("cat.png")
    require, looks = picture_files._require_regular, []

    def replaced(path, mode):
        require(path, mode)
        looks.append(mode)
        if len(looks) == 1:
            os.unlink("cat.png")
            os.mkfifo("cat.png")

    monkeypatch.setattr(picture_files, "_require_regular", replaced)
    assert "cat.png is a pipe" in error("roundtrip", "cat.png", *MODEL)


@unix
def test_a_file_that_is_standard_input_is_read():
    path = picture("cat.png")
    code = "import sys; from vaespec.cli import main; main()"
    with path.open("rb") as file:
        command = [sys.executable, "-c", code, "roundtrip", "/dev/stdin", *MODEL]
        subprocess.run(command, stdin=file, check=True, capture_output=True)
    assert pixels("stdin-vae.png").shape == (8, 12, 3)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs Linux's list of maps")
@pytest.mark.parametrize("name", ["cat.tif", "lzw.tif", "cat.bmp"])
def test_a_picture_is_read_and_never_mapped_into_memory(monkeypatch, name):
    """If a file is cut, a map of it ends the process."""
    picture("whole.png", 300, 200)
    with Image.open("whole.png") as whole:
        whole.save(name, **({"compression": "tiff_lzw"} if name == "lzw.tif" else {}))
    descriptors = []
    monkeypatch.setattr(Image.Image, "crop", _with_maps(Image.Image.crop, descriptors))
    with picture_files._opened(Path(name)) as (opened, _), pytest.raises(OSError, match="a file to read"):
        opened.fp.fileno()
    picture_files.read(Path(name))
    assert descriptors
    assert not any(name in maps for maps in descriptors)


def _with_maps(crop, seen):
    def with_maps(*args):
        seen.append(Path("/proc/self/maps").read_text())
        return crop(*args)

    return with_maps


# -- damage ------------------------------------------------------------------------------------------------------


def test_damaged_exif_does_not_fail_the_picture_and_nothing_is_said():
    upright = picture("cat.png", 16, 12)
    for i, exif in enumerate((b"Exif\0\0M]\0*\0\0\0\x08\0\0", b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 30)):
        with Image.open(upright) as opened:
            opened.save(f"{i}.jpg", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for command in ("roundtrip", "encode"):
            assert run(command, "0.jpg", "1.jpg", *MODEL).stderr == ""
    assert pixels("0-vae.png").shape == (12, 16, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp", "ppm", "jp2", "ico", "tga"])
def test_no_foreign_error_escapes_from_a_damaged_picture(suffix):
    """The long version, with 20,000 pictures, is a fuzzer of its own."""
    whole, generator = bytearray(picture(f"whole.{suffix}", 32, 24).read_bytes()), np.random.default_rng(0)
    for _ in range(60):
        damaged = whole.copy()
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        Path("cat").write_bytes(damaged[: len(damaged) - int(generator.integers(0, 2)) * int(generator.integers(40))])
        with suppress(InputError):
            picture_files.read_header(Path("cat"))
            picture_files.read(Path("cat"))


def test_a_damaged_tiff_is_told_in_one_line(capfd):
    """libtiff prints lines of its own, from C."""
    picture("whole.png", 200, 200)
    with Image.open("whole.png") as whole:
        whole.save("cat.tif", compression="tiff_lzw")
    content = bytearray(Path("cat.tif").read_bytes())
    content[300:340] = b"\xff" * 40
    Path("cat.tif").write_bytes(content)
    assert "cat.tif is a damaged picture" in error("roundtrip", "cat.tif", *MODEL)
    assert capfd.readouterr().err == ""


def test_what_pillow_logs_of_a_damaged_tiff_is_not_printed(capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # as in a process without pytest
    picture("whole.png", 16, 16)
    with Image.open("whole.png") as whole:
        whole.save("cat.tif")
    samples = struct.pack("<HHIH", 277, 3, 1, 3)
    Path("cat.tif").write_bytes(Path("cat.tif").read_bytes().replace(samples, samples[:-2] + struct.pack("<H", 131)))
    assert "cat.tif is not a picture" in error("roundtrip", "cat.tif", *MODEL)
    assert capfd.readouterr().err == ""


# -- one kind of file in the place of another --------------------------------------------------------------------


def test_decode_of_a_picture_says_that_it_is_a_picture():
    picture("cat.png")
    assert "cat.png is a picture: `vaespec decode` takes the file that `vaespec encode` writes" in error(
        "decode", "cat.png", *MODEL
    )


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_encode_of_latents_says_that_they_are_for_decode(command):
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    message = error(command, "latents.safetensors", "--output", "other.safetensors", *MODEL)
    assert "latents.safetensors holds tensors, not a picture" in message
    assert "latents are for `vaespec decode`" in message


def test_decode_reads_only_the_tensors_that_a_picture_names(monkeypatch):
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    with safe_open("latents.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    extra = {"big": np.zeros((64, 64), np.float32), "integers": np.zeros(3, np.int32)}
    save_file({**load_file("latents.safetensors"), **extra}, "more.safetensors", metadata)
    read, read_tensor = [], StoredTensors.__getitem__
    monkeypatch.setattr(StoredTensors, "__getitem__", lambda self, name: read.append(name) or read_tensor(self, name))
    run("decode", "more.safetensors", *MODEL)
    assert {"big", "integers"}.isdisjoint(read)
    assert "0-cat" in read
    assert files() >= {"cat-vae.png"}


def test_nan_in_latents_is_told_with_the_name_of_the_tensor():
    picture("cat.png"), picture("dog.png")
    run("encode", "cat.png", "dog.png", *MODEL)
    with safe_open("latents.safetensors", framework="numpy") as file:
        metadata = file.metadata()
    tensors = load_file("latents.safetensors")
    tensors["1-dog"][0, 0, 0] = np.nan
    save_file(tensors, "nan.safetensors", metadata)
    message = run("decode", "nan.safetensors", *MODEL, code=1).stderr
    assert "nan.safetensors, tensor '1-dog': the latents hold NaN or an infinite number at index" in message


@pytest.mark.skipif(sys.platform != "linux", reason="names are text elsewhere")
def test_a_picture_whose_name_is_no_text_or_has_a_backslash_is_encoded_and_decoded():
    for name in ("a\udcff.png", "b\\c.png"):
        picture("plain.png").rename(name)
    run("encode", "a\udcff.png", "b\\c.png", *MODEL)
    run("decode", "latents.safetensors", "--output", "out", *MODEL)
    assert {path.name for path in Path("out").iterdir()} == {"a\ufffd-vae.png", "b_c-vae.png"}


def tall(name: str, **options) -> Path:
    """A picture of one colour, 12,000 x 12,000 px."""
    Image.new("RGB", (12_000, 12_000), "white").save(name, **options)
    return Path(name)


def test_a_length_in_a_picture_takes_no_memory_for_bytes_that_do_not_come():
    whole = picture("a.png").read_bytes()
    at = whole.index(b"IDAT") - 4
    Path("a.png").write_bytes(whole[:at] + b"\x7f\xff\xff\xff" + whole[at + 4 :])
    tracemalloc.start()
    with suppress(InputError):  # the pixels are whole
        picture_files.read(Path("a.png"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


@pytest.mark.parametrize("name", ["huge.jpg", "huge.gif"])
def test_a_few_bytes_that_announce_a_gigabyte_of_pixels_are_refused_before_it_is_taken(name):
    whole = bytearray(picture(name, 13, 10).read_bytes())
    if name == "huge.gif":
        whole[6:10] = (13_000).to_bytes(2, "little") * 2
    else:
        at = whole.index(b"\xff\xc0") + 5  # height and width, after the marker, its length and the bits
        whole[at : at + 4] = (13_000).to_bytes(2, "big") * 2
    Path(name).write_bytes(whole)
    message = error("roundtrip", name, *MODEL)
    assert f"{name} announces 13000 x 13000 px in {len(whole):,} bytes, which would take" in message


@pytest.mark.thorough
def test_a_large_picture_of_one_colour_is_read_as_png():
    assert picture_files.read_header(tall("white.png")).width == 12_000
