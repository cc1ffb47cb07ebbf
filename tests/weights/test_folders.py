"""Which files of a folder are its VAE: decided by names, refused where that would be a guess."""

from __future__ import annotations

import json
import logging
import os
from contextlib import suppress
from pathlib import Path

import pytest
from diffusers import AutoencoderKL as Diffusers
from hypothesis import given
from hypothesis import strategies as st

from vaespec import WeightFileError
from vaespec.weights.containers import open_tensors, read_index
from vaespec.weights.folders import choose, choose_among

SAFETENSORS = "diffusion_pytorch_model.safetensors"
FP16 = "diffusion_pytorch_model.fp16.safetensors"
EMA = "diffusion_pytorch_model.non_ema.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
PREFERRED = (
    SAFETENSORS,
    INDEX,
    "model.safetensors.index.json",
    "diffusion_pytorch_model.bin",
    "diffusion_pytorch_model.bin.index.json",
    "diffusion_flax_model.msgpack",
    "flax_model.msgpack",
)


def chosen(names, variant=None) -> str:
    return choose_among({"config.json", *names}, "here", variant).weights.name


def refused(names, variant=None) -> str:
    with pytest.raises(WeightFileError) as caught:
        choose_among(set(names), "here", variant)
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@given(st.sets(st.sampled_from(PREFERRED), min_size=1), st.sets(st.sampled_from(["README.md", "0.safetensors", FP16])))
def test_the_preferred_plain_weights_are_chosen_among_any_other_files(weights, others):
    assert chosen(weights | others) == min(weights, key=PREFERRED.index)


@given(st.sets(st.sampled_from([*PREFERRED, FP16, EMA, "config.json", "vae/x.bin", "notes.txt"]), min_size=1))
def test_the_chosen_files_alone_give_the_same_choice(names):
    try:
        first = choose_among(names, "here")
    except WeightFileError:
        return
    assert choose_among({path.name for path in first.first}, "here") == first


@pytest.mark.parametrize("safe", [True, False], ids=["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
@pytest.mark.parametrize("size", ["10GB", "20KB"], ids=["whole", "sharded"])
def test_what_diffusers_saves_is_found_whole_with_every_shard(tmp_path, safe, variant, size):
    model = Diffusers(block_out_channels=(8,), norm_num_groups=4, layers_per_block=1)
    model.save_pretrained(tmp_path, safe_serialization=safe, variant=variant, max_shard_size=size)
    files = choose(tmp_path, variant)
    assert files.sharded == (size == "20KB")
    assert {*files.first, *files.shards()} == set(tmp_path.iterdir())
    assert files.variant == variant


def test_mflux_folders_are_opened_by_their_index(tmp_path):
    names = ["0.safetensors", "1.safetensors", "model.safetensors.index.json"]
    for name in names:
        (tmp_path / name).write_text(json.dumps({"weight_map": {"a": names[1], "b": names[0], "c": names[1]}}))
    files = choose(tmp_path)
    assert files.config is None
    assert [path.name for path in (*files.first, *files.shards())] == [names[2], names[1], names[0]]


@pytest.mark.parametrize("name", ["ae.safetensors", "model.ckpt", "vae-ft-mse.PT", "vae.gguf", "0.safetensors"])
def test_a_folder_with_one_weight_file_may_call_it_anything(name):
    assert chosen([name, "README.md", ".gitattributes"]) == name


def test_several_weight_files_of_unknown_names_are_listed_not_guessed_from():
    words = "here has 2 weight files, a.ckpt, b.safetensors: give the path of one"
    assert words in refused(["b.safetensors", "a.ckpt"])


def test_one_shard_is_not_taken_for_the_weights():
    assert "shards without their index" in refused(["diffusion_pytorch_model-00001-of-00002.safetensors"])
    shards = [f"diffusion_pytorch_model.fp16-0000{i}-of-00002.safetensors" for i in (1, 2)]
    assert chosen([*shards, "diffusion_pytorch_model.safetensors.index.fp16.json"], "fp16").endswith("fp16.json")


# -- variants ----------------------------------------------------------------------------------------------------


def test_a_requested_variant_is_used():
    assert chosen([SAFETENSORS, FP16], "fp16") == FP16
    assert chosen([SAFETENSORS, FP16]) == SAFETENSORS


def test_a_missing_variant_is_refused_with_a_list_of_the_others():
    assert "no variant 'bf16' in here: choose variant='fp16' or 'non_ema'." in refused([FP16, EMA], "bf16")
    assert "choose variant='fp16', or leave it out" in refused([SAFETENSORS, FP16], "bf16")
    assert "leave variant= out" in refused([SAFETENSORS], "bf16")
    assert "leave variant= out" in refused(["ae.safetensors"], "bf16")


def test_two_variants_and_no_plain_weights_ask_for_a_choice():
    assert "no plain weights in here: choose variant='fp16' or 'non_ema'." in refused([FP16, EMA])


def test_the_only_variant_is_taken_and_said(tmp_path, caplog):
    (tmp_path / FP16).touch()
    assert choose(tmp_path).weights == tmp_path / FP16
    [record] = caplog.records
    assert (record.name, record.levelno) == ("vaespec", logging.WARNING)
    assert "only as variant 'fp16'" in record.message


def test_a_requested_choice_gives_no_warning(tmp_path, caplog):
    (tmp_path / FP16).touch()
    choose(tmp_path, "fp16")
    (tmp_path / SAFETENSORS).touch()
    choose(tmp_path)
    assert not caplog.records


# -- what is no VAE's folder -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [[], ["model_index.json"], ["ae.safetensors", "flux.safetensors"], ["sd.ckpt"]])
def test_a_pipeline_says_where_its_vae_is(tmp_path, beside):
    (tmp_path / "vae").mkdir()
    for name in ["vae/config.json", f"vae/{SAFETENSORS}", *beside]:
        (tmp_path / name).touch()
    with pytest.raises(WeightFileError, match="its VAE is in vae/, name that folder"):
        choose(tmp_path)
    assert choose(tmp_path / "vae").config == tmp_path / "vae" / "config.json"


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    assert "it has only README.md, config.json;" in refused(["config.json", "README.md"])
    assert "it has nothing at all" in refused([])
    assert "and 10 more;" in refused([f"{i:02}.txt" for i in range(20)])
    with pytest.raises(WeightFileError, match=r"no folder .*nowhere: check the path"):
        choose(tmp_path / "nowhere")
    with pytest.raises(WeightFileError, match=r"no folder 'a\\x00b' \(embedded null"):
        choose(Path("a\0b"))
    (tmp_path / "file").touch()
    with pytest.raises(WeightFileError, match=r"cannot list .*file \(Not a directory\)"):
        choose(tmp_path / "file")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("gone"), "is a link to gone, which does not exist: restore that file"),
        (lambda path: path.symlink_to(path.name), "cannot be read"),
        (lambda path: path.mkdir(), "is a folder"),
        (lambda path: os.mkfifo(path), "is a folder or device"),
    ],
)
@pytest.mark.parametrize("name", [SAFETENSORS, INDEX])
def test_weights_that_are_no_file_are_refused_and_never_taken_for_absent(tmp_path, make, words, name):
    """Otherwise older weights beside them, in another format, would be read without a word."""
    make(tmp_path / name)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    weights = choose(tmp_path).weights
    assert weights.name == name
    with pytest.raises(WeightFileError, match=words) as caught:
        open_tensors(weights)
    assert str(tmp_path / name) in str(caught.value)


