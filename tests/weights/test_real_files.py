"""Files of every kind that other programs write are read right: each tensor, each axis, each field of the config."""

from __future__ import annotations

import re
from contextlib import suppress

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.real_files import (
    FILES,
    ONE_OF_EACH,
    RealFile,
    assert_no_wrong_field,
    check,
    filled,
    half_filled,
    half_of,
    with_prefix,
)
from support.wild import FORMATS, Wild, assert_same, in_the_file, listing, listings, read, tagged

from vaespec import VaespecError, WeightMapError, families
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.locate import locate

DIFFUSIONKIT_SD3 = RealFile("sd3", "diffusionkit", "first_stage_model.")

# -- whole files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FILES)
def test_every_tensor_and_every_field_of_a_real_file_is_read_right(name):
    check(FILES[name])


def test_every_listing_that_is_packed_is_read_by_some_test():
    known = {*FILES, "flux1-mflux-q4", "ldm-loss-keys"}
    configs = {f"{file.family}.config" for file in FILES.values()}
    assert set(listings()) == known | configs


def test_four_bits_of_mflux_are_what_mlx_makes_of_them():
    shapes, canonical = listing("flux1-mflux-q4"), tagged(listing("flux1-diffusers"))
    layers = [name.removesuffix(".scales") for name in shapes if name.endswith(".scales")]
    arrays = in_the_file(listing("flux1-mflux"), FORMATS["mflux"], canonical)
    for k, layer in enumerate(layers):
        w = mx.array(np.random.default_rng(k).standard_normal((512, 512), np.float32))
        packed = dict(zip(("weight", "scales", "biases"), mx.quantize(w, group_size=64, bits=4), strict=True))
        arrays |= {f"{layer}.{part}": np.array(a) for part, a in packed.items()}
        canonical[f"{layer}.weight"] = np.array(mx.dequantize(*packed.values(), group_size=64, bits=4))
    assert {name: list(a.shape) for name, a in arrays.items()} == shapes
    assert len(layers) == 8
    assert_same(read(arrays)[1], canonical)


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_tensor_that_is_lost_renamed_or_of_another_shape_is_missed_whichever_it_is(name):
    """Two more numbers along the last axis; of a first layer that is the number of channels in some layouts."""
    arrays = filled(FILES[name])
    for key in [key for key in arrays if not key.endswith("num_batches_tracked")][::7]:
        lost = {other: a for other, a in arrays.items() if other != key}
        with pytest.raises(WeightMapError, match=re.escape(key)):
            read(lost)
        with pytest.raises(WeightMapError, match=rf"{re.escape(key)}\b"):
            read(lost | {f"{key}_": arrays[key]})
        if "encoder.conv_in" not in key:
            wider = np.zeros((*arrays[key].shape[:-1], arrays[key].shape[-1] + 2), np.float32)
            with pytest.raises(WeightMapError):
                read(lost | {key: wider})


@pytest.mark.parametrize(
    ("name", "lost", "missing"),
    [
        ("sd1-diffusers", "encoder.down_blocks.2.", "encoder.down_blocks.2.resnets.0.norm1.weight"),
        ("sd1-flax", "encoder.down_blocks_0.", "encoder.down_blocks_0.resnets_0.norm1.scale"),
        ("flux1-bfl", "decoder.up.3.block.1.", "decoder.up.3.block.1.norm1.weight"),
        ("ldm-kl-f32-ldm", "encoder.down.0.block.0.", "encoder.down.0.block.0.norm1.weight"),
    ],
)
def test_a_gap_is_reported_with_the_first_missing_name(name, lost, missing):
    arrays = {key: a for key, a in filled(FILES[name]).items() if not key.startswith(lost)}
    with pytest.raises(WeightMapError, match=rf"has no {re.escape(missing)}, but .*: it is incomplete"):
        read(arrays)


def test_a_tensor_under_two_names_is_refused():
    arrays = filled(FILES["sd1-diffusers-deprecated"])
    old = "decoder.mid_block.attentions.0.key.bias"
    with pytest.raises(WeightMapError, match=r"unexpected  decoder\.mid_block\.attentions\.0\.to_k\.bias"):
        read(arrays | {old.replace("key", "to_k"): arrays[old]}, strict=False)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 3, 4, 64, 512]), max_size=5).map(tuple)


@settings(max_examples=200)
@given(st.data(), st.sampled_from(ONE_OF_EACH))
def test_whatever_the_shapes_a_file_is_read_or_refused_in_words(data, name):
    arrays = filled(FILES[name])
    key = data.draw(st.sampled_from([k for k in arrays if re.search("conv_in|conv_out|quant|bn|blocks?.0.*conv1", k)]))
    arrays[key] = np.broadcast_to(np.float32(0), data.draw(SHAPES))
    with suppress(VaespecError):
        config, weights = read(arrays)
        assert all(config.patch_size or (1,))
        assert len(weights) == len(FILES[name].weights)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("name", ["sd1-ldm-full-prefix", "sd1-flax"])
