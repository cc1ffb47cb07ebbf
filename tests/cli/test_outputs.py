"""What a command writes replaces regular files alone, and keeps what the file was beside its content."""

from __future__ import annotations

import os
import stat
import sys
import threading
from pathlib import Path

import pytest
from support.workplace import MODEL, error, files, picture, run

from vaespec import autoencoder

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, modes and links of POSIX")

WRITERS = {  # command -> its arguments, the option that chooses the place, and the file it writes there
    "demo": ((), "--output", "x.png"),
    "encode": (("cat.png", *MODEL), "--output", "x.safetensors"),
    "decode": (("latents.safetensors", *MODEL), "--output", "cat-vae.png"),
    "roundtrip": (("cat.png", *MODEL), "--output", "cat-vae.png"),
    "compare": (("--tiling", "cat.png", *MODEL), "--output", "x.png"),
    "convert": (("weights", "--to", "ldm", "--force"), "", "x.safetensors"),
}
each_writer = pytest.mark.parametrize("command", WRITERS)


@pytest.fixture(autouse=True)
def _inputs(weights_without_attention, monkeypatch):
    monkeypatch.setattr(autoencoder, "EMBEDDED", weights_without_attention)
    picture("cat.png", 40, 40)
    run("encode", "cat.png", *MODEL)
    Path("out").mkdir()


def output(command: str) -> Path:
    return Path("out", WRITERS[command][2])


def arguments(command: str) -> tuple[str, ...]:
    given, option, name = WRITERS[command]
    place = "out" if command in ("decode", "roundtrip") else f"out/{name}"
    return (command, *given, *([option] if option else []), place)


@each_writer
def test_every_command_keeps_a_link_and_the_mode_of_its_target(command):
    Path("target").write_text("old")
    Path("target").chmod(0o600)
    output(command).symlink_to("../target")
    run(*arguments(command))
    assert output(command).readlink() == Path("../target")
    assert Path("target").stat().st_size > 100
    assert stat.S_IMODE(Path("target").stat().st_mode) == 0o600
    assert {path.name for path in Path("out").iterdir()} == {output(command).name}


@each_writer
def test_every_command_refuses_a_pipe_that_nobody_reads(command):
    os.mkfifo(output(command))
    before = files()
    assert "(it is a pipe that nobody reads: start its reader first)" in error(*arguments(command))
    assert output(command).is_fifo()
    assert files() == before


@each_writer
def test_every_command_writes_to_a_pipe_that_is_read(command):
    run(*arguments(command))
    whole = output(command).read_bytes()
    output(command).unlink()
    os.mkfifo(output(command))
    first, content = os.open(output(command), os.O_RDONLY | os.O_NONBLOCK), []  # a reader before the thread runs
    reader = threading.Thread(target=lambda: content.append(output(command).read_bytes()), daemon=True)
    reader.start()
    result = run(*arguments(command))
    reader.join(60)
    os.close(first)
    assert (content[0][:4], len(content[0])) == (whole[:4], len(whole))
    assert " 0 bytes" not in result.stdout


@each_writer
def test_every_command_writes_a_name_of_240_bytes(command):
    name = "漢" * 80
    if command in ("decode", "roundtrip"):
        picture(f"{name}.png", 40, 40)
        run("encode", f"{name}.png", *MODEL)
        place, given = Path("out", f"{name}-vae.png"), [command, f"{name}.png", *MODEL, "--output", "out"]
        given[1] = "latents.safetensors" if command == "decode" else given[1]
        run(*given)
    else:
        place = Path("out", name).with_suffix(output(command).suffix)
        run(*arguments(command)[:-1], place)
    assert [path.name for path in Path("out").iterdir()] == [place.name]
