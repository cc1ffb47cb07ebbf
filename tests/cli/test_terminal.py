"""Names from files and from the command line never reach the terminal as characters that it obeys."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.workplace import MODEL, NARROW, picture, run

import vaespec
from vaespec.cli import console

HOSTILE = "\x1b]0;title\x07\x9b31m\u202e\n\x7f"
SHOWN = r"\x1b]0;title\x07\x9b31m\u202e\n\x7f"


def shown(*args: str | Path, code: int = 0) -> str:
    """What the command prints, which must be safe."""
    result = run(*args, code=code)
    text = result.stdout + result.stderr
    assert text.replace("\n", "").isprintable()
    return text


def test_names_of_tensors_and_metadata_in_info():
    save_file({f"x{HOSTILE}": np.zeros(2, np.float32)}, "file.safetensors", {f"key{HOSTILE}": "value"})
    assert f"key{SHOWN}" in shown("info", "file.safetensors", code=1)
    assert f"x{SHOWN}" in shown("info", "file.safetensors", code=1)


def test_names_of_tensors_that_do_not_fit(weights):
    tensors = load_file(weights / "diffusion_pytorch_model.safetensors")
    Path("vae").mkdir()
    Path("vae/config.json").write_bytes((weights / "config.json").read_bytes())
    save_file(tensors | {f"encoder.{HOSTILE}": np.zeros(2, np.float32)}, "vae/model.safetensors")
    for command in (("info", "vae"), ("convert", "vae", "other.safetensors", "--to", "ldm")):
        assert rf"unexpected  encoder.{SHOWN}" in shown(*command, code=1)


def test_names_of_tensors_in_a_warning(weights, caplog):
    tensors = load_file(weights / "diffusion_pytorch_model.safetensors")
    save_file(tensors | {f"encoder.{HOSTILE}": np.zeros(2, np.float32)}, "file.safetensors")
    with caplog.at_level(logging.WARNING, "vaespec"):
        vaespec.AutoencoderKL.from_single_file("file.safetensors", config=NARROW, strict=False, backend="numpy")
    assert SHOWN in caplog.records[-1].getMessage()
    assert caplog.records[-1].getMessage().isprintable()


@pytest.mark.parametrize("command", ["roundtrip", "encode"])
def test_names_of_pictures_in_tables_errors_and_json(command):
    name = f"cat{HOSTILE}.png"
    picture("cat.png").rename(name)
    assert f"cat{SHOWN}" in shown(command, name, *MODEL)
    assert (
        json.loads(shown(command, name, "--json", *MODEL))["pictures"][0][
            "picture" if command == "roundtrip" else "file"
        ]
        == name
    )
    Path(name).write_text("x")
    assert f"cat{SHOWN}" in shown(command, name, *MODEL, code=1)
    assert f"no{SHOWN}" in shown(command, f"no{HOSTILE}", *MODEL, code=1)
    assert f"no{SHOWN}" in shown("--debug", command, f"no{HOSTILE}", *MODEL, code=1)


def test_names_of_tensors_in_decode():
    picture("cat.png").rename(f"cat{HOSTILE}.png")
    run("encode", f"cat{HOSTILE}.png", *MODEL)
    assert f"0-cat{SHOWN}" in shown("decode", "latents.safetensors", *MODEL)


def test_values_of_a_config(weights):
    Path("vae").mkdir()
    (Path("vae") / "diffusion_pytorch_model.safetensors").symlink_to(weights / "diffusion_pytorch_model.safetensors")
    for field in ("act_fn", "_class_name", f"x{HOSTILE}"):
        config = json.loads((weights / "config.json").read_text()) | {field: HOSTILE}
        (Path("vae") / "config.json").write_text(json.dumps(config))
        shown("info", "vae", code=1)


@pytest.mark.parametrize("args", [(HOSTILE,), (f"--{HOSTILE}",), ("info", f"--{HOSTILE}"), ("info", "--size", HOSTILE)])
def test_usage_errors(args):
    result = run(*args, code=2)
    assert not {"\x1b", "\x07", "\x9b", "\u202e", "\x7f"} & set(result.stdout + result.stderr)


def test_the_description_of_a_progress_bar(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    monkeypatch.setattr(console, "PATIENCE", 0.0)
    with console.progress(f"loading {HOSTILE}", 2) as step:
        step()
    assert "\x1b]0" not in capsys.readouterr().err
