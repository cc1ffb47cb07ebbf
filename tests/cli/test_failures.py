"""The command line when it fails: one line, an exit code, and no file written halfway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.configs import CONFIGS
from support.workplace import MODEL, error, files, picture, run, saved

from vaespec import autoencoder
from vaespec.cli import picture_files

# -- wrong arguments and inputs -----------------------------------------------------------------------------------


def test_a_missing_picture_is_reported():
    assert "no file nowhere.png" in error("roundtrip", "nowhere.png", *MODEL)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_a_file_that_is_not_a_picture_is_reported(content):
    Path("cat.png").write_bytes(content)
    assert "cat.png is not a picture" in error("roundtrip", "cat.png", *MODEL)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_truncated_picture_is_reported_and_nothing_is_written(suffix):
    whole = picture(f"cat.{suffix}", 200, 200).read_bytes()
    Path(f"cat.{suffix}").write_bytes(whole[: len(whole) // 2])
    assert f"cat.{suffix} is" in error("roundtrip", f"cat.{suffix}", "--output", "out", *MODEL)
    assert files() == {f"cat.{suffix}"}


def test_a_folder_in_place_of_a_picture_is_reported():
    assert "is a folder: name the pictures in it" in error("roundtrip", "weights", *MODEL)


def test_a_picture_smaller_than_f_is_reported_with_the_remedy():
    picture("cat.png", 20, 3)
    message = error("roundtrip", "cat.png", *MODEL)
    assert (
        "cat.png is 20 x 3 px, but the weights need at least 4 x 4 px: use a larger picture, or give --pad edge"
        in message
    )


def test_a_picture_of_32_bits_is_reported():
    Image.fromarray(np.zeros((8, 8), np.int32)).save("cat.tif")
    assert "give 8 or 16 bits per channel" in error("roundtrip", "cat.tif", *MODEL)


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_no_pictures_at_all_is_a_usage_error(command):
    assert "Missing argument" in run(command, code=2).stderr


def test_two_pictures_with_one_output_are_refused():
    names = [picture("one/cat.png"), picture("two/cat.jpg")]
    assert "one/cat.png and two/cat.jpg would be written to one file, out/cat-vae.png" in error(
        "roundtrip", *names, "--output", "out", *MODEL
    )
    assert files() == {"one/cat.png", "two/cat.jpg"}


def test_a_picture_that_is_given_twice_is_reported():
    picture("cat.png")
    assert "cat.png is given twice" in error("roundtrip", "cat.png", "cat.png", *MODEL)


def test_an_output_never_replaces_an_input():
    picture("cat.png"), picture("cat-vae.png")
    assert "would replace the input" in error("roundtrip", "cat.png", "cat-vae.png", *MODEL)


def test_latents_never_replace_a_picture():
    picture("cat.png").rename("cat.safetensors")
    assert "would replace the input" in error("encode", "cat.safetensors", "--output", "./cat.safetensors", *MODEL)


@pytest.mark.parametrize("command", ["demo", "roundtrip", "encode", "decode"])
@pytest.mark.parametrize("place", ["occupied", "occupied/deeper"])
def test_a_file_in_place_of_a_folder_is_reported(command, place, weights, monkeypatch):
    monkeypatch.setattr(autoencoder, "EMBEDDED", weights)
    Path("occupied").write_text("")
    picture("cat.png")
    run("encode", "cat.png", *MODEL)
    name = {"demo": "/x.png", "encode": "/x.safetensors"}.get(command, "")
    arguments = {"demo": [], "decode": ["latents.safetensors"]}.get(command, ["cat.png"])
    assert "occupied is a file, not a folder" in error(command, *arguments, "--output", place + name)


def test_a_folder_in_place_of_a_file_is_reported():
    picture("cat.png")
    assert "it is a folder; name a .safetensors file" in error("encode", "cat.png", "--output", ".", *MODEL)


def test_a_folder_without_permission_is_reported(monkeypatch):
    picture("cat.png")
    monkeypatch.setattr("os.access", lambda path, mode: not mode & os.W_OK)
    assert "no permission" in error("roundtrip", "cat.png", *MODEL)


def test_a_wrong_choice_names_the_value_and_the_choices():
    assert (
        "Invalid value for '--depth': '32' is not one of '8', '16'"
        in run("roundtrip", "a.png", "--depth", "32", code=2).stderr
    )


@pytest.mark.parametrize("place", ["demo.jpg", "demo"])
def test_the_demo_writes_only_a_png(place):
    assert "name it demo.png" in error("demo", "--output", place)


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        (
            "--backend",
            "abacus",
            "no backend named 'abacus': choose numpy, jax, mlx, reference, torch, or the import path of an Array",
        ),
        ("--device", "cuda", "no device 'cuda' here: choose cpu, or another backend.\n"),
        ("--dtype", "int4", "no dtype 'int4': choose float32, float64, float16, bfloat16.\n"),
        ("--precision", "high", "precision 'high': choose default or highest.\n"),
        ("--weights", "nowhere", "no file or folder nowhere"),
        ("--weights", "cat.png", "does not begin like a file of weights"),
    ],
)
def test_a_wrong_model_option_is_reported(option, value, words):
    picture("cat.png")
    assert words in error("roundtrip", "cat.png", *MODEL, option, value)


def test_a_wrong_backend_in_the_environment_is_reported_with_the_variable(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "abacus")
    picture("cat.png")
    assert "error: VAESPEC_BACKEND: no backend named 'abacus': choose" in error("roundtrip", "cat.png")
    run("roundtrip", "cat.png", *MODEL)


@pytest.mark.parametrize("command", ["roundtrip", "encode", "info"])
def test_truncated_weights_are_reported(command, weights):
    picture("cat.png")
    whole = (weights / "diffusion_pytorch_model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[: len(whole) // 2])
    arguments = ["cut.safetensors"] if command == "info" else ["cat.png", "--weights", "cut.safetensors"]
    assert "cut.safetensors is incomplete: it has" in error(command, *arguments)


def test_weights_for_six_channels_are_refused():
    saved(CONFIGS["six-channel-images"], Path("six"))
    picture("cat.png")
    assert "6 channels in and 6 out, but pictures have 3" in error("roundtrip", "cat.png", "--weights", "six")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("roundtrip", "cat.png", "--seed", "3"), "it needs --sample"),
        (("roundtrip", "cat.png", "--pad", "mirror"), "mirror"),
        (("info", "weights", "--size", "3y4"), "HEIGHTxWIDTH"),
        (("info", "weights", "--size", "0"), "HEIGHTxWIDTH"),
        (("paint",), "paint"),
        (("--loud",), "--loud"),
    ],
)
def test_a_usage_error_exits_with_2_before_any_work(args, words):
    picture("cat.png")
    assert words in run(*args, code=2).stderr
    assert files() == {"cat.png"}


# -- failures ----------------------------------------------------------------------------------------------------


def _full_disk(image, part, **_):
    Path(part).write_bytes(b"half")
    raise OSError(28, "No space left on device")


def test_a_full_disk_leaves_the_old_picture_and_no_partial_file(monkeypatch):
    picture("cat.png")
    run("roundtrip", "cat.png", *MODEL)
    before = Path("cat-vae.png").read_bytes()
    monkeypatch.setattr(Image.Image, "save", _full_disk)
    assert "cannot write cat-vae.png (No space left on device)" in error("roundtrip", "cat.png", *MODEL)
    assert files() == {"cat.png", "cat-vae.png"}
    assert Path("cat-vae.png").read_bytes() == before


def test_an_interrupted_encode_leaves_no_file(monkeypatch):
    picture("a.png"), picture("b.png")
    real = picture_files.read

    def interrupted(path, *how):
        if path.name == "b.png":
            raise KeyboardInterrupt
        return real(path, *how)

    monkeypatch.setattr(picture_files, "read", interrupted)
    result = run("encode", "a.png", "b.png", *MODEL, code=130)
    assert result.output == ""
    assert files() == {"a.png", "b.png"}


def test_a_full_disk_leaves_no_partial_latents(monkeypatch):
    picture("cat.png")

    def full(tensors, part, metadata):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    assert "cannot write latents.safetensors" in error("encode", "cat.png", *MODEL)
    assert files() == {"cat.png"}


@pytest.mark.parametrize("command", ["encode", "roundtrip"])
def test_a_full_disk_leaves_no_folder_that_was_made_for_the_result(command, monkeypatch):
    picture("cat.png")
    monkeypatch.setattr(Image.Image, "save", _full_disk)
    monkeypatch.setattr("safetensors.numpy.save_file", lambda _, part, metadata: _full_disk(None, part))
    output = {"encode": "new/in/l.safetensors", "roundtrip": "new/in"}[command]
    assert "No space left on device" in error(command, "cat.png", "--output", output, *MODEL)
    assert not Path("new").exists()


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (RuntimeError("two\nlines"), "unexpected RuntimeError: two lines"),
        (MemoryError(), "not enough memory: try a smaller picture"),
        (MemoryError("not enough memory to read m.npz: close other programs."), "not enough memory to read m.npz"),
        (PermissionError(13, "Permission denied", "cat.png"), "cat.png: permission denied"),
        (OSError(28, "No space left on device"), "error: no space left on device.\n"),
    ],
)
def test_an_unexpected_error_is_one_line_as_well(raised, words, monkeypatch):
    picture("cat.png")

    def broken(*args, **kwargs):
        raise raised

    monkeypatch.setattr("vaespec.cli.loading.load_weights", broken)
    assert words in error("roundtrip", "cat.png", *MODEL)


def test_debug_shows_the_traceback():
    result = run("--debug", "roundtrip", "nowhere.png", code=1)
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("vaespec: error: there is no file nowhere.png: check the name.\n")


def test_the_installed_script_fails_with_one_line_and_exit_code_1():
    script = [sys.executable, "-c", "from vaespec.cli import main; main()"]
    done = subprocess.run([*script, "info", "nowhere"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (
        1,
        "",
        "vaespec: error: no file or folder nowhere: download the weights, or name tiny, the embedded model.\n",
    )


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT to a child on Windows")
def test_ctrl_c_ends_quietly_with_130():
    waiting = (
        "import signal, time; from vaespec.cli import loading\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "def load(*args, **kwargs): print('ready', flush=True); time.sleep(60)\n"
        "loading.load_weights = load\n"
        "from vaespec.cli import main; main()"
    )
    picture("cat.png")
    command = [sys.executable, "-c", waiting, "roundtrip", "cat.png"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGINT)
        assert child.communicate(timeout=30) == ("", "")
    assert child.returncode == 130
