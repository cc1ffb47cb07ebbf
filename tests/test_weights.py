"""Weights keep every bit and every name through every dialect; a file that does not fit says all that is wrong."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import diffusers
import ml_dtypes
import numpy as np
import pytest
import torch
from configs import CONFIGS, drawn_weights, images, narrow, relative_l2, sizes
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from oracle import decoded, diffusers_model, encoded, oracle
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as read_safetensors
from safetensors.numpy import save_file as write_safetensors

import vaespec
from vaespec import (
    AutoencoderConfig,
    AutoencoderKL,
    ConfigError,
    InputError,
    NonFiniteError,
    WeightFileError,
    WeightMapError,
    families,
    parameters,
)
from vaespec.weights import load_file, load_folder, save_file, save_folder
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.inference import infer_config, locate

NAMES = ("sd", "sd3", "flux2-small-decoder", "kl-f16", "kl-f32", "cogview", "attention-in-the-decoder-only")
NAMES += ("one-level", "quant-conv-only", "three-layers")
EXCHANGED = ("sd", "sd3", "flux2", "flux2-small-decoder", "kl-f16", "cogview", "post-quant-conv-only")
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"

PLAIN = narrow((32, 64), norm_num_groups=32, latent_channels=4)
"""The narrowest config that can be inferred: 32 groups, as every published one."""


def tagged(config: AutoencoderConfig, dtype: str = "float32") -> dict[str, np.ndarray]:
    """Tensor k is k plus a ramp of its own, so that no two tensors, rows or axes can be taken for each other."""
    return {
        name: np.array(k, np.int64)
        if parameter.shape == ()
        else (k + np.arange(np.prod(parameter.shape)).reshape(parameter.shape) / 2.0**13).astype(dtype)
        for k, (name, parameter) in enumerate(parameters(config).items(), start=1)
    }


def assert_same_bits(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert actual.keys() == expected.keys()
    for name, a in expected.items():
        assert (actual[name].dtype, actual[name].shape) == (a.dtype, a.shape), name
        assert actual[name].tobytes() == a.tobytes(), name


def stored(config: AutoencoderConfig, tmp_path: Path, dialect: str = "diffusers", prefix: str = "") -> dict:
    """The tensors of a file in this dialect, to be changed and written again."""
    save_file(tmp_path / "whole.safetensors", config, tagged(config), dialect=dialect, prefix=prefix)
    return read_safetensors(tmp_path / "whole.safetensors")


def written(tmp_path: Path, tensors: dict[str, np.ndarray], name: str = "model.safetensors") -> Path:
    write_safetensors({key: np.ascontiguousarray(a) for key, a in tensors.items()}, tmp_path / name)
    return tmp_path / name


# -- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "first_stage_model.", "vae.", "model.whatever.it-is."])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", NAMES)
def test_every_dialect_keeps_every_bit(tmp_path, name, dialect, prefix):
    config, path = CONFIGS[name], tmp_path / "model.safetensors"
    save_file(path, config, tagged(config), dialect=dialect, prefix=prefix)
    with safe_open(path, "numpy") as file:
        assert all(key.startswith(prefix) for key in file.keys())  # noqa: SIM118
    found, weights = load_file(path, config)
    assert found == config
    assert_same_bits(weights, tagged(config))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_every_dtype_keeps_every_bit(tmp_path, dialect, dtype):
    config = CONFIGS["kl-f16"]
    weights = tagged(config, getattr(ml_dtypes, dtype, dtype))
    save_file(tmp_path / "model.safetensors", config, weights, dialect=dialect)
    assert_same_bits(load_file(tmp_path / "model.safetensors", config)[1], weights)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_weights_are_saved_in_the_dtype_asked_for(tmp_path, dtype):
    vae = AutoencoderKL(CONFIGS["flux2"], tagged(CONFIGS["flux2"]), backend="numpy")
    vae.save_pretrained(tmp_path, dtype=dtype)
    for name, a in read_safetensors(tmp_path / WEIGHTS_FILE).items():
        assert a.dtype.name == ("int64" if name == "bn.num_batches_tracked" else dtype)
        np.testing.assert_array_equal(a, vae.weights()[name].astype(a.dtype))


def test_weights_are_saved_in_the_dtype_of_the_model_unless_asked(tmp_path):
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


def test_a_family_is_not_for_folders(tmp_path):
    AutoencoderKL.from_config(PLAIN, backend="numpy").save_pretrained(tmp_path)
    with pytest.raises(InputError, match="family='sd1' is for single files"):
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


def test_a_variant_of_diffusers_is_found_by_its_name(tmp_path):
    oracle("sd")[0].save_pretrained(tmp_path / "vae", variant="fp16")
    vae = AutoencoderKL.from_pretrained(tmp_path, subfolder="vae", variant="fp16", backend="numpy", dtype="float64")
    np.testing.assert_array_equal(vae.weights()["encoder.conv_in.bias"], oracle("sd")[1]["encoder.conv_in.bias"])
    with pytest.raises(WeightFileError, match=r"no diffusion_pytorch_model\.safetensors in .*: it has .*\.fp16\.safe"):
        AutoencoderKL.from_pretrained(tmp_path / "vae", backend="numpy")


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


# -- names and shapes of real files --------------------------------------------------------------------------------

# SHA-256 of the lines "name shape" of the file's tensors, sorted. Made from upstream's own code on the meta device:
# diffusers 0.42.1 and 0.16.1, CompVis latent-diffusion a506df57, Stability sd3.5 fbf8f483, BFL flux 802fb471.
REAL_FILES = [
    ("sd1", "diffusers", "", 248, "a8eb7356226250e7"),
    ("sd1", "diffusers-deprecated", "", 248, "834743ec52a763c0"),
    ("sd1", "ldm", "", 248, "5c5821b036193b0e"),
    ("sd1", "ldm", "first_stage_model.", 248, "e9d56f72afb2bd81"),
    ("sd1", "ldm", "vae.", 248, "054de848afbb318b"),
    ("sdxl", "ldm", "first_stage_model.", 248, "e9d56f72afb2bd81"),
    ("sd-x4-upscaler", "diffusers", "", 204, "70661ec45c909ba6"),
    ("sd3", "ldm", "first_stage_model.", 244, "455979de04b13d40"),
    ("sd3", "ldm", "", 244, "02e25618403d3cfa"),
    ("flux1", "ldm", "", 244, "02e25618403d3cfa"),
    ("flux1", "diffusers", "", 244, "0287a108a616e46a"),
    ("flux2", "diffusers", "", 251, "74826184e79df829"),
    ("kl-f4", "ldm", "", 204, "2685c179cedd8d0d"),
    ("kl-f32", "ldm", "", 436, "d417149f5d3876e7"),
    ("kl-f32", "diffusers", "", 436, "21cdaf3b06f131f2"),
]


class Listing(dict):
    """name -> shape, in the place of an opened file whose numbers nobody reads."""

    path = Path("checkpoint.safetensors")

    def shape(self, name: str) -> tuple[int, ...]:
        return self[name]


def listing(family: str, dialect: str = "diffusers", prefix: str = "", others: tuple[str, ...] = ()) -> Listing:
    """What a full-width file of this family would hold, by our own tables."""
    config, words = families.config(family), DIALECTS[dialect]
    shapes = Listing({name: (1,) for name in others})
    for name, parameter in parameters(config).items():
        kernel = (1, 1) if parameter.role == "linear" and words.attention_kernel == "conv" else ()
        shapes[prefix + words.stored(name, config.levels)] = (*parameter.shape, *kernel)
    return shapes


@pytest.mark.parametrize(("family", "dialect", "prefix", "count", "digest"), REAL_FILES)
def test_names_and_shapes_are_those_of_the_real_file(family, dialect, prefix, count, digest):
    lines = sorted(f"{name} {list(shape)}" for name, shape in listing(family, dialect, prefix).items())
    assert len(lines) == count
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] == digest


def test_ldm_names_by_hand():
    """From the keys of Stable Diffusion 1: its decoder counts from the full resolution."""
    names = {
        "encoder.down_blocks.1.resnets.0.conv_shortcut.bias": "encoder.down.1.block.0.nin_shortcut.bias",
        "encoder.down_blocks.2.downsamplers.0.conv.weight": "encoder.down.2.downsample.conv.weight",
        "encoder.mid_block.attentions.0.group_norm.weight": "encoder.mid.attn_1.norm.weight",
        "decoder.mid_block.attentions.0.to_out.0.bias": "decoder.mid.attn_1.proj_out.bias",
        "decoder.mid_block.resnets.1.norm2.bias": "decoder.mid.block_2.norm2.bias",
        "decoder.up_blocks.0.resnets.2.conv1.weight": "decoder.up.3.block.2.conv1.weight",
        "decoder.up_blocks.2.upsamplers.0.conv.bias": "decoder.up.1.upsample.conv.bias",
        "decoder.up_blocks.3.attentions.0.to_q.weight": "decoder.up.0.attn.0.q.weight",
        "decoder.conv_norm_out.weight": "decoder.norm_out.weight",
        "post_quant_conv.bias": "post_quant_conv.bias",
    }
    assert {name: DIALECTS["ldm"].stored(name, levels=4) for name in names} == names


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", families.names())
def test_the_structure_of_every_family_is_inferred_from_every_dialect(family, dialect, prefix):
    here = locate(listing(family, dialect, prefix))
    if families.config(family).mid_block_add_attention:  # else modern and deprecated names are the same
        assert here.dialect.name == dialect
    assert here.prefix == prefix
    inferred = infer_config(here)
    for field in families.STRUCTURE:
        assert getattr(inferred, field) == getattr(families.config(family), field), field
    assert infer_config(here, family) == families.config(family)


MARKERS = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": "sd1",
    "cond_stage_model.model.ln_final.bias": "sd2",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": "sdxl",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.bias": "sd3",
    "model.diffusion_model.double_blocks.0.img_attn.proj.bias": "flux1",
}


@pytest.mark.parametrize(("marker", "family"), MARKERS.items())
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_a_full_checkpoint_tells_its_family(marker, family, prefix):
    here = locate(listing(family, "ldm", prefix, others=(marker, "model.diffusion_model.out.2.bias", "alphas_cumprod")))
    assert infer_config(here) == families.config(family)


def test_playground_is_told_from_the_sdxl_it_resembles():
    """Its checkpoints have SDXL's text encoders and, beside them, edm_mean and edm_std."""
    others = ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "edm_mean", "edm_std")
    inferred = infer_config(locate(listing("playground-v2.5", "ldm", "first_stage_model.", others)))
    assert inferred == families.config("playground-v2.5")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "flux1"])
