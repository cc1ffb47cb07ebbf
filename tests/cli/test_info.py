"""`vaespec info`: what a file holds, and whether it can be loaded."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers
import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.checkpoints import PLAIN, stored, tagged, written
from support.configs import narrow
from support.workplace import NARROW, error, run, saved, vae

from vaespec import families, parameters
from vaespec.errors import VaespecError
from vaespec.weights import digest, load_file, save_file
from vaespec.weights.containers import open_tensors, write_safetensors
from vaespec.weights.inspect import inspect_weights

TWO_LEVELS = {
    "block_out_channels": (32, 64),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}


def document_of(*args: str | Path, code: int = 0) -> dict:
    return json.loads(run("info", *args, "--json", code=code).stdout)


def test_config_parameters_and_cost_are_shown():
    document = document_of("weights", "--size", "64x32")
    assert document["config"] == NARROW.to_dict()
    assert document["parameters"] == vae().num_parameters()
    assert document["bytes"] == 4 * document["parameters"] == 4 * document["dtypes"]["float32"]
    assert document["cost"]["encode"]["output_shape"] == [1, 8, 16, 8]
    assert document["cost"]["decode"]["output_shape"] == [1, 3, 64, 32]
    assert 0 < document["cost"]["encode"]["flops"] < document["cost"]["decode"]["flops"]
    text = run("info", "weights", "--size", "64x32").stdout
    assert f"{document['parameters']:,}" in text
    assert "none of the published ones" in text


def test_weights_do_not_show_their_padding_and_info_says_so():
    assert "--padding reflect" in run("info", "weights").stdout
    assert "set_padding" in json.loads(run("info", "weights", "--json").stdout)["padding"]


def test_the_scale_of_a_single_file_is_unknown():
    saved(narrow((32, 32), norm_num_groups=32), Path("wide"))
    assert "scale unknown" in run("info", "wide/diffusion_pytorch_model.safetensors").stdout


def test_a_size_smaller_than_f_is_refused():
    assert "needs at least 4 x 4 px" in error("info", "weights", "--size", "3")


@pytest.mark.parametrize(
    ("options", "container"),
    [
        ({}, "safetensors"),
        ({"max_shard_size": "500KB"}, "safetensors in 6 shards"),
        ({"safe_serialization": False}, "PyTorch zip"),
        ({"variant": "fp16"}, "safetensors"),
    ],
)
def test_every_kind_of_folder_that_diffusers_writes_is_described(options, container):
    theirs = diffusers.AutoencoderKL(**TWO_LEVELS)
    theirs.save_pretrained("folder", **options)
    document = document_of("folder")
    assert (document["container"], document["problems"]) == (container, [])
    assert document["parameters"] == document["dtypes"]["float32"] == theirs.num_parameters()


def test_a_gguf_is_described_by_the_dtypes_that_loading_returns():
    writer = gguf.GGUFWriter("model.gguf", "vae")
    for name, a in tagged(PLAIN, "float16").items():
        writer.add_tensor(name, a)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        write()
    writer.close()
    document = document_of("model.gguf", "--check")
    assert (document["container"], document["dialect"], document["problems"]) == ("GGUF", "diffusers", [])
    assert document["dtypes"] == {"float16": document["parameters"]}


def test_ignored_tensors_are_counted_and_named(tmp_path):
    beside = {
        "first_stage_model.loss.logvar": np.zeros(1, np.float32),
        "first_stage_model.model_ema.decay": np.zeros(1, np.float32),
        "cond_stage_model.transformer.text_model.x": np.zeros(3, np.float16),
    }
    written(tmp_path, stored(PLAIN, tmp_path, "ldm", "first_stage_model.") | beside, "full.safetensors")
    document = document_of("full.safetensors")
    assert (document["container"], document["dialect"], document["others"]) == ("safetensors", "ldm", 1)
    assert sorted(document["ignored"]) == ["first_stage_model.loss.logvar", "first_stage_model.model_ema.decay"]
    assert document["tensors"] == len(parameters(PLAIN))
    text = run("info", "full.safetensors").stdout
    assert " 2 beside it: " in text
    assert "first_stage_model.model_ema.decay; 1 outside the VAE\n" in text


def test_the_moving_average_is_described_in_place_of_the_weights(tmp_path):
    tensors = stored(PLAIN, tmp_path, "ldm")
    average = {f"model_ema.{name.replace('.', '')}": a.astype(np.float64) for name, a in tensors.items()}
    written(tmp_path, tensors | average, "both.safetensors")
    document = document_of("both.safetensors", "--ema", "--check")
    assert document["dtypes"] == {"float64": document["parameters"]}
    assert (set(document["ignored"]), document["problems"]) == (set(tensors), [])
    assert set(document_of("both.safetensors")["ignored"]) == set(average)


def test_one_of_several_vaes_is_chosen_by_its_prefix(tmp_path):
    written(tmp_path, stored(PLAIN, tmp_path, prefix="a.") | stored(PLAIN, tmp_path, "mlx", "b."), "two.safetensors")
    (problem,) = document_of("two.safetensors", code=1)["problems"]
    assert problem == "2 VAEs in two.safetensors, under the prefixes ['a.', 'b.']: give prefix= to choose."
    assert document_of("two.safetensors", "--prefix", "b.", "--dialect", "mlx")["dialect"] == "mlx"
    assert document_of("two.safetensors", "--prefix", "a.")["others"] == len(parameters(PLAIN))


def test_metadata_are_shown_but_long_or_unprintable_values_only_by_name():
    metadata = {"format": "pt", "license": "free " * 50, "colour": "\x1b[31m"}
    write_safetensors(Path("m.safetensors"), tagged(PLAIN), metadata)
    assert document_of("m.safetensors")["metadata"] == metadata
    line = next(line for line in run("info", "m.safetensors").stdout.splitlines() if line.startswith("metadata"))
    assert set(line.replace(",", "").split()) == {"metadata", "format=pt", "license", "colour"}


def test_the_sha256_of_the_weights_tells_files_of_the_same_numbers_from_others(tmp_path):
    weights = tagged(PLAIN)
    written(tmp_path, weights, "plain.safetensors")
    written(tmp_path, stored(PLAIN, tmp_path, "mlx", "vae."), "renamed.safetensors")
    weights["decoder.conv_in.bias"].view(np.uint32)[3] ^= 1
    written(tmp_path, weights, "damaged.safetensors")
    plain, renamed, damaged = (
        document_of(f"{name}.safetensors", *options)
        for name, *options in (("plain",), ("renamed", "--dialect", "mlx"), ("damaged",))
    )
    assert plain["sha256"] == renamed["sha256"] == digest(tagged(PLAIN))
    assert damaged["sha256"] == digest(weights) != plain["sha256"]
    assert f"sha256       {plain['sha256']}\n" in run("info", "plain.safetensors").stdout
    assert document_of("plain.safetensors", "--no-digest")["sha256"] is None
    assert "sha256" not in run("info", "plain.safetensors", "--no-digest").stdout


def test_a_half_that_was_saved_alone_is_described(tmp_path):
    tensors = stored(PLAIN, tmp_path, "ldm")
    half = {name.removeprefix("decoder."): a for name, a in tensors.items() if name.startswith("decoder.")}
    written(tmp_path, half, "half.safetensors")
    document = document_of("half.safetensors")
    assert (document["halves"], document["bare"], document["problems"]) == (["decoder"], True, [])
    assert (document["dialect"], document["tensors"]) == ("ldm", len(half))
    assert "halves       decoder (bare names)\n" in run("info", "half.safetensors").stdout


def test_a_tensor_that_cannot_be_read_is_a_problem(tmp_path):
    np.savez_compressed("packed.npz", **stored(PLAIN, tmp_path))
    raw = bytearray(Path("packed.npz").read_bytes())
    raw[len(raw) // 2] ^= 255
    Path("packed.npz").write_bytes(raw)
    document = document_of("packed.npz", code=1)
    assert document["sha256"] is None
    assert "packed.npz" in document["problems"][0]


@pytest.mark.parametrize(("name", "reason"), [("kl-f4", "its shapes"), ("sd1", "it has cond_stage_model.transformer.")])
def test_families_are_shown_with_their_reasons(name, reason, tmp_path):
    shapes = {key: np.broadcast_to(np.float16(0), p.shape) for key, p in parameters(families.config(name)).items()}
    beside = {} if name == "kl-f4" else {"cond_stage_model.transformer.x": np.zeros(1, np.float16)}
    written(tmp_path, {f"vae.{key}": a for key, a in shapes.items()} | beside, "wide.safetensors")
    assert document_of("wide.safetensors")["families"] == {name: reason}
    assert f"{name} ({reason})" in run("info", "wide.safetensors").stdout


# -- files that cannot be loaded ----------------------------------------------------------------------------------


def test_unexpected_tensors_are_problems_unless_the_user_is_not_strict(tmp_path):
    written(tmp_path, stored(PLAIN, tmp_path) | {"adapter.weight": np.zeros(1, np.float32)}, "spare.safetensors")
    assert document_of("spare.safetensors", code=1)["problems"] == ["unexpected  adapter.weight"]
    text = run("info", "spare.safetensors", code=1).stdout
    assert "It cannot be loaded; --no-strict leaves these out, but for attention inside the model:\nunexpected" in text
    document = document_of("spare.safetensors", "--no-strict", "--check")
    assert (document["problems"], document["ignored"], document["checked"]) == ([], ["adapter.weight"], True)


def test_the_problems_of_a_file_are_listed(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    del tensors["quant_conv.bias"]
    written(tmp_path, tensors | {"decoder.extra.weight": np.zeros(1, np.float32)}, "wrong.safetensors")
    document = document_of("wrong.safetensors", code=1)
    assert document["problems"] == [
        "missing     quant_conv.bias   (needed for quant_conv.bias)",
        "unexpected  decoder.extra.weight",
    ]
    assert (document["ignored"], document["others"]) == ([], 0)
    assert "It cannot be loaded:\nmissing     quant_conv.bias" in run("info", "wrong.safetensors", code=1).stdout


def test_some_of_many_problems_are_printed_and_all_are_in_the_json(tmp_path):
    strays = {f"decoder.stray.{i}": np.zeros(1, np.float32) for i in range(50)}
    written(tmp_path, stored(PLAIN, tmp_path) | strays, "wrong.safetensors")
    text = run("info", "wrong.safetensors", code=1).stdout
    assert text.count("unexpected") == 20
    assert text.endswith("\nand 30 more\n")
    assert len(document_of("wrong.safetensors", code=1)["problems"]) == 50


def test_a_config_that_contradicts_its_folder_is_a_problem(weights):
    saved(PLAIN, Path("folder"))
    config = json.loads(Path("folder/config.json").read_text())
    Path("folder/config.json").write_text(json.dumps(config | {"latent_channels": 8}))
    problems = document_of("folder", code=1)["problems"]
    assert "config      latent_channels would be 8, the file has 4" in problems
    Path("folder/config.json").write_text("{")
    assert "cannot be read as JSON" in document_of("folder", code=1)["problems"][0]


def test_a_file_without_a_vae_is_described_as_far_as_possible():
    write_safetensors(Path("unet.safetensors"), {"down.0.weight": np.zeros(3, np.float16)}, {})
    document = document_of("unet.safetensors", code=1)
    assert (document["container"], document["dialect"], document["others"]) == ("safetensors", None, 1)
    assert "no VAE in unet.safetensors" in run("info", "unet.safetensors", code=1).stdout


def test_a_wrong_family_is_a_problem_even_if_the_file_has_its_own_config(tmp_path):
    save_file(Path("own.safetensors"), PLAIN, tagged(PLAIN))
    assert document_of("own.safetensors")["config"] == PLAIN.to_dict()
    (problem,) = document_of("own.safetensors", "--family", "flux1", code=1)["problems"]
    assert "own.safetensors is not of the family 'flux1': " in problem


def test_wrong_arguments_are_errors_and_not_problems_of_the_file():
    saved(PLAIN, Path("folder"))
    file = "folder/diffusion_pytorch_model.safetensors"
    assert "unknown family 'klingon': choose one of sd1, " in error("info", file, "--family", "klingon")
    assert "family='sd1' is for weights alone" in error("info", "folder", "--family", "sd1")
    assert "unknown dialect 'klingon'" in error("info", file, "--dialect", "klingon")


def test_integers_without_scales_are_a_problem(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    name = "encoder.mid_block.attentions.0.to_q.weight"
    written(tmp_path, tensors | {name: tensors[name].astype(np.int8)}, "int8.safetensors")
    (problem,) = document_of("int8.safetensors", code=1)["problems"]
    assert f"tensor {name} holds integers (int8)" in problem


def test_values_are_checked_only_on_request(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    tensors["decoder.conv_in.bias"][1] = np.nan
    written(tmp_path, tensors, "nan.safetensors")
    assert "all finite" not in run("info", "nan.safetensors").stdout
    (problem,) = document_of("nan.safetensors", "--check", code=1)["problems"]
    assert "NaN or infinity in 1 tensor of nan.safetensors: decoder.conv_in.bias;" in problem
    assert "all finite" not in run("info", "nan.safetensors", "--check", code=1).stdout
    assert "all finite" in run("info", "tiny", "--check").stdout
    assert [document_of("tiny", *options)["checked"] for options in ((), ("--check",))] == [False, True]


NAMES = sorted(parameters(PLAIN))
CHANGES = {
    "none": lambda tensors, name: None,
    "gone": lambda tensors, name: tensors.pop(name),
    "renamed": lambda tensors, name: tensors.update({f"{name}s": tensors.pop(name)}),
    "longer": lambda tensors, name: tensors.update({name: np.concatenate([tensors[name]] * 2)}),
    "flat": lambda tensors, name: tensors.update({name: tensors[name].ravel()}),
    "integers": lambda tensors, name: tensors.update({name: tensors[name].astype(np.int16)}),
    "NaN": lambda tensors, name: tensors.update({name: tensors[name] * np.nan}),
    "a stray": lambda tensors, name: tensors.update({f"other.{name}": tensors[name]}),
}


@given(changes=st.lists(st.tuples(st.sampled_from(list(CHANGES)), st.sampled_from(NAMES)), max_size=2))
def test_a_file_has_problems_if_and_only_if_it_cannot_be_loaded(changes):
    tensors = tagged(PLAIN)
    for change, name in changes:
        if name in tensors:
            CHANGES[change](tensors, name)
    with TemporaryDirectory() as folder:
        path = written(Path(folder), tensors)
        inspection = inspect_weights(path, check=True)
        assert bool(inspection.problems) == (not _loads(path))
        assert not (inspection.config is None and not inspection.problems)


def _loads(path: Path) -> bool:
    try:
        dict(load_file(path)[1])
    except VaespecError:
        return False
    return True


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers_per_block": 10**7}, "layers_per_block=10000000: expected a positive integer, 32 at most"),
        ({"block_out_channels": [32] * 10**5}, "block_out_channels has 100,000 levels: expected 32 at most"),
        ({"block_out_channels": [10**5] * 2}, "expected one positive width per level, 16,384 at most"),
    ],
)
def test_a_config_beyond_any_model_is_refused_before_it_is_computed(weights, fields, words):
    shutil.copytree(weights, "folder")
    config = json.loads(Path("folder/config.json").read_text()) | fields
    Path("folder/config.json").write_text(json.dumps(config))
    assert words in run("info", "folder", code=1).output
    tensors = open_tensors(Path("folder/diffusion_pytorch_model.safetensors"))
    write_safetensors(Path("own.safetensors"), dict(tensors), {"vaespec.config": json.dumps(config)})
    assert words in " ".join(run("info", "own.safetensors", code=1).output.split())
