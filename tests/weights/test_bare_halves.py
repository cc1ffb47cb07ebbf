"""An encoder or a decoder saved alone, with names that do not say which half they are of."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.checkpoints import PLAIN, assert_same_bits, stored, written
from support.checkpoints import tagged as plain_weights
from support.configs import CONFIGS, images
from support.oracle import decoded, oracle
from support.real_files import FILES, ONE_OF_EACH, RealFile, half_filled, half_of
from support.weight_files import WRITERS
from support.wild import FORMATS, assert_same, in_the_file, read, tagged

from vaespec import AutoencoderKL, InputError, WeightMapError, families, parameters
from vaespec.weights import load_file
from vaespec.weights.dialects import DIALECTS

DIFFUSIONKIT_SD3 = RealFile("sd3", "diffusionkit", "first_stage_model.")
HALVES = ("encoder", "decoder")
QUANT = {"encoder": "quant_conv.", "decoder": "post_quant_conv."}


def without_half(arrays: dict, half: str, prefix: str = "") -> dict:
    """The tensors of half a file as the half alone has them: neither its name nor FLUX.2's statistics."""
    rests = {key.removeprefix(prefix): a for key, a in arrays.items()}
    return {key.removeprefix(f"{half}."): a for key, a in rests.items() if not key.startswith("bn.")}


def bare_half(file: RealFile, half: str) -> tuple[dict, dict]:
    """The tensors of a file, and the canonical weights that are read from it."""
    weights = {name: a for name, a in half_of(file.weights, half).items() if not name.startswith("bn.")}
    return without_half(half_filled(file, half), half, file.prefix), weights


def bare(tmp_path, half: str, dialect: str = "ldm") -> tuple[dict, dict]:
    """A small half: the tensors of a file, and the canonical weights."""
    own = parameters(PLAIN, [half])
    arrays = stored(PLAIN, tmp_path, dialect)
    names = {DIALECTS[dialect].stored(name, PLAIN.levels) for name in own}
    half_file = {key: a for key, a in arrays.items() if key in names}
    return without_half(half_file, half), {name: plain_weights(PLAIN)[name] for name in own}


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("name", [*ONE_OF_EACH, "sd3-diffusionkit"])
def test_half_of_a_real_file_is_read_without_its_name(name, half):
    arrays, weights = bare_half(FILES.get(name) or DIFFUSIONKIT_SD3, half)
    assert not any(key.startswith(HALVES) for key in arrays)
    assert_same(read(arrays)[1], weights)


def test_the_small_decoder_of_flux2_is_read_as_published():
    """black-forest-labs' Decoder(ch=96): post_quant_conv is in it, and the statistics are not."""
    family = families.config("flux2-small-decoder")
    whole, form = tagged({name: row.shape for name, row in parameters(family).items()}), FORMATS["bfl"]
    shapes = {DIALECTS["bfl"].stored(name, 4): form.stored(a, form.rank(a)).shape for name, a in whole.items()}
    file = in_the_file(shapes, form, whole)
    arrays = without_half({name: a for name, a in file.items() if name.startswith("decoder.")}, "decoder")
    weights = {name: whole[name] for name, row in parameters(family, ["decoder"]).items() if row.trained}
    assert len(arrays) == 140
    assert {key.split(".")[0] for key in arrays} == {"post_quant_conv", "conv_in", "mid", "up", "norm_out", "conv_out"}
    for options in ({}, {"family": "flux2-small-decoder"}, {"config": family}):
        config, found = read(arrays, **options)
        assert config == family
        assert_same(found, weights)
    with pytest.raises(WeightMapError, match=r"not of the family 'flux2': decoder_widths would be"):
        read(arrays, family="flux2")


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_bare_half_is_read_from_every_container(tmp_path, writer, half):
    arrays, weights = bare(tmp_path, half)
    assert_same_bits(load_file(WRITERS[writer](tmp_path, arrays))[1], weights)


def split(name: str) -> tuple[AutoencoderKL, AutoencoderKL, AutoencoderKL]:
    """The whole model in float64, and its two halves without statistics."""
    config, weights = CONFIGS[name], oracle(name)[1]
    halves = [{key: weights[key] for key, row in parameters(config, [half]).items() if row.trained} for half in HALVES]
    return tuple(AutoencoderKL(config, w, backend="numpy", dtype="float64") for w in (weights, *halves))