def test_a_scale_that_the_file_does_not_tell_is_left_unknown(family):
    for others in ((), ("model.diffusion_model.out.2.bias",)):
        assert infer_config(locate(listing(family, "ldm", "vae.", others))).scaling_factor is None


@pytest.mark.parametrize("family", ["sd-x4-upscaler", "ldm3d"])
def test_a_scale_that_only_one_family_of_these_shapes_has_is_known(family):
    assert infer_config(locate(listing(family))).scaling_factor == families.config(family).scaling_factor


def test_families_are_narrowed_by_shapes_then_by_names():
    assert families.matching(families.config("sd3")) == ("sd3", "flux1")
    assert families.matching(families.config("sd3"), ["model.diffusion_model.joint_blocks.0"]) == ("sd3",)
    assert families.matching(families.config("sd3"), ["cond_stage_model.model.x"]) == ("sd3", "flux1")
    assert families.matching(PLAIN) == ()


def test_a_family_that_contradicts_the_file_is_refused_field_by_field():
    here = locate(listing("sd1", "ldm"))
    words = r"not of the family 'flux1': latent_channels would be 16, the file has 4, use_quant_conv would be False, "
    with pytest.raises(WeightMapError, match=words + r".*the file has True"):
        infer_config(here, "flux1")
    with pytest.raises(ConfigError, match="unknown family 'sd7': choose one of sd1"):
        infer_config(here, "sd7")


