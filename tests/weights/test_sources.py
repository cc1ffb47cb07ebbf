"""What users name as weights: what is on the disk comes first, then the hub; one sentence if it is neither."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import constants
from support.hub_server import Repository, closed_port, published
from support.workplace import NARROW, error, picture, run, saved

import vaespec
from vaespec import AutoencoderKL, InputError, WeightFileError
from vaespec.autoencoder import locate
from vaespec.weights.sources import Place, place_of

WHOLE = "diffusion_pytorch_model.safetensors"
HUB = "https://huggingface.co"
REPO = "someone/narrow"


@pytest.fixture
def here(hub, tmp_path, monkeypatch) -> Path:
    """An empty folder and an empty cache; the hub has a narrow VAE, alone and in a pipeline."""
    narrow = published(saved(NARROW, tmp_path / "narrow"))
    hub.repositories[REPO] = Repository({"main": narrow, "refs/pr/1": narrow})
    hub.repositories["someone/pipe"] = Repository({"main": {"model_index.json": b"{}", **in_folder("vae", narrow)}})
    hub.repositories["someone/file"] = Repository({"main": {"deep/er/x.safetensors": narrow[WHOLE]}})
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def in_folder(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": content for name, content in files.items()}


def refused(load, *arguments, **options) -> str:
    with pytest.raises((WeightFileError, InputError)) as caught:
        load(*arguments, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def has_the_narrow_weights(vae: AutoencoderKL, folder: Path) -> bool:
    ours, theirs = vae.weights(), vaespec.load(folder, backend="numpy").weights()
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


# -- load ----------------------------------------------------------------------------------------------------------

REPOSITORIES = [
    *(REPO, f"{REPO}/", f"{HUB}/{REPO}", f"{HUB}/{REPO}/tree/main", f"huggingface.co/{REPO}", f"hf://{REPO}@main"),
    *("someone/pipe", f"{HUB}/someone/pipe/tree/main/vae", "hf://someone/pipe/vae", f"{HUB}/{REPO}/tree/refs%2Fpr%2F1"),
]
FILES = [
    *(f"{HUB}/{REPO}/{kind}/main/{WHOLE}" for kind in ("blob", "resolve")),
    *(f"https://hf.co/{REPO}/resolve/main/{WHOLE}?download=true", f"hf://{REPO}/{WHOLE}"),
    f"{HUB}/someone/file/blob/main/deep/er/x.safetensors",
]


@pytest.mark.parametrize("source", [*REPOSITORIES, *FILES])
def test_a_repository_its_address_and_the_address_of_a_file_are_loaded(here, tmp_path, source):
    if source in FILES:
        vae = AutoencoderKL.from_single_file(source, config=NARROW, backend="numpy")
        assert locate(source).name == Path(source.split("?")[0]).name
    else:
        vae = vaespec.load(source, backend="numpy")
    assert vae.config == NARROW
    assert has_the_narrow_weights(vae, tmp_path / "narrow")


def test_what_is_on_the_disk_comes_before_the_hub(here, hub, tmp_path):
    saved(NARROW.replace(scaling_factor=0.5), here / REPO)
    for load in (vaespec.load, AutoencoderKL.from_pretrained):
        assert load(REPO, backend="numpy").config.scaling_factor == 0.5
    (here / "someone" / "pipe").symlink_to("gone")
    assert "someone/pipe is a link to gone" in refused(vaespec.load, "someone/pipe")
    assert "someone/pipe is not a folder" in refused(AutoencoderKL.from_pretrained, "someone/pipe")
    assert not hub.requests


def test_a_pipeline_on_the_disk_stands_for_its_vae(here):
    saved(NARROW, here / "pipe" / "vae")
    (here / "pipe" / "model_index.json").touch()
    assert vaespec.load(here / "pipe", backend="numpy").config == NARROW
    message = refused(AutoencoderKL.from_pretrained, here / "pipe")
    assert message.endswith('its VAE is in vae/, name that folder, or give subfolder="vae".')
    assert AutoencoderKL.from_pretrained(here / "pipe", subfolder="vae", backend="numpy").config == NARROW


@pytest.mark.parametrize("load", [vaespec.load, AutoencoderKL.from_pretrained])
def test_a_name_that_is_neither_here_nor_there_is_told_in_one_sentence(here, hub, monkeypatch, load):
    both = "no file or folder models/vae, and "
    assert refused(load, "models/vae").startswith(f"{both}no repository models/vae at {hub.url} that you may see")
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert refused(load, "models/vae").startswith(f"{both}models/vae could not be fetched from http://127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused(load, "models/vae").startswith(f"{both}models/vae is not in the cache")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused(load, "models/vae") == (
        f'{both}fetching models/vae needs huggingface_hub, which is not installed: pip install "vaespec[hub]".'
    )


@pytest.mark.parametrize("path", ["nowhere", "a/vae.safetensors", "a/b/c", "./a/b", "../vae", "/models/vae", "~/vae"])
def test_what_can_only_be_a_path_is_not_searched_for_on_the_hub(here, hub, path):
    assert "no file or folder" in refused(vaespec.load, path)
    assert not hub.requests


@pytest.mark.parametrize("path", ["x" * 5000, "a\0b", "x" * 300 + "/y"])
@pytest.mark.parametrize("load", [vaespec.load, AutoencoderKL.from_pretrained, AutoencoderKL.from_single_file])
def test_what_can_be_no_path_is_refused_in_a_sentence(here, load, path):
    assert refused(load, path)


@pytest.mark.parametrize(
    "address",
    [
        *("https://example.com/vae.safetensors", "ftp://huggingface.co/a/b", "file:///vae.safetensors", "s3://a/b"),
        *(HUB, f"{HUB}/someone", f"{HUB}/datasets/a/b", f"{HUB}/{REPO}/blob/main/config.json", f"{HUB}/{REPO}/tree"),
        *("hf://", "hf://someone", "https://", f"{HUB}.example.com/{REPO}", "https://[", "http://a@huggingface.co/a/b"),
    ],
)
@pytest.mark.parametrize("load", [vaespec.load, AutoencoderKL.from_pretrained, AutoencoderKL.from_single_file])
def test_the_address_of_anything_else_says_what_to_give(here, hub, load, address):
    assert refused(load, address) == (
        f"{address} is not the address of a VAE on the hub: give owner/name, or download the file and give its path."
    )
    assert not hub.requests


def test_the_parts_of_an_address_are_told_apart():
    assert place_of("a/b") == Place("a/b")
    assert place_of(f"{HUB}/a/b/tree/refs%2Fpr%2F1/vae") == Place("a/b", "refs/pr/1", "vae")
    assert place_of("hf://a/b@refs%2Fpr%2F1/vae/x.ckpt") == Place("a/b", "refs/pr/1", "vae/x.ckpt")
    assert place_of(f"{HUB}/a/b/resolve/main/x%20y.safetensors?download=true#top").path == "x y.safetensors"


# -- one file of the hub -------------------------------------------------------------------------------------------


def test_a_file_that_the_repository_lacks_is_reported(here):
    message = refused(vaespec.load, f"{HUB}/{REPO}/blob/main/other.safetensors")
    assert message == f"{REPO} at main has no such file: check its name on the page of the repository."
    assert "has no folder 'nowhere'" in refused(vaespec.load, f"{HUB}/someone/file/blob/main/nowhere/x.safetensors")
    assert "no revision 'v9'" in refused(vaespec.load, f"{HUB}/{REPO}/blob/v9/{WHOLE}")


def test_a_file_in_the_cache_serves_when_the_hub_does_not(here, monkeypatch, caplog):
    address = f"{HUB}/{REPO}/resolve/main/{WHOLE}"
    first = locate(address)
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert locate(address) == first
    [warning] = [record.message for record in caplog.records if record.name == "vaespec"]
    assert warning.endswith("Its copy in the cache is used.")
    assert "could not be fetched" in refused(locate, f"{HUB}/{REPO}/resolve/main/x.safetensors")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert locate(address) == first


# -- each to its own function --------------------------------------------------------------------------------------


def test_a_file_is_for_from_single_file_and_a_folder_for_from_pretrained(here, hub):
    folder = saved(NARROW, here / "narrow")
    assert refused(AutoencoderKL.from_pretrained, folder / WHOLE).endswith(
        "is not a folder: a file is for from_single_file."
    )
    assert refused(AutoencoderKL.from_pretrained, FILES[0]).endswith("address of a file: give it to from_single_file.")
    assert "is a folder: give it to from_pretrained" in refused(AutoencoderKL.from_single_file, folder)
    for source in (REPO, f"{HUB}/{REPO}"):
        assert refused(AutoencoderKL.from_single_file, source).endswith("of the hub is for from_pretrained.")
    assert not hub.requests


CREATORS = [vaespec.load, AutoencoderKL.from_pretrained, AutoencoderKL.from_single_file, AutoencoderKL.from_config]


@pytest.mark.parametrize("create", CREATORS)
@pytest.mark.parametrize(("name", "ours"), [("torch_dtype", "dtype"), ("device_map", "device")])
def test_a_keyword_of_diffusers_is_told_with_ours(here, hub, create, name, ours):
    assert refused(create, REPO, **{name: "float16"}) == f"{create.__name__} has no {name}=: give {ours}=."
    assert not hub.requests


@pytest.mark.parametrize("create", CREATORS)
def test_an_unknown_keyword_is_told_with_the_known_ones(here, hub, create):
    message = refused(create, REPO, low_cpu_mem_usage=True)
    assert message.startswith(f"{create.__name__} has no low_cpu_mem_usage=: it takes ")
    assert message.endswith(", backend, device, dtype, precision, compile.")
    assert not hub.requests


# -- the command line ----------------------------------------------------------------------------------------------


def test_every_command_takes_a_repository(here):
    picture("cat.png", 24, 24)
    model = ("--weights", REPO, "--backend", "numpy")
    assert json.loads(run("info", REPO, "--json").stdout)["config"] == NARROW.to_dict()
    run("roundtrip", "cat.png", *model)
    run("encode", "cat.png", "--output", "latents.safetensors", *model)
    run("decode", "latents.safetensors", "--output", "out", "-w", f"{HUB}/someone/pipe", "--backend", "numpy")
    run("compare", "cat.png", "--tiling", *model)
    run("convert", REPO, "copy.safetensors", "--to", "ldm")
    assert {"cat-vae.png", "latents.safetensors", "out", "copy.safetensors"} <= {path.name for path in here.iterdir()}


@pytest.mark.parametrize("command", ["info", "roundtrip", "encode", "decode", "compare", "convert"])
def test_every_command_says_that_a_name_is_neither_here_nor_there(here, command):
    picture("cat.png")
    run("encode", "cat.png", "--output", "latents.safetensors", "-w", REPO, "--backend", "numpy")
    arguments = {
        "info": ("models/vae",),
        "convert": ("models/vae", "x.safetensors", "--to", "ldm"),
        "decode": ("latents.safetensors", "-w", "models/vae"),
        "encode": ("cat.png", "--output", "other.safetensors", "-w", "models/vae"),
        "compare": ("cat.png", "--tiling", "-w", "models/vae"),
    }.get(command, ("cat.png", "-w", "models/vae"))
    assert "no file or folder models/vae, and no repository models/vae at" in error(command, *arguments)


@pytest.mark.parametrize("path", ["", "a\0b", b"tiny", 5, None], ids=repr)
def test_what_is_no_path_is_refused_in_a_sentence_wherever_one_is_given(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vae = vaespec.load("tiny", backend="numpy")
    for give in (vaespec.load, vae.from_pretrained, vae.from_single_file, vae.save_pretrained, vae.save_single_file):
        with pytest.raises((WeightFileError, InputError), match=r"is no path|: give a path") as raised:
            give(path)  # `load` takes models in memory too
        assert str(raised.value).isprintable()
    assert not list(tmp_path.iterdir())
