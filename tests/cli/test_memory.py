"""`--max-memory`: a large picture is computed in bands within the limit, with the same pixels."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.workplace import MODEL, NARROW, error, files, picture, pixels, run

from vaespec.architecture import ENCODER
from vaespec.cli import console, latents_file, loading, picture_files
from vaespec.cli.latents_file import Entry, Latents
from vaespec.cli.limits import picture_tasks
from vaespec.cli.loading import open_weights, outline
from vaespec.cli.picture_files import Pad, PictureFile
from vaespec.machine import MemoryUse
from vaespec.model import Model
from vaespec.tiling import planner
from vaespec_numpy.ops import NumpyOps

HELD = 2**30
LIMIT = str(HELD + 43 * 2**18)  # 10.75 MiB: bands of a picture of 1024 rows need less, the whole picture needs more


@pytest.fixture
def streams(monkeypatch) -> list[str]:
    """The halves that ran in bands, in a process that holds one GiB."""
    ran, stream = [], Model.stream
    monkeypatch.setattr("vaespec.tiling.banded.BAND", 1 << 14)  # so that a small picture has many bands
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(HELD, 2**40))
    monkeypatch.setattr(Model, "stream", lambda self, half, *args: ran.append(half.name) or stream(self, half, *args))
    return ran


def test_a_limit_does_not_change_the_pixels(streams):
    picture("tall.png", 64, 1024)
    run("roundtrip", "tall.png", "--output", "whole", *MODEL)
    assert streams == []
    run("roundtrip", "tall.png", "--output", "bands", "--max-memory", LIMIT, *MODEL)
    assert streams == ["encoder", "decoder"]
    whole, bands = pixels("whole/tall-vae.png").astype(int), pixels("bands/tall-vae.png")
    assert whole.shape == (1024, 64, 3)
    assert np.abs(whole - bands).max() <= 1  # a rounding that falls the other way
    streams.clear()
    run("encode", "tall.png", "--max-memory", LIMIT, "--raw", *MODEL)
    run("decode", "latents.safetensors", "--output", "two", "--max-memory", LIMIT, *MODEL)
    assert streams == ["encoder", "decoder"]
    np.testing.assert_array_equal(pixels("two/tall-vae.png"), bands)


def test_a_limit_that_is_too_small_is_reported_with_one_that_suffices(streams):
    picture("tall.png", 64, 2048)
    message = error("roundtrip", "tall.png", "--max-memory", "1GiB", *MODEL)
    assert message.startswith(
        "vaespec: error: tall.png: max_memory of 1.00 GiB is too little to decode 1 x 4 x 512 x 16"
    )
    assert files() == {"tall.png"}
    enough = re.search(r"(\d\.\d\d) GiB would do", message)[1]
    run("roundtrip", "tall.png", "--max-memory", f"{enough}GiB", *MODEL)


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_a_limit_that_is_not_a_size_is_a_usage_error(command):
    picture("cat.png")
    message = run(command, "cat.png", "--max-memory", "much", *MODEL, code=2).stderr
    assert "max_memory='much': expected a number of bytes" in " ".join(message.replace("│", "").split())


def test_the_bar_moves_within_a_picture():
    shown: list[float] = []
    step = console.Steps(shown.append)
    step.part(1, 4)
    step.part(3, 4)
    step()
    step.part(1, 2)
    assert shown == [0.25, 0.75, 1, 1.5]


def test_the_bar_moves_with_the_bands(streams, monkeypatch):
    shown: list[float] = []
    monkeypatch.setattr(console.Steps, "part", lambda self, done, total: shown.append(self.done + done / total))
    picture("tall.png", 64, 1024)
    run("roundtrip", "tall.png", "--max-memory", LIMIT, *MODEL)
    assert shown == sorted(shown)
    assert 0 < shown[0] < 0.1
    assert shown[-1] == 2.0


# -- refused before any work -------------------------------------------------------------------------------------


@pytest.fixture
def _nothing_is_read(monkeypatch):
    def read(*args, **kwargs):
        raise AssertionError("weights or pixels were read")

    monkeypatch.setattr(loading, "AutoencoderKL", read)
    monkeypatch.setattr(picture_files, "read", read)


@pytest.mark.usefixtures("_nothing_is_read")
@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_a_hopeless_limit_is_refused_before_weights_and_pixels_are_read(command):
    Image.new("1", (3000, 2000)).save("wide.png")
    message = error(command, "wide.png", "--max-memory", "20MiB", *MODEL)
    assert message.startswith("vaespec: error: wide.png: max_memory of 0.01 GiB is too little to ")


@pytest.mark.usefixtures("_nothing_is_read", "streams")
def test_a_limit_too_small_to_read_the_picture_is_refused_though_its_bands_would_fit(monkeypatch):
    """WebP takes 16 bytes per pixel while it is decoded; a plan that needs nothing stands for narrow bands."""
    monkeypatch.setattr("vaespec.tiling.planner.choose", lambda *args: None)
    Image.new("RGB", (1000, 1000)).save("cat.webp")
    message = error("encode", "cat.webp", "--max-memory", str(HELD + 10 * 10**6), *MODEL)
    assert "is too little to read the picture: 1.07 GiB would do" in message
    assert "all of its 1000 x 1000 px decoded" in message


@pytest.mark.usefixtures("_nothing_is_read")
def test_weights_larger_than_the_limit_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(0, 2**40))
    picture("cat.png")
    assert "is too little to encode" in error("encode", "cat.png", "--max-memory", "100000", *MODEL)


def test_the_pictures_own_bytes_count_beside_the_bands(streams):
    """A picture that is padded takes more memory than the same one without: padding holds a second copy."""
    model = outline(open_weights("weights", None), "numpy", None, "float32", "default")
    header = PictureFile(Path("cat.png"), 1000, 999, {3: 0})
    (plain,) = picture_tasks(model, [header], Pad.FLOOR, [ENCODER])
    (padded,) = picture_tasks(model, [header], Pad.EDGE, [ENCODER])
    assert plain.held == 3 * 1000 * 999
    assert padded.held == plain.held + 3 * 1000 * 1000


@pytest.mark.usefixtures("_nothing_is_read")
def test_decode_refuses_a_hopeless_limit_before_weights_are_read():
    latents_of(2000, 1500)
    message = error("decode", "latents.safetensors", "--max-memory", "20MiB", *MODEL)
    assert "latents.safetensors: max_memory of 0.01 GiB is too little to decode 1 x 4 x 375 x 500" in message


def latents_of(width: int, height: int) -> None:
    """A file of latents, all zero, of a picture that nobody encoded."""
    tensor = np.zeros((4, height // 4, width // 4), np.float32)
    entry = Entry("0-cat", "cat.png", height, width, Pad.FLOOR, None)
    latents_file.save(Path("latents.safetensors"), Latents(NARROW, True, (entry,), {"0-cat": tensor}))


# -- files for what memory cannot hold ---------------------------------------------------------------------------

FILES = str(HELD + 13 * 2**19)  # 6.5 MiB: too little to encode 1024 rows in bands that stay in memory


@pytest.mark.parametrize("way", ["option", "TMPDIR"])
def test_the_folder_of_temporary_files_is_chosen_and_said(streams, monkeypatch, way):
    picture("tall.png", 64, 1024)
    Path("maps").mkdir()
    monkeypatch.setattr(planner, "stored_in_memory", lambda folder: False)
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(Path("maps").resolve() if way == "TMPDIR" else Path.cwd()))
    used, temporary = [], tempfile.TemporaryFile
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **kw: used.append(str(kw["dir"])) or temporary(**kw))
    option = ["--offload-folder", "maps"] if way == "option" else []
    done = run("encode", "tall.png", "--max-memory", FILES, *option, *MODEL)
    assert {Path(folder).resolve() for folder in used} == {Path("maps").resolve()}
    assert done.stderr == f"encode: memory is short: bands of rows, stored in files in {used[0]}\n"


def test_an_offload_folder_that_does_not_exist_is_a_usage_error():
    picture("cat.png")
    assert "there is no folder nowhere" in run(
        "roundtrip", "cat.png", "--offload-folder", "nowhere", *MODEL, code=2
    ).stderr.replace("\n", " ")


def test_files_in_memory_do_not_help_a_limit(streams, monkeypatch):
    picture("tall.png", 64, 1024)
    monkeypatch.setattr(planner, "stored_in_memory", lambda folder: True)
    assert "which is memory" in error("encode", "tall.png", "--max-memory", FILES, *MODEL)


def test_a_line_about_the_work_is_printed_once(capsys):
    with console.progress("paint", 2) as step:
        step.say("in blue")
        step.say("in blue")
    assert capsys.readouterr().err == "paint: in blue\n"