def test_a_file_of_unknown_scale_encodes_but_asks_before_it_scales(tmp_path):
    save_file(tmp_path / "model.safetensors", PLAIN, AutoencoderKL.from_config(PLAIN, backend="numpy").weights())
    vae = AutoencoderKL.from_single_file(tmp_path / "model.safetensors", backend="numpy")
    assert vae.config == PLAIN.replace(scaling_factor=None)
    x = images(PLAIN, 8, 8)
    assert vae.decode(vae.encode(x).latent_dist.mode()).sample.shape == x.shape
    with pytest.raises(ConfigError, match="scaling factor of these weights is not known"):
        vae.encode_latents(x)
    told = AutoencoderKL.from_single_file(tmp_path / "model.safetensors", config=PLAIN.to_dict(), backend="numpy")
    np.testing.assert_allclose(told.encode_latents(x), 0.18215 * vae.encode(x).latent_dist.mean, rtol=1e-6)
    assert vaespec.load(tmp_path / "model.safetensors", backend="numpy").config.scaling_factor is None


# -- where the VAE is in a file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("dialect", DIALECTS)
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


# -- what does not fit ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_every_problem_is_in_one_error_in_the_names_of_the_file(tmp_path, prefix):
    tensors = stored(PLAIN, tmp_path, "ldm", prefix)
    del tensors[f"{prefix}decoder.up.1.block.0.conv1.bias"], tensors[f"{prefix}quant_conv.bias"]
    tensors[f"{prefix}encoder.mid.attn_1.q.weight"] = np.zeros((64, 32, 1, 1), np.float32)
    tensors[f"{prefix}decoder.up.9.block.0.conv1.bias"] = np.zeros(3, np.float32)
    with pytest.raises(WeightMapError) as caught:
        load_file(written(tmp_path, tensors))
    message = str(caught.value)
    assert 'dialect "ldm", 3 tensors missing or misshapen' in message
    for line in (
        f"missing     {prefix}decoder.up.1.block.0.conv1.bias   (needed for decoder.up_blocks.0.resnets.0.conv1.bias)",
        f"missing     {prefix}quant_conv.bias   (needed for quant_conv.bias)",
        f"shape       {prefix}encoder.mid.attn_1.q.weight   file (64, 32, 1, 1), config wants (64, 64)",
        f"unexpected  {prefix}decoder.up.9.block.0.conv1.bias",
    ):
        assert message.count(line) == 1, line


