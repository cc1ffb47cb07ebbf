"""A config is checked once; it reads a config.json of any age, and writes one that diffusers reads."""

from __future__ import annotations

import dataclasses
import inspect
import json
import os
import pickle
import re
from pathlib import Path

import diffusers
import pytest
from support.configs import CONFIGS
from support.oracle import diffusers_model

from vaespec import AutoencoderConfig, AutoencoderKL, ConfigError, families

# What diffusers 0.10 wrote for Stable Diffusion 1.
OLD = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.10.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}

# (fields, words of the message)
MISTAKES = [
    ({"in_channels": 0}, "in_channels=0: expected a positive integer"),
    ({"in_channels": True}, "in_channels=True"),
    ({"out_channels": -3}, "out_channels=-3"),
    ({"out_channels": 3.0}, "out_channels=3.0"),
    ({"latent_channels": "4"}, "latent_channels='4'"),
    ({"layers_per_block": 0}, "layers_per_block=0"),
    ({"norm_num_groups": 0}, "norm_num_groups=0"),
    ({"force_upcast": 1}, "force_upcast=1: expected true or false"),
    ({"use_quant_conv": None}, "use_quant_conv=None"),
    ({"use_post_quant_conv": "no"}, "use_post_quant_conv='no'"),
    ({"mid_block_add_attention": 0}, "mid_block_add_attention=0"),
    ({"block_out_channels": ()}, r"block_out_channels=\(\): expected one positive width per level"),
    ({"block_out_channels": 64}, "block_out_channels=64"),
    ({"block_out_channels": (64, 0)}, r"block_out_channels=\(64, 0\)"),
    ({"block_out_channels": None}, "block_out_channels=None"),
    ({"decoder_block_out_channels": (0,)}, r"decoder_block_out_channels=\(0,\)"),
    ({"sample_size": 0}, "sample_size=0: expected a positive integer or a pair"),
    ({"sample_size": (1, 2, 3)}, r"sample_size=\(1, 2, 3\)"),
    ({"act_fn": "tanh"}, "act_fn='tanh': expected one of silu, swish, mish, gelu, relu"),
    ({"act_fn": None}, "act_fn=None"),
    ({"down_block_types": "DownEncoderBlock2D"}, "down_block_types='DownEncoderBlock2D': expected a list"),
    ({"down_block_types": ("DownBlock",)}, "down_block_types='DownBlock': expected DownEncoderBlock2D or Attn"),
    ({"up_block_types": ("DownEncoderBlock2D",)}, "up_block_types='DownEncoderBlock2D': expected UpDecoderBlock2D"),
    ({"down_block_types": ("DownEncoderBlock2D",) * 2}, "down_block_types has 2 entries but block_out_channels has 1"),
    ({"up_block_types": ()}, "up_block_types has 0 entries but block_out_channels has 1"),
    ({"decoder_block_out_channels": (64, 64)}, "decoder_block_out_channels has 2 entries but block_out_channels has 1"),
    ({"norm_num_groups": 24}, r"norm_num_groups=24 does not divide 64 in block_out_channels=\(64,\)"),
    ({"decoder_block_out_channels": (48,)}, r"norm_num_groups=32 does not divide 48 in decoder_block_out_channels"),
    ({"scaling_factor": 0}, "scaling_factor=0: expected a number other than 0"),
    ({"scaling_factor": float("nan")}, "scaling_factor=nan: expected a finite number or null"),
    ({"shift_factor": "0.1"}, "shift_factor='0.1'"),
    ({"latents_mean": (0.0,), "latents_std": (1.0,)}, r"latents_mean=\(0.0,\): expected one number per latent channel"),
    ({"latents_mean": (0.0,) * 4}, "latents_mean and latents_std belong together"),
    ({"latents_std": (1.0,) * 4}, "latents_mean and latents_std belong together"),
    ({"latents_mean": (0.0,) * 4, "latents_std": (1.0, 1.0, 0.0, 1.0)}, "latents_std=.*: expected positive numbers"),
    ({"patch_size": 2}, "patch_size=2: expected a pair of positive integers"),
    ({"patch_size": (2, 0)}, r"patch_size=\(2, 0\)"),
    ({"patch_size": (2, 2)}, "batch_norm_eps=None: expected a positive number, since patch_size is set"),
    ({"patch_size": (2, 2), "batch_norm_eps": 0.0}, "batch_norm_eps=0.0"),
]


