"""A folder that is saved anew is never loaded with the config of one model and the weights of another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import pytest
from support.configs import narrow

import vaespec
from vaespec import weights
from vaespec.weights import load
from vaespec.weights.save import WEIGHTS

CONFIG = narrow((8, 8), latent_channels=4)
OLD, NEW = (
    vaespec.AutoencoderKL.from_config(CONFIG.replace(scaling_factor=scale), seed=seed, backend="numpy")
    for seed, scale in ((1, 1.0), (2, 2.0))
)
KILLED = """
import os, sys, vaespec
from vaespec import weights
model = vaespec.load("new", backend="numpy")
config, arrays = model.config, model.weights()
replace = os.replace
for number in range(1, 5):  # the old config, the weights, the new config; and no kill at all
    if os.fork() == 0:
        calls = []
        def killed(source, target):
            calls.append(target)
            if len(calls) == number:
                os._exit(9)  # as SIGKILL does, it removes nothing
            replace(source, target)
        os.replace = killed
        weights.save_folder(weights.save.Path(f"old{number}"), config, arrays)
        os._exit(0)
    os.wait()
"""


def scale_and_weights(folder: Path) -> tuple[float | None, bool]:
    """The scale, and whether the weights are the new ones."""
    model = vaespec.AutoencoderKL.from_pretrained(folder, backend="numpy")
    name = "encoder.conv_in.weight"
    return model.config.scaling_factor, bool((model.weights()[name] == NEW.weights()[name]).all())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_save_that_is_killed_at_any_moment_leaves_one_model_or_a_folder_that_is_refused(tmp_path):
    for number in range(1, 5):
        OLD.save_pretrained(tmp_path / f"old{number}")
    NEW.save_pretrained(tmp_path / "new")
    subprocess.run([sys.executable, "-W", "ignore", "-c", KILLED], cwd=tmp_path, check=True)
    assert scale_and_weights(tmp_path / "old1") == (1.0, False)
    for number in (2, 3):
        with pytest.raises(vaespec.ConfigError, match="not saved to its end: save the model again"):
            vaespec.load(tmp_path / f"old{number}", backend="numpy")
        with pytest.raises(ValueError, match="_class_name"):
            diffusers.AutoencoderKL.from_pretrained(tmp_path / f"old{number}")
    assert scale_and_weights(tmp_path / "old4") == (2.0, True)
    for number in range(1, 5):  # saved again, it is whole, and nothing is left of the killed process
        NEW.save_pretrained(tmp_path / f"old{number}")
        assert scale_and_weights(tmp_path / f"old{number}") == (2.0, True)
        assert sorted(os.listdir(tmp_path / f"old{number}")) == ["config.json", WEIGHTS]


def test_the_first_save_that_is_killed_leaves_nothing_that_loads(tmp_path, monkeypatch):
    replace = os.replace

    def failing(source, target):
        if Path(target).name == WEIGHTS:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        OLD.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == []


def test_weights_that_cannot_be_replaced_leave_the_old_model(tmp_path, monkeypatch):
    OLD.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    replace = os.replace

    def failing(source, target):
        if Path(target).name == WEIGHTS:
            raise PermissionError(13, "Permission denied", str(source), None, str(target))
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(vaespec.WeightFileError, match=f"cannot write .*{WEIGHTS} .Permission denied.[.]"):
        NEW.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_config_that_cannot_be_replaced_after_the_weights_leaves_a_folder_that_is_refused(tmp_path, monkeypatch):
    OLD.save_pretrained(tmp_path)
    replace, calls = os.replace, []

    def failing(source, target):
        calls.append(target)
        if len(calls) == 3:
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(KeyboardInterrupt):
        NEW.save_pretrained(tmp_path)
    with pytest.raises(vaespec.ConfigError, match="not saved to its end"):
        vaespec.load(tmp_path, backend="numpy")


def test_a_folder_that_is_saved_anew_while_it_is_loaded_is_refused(tmp_path, monkeypatch):
    OLD.save_pretrained(tmp_path)
    load_file = load.load_file

    def late(*args, **options):
        NEW.save_pretrained(tmp_path)
        return load_file(*args, **options)

    monkeypatch.setattr(load, "load_file", late)
    with pytest.raises(vaespec.WeightFileError, match="has changed since it was read: load the folder again"):
        vaespec.load(tmp_path, backend="numpy")


def test_a_config_that_is_edited_by_hand_and_weights_that_are_replaced_on_purpose_are_loaded(tmp_path):
    OLD.save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"scaling_factor": 3.0}))
    assert scale_and_weights(tmp_path) == (3.0, False)
    weights.save_file(tmp_path / WEIGHTS, NEW.config, NEW.weights())
    assert scale_and_weights(tmp_path) == (3.0, True)


def test_a_folder_that_diffusers_writes_from_ours_is_loaded(tmp_path):
    OLD.save_pretrained(tmp_path / "ours")
    diffusers.AutoencoderKL.from_pretrained(tmp_path / "ours").save_pretrained(tmp_path / "theirs")
    assert scale_and_weights(tmp_path / "theirs") == (1.0, False)


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes")
@pytest.mark.parametrize("name", ["config.json", WEIGHTS])
def test_a_folder_with_a_pipe_in_place_of_a_file_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with pytest.raises(vaespec.WeightFileError, match="it is a pipe or a device: name another folder"):
        OLD.save_pretrained(tmp_path)
    assert os.listdir(tmp_path) == [name]


@pytest.mark.parametrize("place", ["new", "new/in/new", "old/new"])
def test_folders_that_a_failed_save_has_made_are_removed(place, tmp_path, monkeypatch):
    (tmp_path / "old").mkdir()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vaespec.weights.save.write_safetensors", full)
    with pytest.raises(vaespec.WeightFileError, match="No space left on device"):
        NEW.save_pretrained(tmp_path / place)
    assert list(tmp_path.rglob("*")) == [tmp_path / "old"]