def test_halves_without_the_statistics_run_alone_and_make_a_whole_again():
    config, theirs = CONFIGS["flux2-small-decoder"], oracle("flux2-small-decoder")[0]
    whole, encoder, decoder = split("flux2-small-decoder")
    z, x = np.random.default_rng(0).standard_normal((1, config.latent_channels, 4, 4)), images(config, 16, 16)
    assert np.abs(decoder.decode(z).sample - decoded(theirs, z)).max() < 1e-12
    assert np.array_equal(encoder.encode(x).latent_dist.mean, whole.encode(x).latent_dist.mean)
    patches = whole.encode_latents(x)
    calls = {encoder: lambda: encoder.encode_latents(x), decoder: lambda: decoder.decode_latents(patches)}
    for half, call in calls.items():
        with pytest.raises(InputError, match=r"without bn\.running_mean and bn\.running_var, .* load the whole model"):
            call()
        assert not any(key.startswith("bn.") for key in half.weights())
    again = AutoencoderKL(config, {**whole.weights(), **decoder.weights()}, backend="numpy", dtype="float64")
    assert np.array_equal(again.decode_latents(patches), whole.decode_latents(patches))
    with pytest.raises(WeightMapError, match=r"missing     bn\.running_mean"):
        AutoencoderKL(config, {**encoder.weights(), **decoder.weights()}, backend="numpy")


def test_a_half_without_the_statistics_is_saved_and_moved(tmp_path):
    _, _, decoder = split("flux2")
    for name, dialect in DIALECTS.items():
        decoder.save_single_file(path := tmp_path / f"{name}{dialect.suffix}", dialect=name)
        loaded = AutoencoderKL.from_single_file(path, config=CONFIGS["flux2"], backend="numpy", dtype="float64")
        assert_same_bits(loaded.weights(), decoder.weights())
    moved = decoder.with_backend("torch")
    assert set(moved.module().state_dict()) == set(moved.functional().params) == set(decoder.weights())
    decoder.save_pretrained(tmp_path / "folder")
    again = AutoencoderKL.from_pretrained(tmp_path / "folder", backend="numpy", dtype="float64")
    assert_same_bits(again.weights(), decoder.weights())


def test_one_of_the_statistics_alone_is_not_enough(tmp_path):
    weights = {k: a.astype(np.float32) for k, a in split("flux2")[2].weights().items()}
    path = written(tmp_path, weights | {"bn.running_mean": np.zeros(32, np.float32)})
    with pytest.raises(WeightMapError, match=r"missing     bn\.running_var"):
        load_file(path, CONFIGS["flux2"])


# -- what is around the names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "vae_half.", "state.model."])
def test_a_bare_half_may_have_any_prefix(tmp_path, prefix):
    arrays, weights = bare(tmp_path, "encoder", "diffusers")
    other = {"text_model.conv.weight": np.zeros(2, np.float32)}
    path = written(tmp_path, {prefix + key: a for key, a in arrays.items()} | other)
    assert_same_bits(load_file(path)[1], weights)


def test_wrappers_may_be_inside_the_names_of_a_bare_half(tmp_path):
    arrays, weights = bare(tmp_path, "decoder")
    wrapped = {key.replace("up.0.", "up.0._orig_mod.").replace("v_in.", "v_in.module."): a for key, a in arrays.items()}
    assert wrapped.keys() - arrays.keys()
    assert_same_bits(load_file(written(tmp_path, wrapped))[1], weights)


def test_what_training_left_beside_a_bare_half_is_left_out(tmp_path):
    arrays, weights = bare(tmp_path, "encoder")
    beside = {f"ema.{key}": a + 1 for key, a in arrays.items()}
    beside |= {"loss.discriminator.main.0.weight": np.zeros((2, 2, 3, 3), np.float32), "epoch": np.zeros(1, np.float32)}
    assert_same_bits(load_file(written(tmp_path, arrays | beside))[1], weights)