@pytest.mark.parametrize(("fields", "words"), MISTAKES)
def test_a_mistake_is_named_with_its_value(fields, words):
    with pytest.raises(ConfigError, match=words):
        AutoencoderConfig(**fields)


def test_an_unknown_field_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown config fields \['dropout'\].*latent_channels"):
        AutoencoderConfig.from_dict({**OLD, "dropout": 0.1})


def test_a_list_is_refused_as_a_config():
    with pytest.raises(ConfigError, match=r"a config is a mapping of field names to values, got \[7\]"):
        AutoencoderConfig.from_dict([7])


def test_replace_checks_again():
    config = CONFIGS["sd"].replace(latent_channels=16)
    assert config.latent_channels == 16
    assert config.block_out_channels == CONFIGS["sd"].block_out_channels
    with pytest.raises(ConfigError, match="latent_channels=0"):
        config.replace(latent_channels=0)


def test_a_config_is_immutable_and_can_be_a_key():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIGS["sd"].in_channels = 4
    assert len({CONFIGS["sd"], CONFIGS["sd"].replace()}) == 1


def test_lists_and_tuples_mean_the_same():
    fields = dataclasses.asdict(CONFIGS["playground"])
    listed = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    assert AutoencoderConfig(**listed) == CONFIGS["playground"]


def test_a_config_without_newer_fields_gets_the_defaults_of_its_time():
    config = AutoencoderConfig.from_dict(OLD)
    assert config == families.config("sd1")
    assert (config.scaling_factor, config.shift_factor, config.latents_mean) == (0.18215, None, None)
    assert config.force_upcast is None
    assert config.use_quant_conv
    assert config.use_post_quant_conv
    assert config.mid_block_add_attention


def test_an_empty_config_is_the_class_defaults_of_diffusers():
    defaults = diffusers.AutoencoderKL().config
    config = AutoencoderConfig.from_dict({})
    for name in vars(config).keys() & defaults.keys() - {"force_upcast"}:  # "not said" is no value in diffusers
        value = defaults[name]
        assert getattr(config, name) == (tuple(value) if isinstance(value, list) else value), name


def test_an_empty_flux2_config_is_the_class_defaults_of_diffusers():
    config = AutoencoderConfig.from_dict({"_class_name": "AutoencoderKLFlux2"})
    for name, parameter in inspect.signature(diffusers.AutoencoderKLFlux2).parameters.items():
        assert getattr(config, name) == parameter.default, name
    assert config.scaling_factor is None


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_survives_its_dict_and_json(name, tmp_path):
    config = CONFIGS[name]
    assert AutoencoderConfig.from_dict(config.to_dict()) == config
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
    assert AutoencoderConfig.from_json(path) == config


@pytest.mark.parametrize("family", families.names())
def test_a_family_survives_its_dict(family):
    assert AutoencoderConfig.from_dict(families.config(family).to_dict()) == families.config(family)


@pytest.mark.parametrize("name", CONFIGS)
def test_the_config_that_diffusers_saves_is_read(name, tmp_path):
    diffusers_model(CONFIGS[name]).save_config(tmp_path)
    assert AutoencoderConfig.from_json(tmp_path / "config.json") == CONFIGS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_diffusers_reads_the_config_we_write(name):
    config = CONFIGS[name]
    model = getattr(diffusers, config.class_name).from_config(config.to_dict())
    assert model.config.latent_channels == config.latent_channels
    assert tuple(model.config.block_out_channels) == config.block_out_channels


