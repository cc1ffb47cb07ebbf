"""`vaespec convert`: weights in the names of another project, without any loss."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from support.checkpoints import PLAIN, assert_same_bits, stored, written
from support.configs import images, relative_l2
from support.workplace import error, run

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
def test_conversion_to_every_dialect_and_back_keeps_every_bit(source, dialect):
    path = f"there{DIALECTS[dialect].suffix}"
    run("convert", source, path, "--to", dialect, "--prefix", "some.vae.")
    document = json.loads(run("info", path, "--json").stdout)
    assert (document["prefix"], document["tensors"], document["problems"]) == ("some.vae.", len(parameters(PLAIN)), [])
    assert document["layout"] == DIALECTS[dialect].layout.conv
    assert document["dtypes"] == {"float32": OURS.num_parameters()}
    run("convert", path, "back.safetensors", "--to", "diffusers")
    assert_same_bits(vaespec.load("back.safetensors", backend="numpy").weights(), OURS.weights())


def test_diffusers_computes_the_same_image_from_a_converted_folder(source):
    run("convert", source, "model.safetensors", "--to", "ldm")
    document = json.loads(run("convert", "model.safetensors", "folder", "--to", "diffusers", "--json").stdout)
    assert document["config"]["scaling_factor"] == 0.5
    assert document["bytes"] == Path("folder/diffusion_pytorch_model.safetensors").stat().st_size
    theirs = diffusers.AutoencoderKL.from_pretrained("folder").eval()
    x = images(PLAIN, 16, 24).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(x)).sample.numpy()
    ours = OURS.with_backend("torch", device="cpu", precision="highest")
    assert relative_l2(ours.to_numpy(ours(x).sample), expected) <= 2e-6


def test_the_dtype_is_the_sources_or_the_given_one(source):
    for options, dtype in (((), "float32"), (("--dtype", "float16"), "float16"), (("--dtype", "bfloat16"), "bfloat16")):
        run("convert", source, "a.safetensors", "--to", "mflux", "--force", *options)
        assert {a.dtype.name for a in load_file("a.safetensors").values()} == {dtype}
    assert "dtype 'int8'" in error("convert", source, "b.safetensors", "--to", "ldm", "--dtype", "int8")
    assert not Path("b.safetensors").exists()


def test_nothing_is_replaced_without_force(source):
    Path("there.safetensors").write_bytes(b"precious")
    assert "there.safetensors exists already" in error("convert", source, "there.safetensors", "--to", "ldm")
    assert Path("there.safetensors").read_bytes() == b"precious"
    run("convert", source, "there.safetensors", "--to", "ldm", "--force")
    assert len(load_file("there.safetensors")) == len(parameters(PLAIN))


@pytest.mark.parametrize("target", ["source", "link", "source/diffusion_pytorch_model.safetensors"])
def test_the_source_is_never_replaced(source, target):
    Path("link").symlink_to(source)
    before = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    assert "is the source of this conversion" in error("convert", source, target, "--to", "diffusers", "--force")
    assert (source / "diffusion_pytorch_model.safetensors").read_bytes() == before


def test_a_folder_is_not_converted_into_itself(source):
    diffusers.AutoencoderKL.from_pretrained(source).save_pretrained("pickled", safe_serialization=False)
    assert "pickled is the source of this conversion" in error(
        "convert", "pickled", "pickled", "--to", "diffusers", "--force"
    )
    assert {path.name for path in Path("pickled").iterdir()} == {"config.json", "diffusion_pytorch_model.bin"}


def test_a_shard_of_the_source_is_never_replaced(source):
    diffusers.AutoencoderKL.from_pretrained(source).save_pretrained("shards", max_shard_size="1MB")
    shard, *_ = sorted(Path("shards").glob("*-of-*"))
    before = shard.read_bytes()
    for read in (Path("shards"), Path("shards/diffusion_pytorch_model.safetensors.index.json")):
        assert "is the source of this conversion" in error("convert", read, shard, "--to", "ldm", "--force")
    assert shard.read_bytes() == before
    run("convert", "shards", "shards/ldm.safetensors", "--to", "ldm")
    run("convert", "shards", "shards/ldm.safetensors", "--to", "ldm", "--force")


def test_a_folder_whose_shards_diffusers_would_read_instead_is_refused(source):
    diffusers.AutoencoderKL.from_pretrained(source).save_pretrained("shards", max_shard_size="1MB")
    before = sorted(Path("shards").iterdir())
    message = error("convert", source, "shards", "--to", "diffusers", "--force")
    assert "index.json exists, and diffusers would read its shards instead" in message
    assert sorted(Path("shards").iterdir()) == before


def test_a_reader_of_the_old_file_keeps_it_and_a_full_disk_leaves_it(source, monkeypatch):
    run("convert", source, "there.safetensors", "--to", "ldm")
    before = Path("there.safetensors").read_bytes()
    with Path("there.safetensors").open("rb") as reader:
        run("convert", source, "there.safetensors", "--to", "mlx", "--force")
        assert reader.read() == before
    after = Path("there.safetensors").read_bytes()

    def full_disk(tensors, part, **_):
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("safetensors.numpy.save_file", full_disk)
    message = error("convert", source, "there.safetensors", "--to", "ldm", "--force")
    assert "cannot write there.safetensors (No space left on device)" in message
    assert Path("there.safetensors").read_bytes() == after
    assert not list(Path().glob(".*"))


def test_unexpected_tensors_are_refused_or_left_out_with_a_count(tmp_path):
    spare = {"adapter.weight": np.zeros(1, np.float32), "decoder.extra.bias": np.zeros(1, np.float32)}
    written(tmp_path, stored(PLAIN, tmp_path) | spare, "spare.safetensors")
    message = run("convert", "spare.safetensors", "plain.safetensors", "--to", "ldm", code=1).stderr
    assert "unexpected  adapter.weight" in message
    assert "--no-strict" in message
    assert not Path("plain.safetensors").exists()
    text = run("convert", "spare.safetensors", "plain.safetensors", "--to", "diffusers", "--no-strict").stdout
    assert "2 beside it: adapter.weight, decoder.extra.bias\n" in text
    assert load_file("plain.safetensors").keys() == stored(PLAIN, tmp_path).keys()


def test_ignored_tensors_are_named(tmp_path):
    tensors = stored(PLAIN, tmp_path, "ldm", "vae.")
    average = {f"vae.model_ema.{name[4:].replace('.', '')}": a + 1 for name, a in tensors.items()}
    beside = {"vae.loss.logvar": np.zeros(1, np.float32), "unet.x": np.zeros(1, np.float32)}
    written(tmp_path, tensors | average | beside, "full.safetensors")
    document = json.loads(run("convert", "full.safetensors", "plain.safetensors", "--to", "bfl", "--json").stdout)
    assert set(document["ignored"]) == {"vae.loss.logvar", *average}
    assert document["others"] == 1
    text = run("convert", "full.safetensors", "ema.safetensors", "--to", "bfl", "--ema").stdout
    assert f" {len(tensors) + 1} beside it: " in text
    assert f"and {len(tensors) + 1 - 4} more; 1 outside the VAE" in text
    plain, ema = load_file("plain.safetensors"), load_file("ema.safetensors")
    assert all((ema[name] == a + 1).all() for name, a in plain.items() if a.ndim)
    assert "ignored" not in run("convert", "ema.safetensors", "again.safetensors", "--to", "ldm").stdout


@pytest.mark.parametrize("options", [{"safe_serialization": False}, {"variant": "fp16"}, {"max_shard_size": "1MB"}])
def test_every_kind_of_folder_that_diffusers_writes_is_converted(source, options):
    diffusers.AutoencoderKL.from_pretrained(source).save_pretrained("theirs", **options)
    run("convert", "theirs", "model.msgpack", "--to", "flax")
    run("convert", "model.msgpack", "back.safetensors", "--to", "diffusers")
    assert_same_bits(vaespec.load("back.safetensors", backend="numpy").weights(), OURS.weights())


def test_damaged_sources_are_reported_in_a_line_and_nothing_is_written(source):
    whole = (source / "diffusion_pytorch_model.safetensors").read_bytes()
    Path("cut.safetensors").write_bytes(whole[:-1])
    assert "cut.safetensors is incomplete: it has" in error(
        "convert", "cut.safetensors", "a.safetensors", "--to", "ldm"
    )
    tensors = load_file(source / "diffusion_pytorch_model.safetensors")
    tensors["quant_conv.bias"][0] = np.inf
    written(Path(), tensors, "inf.safetensors")
    message = error("convert", "inf.safetensors", "a.safetensors", "--to", "ldm")
    assert "NaN or infinity in 1 tensor of inf.safetensors: quant_conv.bias" in message
    assert not Path("a.safetensors").exists()
    assert "no file or folder nowhere" in error("convert", "nowhere", "a.safetensors", "--to", "ldm")


def test_a_family_that_the_file_does_not_fit_is_refused(source):
    file = source / "diffusion_pytorch_model.safetensors"
    for family, words in (
        ("klingon", "unknown family 'klingon'"),
        ("sd1", "is not of the family 'sd1': down_block_types would be"),
    ):
        assert words in error("convert", file, "folder", "--to", "diffusers", "--family", family)
    assert not Path("folder").exists()


def test_a_folder_with_a_suffix_must_exist_and_cannot_hold_one_file(source):
    message = error("convert", source, "sd-v1.5", "--to", "diffusers")
    assert "in the dialect diffusers ends in .safetensors; change the name, or create this folder first" in message
    Path("sd-v1.5").mkdir()
    run("convert", source, "sd-v1.5", "--to", "diffusers")
    assert {path.name for path in Path("sd-v1.5").iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    message = error("convert", source, "sd-v1.5", "--to", "ldm", "--force")
    assert "sd-v1.5: it is a folder; name a .safetensors file for the dialect ldm" in message


@pytest.mark.parametrize("args", [("source",), ("source", "a.safetensors"), ("source", "a", "--to", "ldm", "--loud")])
def test_missing_and_unknown_options_exit_with_2(source, args):
    assert "Usage" in run("convert", *args, code=2).stderr


def test_a_folder_for_diffusers_needs_a_scale(tmp_path):
    written(tmp_path, stored(PLAIN, tmp_path, "ldm"), "bare.safetensors")
    message = error("convert", "bare.safetensors", "folder", "--to", "diffusers")
    assert "scaling factor of bare.safetensors is unknown" in message
    assert "diffusers would take 0.18215" in message
    assert not Path("folder").exists()
    run("convert", "bare.safetensors", "bare-diffusers.safetensors", "--to", "diffusers")


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("model.safetensors", "--to", "klingon"), "unknown dialect 'klingon': choose one of diffusers, "),
        (("model.ckpt", "--to", "ldm"), "cannot write model.ckpt: a file in the dialect ldm ends in .safetensors"),
        (("model.safetensors", "--to", "flax"), "a file in the dialect flax ends in .msgpack"),
        (("nowhere/model.safetensors", "--to", "ldm"), "cannot write nowhere/model.safetensors (No such file"),
        (("x.safetensors", "--to", "ldm", "--source-prefix", "vae."), "no VAE under the prefix 'vae.'"),
        (("x.safetensors", "--to", "ldm", "--source-dialect", "klingon"), "unknown dialect 'klingon'"),
        (("x.safetensors", "--to", "ldm", "--ema"), "has no EMA copy of the VAE"),
        (("x.safetensors", "--to", "ldm", "--family", "sd1"), "family='sd1' is for weights alone"),
    ],
)
def test_wrong_arguments_are_reported_in_a_line(source, args, words):
    assert words in error("convert", source, *args)
    assert not list(Path().glob("*.safetensors"))


def test_a_folder_takes_no_prefix_and_no_half_of_a_model(source):
    for option in (("--prefix", "vae."), ("--bits", "4")):
        run("convert", source, "folder", "--to", "diffusers", *option, code=2)
    half = {name: OURS.weights()[name] for name in parameters(PLAIN, ["decoder"])}
    written(Path(), half, "half.safetensors")
    message = error("convert", "half.safetensors", "folder", "--to", "diffusers")
    assert "scaling factor of half.safetensors is unknown" in message
    run("convert", "half.safetensors", "half-ldm.safetensors", "--to", "ldm")
    OURS.save_single_file("whole.safetensors")
    metadata = open_tensors(Path("whole.safetensors")).metadata
    write_safetensors(Path("half.safetensors"), half, metadata)
    message = error("convert", "half.safetensors", "folder", "--to", "diffusers")
    assert (
        "half.safetensors is half a VAE, without encoder.conv_in.bias: a folder for diffusers needs both halves"
        in message
    )
    assert not Path("folder").exists()
    assert json.loads(run("info", "half.safetensors", "--json").stdout)["halves"] == ["decoder"]