def test_a_half_without_its_first_layer_is_missed_not_left_out(name, half):
    file = FILES[name]
    arrays = {key: a for key, a in filled(file).items() if not key.startswith(f"{file.prefix}{half}.conv_in.")}
    with pytest.raises(WeightMapError, match=rf"has no {file.prefix}{half}\.conv_in\.\w+, which every AutoencoderKL"):
        read(arrays)


# -- what is beside the VAE --------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_loss_of_training_is_left_alone_and_counted(prefix):
    file = FILES["sd1-ldm-standalone"]
    loss = {prefix + name: a for name, a in tagged(listing("ldm-loss-keys")).items()}
    resnet = {f"{prefix}loss.perceptual_loss.net.layer1.0.conv1.weight": np.ones((64, 64, 1, 1), np.float32)}
    scalars = {f"{prefix}model_ema.decay": np.float32([1])[0], f"{prefix}model_ema.num_updates": np.array(3, np.int32)}
    arrays = with_prefix(filled(file), prefix)
    config, weights = read(arrays | loss | resnet | scalars)
    assert_same(weights, file.weights)
    assert config == read(arrays)[0]
    assert len(locate(Wild(arrays | loss)).ignored()) == len(loss) == 56


@pytest.mark.parametrize("name", ["sd1-ldm-standalone", "ldm-kl-f32-ldm", "flux1-bfl", "ldm-kl-f4-ldm"])
@pytest.mark.parametrize("prefix", ["", "first_stage_model."])
def test_the_moving_average_is_read_on_request(name, prefix):
    file = FILES[name]
    raw = filled(file)
    average = {f"model_ema.{key.replace('.', '')}": a + np.float32(0.5) for key, a in raw.items()}
    assert len(average) == len(raw)  # no two names are one without dots
    arrays = with_prefix(raw | average | {"model_ema.decay": np.float32([1])[0]}, prefix)
    assert_same(read(arrays)[1], file.weights)
    assert_same(read(arrays, use_ema=True)[1], {key: a + np.float32(0.5) for key, a in file.weights.items()})


def test_a_missing_or_incomplete_moving_average_is_refused():
    raw = filled(FILES["sd1-ldm-standalone"])
    with pytest.raises(WeightMapError, match=r"no EMA copy of the VAE \(no model_ema\.encoderconv_inweight\)"):
        read(raw, use_ema=True)
    average = {f"model_ema.{key.replace('.', '')}": a for key, a in raw.items()}
    del average["model_ema.decodermidattn_1kbias"]
    with pytest.raises(WeightMapError, match=r"missing     model_ema\.decodermidattn_1kbias"):
        read(raw | average, use_ema=True)


@pytest.mark.parametrize("prefix", ["", "vae.", "module.", "model.first_stage_model.", "_orig_mod."])
@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_a_prefix_is_whatever_is_before_the_first_layers(name, prefix):
    file = FILES[name]
    own = file.prefix
    arrays = with_prefix({key.removeprefix(own): a for key, a in filled(file).items()}, prefix)
    vae = locate(Wild(arrays))
    assert (vae.prefix, vae.dialect.name) == (prefix, file.dialect)
    assert_same(read(arrays)[1], file.weights)


def test_one_of_two_vaes_is_read_if_its_prefix_is_given():
    first, second = FILES["sd1-ldm-vae-prefix"], FILES["sd3-ldm-full-prefix"]
    arrays = filled(first) | filled(second)
    with pytest.raises(WeightMapError, match=r"2 VAEs in .*under the prefixes \['first_stage_model\.', 'vae\.'\]"):
        read(arrays)
    assert_same(read(arrays, prefix="vae.")[1], first.weights)
    assert_same(read(arrays, prefix="first_stage_model.")[1], second.weights)
    with pytest.raises(WeightMapError, match="no VAE under the prefix 'model'"):
        read(arrays, prefix="model")


def test_two_vaes_of_two_worlds_do_not_mix():
    one, other = FILES["flux2-mflux"], FILES["sd1-ldm-standalone"]
    arrays = with_prefix(filled(one), "a.") | with_prefix(filled(other), "b.")
    assert_same(read(arrays, prefix="a.")[1], one.weights)
    assert_same(read(arrays, prefix="b.")[1], other.weights)