@pytest.mark.parametrize(
    "fields", [{"_class_name": "AutoencoderKLFlux2"}, {"patch_size": [2, 2]}, {"batch_norm_eps": 1e-4}]
)
def test_flux2_is_recognized_by_its_class_or_its_own_fields(fields):
    config = AutoencoderConfig.from_dict(fields)
    assert config == families.config("flux2")
    assert config.class_name == "AutoencoderKLFlux2"


def test_notes_in_a_config_are_not_fields():
    noted = {**OLD, "_name_or_path": "x", "_commit_hash": None}
    assert AutoencoderConfig.from_dict(noted) == AutoencoderConfig.from_dict(OLD)


def test_an_asymmetric_decoder_survives_its_dict_in_either_class():
    config = AutoencoderConfig(decoder_block_out_channels=(32,))
    assert AutoencoderConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(("content", "words"), [("{", "cannot be read as JSON"), ('{"act_fn": "elu"}', "act_fn='elu'")])
def test_a_bad_config_file_is_named(tmp_path, content, words):
    path = tmp_path / "config.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=words) as caught:
        AutoencoderConfig.from_json(path)
    assert str(path) in str(caught.value)


def test_a_config_file_that_is_not_utf8_is_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        AutoencoderConfig.from_json(path)


def test_a_missing_config_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"no config file at .*config\.json"):
        AutoencoderConfig.from_json(tmp_path / "config.json")


def test_an_unknown_family_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown family 'sd9': choose one of sd1, .*kl-f32"):
        families.config("sd9")


NAMES = {
    "SDXL": "sdxl",
    "FLUX.1": "flux1",
    "flux": "flux1",
    "FLUX.2": "flux2",
    "sd1.5": "sd1",
    "SD 2.1": "sd2",
    "SD3.5": "sd3",
}


@pytest.mark.parametrize(("given", "own"), NAMES.items())
def test_a_family_is_known_by_the_names_that_people_give_it(given, own):
    assert families.spelled(given) == own
    assert families.config(given) == families.config(own)


def test_every_family_is_known_by_its_own_name_alone():
    assert [families.spelled(name) for name in families.names()] == list(families.names())


def test_the_factor_and_the_decoder_widths_follow_from_the_widths():
    assert [CONFIGS[name].downsampling_factor for name in ("one-level", "kl-f4", "sd", "kl-f32")] == [1, 4, 8, 32]
    assert CONFIGS["sd"].decoder_widths == CONFIGS["sd"].block_out_channels
    assert CONFIGS["flux2-small-decoder"].decoder_widths == (4, 12, 16, 16)


@pytest.mark.parametrize(
    ("act_fn", "activation"), [("silu", "silu"), ("swish", "silu"), ("SiLU", "silu"), ("gelu", "gelu")]
)
def test_activations_have_one_canonical_name(act_fn, activation):
    assert AutoencoderConfig(act_fn=act_fn).activation == activation


OURS = ("AutoencoderKL", "AutoencoderKLFlux2")
OTHERS = sorted(name for name in dir(diffusers) if re.match(r"\w*(Autoencoder|VAE|VQ)", name) and name not in OURS)


@pytest.mark.parametrize("name", [*OTHERS, "UNet2DConditionModel", "StableDiffusionPipeline", "MyVAE", ["a", "B"], 3])
def test_another_model_is_refused_by_the_name_of_its_class(name):
    words = f"_class_name={name!r}: expected AutoencoderKL or AutoencoderKLFlux2"
    for values in ({"_class_name": name}, {"_class_name": name, "patch_size": [2, 2]}):
        with pytest.raises(ConfigError, match=re.escape(words if isinstance(name, str) else "_class_name=")):
            AutoencoderConfig.from_dict(values)


def test_diffusers_has_the_other_models_that_people_have():
    assert {"AutoencoderKLWan", "AutoencoderKLHunyuanVideo", "AutoencoderKLQwenImage", "AutoencoderTiny"} < {*OTHERS}


