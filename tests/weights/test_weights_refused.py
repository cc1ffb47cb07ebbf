"""A file that does not fit is refused with all its problems; a failed save changes no file."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import SafetensorError
from support.checkpoints import PLAIN, WEIGHTS_FILE, assert_same_bits, stored, tagged, written
from support.configs import CONFIGS, drawn_weights

from vaespec import (
    AutoencoderKL,
    NonFiniteError,
    WeightFileError,
    WeightMapError,
    parameters,
)
from vaespec.weights import load_file, load_folder, save_file, save_folder

# -- what does not fit -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_every_problem_is_in_one_error_in_the_names_of_the_file(tmp_path, prefix):
    tensors = stored(PLAIN, tmp_path, "ldm", prefix)
    del tensors[f"{prefix}decoder.up.1.block.0.conv1.bias"], tensors[f"{prefix}quant_conv.bias"]
    tensors[f"{prefix}encoder.mid.attn_1.q.weight"] = np.zeros((64, 32, 1, 1), np.float32)
    tensors[f"{prefix}decoder.up.9.block.0.conv1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(WeightMapError) as caught:
        load_file(written(tmp_path, tensors))
    message = str(caught.value)
    assert 'does not fit the config (dialect "ldm"):' in message
    for line in (
        f"missing     {prefix}decoder.up.1.block.0.conv1.bias   (needed for decoder.up_blocks.0.resnets.0.conv1.bias)",
        f"missing     {prefix}quant_conv.bias   (needed for quant_conv.bias)",
        f"shape       {prefix}encoder.mid.attn_1.q.weight   file (64, 32, 1, 1), config wants (64, 64)",
        f"unexpected  {prefix}decoder.up.9.block.0.conv1.bias",
    ):
        assert message.count(line) == 1, line


def test_a_config_that_contradicts_the_file_is_refused_field_by_field(tmp_path):
    path = written(tmp_path, stored(PLAIN, tmp_path))
    wrong = PLAIN.replace(latent_channels=16, use_quant_conv=False)
    with pytest.raises(WeightMapError) as caught:
        load_file(path, wrong)
    assert "unexpected  quant_conv.bias" in str(caught.value)
    assert "config      latent_channels would be 16, the file has 4" in str(caught.value)
    assert "config      use_quant_conv would be False, the file has True" in str(caught.value)


def test_many_problems_of_one_kind_are_counted_not_listed(tmp_path):
    path = written(tmp_path, stored(PLAIN, tmp_path))
    with pytest.raises(WeightMapError) as caught:
        load_file(path, PLAIN.replace(layers_per_block=3))
    assert str(caught.value).count("missing  ") == 10
    assert "... and " in str(caught.value)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["a.encoder.conv_in.weight", "b.encoder.conv_in.weight"], r"2 VAEs in .*under the prefixes \['a\.', 'b\.'\]"),
        (
            ["model.diffusion_model.out.0.weight"],
            r"no VAE in .*: no name of a tensor \(model\.diffusion_model\.out\.0\.weight\) contains encoder",
        ),
        ([], "no VAE in .*: it has no tensors; give the file of the model's weights"),
        (list("abcd"), r"no name of a tensor \(a, b, c, \.\.\.\) contains"),
        (["encoder.conv_in.weight", "quantize.embedding.weight"], "is not an AutoencoderKL but a VQ model"),
        (["vae.encoder.conv_in.weight", "vae.quantize.embedding.weight"], "but a VQ model"),
        (["encoder.conv_in.weight", "decoder.time_conv_out.weight"], "but a temporal"),
        (["encoder.conv_in.weight", "decoder.condition_encoder.layers.0.weight"], "but an AsymmetricAutoencoderKL"),
        (["encoder.layers.0.weight", "decoder.layers.1.weight"], "but an AutoencoderTiny"),
        (["encoder.conv_in.weight"], "which every AutoencoderKL has"),
    ],
)
def test_what_is_no_single_autoencoder_is_refused_by_name(tmp_path, names, words):
    path = written(tmp_path, {name: np.zeros((2, 2, 3, 3), np.float32) for name in names})
    with pytest.raises(WeightMapError, match=words) as caught:
        load_file(path)
    assert str(path) in str(caught.value)


def test_quantized_weights_are_refused_by_name(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"].astype(np.int8)
    with pytest.raises(WeightFileError, match=r"decoder\.conv_in\.weight holds integers \(int8\): quantized"):
        load_file(written(tmp_path, tensors))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_as_in_the_file(tmp_path, dtype, bad):
    tensors = stored(PLAIN, tmp_path, "ldm", "vae.")
    for name in ("vae.decoder.mid.attn_1.k.weight", "vae.quant_conv.bias"):
        tensors[name] = tensors[name].astype(getattr(ml_dtypes, dtype, dtype))
        tensors[name].flat[-1] = bad
    path = written(tmp_path, tensors)
    words = r"NaN or infinity in 2 tensors of .*: vae\.quant_conv\.bias, vae\.decoder\.mid\.attn_1\.k\.weight; allow"
    with pytest.raises(NonFiniteError, match=words):
        AutoencoderKL.from_single_file(path)
    taken = AutoencoderKL.from_single_file(path, allow_nonfinite=True, backend="numpy").weights()
    assert {name for name, a in taken.items() if not np.isfinite(a).all()} == {
        "quant_conv.bias",
        "decoder.mid_block.attentions.0.to_k.weight",
    }


def test_a_variance_that_is_none_is_refused(tmp_path):
    tensors = stored(CONFIGS["flux2"], tmp_path)
    tensors["bn.running_var"][3] = 0.0
    with pytest.raises(WeightMapError, match=r"bn\.running_var of .* contains 0\.0: a variance is positive"):
        AutoencoderKL.from_single_file(written(tmp_path, tensors), config=CONFIGS["flux2"])


def test_tensors_that_are_not_the_models_are_left_out_only_on_request_and_never_attention(tmp_path, caplog):
    tensors = stored(PLAIN, tmp_path) | {"decoder.extra.weight": np.zeros(3, np.float32)}
    path = written(tmp_path, tensors)
    with pytest.raises(WeightMapError, match=r"unexpected  decoder\.extra\.weight"):
        load_file(path)
    assert_same_bits(load_file(path, strict=False)[1], tagged(PLAIN))
    assert "left out 1 tensor that is not the model's: decoder.extra.weight" in caplog.text
    tensors["decoder.up_blocks.0.attentions.0.extra.weight"] = np.zeros(3, np.float32)
    with pytest.raises(WeightMapError, match=r"unexpected  decoder\.up_blocks\.0\.attentions"):
        load_file(written(tmp_path, tensors), strict=False)


# -- what is no file of weights ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_file(path, PLAIN, tagged(PLAIN))
    return path.read_bytes()


@pytest.mark.parametrize("part", [0.0, 1e-9, 0.001, 0.01, 0.1, 0.5, 0.999999])
def test_a_truncated_file_is_refused_wherever_it_was_cut(tmp_path, whole_file, part):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole_file[: int(np.ceil(len(whole_file) * part))])
    with pytest.raises(WeightFileError, match=r"damaged|incomplete|does not begin like") as caught:
        load_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100])
def test_a_file_cut_near_either_end_is_refused(tmp_path, whole_file, cut):
    for i, content in enumerate((whole_file[:cut], whole_file[:-cut])):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightFileError):
            load_file(path)


def test_a_file_cut_at_the_end_of_its_header_is_refused(tmp_path, whole_file):
    header = 8 + int.from_bytes(whole_file[:8], "little")
    for cut in (header - 1, header, header + 1):
        path = tmp_path / f"{cut}.safetensors"
        path.write_bytes(whole_file[:cut])
        with pytest.raises(WeightFileError, match=r"damaged|incomplete"):
            load_file(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 334\n",
            "git-lfs pointer, .*git lfs pull",
        ),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "is a web page of a server, not weights"),
        ((16).to_bytes(8, "little") + b'{"a": not json }' + b"\x00" * 64, "damaged"),
    ],
)
def test_a_file_of_something_else_is_named_in_the_error(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=words) as caught:
        AutoencoderKL.from_single_file(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(WeightFileError, match=r"no file .*none\.safetensors"):
        AutoencoderKL.from_single_file(tmp_path / "none.safetensors")
    with pytest.raises(WeightFileError, match=r"is a folder: give it to from_pretrained, or name the file in it"):
        AutoencoderKL.from_single_file(tmp_path)
    with pytest.raises(WeightFileError, match=r"nowhere' is no repository: write owner/name, or the path of a folder"):
        AutoencoderKL.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightFileError, match=r"no folder .*vae"):
        AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    (tmp_path / "config.json").write_text(json.dumps(PLAIN.to_dict()), encoding="utf-8")
    with pytest.raises(WeightFileError, match=r"no weights in .*: it has only config\.json"):
        AutoencoderKL.from_pretrained(tmp_path)


# -- files appear whole or not at all ----------------------------------------------------------------------------

FAILURES = [OSError(28, "No space left on device"), SafetensorError("I/O error"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAILURES)
def test_a_save_that_fails_changes_no_file(tmp_path, monkeypatch, error):
    path = tmp_path / "model.safetensors"
    save_file(path, PLAIN, tagged(PLAIN))
    before = path.read_bytes()

    def half_written(tensors, part, metadata):
        Path(part).write_bytes(before[: len(before) // 2])
        raise error

    monkeypatch.setattr("safetensors.numpy.save_file", half_written)
    with pytest.raises((WeightFileError, KeyboardInterrupt)) as caught:
        save_file(path, PLAIN, drawn_weights({name: p.shape for name, p in parameters(PLAIN).items()}))
    if not isinstance(error, KeyboardInterrupt):
        assert f"cannot write {path} (" in str(caught.value)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_save_replaces_the_old_files_and_leaves_nothing_else(tmp_path):
    for _ in range(2):
        save_folder(tmp_path, PLAIN, tagged(PLAIN))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["config.json", WEIGHTS_FILE]
    assert load_folder(tmp_path)[0] == PLAIN


def test_saved_files_may_be_read_by_others(tmp_path):
    save_folder(tmp_path, PLAIN, tagged(PLAIN))
    (tmp_path / "plain").write_bytes(b"")
    modes = {p.stat().st_mode & 0o777 for p in tmp_path.iterdir()}
    assert len(modes) == 1


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WeightFileError, match=r"cannot write .*file.sub \(Not a directory\)"):
        save_folder(tmp_path / "file" / "sub", PLAIN, tagged(PLAIN))
    with pytest.raises(WeightFileError, match="file is a file: give a folder"):
        save_folder(tmp_path / "file", PLAIN, tagged(PLAIN))
    with pytest.raises(WeightFileError, match=r"cannot write .*file.model\.safetensors \(.*Not a directory"):
        save_file(tmp_path / "file" / "model.safetensors", PLAIN, tagged(PLAIN))
    with pytest.raises(WeightFileError, match=r"cannot write .*nowhere.model\.safetensors \(.*No such file"):
        save_file(tmp_path / "nowhere" / "model.safetensors", PLAIN, tagged(PLAIN))


def test_a_config_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(WeightFileError, match=r"cannot write .*config\.json"):
        save_folder(tmp_path, PLAIN, tagged(PLAIN))
    assert not list(tmp_path.glob(".*"))


def test_a_weight_that_does_not_fit_the_dtype_is_named_and_nothing_written(tmp_path):
    weights = tagged(PLAIN)
    weights["decoder.conv_in.bias"] = np.full_like(weights["decoder.conv_in.bias"], 70_000)
    with pytest.raises(NonFiniteError, match=r"decoder\.conv_in\.bias does not fit float16: its largest .* is 70000"):
        save_folder(tmp_path, PLAIN, weights, dtype="float16")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_an_index_of_shards_is_not_written_to(tmp_path):
    """diffusers reads the shards if there are both."""
    index = tmp_path / f"{WEIGHTS_FILE}.index.json"
    index.write_text("{}")
    with pytest.raises(WeightFileError, match=r"index\.json exists, and diffusers would read its shards instead"):
        save_folder(tmp_path, PLAIN, tagged(PLAIN))
    assert list(tmp_path.iterdir()) == [index]
