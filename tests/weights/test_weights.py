"""Weights keep every bit and every name through every dialect, and files of others are read."""

from __future__ import annotations

import diffusers
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from safetensors.numpy import load_file as read_safetensors
from support.checkpoints import PLAIN, WEIGHTS_FILE, assert_same_bits, stored, tagged, written
from support.configs import CONFIGS, images, narrow, relative_l2, sizes
from support.oracle import decoded, diffusers_model, encoded, oracle

import vaespec
from vaespec import AutoencoderKL, InputError, WeightFileError, WeightMapError, parameters
from vaespec.weights import load_file, save_file
from vaespec.weights.config_from_weights import infer_config
from vaespec.weights.containers import open_tensors, write_safetensors
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.locate import locate

NAMES = ("sd", "sd3", "flux2-small-decoder", "kl-f16", "kl-f32", "cogview", "attention-in-the-decoder-only")
NAMES += ("one-level", "quant-conv-only", "three-layers")
EXCHANGED = ("sd", "sd3", "flux2", "flux2-small-decoder", "kl-f16", "cogview", "post-quant-conv-only")


# -- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "model.whatever.it-is."])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_keeps_every_bit(tmp_path, name, dialect, prefix):
    config, path = CONFIGS[name], tmp_path / f"model{DIALECTS[dialect].suffix}"
    save_file(path, config, tagged(config), dialect=dialect, prefix=prefix)
    assert all(key.startswith(prefix) for key in open_tensors(path))
    found, weights = load_file(path, config, dialect=dialect)
    assert found == config
    assert_same_bits(weights, tagged(config))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dtype_keeps_every_bit(tmp_path, dialect, dtype):
    config = CONFIGS["kl-f16"]
    weights = tagged(config, getattr(ml_dtypes, dtype, dtype))
    path = tmp_path / f"model{DIALECTS[dialect].suffix}"
    save_file(path, config, weights, dialect=dialect)
    assert_same_bits(load_file(path, config)[1], weights)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_are_saved_in_the_requested_dtype(tmp_path, dtype):
    vae = AutoencoderKL(CONFIGS["flux2"], tagged(CONFIGS["flux2"]), backend="numpy")
    vae.save_pretrained(tmp_path, dtype=dtype)
    for name, a in read_safetensors(tmp_path / WEIGHTS_FILE).items():
        assert a.dtype.name == ("int64" if name == "bn.num_batches_tracked" else dtype)
        np.testing.assert_array_equal(a, vae.weights()[name].astype(a.dtype))


def test_weights_are_saved_in_the_dtype_of_the_model_by_default(tmp_path):
    AutoencoderKL.from_config(PLAIN, backend="numpy", dtype="bfloat16").save_pretrained(tmp_path)
    assert {a.dtype.name for a in read_safetensors(tmp_path / WEIGHTS_FILE).values()} == {"bfloat16"}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_saved_model_is_the_model(tmp_path, backend, dtype):
    vae = AutoencoderKL.from_config(CONFIGS["kl-f16"], backend=backend, device="cpu", dtype=dtype)
    vae.save_pretrained(tmp_path / "new" / "folder")
    where = {"backend": backend, "device": "cpu", "dtype": dtype}
    again = AutoencoderKL.from_pretrained(tmp_path / "new", subfolder="folder", **where)
    assert again.config == vae.config
    assert_same_bits(again.weights(), vae.weights())
    assert_same_bits(vaespec.load(tmp_path / "new" / "folder", backend="numpy", dtype=dtype).weights(), vae.weights())


def test_a_family_is_not_for_folders_with_a_config(tmp_path):
    AutoencoderKL.from_config(PLAIN, backend="numpy").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="family='sd1' is for weights alone"):
        vaespec.load(tmp_path, family="sd1", backend="numpy")


def test_a_file_takes_a_config_or_a_family_not_both(tmp_path):
    with pytest.raises(InputError, match="give config= or family='sd1', not both"):
        AutoencoderKL.from_single_file(tmp_path / "model.safetensors", config=PLAIN, family="sd1")


def test_the_asymmetric_decoder_of_a_config_without_patches_survives_a_folder(tmp_path):
    config = narrow((8, 16), decoder_block_out_channels=(12, 24))
    AutoencoderKL.from_config(config, backend="numpy").save_pretrained(tmp_path)
    assert AutoencoderKL.from_pretrained(tmp_path, backend="numpy").config == config


# -- diffusers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXCHANGED)
def test_diffusers_loads_what_we_save(tmp_path, name):
    config, (theirs, weights) = CONFIGS[name], oracle(name)
    AutoencoderKL(config, weights, backend="numpy", dtype="float64").save_pretrained(tmp_path)
    cls = getattr(diffusers, config.class_name)
    model, report = cls.from_pretrained(tmp_path, torch_dtype=torch.float64, output_loading_info=True)
    assert not any(report.values())
    x = images(config, *sizes(config)["odd"])
    mean, logvar = encoded(model, x)
    assert relative_l2(mean, encoded(theirs, x)[0]) <= 1e-14
    assert relative_l2(logvar, encoded(theirs, x)[1]) <= 1e-14
    assert relative_l2(decoded(model, mean), decoded(theirs, mean)) <= 1e-14


