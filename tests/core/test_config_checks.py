"""The bounds of a config: a model that could exist is accepted, anything else is refused in one sentence."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest

from vaespec import AutoencoderConfig, ConfigError, families
from vaespec.config_checks import MAX_CHANNELS, MAX_LAYERS, MAX_LEVELS, MAX_PATCH, MAX_SIZE

OLD = families.config("sd1").to_dict()

HUGE = [10**5, 10**7, 2**63, 10**400, 10**5000, -(10**5000), 1e400, float("nan"), float("-inf"), 10.0**5]
FIELDS = [field.name for field in dataclasses.fields(AutoencoderConfig)]
ANY_SIZE = ("sample_size", "scaling_factor", "shift_factor", "batch_norm_eps")  # 1e5 is a size in px, and a scale


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_refuses_numbers_beyond_any_model_and_lists_of_them(name):
    for value in HUGE:
        if name in ANY_SIZE and value in (10**5, 10**7, 2**63):
            continue
        for given in (value, [value], [value] * 4, [[value]], {"a": value}):
            with pytest.raises(ConfigError) as caught:
                AutoencoderConfig.from_dict({**OLD, name: given})
            assert len(str(caught.value)) < 400
            assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layers_per_block": 10**7}, "layers_per_block=10000000: expected a positive integer, 32 at most"),
        ({"layers_per_block": 10**5000}, "layers_per_block=a number of 5,001 digits: expected a positive integer"),
        ({"scaling_factor": 10**400}, "scaling_factor=a number of 401 digits: expected a finite number or null"),
        ({"scaling_factor": 1e-320}, "scaling_factor=1e-320: expected a number other than 0"),
        ({"block_out_channels": [32] * 10**5}, "block_out_channels has 100,000 levels: expected 32 at most"),
        ({"block_out_channels": [10**5] * 4}, r"block_out_channels=\(100000, .*\): expected one positive width per"),
        ({"up_block_types": ["UpDecoderBlock2D"] * 10**5}, "up_block_types has 100,000 entries but block_out_channels"),
        ({"act_fn": "x" * 10**6}, r"act_fn='x+\.\.\.x+': expected one of silu"),
        ({"patch_size": [2, 10**5], "batch_norm_eps": 1e-4}, "expected a pair of positive integers, 64 at most"),
        ({f"field {i}": 1 for i in range(10**4)}, r"unknown config fields \['field 0', .*\] and 9,995 more"),
        ({"x" * 10**6: 1}, r"unknown config fields \['x{40}\.\.\.'\]"),
    ],
)
def test_what_no_model_could_have_is_refused_in_a_sentence(fields, words):
    with pytest.raises(ConfigError, match=words) as caught:
        AutoencoderConfig.from_dict({**OLD, **fields})
    assert len(str(caught.value)) < 700


def test_models_far_larger_than_any_that_exists_are_accepted():
    levels = {"block_out_channels": (32,) * MAX_LEVELS, "layers_per_block": MAX_LAYERS, "sample_size": MAX_SIZE}
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * MAX_LEVELS, "up_block_types": ("UpDecoderBlock2D",) * 32}
    assert AutoencoderConfig(**levels, **blocks).levels == MAX_LEVELS
    assert AutoencoderConfig(block_out_channels=(MAX_CHANNELS,), latent_channels=MAX_CHANNELS)
    assert AutoencoderConfig(patch_size=(MAX_PATCH, 1), batch_norm_eps=1e-4, scaling_factor=None)
    published = [families.config(name) for name in families.names()]
    assert max(max(config.block_out_channels) for config in published) * 16 <= MAX_CHANNELS


def test_numbers_and_arrays_of_numpy_count_as_pythons():
    fields = {"in_channels": np.int64(3), "scaling_factor": np.float32(0.5), "force_upcast": np.bool_(False)}
    arrays = {"block_out_channels": np.array([64]), "latents_mean": [np.float64(0)] * 4, "latents_std": np.ones(4)}
    config = AutoencoderConfig.from_dict({**fields, **arrays, "latent_channels": np.uint8(4)})
    assert config == AutoencoderConfig(
        scaling_factor=0.5, force_upcast=False, latents_mean=(0.0,) * 4, latents_std=(1.0,) * 4
    )
    assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(ConfigError, match=r"in_channels=3\.5"):
        AutoencoderConfig(in_channels=np.float32(3.5))


def test_a_value_that_cannot_be_shown_or_compared_is_refused_like_any_other():
    class Hostile:
        def __repr__(self):
            raise RuntimeError

        __eq__ = __bool__ = __repr__
        __hash__ = None

    deep = []
    for _ in range(10_000):
        deep = [deep]
    for name in [*FIELDS, "_class_name", "architectures", "dropout", "unknown"]:
        for value in (Hostile(), [Hostile()], deep, np.zeros((2, 2))):
            with pytest.raises(ConfigError):
                AutoencoderConfig.from_dict({name: value})


def test_any_config_is_a_model_or_a_sentence():
    draw = random.Random(0)
    odd = [*HUGE, 0, 1, 3, 4, 33, -0.0, 1e-320, True, None, "", "silu", "\ud800", {}, b"", object(), np.zeros(2)]
    accepted, refusals = 0, []
    for _ in range(2000):
        values = families.config(draw.choice(families.names())).to_dict()
        for name in draw.choices([*values, "decay", "x"], k=draw.choice([1, 1, 2])):
            values[name] = draw.choice([draw.choice(odd), [draw.choice(odd) for _ in range(draw.choice([1, 2, 4]))]])
        try:
            config = AutoencoderConfig.from_dict(values)
        except ConfigError as error:
            refusals.append(str(error))
        else:
            accepted += 1
            assert AutoencoderConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert accepted > 100
    assert len(refusals) > 100
    assert max(map(len, refusals)) < 800
    assert not any("\n" in message for message in refusals)
