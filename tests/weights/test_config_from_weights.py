"""The names and shapes of a file show its family and its config."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from support.checkpoints import PLAIN, written
from support.configs import images
from support.wild import Wild

import vaespec
from vaespec import AutoencoderKL, ConfigError, WeightMapError, families, parameters
from vaespec.weights.config_from_weights import choose_config, infer_config
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.layouts import to_stored
from vaespec.weights.locate import VaeInFile, locate

KEY = "scale_factor"

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

    def dtype(self, name: str) -> str:
        return "float32"


def listing(family: str, dialect: str = "diffusers", prefix: str = "", others: tuple[str, ...] = ()) -> Listing:
    """What a full-width file of this family would hold, by our own tables."""
    config, words = families.config(family), DIALECTS[dialect]
    shapes = Listing({name: (1,) for name in others})
    for name, row in parameters(config).items():
        a = np.broadcast_to(np.float32(0), row.shape)
        shapes[prefix + words.stored(name, config.levels)] = to_stored(a, row, words.layout, words.axes(row)).shape
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
    located = locate(listing(family, dialect, prefix))
    if families.config(family).mid_block_add_attention:  # else modern and deprecated names are the same
        same = dialect == "bfl" and not families.config(family).use_quant_conv
        assert located.dialect.name == ("ldm" if same else dialect)
    assert located.prefix == prefix
    inferred = infer_config(located)
    for field in families.STRUCTURE:
        assert getattr(inferred, field) == getattr(families.config(family), field), field
    assert infer_config(located, family) == families.config(family)


MARKERS = {
    "cond_stage_model.transformer.text_model.embeddings.position_ids": "sd1",
    "cond_stage_model.model.ln_final.bias": "sd2",
    "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias": "sdxl",
    "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.bias": "sd3",
    "model.diffusion_model.double_blocks.0.img_attn.proj.bias": "flux1",
}


@pytest.mark.parametrize(("marker", "family"), MARKERS.items())
@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_a_full_checkpoint_shows_its_family(marker, family, prefix):
    located = locate(
        listing(family, "ldm", prefix, others=(marker, "model.diffusion_model.out.2.bias", "alphas_cumprod"))
    )
    assert infer_config(located) == families.config(family)


def test_playground_is_distinguished_from_sdxl():
    """Its checkpoints have SDXL's text encoders and, beside them, edm_mean and edm_std."""
    others = ("conditioner.embedders.0.transformer.text_model.final_layer_norm.bias", "edm_mean", "edm_std")
    inferred = infer_config(locate(listing("playground-v2.5", "ldm", "first_stage_model.", others)))
    assert inferred == families.config("playground-v2.5")


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl", "sd3", "flux1"])
def test_a_scale_that_the_file_does_not_show_is_unknown(family):
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


def test_tiles_are_of_the_size_on_which_the_families_of_a_file_agree():
    assert infer_config(locate(listing("sd3"))).sample_size == 1024  # FLUX.1's as well
    assert infer_config(locate(listing("sd1", "ldm"))).sample_size == 512  # SD 2's is 768


def test_a_family_that_contradicts_the_file_is_refused_field_by_field():
    located = locate(listing("sd1", "ldm"))
    words = r"not of the family 'flux1': latent_channels would be 16, the file has 4, use_quant_conv would be False, "
    with pytest.raises(WeightMapError, match=words + r".*the file has True"):
        infer_config(located, "flux1")
    assert infer_config(located, "SD 1.5") == infer_config(located, "sd1")
    with pytest.raises(ConfigError, match="unknown family 'sd7': choose one of sd1"):
        infer_config(located, "sd7")


def test_a_file_of_unknown_scale_encodes_but_asks_before_it_scales(tmp_path):
    written(tmp_path, AutoencoderKL.from_config(PLAIN, backend="numpy").weights())
    vae = AutoencoderKL.from_single_file(tmp_path / "model.safetensors", backend="numpy")
    assert vae.config == PLAIN.replace(scaling_factor=None)
    x = images(PLAIN, 8, 8)
    assert vae.decode(vae.encode(x).latent_dist.mode()).sample.shape == x.shape
    with pytest.raises(ConfigError, match="scaling factor of these weights is not known"):
        vae.encode_latents(x)
    known = AutoencoderKL.from_single_file(tmp_path / "model.safetensors", config=PLAIN.to_dict(), backend="numpy")
    np.testing.assert_allclose(known.encode_latents(x), 0.18215 * vae.encode(x).latent_dist.mean, rtol=1e-6)
    assert vaespec.load(tmp_path / "model.safetensors", backend="numpy").config.scaling_factor is None


@pytest.mark.parametrize("shape", [(), (1,)])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_scale_that_training_stored_is_the_scaling_factor(prefix, shape):
    vae = with_scale(np.full(shape, 0.227), prefix)
    assert infer_config(vae).scaling_factor == 0.227
    with pytest.raises(WeightMapError, match=r"scaling_factor would be 0\.18215, the file has 0\.227"):
        infer_config(vae, "sd1")


@pytest.mark.parametrize(
    "scale", [np.float32(np.nan), np.float16(np.inf), np.float64(0), np.complex64(1j), np.bool_(True)]
)
def test_a_stored_scale_that_is_none_is_refused_unless_a_config_says_it(scale):
    vae = with_scale(np.array(scale))
    for family in (None, "sd1"):
        with pytest.raises(WeightMapError, match=r"wild\.safetensors has the scale_factor .*: give config="):
            infer_config(vae, family)
    config = families.config("sd1")
    assert choose_config(vae, config, None) == (config, [])


def with_scale(scale: np.ndarray, prefix: str = "") -> VaeInFile:
    shapes = listing("sd1", "ldm", prefix)
    return locate(Wild({name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()} | {KEY: scale}))
