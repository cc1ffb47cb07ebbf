"""One bad picture among many: the others are kept, what failed is listed, and the exit code is 1."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file
from support.workplace import MODEL, error, files, picture, pixels, run

from vaespec.cli import loading, picture_files
from vaespec.machine import MemoryUse
from vaespec_numpy.ops import NumpyOps


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


def bad(name: str, kind: str) -> Path:
    """A file that no command can use as a picture."""
    contents = {
        "empty": lambda: b"",
        "garbage": lambda: np.random.default_rng(0).bytes(500),
        "text": lambda: b"Not Found",
        "a truncated header": lambda: picture("whole.png").read_bytes()[:20],
        "a huge header": lambda: b"P5 100000 100000 255\n" + b"0" * 100,
        "tensors": lambda: next(Path("weights").glob("*.safetensors")).read_bytes(),
        "too small": lambda: picture("small.png", 3, 30).read_bytes(),
    }
    Path(name).write_bytes(contents[kind]())
    return Path(name)


BAD = {
    "empty": "b.png is not a picture",
    "garbage": "b.png is not a picture",
    "text": "b.png is not a picture",
    "a truncated header": "b.png is a damaged picture",
    "a huge header": "b.png is too large",
    "tensors": "b.png holds tensors, not a picture",
    "too small": "b.png is 3 x 30 px, but the weights need at least 4 x 4 px",
}


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
@pytest.mark.parametrize("kind", BAD)
def test_a_picture_that_is_bad_from_its_header_on_does_not_stop_the_others(command, kind):
    picture("a.png"), bad("b.png", kind), picture("c.png")
    result = run(command, "a.png", "b.png", "c.png", "--sample", *MODEL, code=1)
    assert result.stderr.startswith(f"vaespec: error: {BAD[kind]}")
    assert result.stderr.count("\n") == 1
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["a.png", "c.png"]
    if command == "encode":
        assert [line.split()[4] for line in result.stdout.splitlines()[1:3]] == ["0-a", "2-c"]
    else:
        kept = pixels("c-vae.png")
        picture("b.png")
        run("roundtrip", "a.png", "b.png", "c.png", "--sample", *MODEL)
        assert (pixels("c-vae.png") == kept).all()  # with the seed of its place among all pictures


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
@pytest.mark.parametrize("kind", BAD)
def test_if_the_only_picture_is_bad_no_weights_are_read(monkeypatch, command, kind):
    bad("b.png", kind)
    monkeypatch.setattr(loading, "AutoencoderKL", None)
    assert error(command, "b.png", "--output", "out.safetensors", *MODEL).startswith(f"vaespec: error: {BAD[kind]}")


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
@pytest.mark.parametrize("mistake", ["nowhere.png", "weights", "pipe.png", "a.png/c.png"])
def test_a_name_that_is_no_file_is_an_error_before_any_work(command, mistake):
    picture("a.png"), bad("b.png", "garbage")
    os.mkfifo("pipe.png")
    message = error(command, "a.png", "b.png", mistake, "--output", "out.safetensors", *MODEL)
    assert message.startswith(("vaespec: error: there is no file nowhere.png", f"vaespec: error: {mistake} "))
    assert files() == {"a.png", "b.png"}


def test_two_pictures_with_one_output_are_an_error_before_any_work_though_one_is_bad():
    picture("a.png"), picture("b.jpg"), bad("b.png", "garbage")
    assert "b.jpg and b.png would be written to one file" in error("roundtrip", "a.png", "b.jpg", "b.png", *MODEL)
    assert files() == {"a.png", "b.jpg", "b.png"}


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_a_picture_too_large_for_the_limit_does_not_stop_the_others(monkeypatch, command):
    picture("a.png"), picture("b.png", 2000, 2000), picture("c.png")
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(2**30, 2**40))
    limit = str(2**30 + 13 * 2**20)
    result = run(command, "a.png", "b.png", "c.png", "--max-memory", limit, *MODEL, code=1)
    assert result.stderr.startswith("vaespec: error: b.png: max_memory of 1.01 GiB is too little to")
    assert result.stderr.count("\n") == 1
    assert [line.split()[0] for line in result.stdout.splitlines()[1:3]] == ["a.png", "c.png"]


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
