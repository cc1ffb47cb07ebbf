"""Tools of the command line's tests: a narrow model, pictures, and commands that run in this process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from support.configs import narrow
from typer.testing import CliRunner

import vaespec
from vaespec.cli.app import app

NARROW = narrow((8, 8, 8), latent_channels=4)  # f = 4
COMMANDS = ("demo", "roundtrip", "encode", "decode", "info", "convert", "compare", "backends")
MODEL = ("--weights", "weights", "--backend", "numpy")


def saved(config: vaespec.AutoencoderConfig, folder: Path) -> Path:
    vaespec.AutoencoderKL.from_config(config, backend="numpy").save_pretrained(folder)
    return folder


def vae(weights: str = "weights") -> vaespec.AutoencoderKL:
    return vaespec.load(weights, backend="numpy")


def picture(name: str, width: int = 13, height: int = 10, seed: int = 0) -> Path:
    """A smooth picture of random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    Path(name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(name)
    return Path(name)


def pixels(path: str | Path) -> np.ndarray:
    with Image.open(path) as opened:
        return np.asarray(opened)


def run(*args: str | Path, code: int = 0):
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.output
    return result


def error(*args: str | Path, code: int = 1) -> str:
    """The message of a failing command: one line on stderr, nothing on stdout."""
    result = run(*args, code=code)
    assert result.stdout == ""
    assert result.stderr.startswith("vaespec: error: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def files() -> set[str]:
    """All files in the folder except the weights."""
    return {str(path) for path in Path().rglob("*") if path.is_file() and "weights" not in path.parts}