@pytest.mark.parametrize("name", EXCHANGED)
def test_we_load_what_diffusers_saves(tmp_path, name):
    config, (theirs, weights) = CONFIGS[name], oracle(name)
    theirs.save_pretrained(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path, backend="numpy", dtype="float64")
    assert vae.config == config
    assert vae.weights().keys() == weights.keys()
    for key, a in weights.items():
        np.testing.assert_array_equal(vae.weights()[key], a)
    x = images(config, *sizes(config)["odd"])
    assert relative_l2(vae.encode(x).latent_dist.mean, encoded(theirs, x)[0]) <= 1e-13


def test_a_variant_of_diffusers_is_found_by_its_name_or_as_the_only_one(tmp_path, caplog):
    oracle("sd")[0].save_pretrained(tmp_path / "vae", variant="fp16")
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", variant="fp16", backend="numpy", dtype="float64")
    np.testing.assert_array_equal(vae.weights()["encoder.conv_in.bias"], oracle("sd")[1]["encoder.conv_in.bias"])
    AutoencoderKL.from_pretrained(tmp_path / "vae", backend="numpy")
    assert "only as variant 'fp16', which is used" in caplog.text
    with pytest.raises(WeightFileError, match=r"no variant 'ema' in .*: choose variant='fp16'"):
        AutoencoderKL.from_pretrained(tmp_path / "vae", variant="ema", backend="numpy")


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "flux1", "kl-f4", "three-layers"])
def test_our_ldm_file_is_what_the_converter_of_diffusers_reads(tmp_path, name, prefix):
    """Attention in the middle only: that converter silently leaves out any other."""
    config, path = CONFIGS[name], tmp_path / "model.safetensors"
    save_file(path, config, tagged(config), dialect="ldm", prefix=prefix)
    checkpoint = {key: torch.tensor(a) for key, a in read_safetensors(path).items()}
    converted = convert_ldm_vae_checkpoint(checkpoint, config.to_dict())
    diffusers_model(config).load_state_dict(converted, strict=True)
    assert_same_bits({key: converted[key].numpy() for key in tagged(config)}, tagged(config))
    assert converted.keys() == tagged(config).keys()


# -- where the VAE is in a file ----------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("dialect", ["diffusers", "diffusers-deprecated", "ldm", "bfl"])
def test_attention_may_be_stored_as_a_convolution_of_any_rank(tmp_path, dialect, axes):
    tensors = stored(PLAIN, tmp_path, dialect)
    attention = [key for key, a in tensors.items() if ".attn" in key or ".attentions" in key if a.ndim > 1]
    assert len(attention) == 8
    for key in attention:
        tensors[key] = tensors[key].reshape(*tensors[key].shape[:2], *[1] * (axes - 2))
    assert_same_bits(load_file(written(tmp_path, tensors))[1], tagged(PLAIN))


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae.", "whatever."])
def test_the_vae_of_a_full_checkpoint_is_found_by_its_prefix(tmp_path, prefix, dialect):
    others = {
        "model.diffusion_model.input_blocks.0.0.weight": np.ones((4, 4, 3, 3), np.float32),
        "model.diffusion_model.conv_in.weight": np.ones((4, 4, 3, 3), np.float32),
        "cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1.bias": np.ones(4, np.float16),
        "cond_stage_model.transformer.text_model.embeddings.position_ids": np.arange(77)[None],
        "alphas_cumprod": np.ones(1000),
        "model_ema.num_updates": np.array(3, np.int32),
    }
    path = written(tmp_path, stored(PLAIN, tmp_path, dialect, prefix) | others)
    config, weights = load_file(path)
    assert config == PLAIN.replace(scaling_factor=None)
    assert_same_bits(weights, tagged(PLAIN))


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_what_training_leaves_in_a_file_is_ignored(tmp_path, prefix):
    left = {
        f"{prefix}loss.logvar": np.zeros((), np.float32),
        f"{prefix}loss.perceptual_loss.lin0.model.1.weight": np.zeros((1, 64, 1, 1), np.float32),
        f"{prefix}loss.discriminator.main.3.num_batches_tracked": np.array(3),
        f"{prefix}model_ema.decay": np.zeros((), np.float32),
        f"{prefix}model_ema.num_updates": np.array(1, np.int32),
    }
    path = written(tmp_path, stored(PLAIN, tmp_path, "ldm", prefix) | left)
    assert_same_bits(load_file(path)[1], tagged(PLAIN))


def test_the_count_of_batches_may_be_absent(tmp_path):
    tensors = stored(CONFIGS["flux2"], tmp_path)
    del tensors["bn.num_batches_tracked"]
    weights = load_file(written(tmp_path, tensors), CONFIGS["flux2"])[1]
    assert_same_bits(weights, tagged(CONFIGS["flux2"]) | {"bn.num_batches_tracked": np.array(0, np.int64)})


