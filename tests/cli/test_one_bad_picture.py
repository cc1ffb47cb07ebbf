"""One bad picture among many: the others are kept, what failed is listed, and the exit code is 1."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.workplace import MODEL, files, picture, pixels, run

from vaespec.cli import picture_files


def damaged(name: str) -> Path:
    """A picture whose header is right and whose pixels end early."""
    whole = picture(name, 200, 200).read_bytes()
    Path(name).write_bytes(whole[: len(whole) // 2])
    return Path(name)


def test_roundtrip_keeps_the_other_pictures_and_lists_what_failed():
    picture("a.png"), damaged("b.jpg"), picture("c.png")
    result = run("roundtrip", "a.png", "b.jpg", "c.png", "--output", "out", *MODEL, code=1)
    assert files() == {"a.png", "b.jpg", "c.png", "out/a-vae.png", "out/c-vae.png"}
    assert [line.split()[0] for line in result.stdout.splitlines()[1:4]] == ["a.png", "c.png", "mean"]
    assert result.stderr.startswith("vaespec: error: b.jpg is a damaged picture")
    assert result.stderr.count("\n") == 1


def test_encode_keeps_the_other_pictures_and_lists_what_failed():
    picture("a.png"), damaged("b.jpg"), picture("c.png")
    result = run("encode", "a.png", "b.jpg", "c.png", "--sample", *MODEL, code=1)
    assert result.stderr.startswith("vaespec: error: b.jpg is a damaged picture")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["a.png", "c.png"]
    run("decode", "latents.safetensors", *MODEL)
    one, three = pixels("a-vae.png"), pixels("c-vae.png")
    picture("b.png")
    run("roundtrip", "a.png", "b.png", "c.png", "--sample", *MODEL)
    assert (pixels("a-vae.png") == one).all()
    assert (pixels("c-vae.png") == three).all()  # with the seed of its place among all pictures


def test_decode_keeps_the_other_pictures_and_lists_what_failed():
    for name in "abc":
        picture(f"{name}.png")
    run("encode", "a.png", "b.png", "c.png", *MODEL)
    with safe_open("latents.safetensors", "numpy") as file:
        tensors, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    tensors["1-b"] = np.full_like(tensors["1-b"], np.nan)
    save_file(tensors, "latents.safetensors", metadata)
    result = run("decode", "latents.safetensors", "--output", "out", *MODEL, code=1)
    assert {name for name in files() if name.startswith("out")} == {"out/a-vae.png", "out/c-vae.png"}
    assert result.stderr.startswith("vaespec: error: latents.safetensors, tensor '1-b': ")
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["0-a", "2-c"]


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_the_json_lists_what_failed(command):
    picture("a.png"), damaged("b.jpg")
    document = json.loads(run(command, "a.png", "b.jpg", "--json", *MODEL, code=1).stdout)
    assert len(document["pictures"]) == 1
    assert [failure["name"] for failure in document["failed"]] == ["b.jpg"]
    assert "damaged picture" in document["failed"][0]["error"]
    assert json.loads(run(command, "a.png", "--json", *MODEL).stdout)["failed"] == []


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_if_every_picture_fails_nothing_is_written_and_all_are_listed(command):
    damaged("a.jpg"), damaged("b.jpg")
    result = run(command, "a.jpg", "b.jpg", *MODEL, code=1)
    assert (result.stdout, result.stderr.count("vaespec: error: ")) == ("", 2)
    assert files() == {"a.jpg", "b.jpg"}


def test_memory_that_does_not_suffice_for_one_picture_fails_that_one(monkeypatch):
    picture("a.png"), picture("b.png", 50, 50)
    real = picture_files.framed

    def framed(image, *rest):
        if np.asarray(image).shape[0] == 50:
            raise MemoryError
        return real(image, *rest)

    monkeypatch.setattr(picture_files, "framed", framed)
    result = run("roundtrip", "a.png", "b.png", *MODEL, code=1)
    assert result.stderr == "vaespec: error: b.png: not enough memory: try a smaller picture.\n"
    assert "a-vae.png" in files()


def test_debug_shows_the_traceback_of_each_failure():
    picture("a.png"), damaged("b.jpg")
    assert "Traceback" in run("--debug", "roundtrip", "a.png", "b.jpg", *MODEL, code=1).stderr
