"""A hub on this machine, for the tests of everything that fetches."""

from __future__ import annotations

import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
from diffusers import AutoencoderKL as Diffusers
from huggingface_hub import constants, file_download
from support.hub_server import Hub, Repository, published


@pytest.fixture(scope="session")
def vae(tmp_path_factory) -> dict[str, bytes]:
    """A VAE's folder with everything in it: plain and fp16, safetensors and pickle; written by diffusers."""
    folder = tmp_path_factory.mktemp("published")
    model = Diffusers(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    for variant in (None, "fp16"):
        for safe in (True, False):
            model.save_pretrained(folder, safe_serialization=safe, variant=variant)
    return {**published(folder), "README.md": b"hello"}


@pytest.fixture
def hub(monkeypatch, tmp_path, vae):
    """A hub with a pipeline and a VAE of its own; nothing but 127.0.0.1 may be spoken to."""
    strangers, connect = [], socket.socket.connect

    def watched(self, address):
        if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] != "127.0.0.1":
            strangers.append(address)
            raise ConnectionRefusedError
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "nobody-logged-in"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(file_download, "time", SimpleNamespace(sleep=lambda _: None))  # between two tries
    pipeline = {"model_index.json": b"{}", "unet/config.json": b"{}", **{f"vae/{k}": v for k, v in vae.items()}}
    with Hub(
        {"someone/pipeline": Repository({"main": pipeline}), "someone/vae": Repository({"main": vae})}
    ).serving() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield hub
    assert not strangers


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"
