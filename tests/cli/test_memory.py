"""`--max-memory`: a large picture is computed in bands within the limit, with the same pixels."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.workplace import MODEL, error, files, picture, pixels, run

from vaespec.cli import console
from vaespec.machine import MemoryUse
from vaespec.model import Model
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