@pytest.mark.parametrize("name", ["AutoencoderKL", "FlaxAutoencoderKL", None])
def test_the_classes_of_this_model_are_read(name):
    assert AutoencoderConfig.from_dict({"_class_name": name}) == AutoencoderConfig()


def test_flux2_has_no_scaling_factor_and_others_no_batch_norm():
    with pytest.raises(ConfigError, match=r"scaling_factor=0\.5: expected null if patch_size is set, since FLUX"):
        AutoencoderConfig.from_dict({"_class_name": "AutoencoderKLFlux2", "scaling_factor": 0.5})
    with pytest.raises(ConfigError, match=r"batch_norm_eps=0\.1: expected null unless patch_size is set"):
        AutoencoderConfig(batch_norm_eps=0.1)
    assert AutoencoderConfig.from_dict({"batch_norm_eps": None}) == AutoencoderConfig()


# -- as a dict -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux2"])
def test_a_config_is_read_like_the_dict_that_diffusers_has(name):
    config = CONFIGS[name]
    theirs = diffusers_model(config).config
    assert {key for key in theirs if not key.startswith("_")} | {"force_upcast"} == set(config) == set(config.keys())
    for key in config:
        assert config[key] == config.get(key) == getattr(config, key)
    assert ("scaling_factor" in config) == ("scaling_factor" in theirs)
    assert "nothing" not in config
    assert config.get("nothing", 7) == 7
    assert AutoencoderConfig.from_dict(config) == AutoencoderConfig.from_dict(dict(config)) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_an_unknown_key_of_a_config_is_named_with_the_known_ones():
    with pytest.raises(
        ConfigError, match=r"^config\['sacling_factor'\]: AutoencoderKL has in_channels, .*shift"
    ) as caught:
        CONFIGS["sd"]["sacling_factor"]
    assert isinstance(caught.value, KeyError)
    with pytest.raises(ConfigError, match=r"unknown config fields \['sacling_factor'\]"):
        CONFIGS["sd"].replace(sacling_factor=1)


# -- config.json ---------------------------------------------------------------------------------------------------


def _fifo(path):
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.symlink_to("gone.json"), r"is a link to gone\.json, which does not exist"),
        (lambda path: path.mkdir(), r"cannot be read as JSON \(Is a directory\)"),
        (_fifo, r"cannot be read as JSON \(it is a pipe or a device, not a file\)"),
        (lambda path: path.symlink_to(path), "cannot be read as JSON"),
        (lambda path: path.write_text('{"act_fn": "silu", "act_fn": "mish"}'), "it has the key 'act_fn' twice"),
        (lambda path: path.write_text('{"scaling_factor": NaN}'), "it has NaN, which is no number"),
        (lambda path: path.write_text('{"scaling_factor": 1e400}'), "scaling_factor=inf: expected a finite number"),
        (lambda path: path.write_text('{"layers_per_block": ' + "9" * 5000 + "}"), "a number of 5,000 digits"),
        (lambda path: path.write_text('{"act_fn": ' + "[" * 10**5 + "]" * 10**5 + "}"), "nested too deeply"),
        (lambda path: path.write_text(" " * 2**20 + "{}"), "it has 1,048,578 bytes, the limit is 1,048,576"),
    ],
)
def test_a_config_file_that_is_none_is_refused_and_never_taken_for_absent(tmp_path, make, words):
    CHECKPOINT.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.unlink()
    make(path)
    for read in (AutoencoderConfig.from_json, lambda path: AutoencoderKL.from_pretrained(path.parent, backend="numpy")):
        with pytest.raises(ConfigError, match=words) as caught:
            read(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


CHECKPOINT = AutoencoderKL.from_config({"block_out_channels": [8], "norm_num_groups": 4}, backend="numpy")


@pytest.mark.parametrize("path", ["folder", Path("config.json")])
def test_a_path_as_a_config_is_refused_with_the_way_to_read_it(path):
    with pytest.raises(ConfigError, match=r"got .*; read a config\.json with AutoencoderConfig\.from_json\(path\)"):
        AutoencoderConfig.from_dict(path)