# -- half a file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("name", [*FILES, "sd3-diffusionkit"])
def test_half_of_a_real_file_is_half_of_its_model(name, half):
    file = FILES.get(name) or DIFFUSIONKIT_SD3
    config, weights = read(half_filled(file, half))
    assert_same(weights, half_of(file.weights, half))
    theirs = listing(f"{file.family}.config")
    shown = {"encoder": ("in_channels", "down_block_types"), "decoder": ("out_channels", "up_block_types")}[half]
    for field in (*shown, "block_out_channels", "layers_per_block", "latent_channels", "mid_block_add_attention"):
        found = getattr(config, field)
        assert (list(found) if isinstance(found, tuple) else found) == theirs[field], field


# -- layouts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("name", ["sd1-diffusers-deprecated", "sd1-diffusers", "ldm-kl-f4-ldm"])
def test_attention_is_read_whatever_its_rank(name, axes):
    file, arrays = FILES[name], filled(FILES[name])
    linear = [key for key, a in arrays.items() if re.search(r"\.(attn|attentions)[._]", key) and a.ndim > 1]
    assert len(linear) == 8
    for key in linear:
        arrays[key] = arrays[key].reshape(*arrays[key].shape[:2], *[1] * (axes - 2))
    assert_same(read(arrays)[1], file.weights)


@pytest.mark.parametrize("shape", [(512, 512, 3, 3), (512, 512, 1, 2), (512, 256), (512, 512, 2)])
def test_attention_of_other_shapes_is_refused(shape):
    arrays = filled(FILES["sd1-ldm-standalone"])
    arrays["encoder.mid.attn_1.q.weight"] = np.zeros(shape, np.float32)
    with pytest.raises(WeightMapError, match=r"shape       encoder\.mid\.attn_1\.q\.weight .*wants \(512, 512\)"):
        read(arrays)


@pytest.mark.parametrize("order", ["OHWI", "HWIO"])
@pytest.mark.parametrize("name", ["sd1-diffusers", "ldm-kl-f4-ldm"])
def test_a_file_of_several_layouts_is_refused(name, order):
    arrays = filled(FILES[name])
    key = next(key for key in arrays if key.endswith("conv2.weight"))
    arrays[key] = np.einsum(f"OIHW->{order}", arrays[key])
    with pytest.raises(WeightMapError, match=rf"convolutions of .* are not all in one layout \(.*{re.escape(key)}"):
        read(arrays)


@pytest.mark.parametrize("order", ["OIHW", "OHWI", "HWIO"])
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("family", ["ldm-kl-f4", "flux2"])
def test_names_of_one_world_may_be_around_the_kernels_of_another(family, dialect, order):
    """kl-f4: conv_in (128, 3, 3, 3), decoder.conv_in (512, 3, 3, 3) and quant convolutions of (3, 3, 1, 1)."""
    file = RealFile(family, dialect)
    config, weights = read(filled(file, order))
    assert_same(weights, file.weights)
    assert_no_wrong_field(config, family)


def test_levels_in_the_order_of_diffusionkit_are_recognized_by_their_widths():
    for file in (DIFFUSIONKIT_SD3, RealFile("sd3", "mlx", "first_stage_model.")):
        assert locate(Wild(filled(file))).dialect.name == file.dialect
        check(file)


# -- the config --------------------------------------------------------------------------------------------------

MARKERS = {
    "sd1": "cond_stage_model.transformer.text_model.embeddings.position_ids",
    "sdxl": "conditioner.embedders.0.transformer.text_model.final_layer_norm.bias",
    "sd3": "model.diffusion_model.joint_blocks.0.context_block.attn.qkv.bias",
}


@pytest.mark.parametrize("family", MARKERS)
def test_a_full_checkpoint_says_every_field_of_its_familys_config(family):
    file = FILES[f"{family}-ldm-full-prefix"]
    config = read(filled(file) | {MARKERS[family]: np.zeros(4, np.float32)})[0]
    wanted_fields = listing(f"{family}.config") | {"force_upcast": None}  # only a config.json says it
    for field, wanted in wanted_fields.items():
        found = getattr(config, field)
        assert (list(found) if isinstance(found, tuple) else found) == wanted, field


@pytest.mark.parametrize("name", FILES)
def test_a_family_that_is_said_is_taken_only_if_the_file_is_of_it(name):
    vae = locate(Wild(filled(FILES[name])))
    own = FILES[name].family.removeprefix("ldm-")
    for family in families.names():
        config = families.config(family)
        same = all(getattr(config, f) == getattr(families.config(own), f) for f in families.STRUCTURE)
        if same:
            assert read(vae.file.arrays, family=family)[0] == config
        else:
            with pytest.raises(WeightMapError, match=f"is not of the family '{family}'"):
                read(vae.file.arrays, family=family)
