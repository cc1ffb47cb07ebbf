"""Fetching from a hub: no more than is needed, again without it, and one sentence for everything that fails."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from diffusers import AutoencoderKL as Diffusers
from huggingface_hub import constants
from support.hub_server import Repository, closed_port, published

from vaespec import WeightFileError
from vaespec.weights import load_folder
from vaespec.weights.hub import REMEDIES, fetch

WHOLE, FP16 = "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"
BIN = "diffusion_pytorch_model.bin"
REPO = "someone/pipeline"


@pytest.fixture(scope="session")
def sharded(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sharded")
    model = Diffusers(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    model.save_pretrained(folder, max_shard_size="20KB")
    return published(folder)


def refused(repo: str, **arguments) -> str:
    """The one sentence; nothing of another library is shown with it."""
    with pytest.raises(WeightFileError) as caught:
        fetch(repo, **arguments)
    message = str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "\n" not in message
    assert message.endswith(".")
    return message


# -- what is fetched ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("variant", "weights"), [(None, WHOLE), ("fp16", FP16)])
def test_the_config_and_the_chosen_weights_are_fetched_and_nothing_else(hub, cache, vae, variant, weights):
    folder = fetch("someone/vae", variant=variant, cache_dir=cache)
    assert published(folder) == {name: vae[name] for name in ("config.json", weights)}
    assert hub.downloaded() == ["config.json", weights]


def test_pickles_are_fetched_if_there_is_no_safetensors(hub, cache, vae):
    hub.repositories["someone/old"] = Repository({"main": {k: v for k, v in vae.items() if "safetensors" not in k}})
    assert set(published(fetch("someone/old", cache_dir=cache))) == {"config.json", BIN}


@pytest.mark.parametrize("subfolder", ["vae", "vae/", "/vae"])
def test_of_a_pipeline_only_the_subfolder_is_fetched(hub, cache, vae, subfolder):
    folder = fetch(REPO, subfolder=subfolder, cache_dir=cache)
    assert folder.name == "vae"
    assert published(folder) == {name: vae[name] for name in ("config.json", WHOLE)}
    assert hub.downloaded() == ["vae/config.json", f"vae/{WHOLE}"]


def test_every_shard_is_fetched(hub, cache, sharded):
    hub.repositories["someone/shards"] = Repository({"main": {**sharded, "flax_model.msgpack": b"no"}})
    assert len(sharded) > 4
    assert published(fetch("someone/shards", cache_dir=cache)) == sharded


def test_a_repository_without_a_config_gives_its_only_weights(hub, cache):
    hub.repositories["someone/ae"] = Repository({"main": {"ae.safetensors": b"weights", "README.md": b""}})
    assert published(fetch("someone/ae", cache_dir=cache)) == {"ae.safetensors": b"weights"}


def test_a_revision_is_a_branch_or_a_commit(hub, cache, vae):
    other = {**vae, WHOLE: b"other weights"}
    repository = hub.repositories["someone/vae"] = Repository({"main": vae, "pr/1": other})
    for revision in ("pr/1", repository.commit("pr/1")):
        assert (fetch("someone/vae", revision=revision, cache_dir=cache) / WHOLE).read_bytes() == b"other weights"
    assert (fetch("someone/vae", cache_dir=cache) / WHOLE).read_bytes() == vae[WHOLE]


def test_a_branch_that_moved_is_fetched_anew(hub, cache, vae):
    before = fetch("someone/vae", cache_dir=cache)
    hub.repositories["someone/vae"] = Repository({"main": {**vae, WHOLE: b"new"}})
    after = fetch("someone/vae", cache_dir=cache)
    assert (after / WHOLE).read_bytes() == b"new"
    assert (before / WHOLE).read_bytes() == vae[WHOLE]


def test_a_branch_that_moves_between_two_requests_is_not_mixed(hub, cache, vae, monkeypatch):
    online = huggingface_hub.HfApi.model_info

    def moving(*arguments, **options):
        info = online(*arguments, **options)
        hub.repositories["someone/vae"].revisions = {"main": {**vae, WHOLE: b"new"}, "old": vae}
        info.sha = hub.repositories["someone/vae"].commit("old")
        return info

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", moving)
    assert "changed while it was fetched: call again" in refused("someone/vae", cache_dir=cache)


@pytest.mark.parametrize("source", ["argument", "environment", "login"])
def test_the_token_is_sent_with_every_request(hub, cache, vae, source, monkeypatch, tmp_path):
    hub.repositories["someone/private"] = Repository({"main": vae}, token="secret")
    if source == "environment":
        monkeypatch.setenv("HF_TOKEN", "secret")
    if source == "login":
        (tmp_path / "nobody-logged-in").write_text("secret")
    fetch("someone/private", token="secret" if source == "argument" else None, cache_dir=cache)
    assert {headers.get("authorization") for _, _, headers in hub.requests} == {"Bearer secret"}
    assert len(hub.requests) == 5


# -- again, and without the hub ----------------------------------------------------------------------------------


def test_what_is_in_the_cache_is_not_fetched_again(hub, cache):
    first = fetch(REPO, subfolder="vae", cache_dir=cache)
    hub.requests.clear()
    assert fetch(REPO, subfolder="vae", cache_dir=cache) == first
    assert hub.downloaded() == []


@pytest.mark.parametrize("source", ["local_files_only", "HF_HUB_OFFLINE"])
@pytest.mark.parametrize("repo", [REPO, "someone/shards"])
def test_the_cache_serves_without_a_request(hub, cache, sharded, monkeypatch, caplog, source, repo):
    hub.repositories["someone/shards"] = Repository({"main": {f"vae/{name}": text for name, text in sharded.items()}})
    first = fetch(repo, subfolder="vae", cache_dir=cache)
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", source == "HF_HUB_OFFLINE")
    again = fetch(repo, subfolder="vae", cache_dir=cache, local_files_only=source == "local_files_only")
    assert again == first
    assert not hub.requests
    assert not caplog.records


@pytest.mark.parametrize("fault", ["gone", "broken", "nonsense", "forbidden"])
def test_the_cache_serves_with_a_warning_when_the_hub_does_not(hub, cache, monkeypatch, caplog, fault):
    first = fetch("someone/vae", cache_dir=cache)
    if fault == "gone":
        monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    if fault == "broken":
        hub.failures["GET"] = 503
    if fault == "forbidden":
        hub.repositories["someone/vae"].token = "secret"
    hub.nonsense = fault == "nonsense"
    assert fetch("someone/vae", cache_dir=cache) == first
    [warning] = [record.message for record in caplog.records if record.name == "vaespec"]
    assert warning.endswith("Its copy in the cache is used.")


def test_what_another_program_fetched_serves_too(hub, cache, vae):
    files = ["config.json", WHOLE]
    huggingface_hub.snapshot_download("someone/vae", cache_dir=cache, allow_patterns=files)
    assert set(published(fetch("someone/vae", cache_dir=cache, local_files_only=True))) == set(files)


@pytest.mark.parametrize("step", ["online", "download", "cached"])
def test_without_memory_the_hub_is_not_blamed(hub, cache, monkeypatch, step):
    def full(*args: object, **kwargs: object) -> None:
        raise MemoryError("not enough memory")

    monkeypatch.setattr(f"vaespec.weights.hub.HubFolder.{step}", full)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", step == "cached")
    with pytest.raises(MemoryError, match="not enough memory"):
        fetch("someone/vae", cache_dir=cache)


def test_a_variant_that_was_not_fetched_is_not_replaced_by_one_that_was(hub, cache):
    fetch("someone/vae", cache_dir=cache)
    assert "no variant 'fp16'" in refused("someone/vae", variant="fp16", cache_dir=cache, local_files_only=True)


def test_what_was_never_fetched_is_not_found_without_the_hub(hub, cache, monkeypatch):
    message = refused("someone/vae", cache_dir=cache, local_files_only=True)
    assert f"someone/vae is not in the cache {cache}: fetch it once with a network" in message
    fetch(REPO, subfolder="vae", cache_dir=cache)
    assert "has no folder 'unet': choose vae" in refused(REPO, subfolder="unet", cache_dir=cache, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "without local_files_only and HF_HUB_OFFLINE" in refused("someone/vae", cache_dir=cache)


def test_a_cache_with_a_shard_missing_says_which(hub, cache, sharded):
    hub.repositories["someone/shards"] = Repository({"main": sharded})
    shard = max((fetch("someone/shards", cache_dir=cache)).glob("*.safetensors"))
    shard.unlink()
    message = refused("someone/shards", cache_dir=cache, local_files_only=True)
    assert f"lacks 1 of the files it needs, {shard.name} first: fetch the rest with a network" in message


def test_a_file_that_was_removed_from_the_cache_is_not_replaced_by_another(hub, cache):
    for variant in (None, "fp16"):
        folder = fetch("someone/vae", variant=variant, cache_dir=cache)
    (folder / WHOLE).resolve().unlink()
    folder = fetch("someone/vae", cache_dir=cache, local_files_only=True)
    with pytest.raises(WeightFileError, match=f"{WHOLE} is a link to .* which does not exist: restore that file"):
        load_folder(folder, None)


# -- cut off -----------------------------------------------------------------------------------------------------


def test_a_download_that_is_cut_off_goes_on_where_it_stopped(hub, cache, vae, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    hub.cuts[WHOLE] = 1
    assert (fetch("someone/vae", cache_dir=cache) / WHOLE).read_bytes() == vae[WHOLE]
    ranges = [headers.get("range") for method, path, headers in hub.requests if method == "GET" and WHOLE in path]
    assert ranges == [None, f"bytes={len(vae[WHOLE]) // 2 // 1000 * 1000}-"]


@pytest.mark.parametrize("step", ["online", "download", "cached"])
def test_out_of_memory_is_not_told_as_a_failed_download(hub, cache, monkeypatch, step):
    def full(*args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(f"vaespec.weights.hub.HubFolder.{step}", full)
    with pytest.raises(MemoryError):
        fetch("someone/vae", cache_dir=cache, local_files_only=step == "cached")


def test_a_download_that_fails_is_reported_and_can_be_repeated(hub, cache, vae):
    hub.failures[f"GET {WHOLE}"] = 500
    message = refused("someone/vae", cache_dir=cache)
    assert "could not be fetched from http://127.0.0.1" in message
    assert "(HTTP status 500)" in message
    assert "call again" in message
    assert "no weights in the part of someone/vae that is in the cache" in refused(
        "someone/vae", cache_dir=cache, local_files_only=True
    )
    hub.failures.clear()
    hub.requests.clear()
    assert (fetch("someone/vae", cache_dir=cache) / WHOLE).read_bytes() == vae[WHOLE]
    assert hub.downloaded() == [WHOLE]


def test_a_forbidden_file_is_reported(hub, cache):
    hub.failures[f"HEAD {WHOLE}"] = 403
    assert "(HTTP status 403): check token=." in refused("someone/vae", cache_dir=cache)


def test_a_server_that_does_not_answer_is_reported_and_leaves_no_partial_file(hub, cache, monkeypatch):
    hub.cuts[WHOLE] = 10**6
    monkeypatch.setattr("support.hub_server.Handler._send", gone_after_half)
    assert "could not be fetched" in refused("someone/vae", cache_dir=cache)
    assert not list(cache.rglob(WHOLE))


def gone_after_half(handler, status, content, headers, name=""):
    """Every answer promises the content, and sends nothing of the weights."""
    handler.send_response(status)
    for key, value in {**headers, "Content-Length": str(len(content))}.items():
        handler.send_header(key, value)
    handler.end_headers()
    if handler.command == "GET" and name != WHOLE:
        handler.wfile.write(content)


# -- what cannot be had ------------------------------------------------------------------------------------------


def test_a_missing_or_private_repository_is_reported(hub, cache, vae):
    hub.repositories["someone/private"] = Repository({"main": vae}, token="secret")
    for repo in ("someone/nothing", "someone/private"):
        message = refused(repo, cache_dir=cache)
        assert f"no repository {repo} at {hub.url}" in message
        assert "give token=" in message


def test_a_gated_repository_says_how_to_get_in(hub, cache, vae):
    hub.repositories["someone/gated"] = Repository({"main": vae}, token="secret", gated=True)
    assert "someone/gated is gated: accept its terms" in refused("someone/gated", cache_dir=cache)
    assert (fetch("someone/gated", token="secret", cache_dir=cache) / WHOLE).exists()


def test_a_refused_token_is_reported(hub, cache):
    message = refused("someone/vae", token="wrong", cache_dir=cache)
    assert "401" in message
    assert message.endswith("check token=.")
    assert "nobody has logged in" in refused("someone/vae", token=True, cache_dir=cache)


def test_a_missing_revision_is_reported_even_if_the_cache_has_it(hub, cache, vae):
    hub.repositories["someone/vae"].revisions["v1"] = {**vae, "x": b""}
    fetch("someone/vae", revision="v1", cache_dir=cache)
    del hub.repositories["someone/vae"].revisions["v1"]
    assert "someone/vae has no revision 'v1': give a branch" in refused("someone/vae", revision="v1", cache_dir=cache)


@pytest.mark.parametrize("repo", ["no such folder", "a/b/c", "../up", "a--b/c", "/tmp/nowhere", ""])
def test_an_impossible_repository_name_is_reported(hub, cache, repo):
    assert f"{repo!r} is no repository: write owner/name" in refused(repo, cache_dir=cache)
    assert not hub.requests


def test_a_missing_subfolder_is_reported_with_a_list_of_the_others(hub, cache):
    assert "has no folder 'vea': choose unet, vae." in refused(REPO, subfolder="vea", cache_dir=cache)
    assert "leave subfolder= out" in refused("someone/vae", subfolder="vae", cache_dir=cache)
    assert "its VAE is in vae/" in refused(REPO, cache_dir=cache)
    assert hub.downloaded() == []


def test_a_missing_variant_is_reported_with_a_list_of_the_others(hub, cache):
    message = refused("someone/vae", variant="bf16", cache_dir=cache)
    assert "no variant 'bf16' in someone/vae: choose variant='fp16'" in message
    assert hub.downloaded() == []


def test_a_missing_network_is_reported(hub, cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", closed_port())
    assert "check the network and HF_ENDPOINT" in refused("someone/vae", cache_dir=cache)


def test_a_web_page_instead_of_the_hub_is_reported(hub, cache):
    hub.nonsense = True
    assert "could not be fetched from http://127.0.0.1" in refused("someone/vae", cache_dir=cache)


def test_a_cache_that_cannot_be_written_to_is_reported(hub, tmp_path):
    (tmp_path / "file").touch()
    message = refused("someone/vae", cache_dir=tmp_path / "file")
    assert re.search(r"cannot write someone/vae to the cache .*/file: .*; give another cache_dir=", message)


@pytest.mark.parametrize("shard", ["../../config.json", "/etc/passwd", "vae/x.safetensors", "a\\b"])
def test_an_index_that_points_elsewhere_is_not_followed(hub, cache, sharded, shard):
    index = "diffusion_pytorch_model.safetensors.index.json"
    text = ('{"weight_map": {"a": ' + repr(shard).replace("'", '"') + "}}").encode()
    hub.repositories["someone/evil"] = Repository({"main": {**sharded, index: text, "vae/x.safetensors": b""}})
    assert "not a plain file name" in refused("someone/evil", cache_dir=cache)
    assert hub.downloaded() == ["config.json", index]


def test_a_missing_shard_is_reported_before_the_others_are_fetched(hub, cache, sharded):
    lost = max(name for name in sharded if name.endswith(".safetensors"))
    hub.repositories["someone/shards"] = Repository({"main": {k: v for k, v in sharded.items() if k != lost}})
    assert f"someone/shards lacks 1 of the files it needs, {lost} first" in refused("someone/shards", cache_dir=cache)
    assert not any(name.endswith(".safetensors") for name in hub.downloaded())


# -- the library -------------------------------------------------------------------------------------------------


def test_without_the_library_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert refused("someone/vae").endswith('needs huggingface_hub, which is not installed: pip install "vaespec[hub]".')


def test_every_remedy_is_for_an_error_that_the_library_has():
    for name in REMEDIES:
        assert issubclass(getattr(huggingface_hub.errors, name), Exception)


def test_the_endpoint_and_the_cache_of_the_environment_are_used_in_a_fresh_process(hub, cache):
    code = "from vaespec.weights.hub import fetch; print(fetch('someone/vae'))"
    environment = {**os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache)}
    for offline in ("0", "1"):
        run = [sys.executable, "-c", code]
        variables = {**environment, "HF_HUB_OFFLINE": offline}
        done = subprocess.run(run, env=variables, capture_output=True, text=True, check=True)
        assert Path(done.stdout.strip()).is_relative_to(cache)
        if offline == "0":
            assert hub.downloaded() == ["config.json", WHOLE]
            hub.requests.clear()
    assert not hub.requests


def test_importing_it_does_not_import_the_library():
    code = "import sys, vaespec.weights.hub; print('huggingface_hub' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