def test_a_pickled_state_dict_of_the_decoder_of_diffusers_is_read(tmp_path):
    from diffusers import AutoencoderKL as Theirs

    shape = {"block_out_channels": (32,), "latent_channels": 16, "use_post_quant_conv": False}
    theirs = Theirs(**shape, layers_per_block=1)
    torch.save({"model": theirs.decoder.state_dict(), "step": 3}, tmp_path / "decoder.pt")
    vae = AutoencoderKL.from_single_file(tmp_path / "decoder.pt", backend="torch")
    z = torch.randn(1, 16, 4, 4, generator=torch.manual_seed(0))
    with torch.no_grad():
        assert (vae.decode(z).sample - theirs.decode(z).sample).abs().max() < 1e-5


def test_one_of_two_bare_halves_is_chosen_by_its_prefix(tmp_path):
    (encoder, _), (decoder, weights) = bare(tmp_path, "encoder"), bare(tmp_path, "decoder")
    path = written(tmp_path, {f"e.{k}": a for k, a in encoder.items()} | {f"d.{k}": a for k, a in decoder.items()})
    with pytest.raises(WeightMapError, match=r"under the prefixes \['d\.', 'e\.'\]: give prefix= to choose"):
        load_file(path)
    assert_same_bits(load_file(path, prefix="d.")[1], weights)


@pytest.mark.parametrize("half", HALVES)
def test_a_half_saved_without_the_quant_conv_of_its_family_is_warned_of(half, caplog):
    arrays, _ = bare_half(FILES["sd1-diffusers"], half)
    name = QUANT[half].rstrip(".")
    config, _ = read({key: a for key, a in arrays.items() if not key.startswith(QUANT[half])})
    assert not config[f"use_{name}"]
    (record,) = caplog.records
    assert f"has no {name}, which sd1, sd2, sdxl, " in record.getMessage()
    caplog.clear()
    read(arrays)
    read(bare_half(FILES["flux1-bfl"], half)[0])  # which never has one
    assert not caplog.records


# -- refusals -----------------------------------------------------------------------------------------------------

LEVELS = {"encoder": "down_blocks.0.resnets.0.conv1.weight", "decoder": "up_blocks.0.resnets.0.conv1.weight"}


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["conv_in.weight", *LEVELS.values()], r"beside conv_in it has levels both down and up"),
        (["conv_in.weight", "conv_out.weight"], r"beside conv_in it has neither levels down nor up"),
        (
            ["conv_in.weight", "time_embedding.linear_1.weight", *LEVELS.values()],
            r"not an AutoencoderKL but a network that removes noise, .* \(it has time_embedding\.linear_1\.weight\)",
        ),
        (["unet.conv_in.weight", "unet.time_embedding.x", f"unet.{LEVELS['encoder']}"], "removes noise"),
        (["time_conv_out.weight", "conv_in.weight", LEVELS["decoder"]], "a temporal"),
        (["model.diffusion_model.input_blocks.0.0.weight", "cond_stage_model.x"], "a diffusion model whose VAE was"),
        (["double_blocks.0.img_mlp.0.weight"], "those of a diffusion model; give"),
        (["text_model.embeddings.position_ids"], "those of a text encoder; give"),
        (["1.weight", "3.conv.0.weight"], r"those of an AutoencoderTiny \(TAESD\); give"),
        (["vae/decoder.conv_in.weight", f"vae/decoder.{LEVELS['decoder']}"], "contains encoder.conv_in or decoder"),
    ],
)
def test_a_file_of_no_half_or_of_another_model_is_refused(tmp_path, names, words):
    path = written(tmp_path, {name: np.zeros((4, 4, 3, 3), np.float32) for name in names})
    with pytest.raises(WeightMapError, match=words):
        load_file(path)


def test_an_incomplete_bare_half_is_refused_with_the_missing_name(tmp_path):
    arrays, _ = bare(tmp_path, "decoder")
    for key in list(arrays)[::12]:
        path = written(tmp_path, {name: a for name, a in arrays.items() if name != key})
        with pytest.raises(WeightMapError, match=key.replace(".", r"\.")):
            load_file(path)
    with pytest.raises(WeightMapError, match=r'own names are without "decoder\."\):\n *unexpected  .*adapter\.weight'):
        load_file(written(tmp_path, arrays | {"adapter.weight": np.zeros(1, np.float32)}))