def test_a_config_that_contradicts_the_file_is_hinted_at_field_by_field(tmp_path):
    path = written(tmp_path, stored(PLAIN, tmp_path))
    wrong = PLAIN.replace(latent_channels=16, use_quant_conv=False)
    with pytest.raises(WeightMapError) as caught:
        load_file(path, wrong)
    assert "unexpected  quant_conv.bias" in str(caught.value)
    assert "hint        latent_channels would be 16, the file has 4" in str(caught.value)
    assert "hint        use_quant_conv would be False, the file has True" in str(caught.value)


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
        (["model.diffusion_model.out.0.weight"], "no VAE in .*: none of its 1 names ends in encoder"),
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


def test_quantised_weights_are_refused_by_name(tmp_path):
    tensors = stored(PLAIN, tmp_path)
    tensors["decoder.conv_in.weight"] = tensors["decoder.conv_in.weight"].astype(np.int8)
    with pytest.raises(WeightFileError, match=r"decoder\.conv_in\.weight holds integers \(int8\): quantised"):
        load_file(written(tmp_path, tensors))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_named_as_in_the_file(tmp_path, dtype, bad):
    tensors = stored(PLAIN, tmp_path, "ldm", "vae.")
    for name in ("vae.decoder.mid.attn_1.k.weight", "vae.quant_conv.bias"):
        tensors[name] = tensors[name].astype(getattr(ml_dtypes, dtype, dtype))
        tensors[name].flat[-1] = bad
    words = r"NaN or infinity in 2 tensors: (vae\.quant_conv\.bias|vae\.decoder\.mid\.attn_1\.k\.weight), "
    with pytest.raises(NonFiniteError, match=words):
        load_file(written(tmp_path, tensors))