def test_folders_and_dangling_links_of_other_names_are_no_weights(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    (tmp_path / "b.safetensors").symlink_to(tmp_path / "gone")
    (tmp_path / "c.msgpack").touch()
    assert choose(tmp_path).weights.name == "c.msgpack"


# -- indices are not trusted -------------------------------------------------------------------------------------


def written(tmp_path: Path, content: bytes) -> Path:
    (tmp_path / INDEX).write_bytes(content)
    return tmp_path / INDEX


@pytest.mark.parametrize(
    "shard",
    ["../x", "..", ".", "", "/etc/passwd", "a/b", "a\\b", "C:x", "a\0b", "a\nb"],
)
def test_a_shard_that_is_not_a_plain_name_is_refused(tmp_path, shard):
    index = written(tmp_path, json.dumps({"weight_map": {"a": "good.safetensors", "b": shard}}).encode())
    with pytest.raises(WeightFileError, match="is not a plain file name"):
        read_index(index)


@pytest.mark.parametrize(
    "content",
    [
        *(
            b"",
            b"[]",
            b"{}",
            b'{"weight_map": []}',
            b'{"weight_map": {"a": []}}',
            b"\xff\xfe",
            b"[" * 10**5,
            b" " * 2**25,
        ),
        *(b'{"weight_map": {"a": "x", "a": "y"}}', b'{"metadata": NaN, "weight_map": {"a": "x"}}', b"9" * 5000),
    ],
    ids=[
        "empty",
        "list",
        "no-map",
        "map-is-a-list",
        "shard-is-a-list",
        "no-text",
        "deep",
        "huge",
        "twice",
        "nan",
        "digits",
    ],
)
def test_what_is_no_index_is_refused(tmp_path, content):
    with pytest.raises(WeightFileError, match=r"damaged shard index|(no|an) index of shards"):
        read_index(written(tmp_path, content))


def test_an_empty_or_missing_index_is_refused(tmp_path):
    with pytest.raises(WeightFileError, match="is JSON, but no index of shards: it has no weight_map"):
        read_index(written(tmp_path, b'{"weight_map": {}}'))
    with pytest.raises(WeightFileError, match=r"no file .*gone\.json"):
        read_index(tmp_path / "gone.json")


@given(shard=st.text("./\\:ab\0~", max_size=6))
def test_a_name_that_passes_stays_in_its_folder(tmp_path_factory, shard):
    index = written(tmp_path_factory.mktemp("index"), json.dumps({"weight_map": {"a": shard}}).encode())
    with suppress(WeightFileError):
        assert read_index(index) == {"a": shard}
        assert Path(os.path.normpath(f"/folder/{shard}")).parent == Path("/folder")
