"""Large pictures on the command line: in bands within a limit, with the same pixels; what tiles do to a picture."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image
from support.workplace import MODEL, error, files, picture, pixels, run

from vaespec.cli import console
from vaespec.cli.sheet import CAPTION, MARGIN
from vaespec.machine import Memory
from vaespec.model import Model
from vaespec_numpy.ops import NumpyOps

HELD = 2**30
LIMIT = str(HELD + 13 * 2**20)  # bands of a picture of 2048 rows are within, the whole of it is not


@pytest.fixture
def streams(monkeypatch) -> list[str]:
    """The halves that ran in bands, where the process holds one GiB."""
    ran, stream = [], Model.stream
    monkeypatch.setattr("vaespec.tiling.banded.BAND", 1 << 13)  # for a small picture
    monkeypatch.setattr(NumpyOps, "memory", lambda self: Memory(HELD, 2**40))
    monkeypatch.setattr(Model, "stream", lambda self, half, *how: ran.append(half.name) or stream(self, half, *how))
    return ran


def test_a_limit_leaves_the_pixels_as_they_are(streams):
    picture("tall.png", 64, 2048)
    run("roundtrip", "tall.png", "--output", "whole", *MODEL)
    assert streams == []
    run("roundtrip", "tall.png", "--output", "bands", "--max-memory", LIMIT, *MODEL)
    assert streams == ["encoder", "decoder"]
    whole, bands = pixels("whole/tall-vae.png").astype(int), pixels("bands/tall-vae.png")
    assert whole.shape == (2048, 64, 3)
    assert np.abs(whole - bands).max() <= 1  # a rounding that falls the other way
    streams.clear()
    run("encode", "tall.png", "--max-memory", LIMIT, "--raw", *MODEL)
    run("decode", "latents.safetensors", "--output", "two", "--max-memory", LIMIT, *MODEL)
    assert streams == ["encoder", "decoder"]
    np.testing.assert_array_equal(pixels("two/tall-vae.png"), bands)


def test_a_limit_that_is_too_little_is_told_with_one_that_would_do(streams):
    picture("tall.png", 64, 2048)
    said = error("roundtrip", "tall.png", "--max-memory", "1GiB", *MODEL)
    assert said.startswith("vaespec: error: tall.png: max_memory of 1.00 GiB is too little to encode 1 x 3 x 2048 x 64")
    assert files() == {"tall.png"}
    enough = re.search(r"(\d\.\d\d) GiB would do", said)[1]
    run("roundtrip", "tall.png", "--max-memory", f"{enough}GiB", *MODEL)


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_a_limit_that_is_no_size_is_a_usage_error(command):
    picture("cat.png")
    said = run(command, "cat.png", "--max-memory", "much", *MODEL, code=2).stderr
    assert "max_memory='much': expected a number of bytes" in " ".join(said.replace("│", "").split())


def test_the_bar_moves_within_a_picture():
    shown: list[float] = []
    step = console.Steps(shown.append)
    step.part(1, 4)
    step.part(3, 4)
    step()
    step.part(1, 2)
    assert shown == [0.25, 0.75, 1, 1.5]


def test_bands_tell_the_bar_how_far_they_are(streams, monkeypatch):
    shown: list[float] = []
    monkeypatch.setattr(console.Steps, "part", lambda self, done, total: shown.append(self.done + done / total))
    picture("tall.png", 64, 2048)
    run("roundtrip", "tall.png", "--max-memory", LIMIT, *MODEL)
    assert shown == sorted(shown)
    assert 0 < shown[0] < 0.1
    assert shown[-1] == 2.0


# -- compare -----------------------------------------------------------------------------------------------------


def test_compare_shows_that_tiles_differ_and_bands_do_not():
    picture("cat.png", 48, 40)
    document = json.loads(run("compare", "cat.png", "--tiling", "--json", *MODEL).stdout)
    blend, exact = document["errors"]
    assert blend["tiling"] == "blended tiles of 16 px"
    assert blend["max"] > blend["mean"] > 0.1
    assert exact["mean"] < exact["max"] < 0.01
    sheet = pixels("vaespec-tiling.png")
    assert sheet.shape == (2 * (CAPTION + 40) + MARGIN, 3 * (48 + MARGIN) + MARGIN, 3)
    below = CAPTION + 40 + CAPTION
    differences = [sheet[below : below + 40, left : left + 48] for left in (2 * MARGIN + 48, 3 * MARGIN + 96)]
    assert differences[0].max() > 50
    assert differences[1].max() == 0
    run("roundtrip", "cat.png", *MODEL)
    np.testing.assert_array_equal(sheet[CAPTION : CAPTION + 40, MARGIN : MARGIN + 48], pixels("cat-vae.png"))


def test_compare_says_what_is_wrong():
    picture("cat.png", 48, 40), picture("small.png", 16, 16)
    said = run("compare", "cat.png", *MODEL, code=2).stderr
    assert "say what is to be compared" in said
    assert "is one tile: give one of more than 16 px" in error("compare", "small.png", "--tiling", *MODEL)
    assert "do not join" in error("compare", "cat.png", "--tiling", "--tile", "30", *MODEL)
    assert "would replace the input" in error("compare", "cat.png", "--tiling", "--output", "cat.png", *MODEL)
    assert files() == {"cat.png", "small.png"}


def test_compare_has_a_picture_of_its_own():
    run("compare", "--tiling", "--output", "own.png", *MODEL)
    with Image.open("own.png") as page:
        assert page.size == (3 * (256 + MARGIN) + MARGIN, 2 * (CAPTION + 256) + MARGIN)