# -- what is no file of weights ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("whole") / "model.safetensors"
    save_file(path, PLAIN, tagged(PLAIN))
    return path.read_bytes()


@pytest.mark.parametrize("part", [0.0, 1e-9, 0.001, 0.01, 0.1, 0.5, 0.999999])
def test_a_truncated_file_is_told_wherever_it_was_cut(tmp_path, whole_file, part):
    path = tmp_path / "model.safetensors"
    path.write_bytes(whole_file[: int(np.ceil(len(whole_file) * part))])
    with pytest.raises(WeightFileError, match=r"damaged|incomplete|does not begin like") as caught:
        load_file(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("cut", [1, 7, 8, 9, 100])
def test_a_file_cut_near_either_end_is_told(tmp_path, whole_file, cut):
    for i, content in enumerate((whole_file[:cut], whole_file[:-cut])):
        path = tmp_path / f"{i}.safetensors"
        path.write_bytes(content)
        with pytest.raises(WeightFileError):
            load_file(path)


def test_a_file_cut_at_the_end_of_its_header_is_told(tmp_path, whole_file):
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
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page: the download probably needs a login"),
        (b"PK\x03\x04\x00\x00\x08\x08archive/data.pkl", r"a zip archive \(a PyTorch .ckpt or .bin\)"),
        (b"\x80\x02}q\x00(X\x0a\x00\x00\x00state_dict", "a Python pickle"),
        (b"GGUF\x03\x00\x00\x00" + b"\x00" * 40, "a GGUF file"),
        (b"", r"\(0 bytes\) does not begin like a safetensors file"),
        (b"\x00" * 4096, r"\(4096 bytes\) does not begin like a safetensors file"),
        (b"\xff" * 4096, "does not begin like a safetensors file"),
        (b'{"error": "not found"}', "does not begin like a safetensors file"),
        ((16).to_bytes(8, "little") + b'{"a": not json }' + b"\x00" * 64, "damaged"),
    ],
)
def test_a_file_of_something_else_is_told_by_what_it_is(tmp_path, content, words):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(WeightFileError, match=words) as caught:
        AutoencoderKL.from_single_file(path)
    assert str(path) in str(caught.value)


def test_missing_files_and_folders_are_named(tmp_path):
    with pytest.raises(WeightFileError, match=r"no file .*none\.safetensors"):
        AutoencoderKL.from_single_file(tmp_path / "none.safetensors")
    with pytest.raises(WeightFileError, match=r"cannot be read \(Is a directory\)"):
        AutoencoderKL.from_single_file(tmp_path)
    with pytest.raises(WeightFileError, match=r"no folder .*nowhere"):
        AutoencoderKL.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(WeightFileError, match=r"no folder .*vae"):
        AutoencoderKL.from_pretrained(tmp_path, subfolder="vae")
    with pytest.raises(WeightFileError, match=r"is not a diffusers VAE folder: it has no config\.json"):
        AutoencoderKL.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(PLAIN.to_dict()), encoding="utf-8")
    with pytest.raises(WeightFileError, match=r"no diffusion_pytorch_model.safetensors in .*: it has no \.safetensors"):
        AutoencoderKL.from_pretrained(tmp_path)


# -- files appear whole or not at all --------------------------------------------------------------------------------

FAILURES = [OSError(28, "No space left on device"), SafetensorError("I/O error"), KeyboardInterrupt()]


@pytest.mark.parametrize("error", FAILURES)
def test_a_save_that_fails_leaves_what_was_there(tmp_path, monkeypatch, error):
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


def test_a_save_replaces_what_was_there_and_leaves_nothing_else(tmp_path):
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
