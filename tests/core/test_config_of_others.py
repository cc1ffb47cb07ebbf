"""What other programs write into config.json is read as diffusers reads it, unless it could change a result."""

from __future__ import annotations

import json

import diffusers
import pytest
from diffusers.training_utils import EMAModel
from support.configs import CONFIGS

from vaespec import AutoencoderConfig, AutoencoderKL, ConfigError, families, parameters

WHOLE = families.config("sd1").to_dict()


def test_the_state_of_an_ema_model_is_no_part_of_the_config(tmp_path):
    model = diffusers.AutoencoderKL(block_out_channels=(8,), norm_num_groups=4)
    ema = EMAModel(model.parameters(), model_cls=diffusers.AutoencoderKL, model_config=model.config, decay=0.99)
    ema.save_pretrained(tmp_path)
    assert {"decay", "power", "optimization_step"} < json.loads((tmp_path / "config.json").read_text()).keys()
    vae = AutoencoderKL.from_pretrained(tmp_path, backend="numpy")
    assert vae.config == AutoencoderConfig.from_dict(dict(model.config)).replace(force_upcast=True)  # as it wrote
    vae.save_pretrained(tmp_path / "ours")
    assert "decay" not in json.loads((tmp_path / "ours" / "config.json").read_text())


@pytest.mark.parametrize(
    "fields",
    [
        {"use_tiling": True, "use_slicing": False},
        {"torch_dtype": "float16", "dtype": "bfloat16"},
        {"architectures": ["AutoencoderKL"], "transformers_version": "4.50.0"},
        {"architectures": []},
        {"dropout": 0.0},
        {"dropout": 0},
        {"double_z": True},
        {"of_the_future": None, "dropout": None, "architectures": None, "quantization_config": None},
    ],
)
def test_what_changes_no_result_is_accepted_and_left_out(fields):
    assert AutoencoderConfig.from_dict({**WHOLE, **fields}) == AutoencoderConfig.from_dict(WHOLE)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"dropout": 0.1}, r"unknown config fields \['dropout'\]"),
        ({"double_z": False}, r"unknown config fields \['double_z'\]"),
        ({"of_the_future": False}, r"unknown config fields \['of_the_future'\]"),
        ({"architectures": ["AutoencoderKLWan"]}, r"architectures=\('AutoencoderKLWan',\): expected AutoencoderKL"),
        ({"quantization_config": {"bits": 4}}, "the weights of this model are quantized"),
    ],
)
def test_what_could_change_a_result_is_refused(fields, words):
    with pytest.raises(ConfigError, match=words):
        AutoencoderConfig.from_dict({**WHOLE, **fields})


@pytest.mark.parametrize("name", ["use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"])
def test_a_null_builds_the_model_that_diffusers_builds(name):
    values = {**CONFIGS["sd"].to_dict(), name: None}
    theirs = diffusers.AutoencoderKL.from_config(values).state_dict()
    assert parameters(AutoencoderConfig.from_dict(values)).keys() == theirs.keys()


@pytest.mark.parametrize("name", ["force_upcast", "sample_size", "shift_factor", "latents_mean", "latents_std"])
def test_a_null_that_changes_no_layer_is_the_default(name):
    assert AutoencoderConfig.from_dict({**WHOLE, name: None}).replace(sample_size=512) == AutoencoderConfig.from_dict(
        WHOLE
    )


@pytest.mark.parametrize("name", ["in_channels", "block_out_channels", "layers_per_block", "act_fn", "norm_num_groups"])
def test_a_null_without_which_there_is_no_model_is_refused(name):
    with pytest.raises(ConfigError, match=f"{name}=None: expected"):
        AutoencoderConfig.from_dict({**WHOLE, name: None})
