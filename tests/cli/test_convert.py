"""`vaespec convert`, and `vaespec info` of what it writes and of files that are wrong."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from checkpoints import PLAIN, assert_same_bits, stored, written
from configs import images, relative_l2
from safetensors.numpy import load_file
from workplace import error, run, saved

import vaespec
from vaespec import parameters
from vaespec.weights.containers import open_tensors, write_safetensors
from vaespec.weights.dialects import DIALECTS

OURS = vaespec.AutoencoderKL.from_config(PLAIN.replace(scaling_factor=0.5), backend="numpy")


@pytest.fixture
def source() -> Path:
    OURS.save_pretrained("source")
    return Path("source")


@pytest.mark.parametrize("dialect", DIALECTS)
def test_there_and_back_in_every_dialect(source, dialect):
    path = f"there.{DIALECTS[dialect].container}"
    run("convert", source, path, "--to", dialect, "--prefix", "some.vae.")
    told = json.loads(run("info", path, "--json").stdout)
    assert (told["prefix"], told["tensors"], told["problems"]) == ("some.vae.", len(parameters(PLAIN)), [])
    assert told["layout"] == DIALECTS[dialect].layout.conv_layout
    assert told["dtypes"] == {"float32": OURS.num_parameters()}
    run("convert", path, "back.safetensors", "--to", "diffusers")
    assert_same_bits(vaespec.load("back.safetensors", backend="numpy").weights(), OURS.weights())


def test_diffusers_makes_the_same_image_of_a_converted_folder(source):
    run("convert", source, "model.safetensors", "--to", "ldm")
    document = json.loads(run("convert", "model.safetensors", "folder", "--to", "diffusers", "--json").stdout)
    assert document["config"]["scaling_factor"] == 0.5
    assert document["bytes"] == Path("folder/diffusion_pytorch_model.safetensors").stat().st_size
    theirs = diffusers.AutoencoderKL.from_pretrained("folder").eval()
    x = images(PLAIN, 16, 24).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).sample.numpy()
    ours = OURS.with_backend("torch", device="cpu")
    assert relative_l2(ours.to_numpy(ours(x).sample), expected) <= 2e-6


def test_the_dtype_is_that_of_the_source_or_as_asked(source):
    for how, dtype in (((), "float32"), (("--dtype", "float16"), "float16"), (("--dtype", "bfloat16"), "bfloat16")):
        run("convert", source, "a.safetensors", "--to", "mflux", "--force", *how)
        assert {a.dtype.name for a in load_file("a.safetensors").values()} == {dtype}
    assert "dtype 'int8'" in error("convert", source, "b.safetensors", "--to", "ldm", "--dtype", "int8")
    assert not Path("b.safetensors").exists()


def test_nothing_is_replaced_unless_it_is_said(source):
    Path("there.safetensors").write_bytes(b"precious")
    assert "there.safetensors is there already" in error("convert", source, "there.safetensors", "--to", "ldm")
    assert Path("there.safetensors").read_bytes() == b"precious"
    run("convert", source, "there.safetensors", "--to", "ldm", "--force")
    assert len(load_file("there.safetensors")) == len(parameters(PLAIN))
    for target in (source, source / "diffusion_pytorch_model.safetensors"):
        assert "is what is to be converted" in error("convert", source, target, "--to", "diffusers", "--force")


def test_the_scale_of_a_folder_for_diffusers_is_asked_for(tmp_path):
    written(tmp_path, stored(PLAIN, tmp_path, "ldm"), "bare.safetensors")
    told = error("convert", "bare.safetensors", "folder", "--to", "diffusers")
    assert "scaling factor of bare.safetensors is not known" in told
    assert "diffusers would take 0.18215" in told
    assert not Path("folder").exists()
    run("convert", "bare.safetensors", "bare-diffusers.safetensors", "--to", "diffusers")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("model.safetensors", "--to", "klingon"), "unknown dialect 'klingon': choose one of diffusers, "),
        (("model.ckpt", "--to", "ldm"), "cannot write model.ckpt: in ldm names it is a .safetensors"),
        (("model.safetensors", "--to", "flax"), "in flax names it is a .msgpack"),
        (("nowhere/model.safetensors", "--to", "ldm"), "cannot write nowhere/model.safetensors (No such file"),
        (("x.safetensors", "--to", "ldm", "--source-prefix", "vae."), "no VAE under the prefix 'vae.'"),
        (("x.safetensors", "--to", "ldm", "--source-dialect", "klingon"), "unknown dialect 'klingon'"),
        (("x.safetensors", "--to", "ldm", "--ema"), "has no EMA copy of the VAE"),
        (("x.safetensors", "--to", "ldm", "--family", "sd1"), "family='sd1' is for weights alone"),
    ],
)
def test_wrong_arguments_are_told_in_a_line(source, args, words):
    assert words in error("convert", source, *args)
    assert not list(Path().glob("*.safetensors"))


def test_a_folder_has_no_prefix_and_half_a_model_no_folder(source):
    for option in (("--prefix", "vae."), ("--bits", "4")):
        run("convert", source, "folder", "--to", "diffusers", *option, code=2)
    half = {name: OURS.weights()[name] for name in parameters(PLAIN, ["decoder"])}
    written(Path(), half, "half.safetensors")
    told = error("convert", "half.safetensors", "folder", "--to", "diffusers")
    assert "scaling factor of half.safetensors is not known" in told
    run("convert", "half.safetensors", "half-ldm.safetensors", "--to", "ldm")
    OURS.save_single_file("whole.safetensors")
    metadata = open_tensors(Path("whole.safetensors")).metadata
    write_safetensors(Path("half.safetensors"), half, metadata)
    told = error("convert", "half.safetensors", "folder", "--to", "diffusers")
    assert "half.safetensors is half a VAE, without encoder.conv_in.bias: diffusers reads whole ones only" in told
    assert not Path("folder").exists()
    assert json.loads(run("info", "half.safetensors", "--json").stdout)["halves"] == ["decoder"]


# -- info --------------------------------------------------------------------------------------------------------


def test_info_counts_what_is_ignored_and_what_else_a_checkpoint_has(tmp_path):
    beside = {
        "first_stage_model.loss.logvar": np.zeros(1, np.float32),
        "first_stage_model.model_ema.decay": np.zeros(1, np.float32),
        "cond_stage_model.transformer.text_model.x": np.zeros(3, np.float16),
    }
    written(tmp_path, stored(PLAIN, tmp_path, "ldm", "first_stage_model.") | beside, "full.safetensors")
    told = json.loads(run("info", "full.safetensors", "--json").stdout)
    assert (told["container"], told["dialect"], told["others"]) == ("safetensors", "ldm", 1)
    assert sorted(told["ignored"]) == ["first_stage_model.loss.logvar", "first_stage_model.model_ema.decay"]
    text = run("info", "full.safetensors").stdout
    assert f"{told['tensors']}, beside 2 left by training, ignored and 1 of a full checkpoint" in text


def test_info_lists_the_problems_of_a_file_that_cannot_be_loaded(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    del tensors["quant_conv.bias"]
    written(tmp_path, tensors | {"decoder.extra.weight": np.zeros(1, np.float32)}, "wrong.safetensors")
    told = json.loads(run("info", "wrong.safetensors", "--json", code=1).stdout)
    assert told["problems"] == [
        "missing     quant_conv.bias   (needed for quant_conv.bias)",
        "unexpected  decoder.extra.weight",
    ]
    text = run("info", "wrong.safetensors", code=1).stdout
    assert "It cannot be loaded:\nmissing     quant_conv.bias" in text


def test_info_tells_families_with_their_reasons(tmp_path):
    wide = saved(vaespec.families.config("kl-f4").replace(scaling_factor=None), tmp_path / "wide")
    told = json.loads(run("info", wide / "diffusion_pytorch_model.safetensors", "--json").stdout)
    assert told["families"] == {"kl-f4": "its shapes"}


def test_info_of_a_folder_whose_config_contradicts_it(source):
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps(config | {"latent_channels": 8}))
    told = json.loads(run("info", source, "--json", code=1).stdout)
    assert "config      latent_channels would be 8, the file has 4" in told["problems"]