# -- half a model ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", ["diffusers", "bfl", "flax", "diffusionkit"])
@pytest.mark.parametrize(("half", "other"), [("encoder", "decoder"), ("decoder", "encoder")])
def test_half_a_file_is_half_a_model(tmp_path, dialect, half, other):
    weights = {name: a for name, a in tagged(PLAIN).items() if name in parameters(PLAIN, [half])}
    path = tmp_path / f"half{DIALECTS[dialect].suffix}"
    save_file(path, PLAIN, weights, dialect=dialect)
    vae = AutoencoderKL.from_single_file(path, backend="numpy")
    assert vae.config == (PLAIN.replace(scaling_factor=None) if dialect == "flax" else PLAIN)
    if dialect != "flax":
        weights = dict(open_tensors(path))
        assert infer_config(locate(open_tensors(written(tmp_path, weights)))) == PLAIN.replace(scaling_factor=None)
    assert_same_bits(vae.weights(), {name: tagged(PLAIN)[name] for name in parameters(PLAIN, [half])})
    run = {"encoder": lambda: vae.encode(images(PLAIN, 8, 8)), "decoder": lambda: vae.decode(np.zeros((1, 4, 2, 2)))}
    assert np.isfinite(vae.to_numpy(run[half]()[0].mean if half == "encoder" else run[half]()[0])).all()
    with pytest.raises(InputError, match=f"these weights have no {other}: load them from a file that has"):
        run[other]()
    moved = vae.with_backend("torch")
    assert set(moved.functional().params) == vae.weights().keys() == set(moved.module().state_dict())
    assert vae.num_parameters() == sum(a.size for a in vae.weights().values())


# -- a file's own config -----------------------------------------------------------------------------------------


def test_a_file_of_ours_stores_the_config_that_weights_do_not_show(tmp_path):
    config = narrow((8, 16), norm_num_groups=4, scaling_factor=0.7, shift_factor=0.1)
    AutoencoderKL.from_config(config, backend="numpy").save_single_file(path := tmp_path / "vae.safetensors")
    assert vaespec.load(path, backend="numpy").config == config
    other = config.replace(scaling_factor=0.5)
    assert AutoencoderKL.from_single_file(path, config=other, backend="numpy").config == other


def test_a_damaged_config_in_a_file_is_refused(tmp_path):
    repeated, endless = '{"act_fn": "silu", "act_fn": "mish"}', '{"layers_per_block": ' + "9" * 5000 + "}"
    many, long = '{"layers_per_block": 10000000}', " " * 2**20 + "{}"
    other = '{"_class_name": "AutoencoderKLWan"}'
    broken = ("{", "[]", "3", '{"latent_channels": "four"}', "[" * 100_000)
    for text in (*broken, repeated, endless, many, long, other):
        write_safetensors(tmp_path / "vae.safetensors", tagged(PLAIN), {"vaespec.config": text})
        with pytest.raises(WeightFileError, match="has a damaged config in its metadata"):
            vaespec.load(tmp_path / "vae.safetensors", backend="numpy")
    write_safetensors(tmp_path / "vae.safetensors", tagged(PLAIN), {"vaespec.config": '{"latent_channels": 8}'})
    with pytest.raises(WeightMapError, match="config      latent_channels would be 8, the file has 4"):
        vaespec.load(tmp_path / "vae.safetensors", backend="numpy")


# -- quantized linear maps ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dialect", ["mflux", "mflux-flux2"])
def test_linear_maps_are_quantized_as_mlx_does_and_read_back(tmp_path, dialect, bits):
    weights = AutoencoderKL.from_config(PLAIN, backend="numpy").weights()
    save_file(path := tmp_path / "q.safetensors", PLAIN, weights, dialect=dialect, bits=bits)
    found = load_file(path)[1]
    for name, a in weights.items():
        if parameters(PLAIN)[name].role != "linear":
            np.testing.assert_array_equal(found[name], a)
            continue
        expected = mx.dequantize(*mx.quantize(mx.array(a), group_size=64, bits=bits), group_size=64, bits=bits)
        np.testing.assert_array_equal(found[name], np.array(expected))


def test_what_cannot_be_quantized_is_refused_and_nothing_written(tmp_path):
    weights, path = tagged(PLAIN), tmp_path / "q.safetensors"
    for dialect, bits in (("mflux", 5), ("ldm", 4), ("diffusers", 8)):
        with pytest.raises(
            InputError, match=rf"bits={bits} in the dialect {dialect}: expected 4 or 8, in mflux, mflux-"
        ):
            save_file(path, PLAIN, weights, dialect=dialect, bits=bits)
    narrower = CONFIGS["sd"]
    with pytest.raises(InputError, match=r"to_q\.weight has \d+ inputs: MLX quantizes 64 at a time"):
        save_file(path, narrower, tagged(narrower), dialect="mflux", bits=4)
    assert not list(tmp_path.iterdir())
