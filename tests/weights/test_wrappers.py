"""Wrappers' names inside the names of tensors are read over, wherever they are; nothing else is."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from support.checkpoints import PLAIN, assert_same_bits, stored, tagged, written
from support.oracle import diffusers_model
from support.wild import Wild, read

from vaespec import WeightMapError
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.inspect import inspect_weights
from vaespec.weights.locate import locate
from vaespec.weights.wrappers import WRAPPERS, bare

FULL = "first_stage_model."


def wrapped(arrays: dict[str, np.ndarray], wrapper: str, place: str) -> dict[str, np.ndarray]:
    return {re.sub(place, rf"\g<0>{wrapper}.", name, count=1): a for name, a in arrays.items()}


PLACES = {
    "both halves": r"\b(?:encoder|decoder)\.",
    "the decoder": r"\bdecoder\.",
    "a block": r"\bencoder\.(?:down_blocks|down|mid_block|mid_blocks|mid)[._]\w+\.",
    "every layer": r"\.(?=[^.]+$)",
    "all, and both halves": r"^",
}


@pytest.mark.parametrize("wrapper", [*WRAPPERS, "module._fsdp_wrapped_module._checkpoint_wrapped_module._orig_mod"])
@pytest.mark.parametrize("place", PLACES)
def test_a_wrapper_inside_names_is_read_over(tmp_path, place, wrapper):
    plain = stored(PLAIN, tmp_path, "ldm", FULL)
    arrays = wrapped(plain, wrapper, PLACES[place])
    assert arrays.keys() != plain.keys()
    config, weights = read(arrays)
    assert_same_bits(weights, tagged(PLAIN))
    assert config == read(plain)[0]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_any_wrappers_at_any_depth_of_any_name_are_read_over(tmp_path, dialect):
    """Each name has its own wrappers, also before the prefix and in it."""
    draw = random.Random(0)
    arrays = {}
    for key, a in stored(PLAIN, tmp_path, dialect, "vae.").items():
        parts = key.split(".")
        for _ in range(draw.randrange(4)):
            parts.insert(draw.randrange(len(parts)), draw.choice(WRAPPERS))
        arrays[".".join(parts)] = a
    assert_same_bits(read(arrays)[1], tagged(PLAIN))


def test_what_torch_itself_writes_for_compiled_halves_and_data_parallel_models_is_read():
    weights = tagged(PLAIN)
    model = diffusers_model(PLAIN).float()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    model.decoder = torch.compile(model.decoder, backend="eager")
    model.encoder.down_blocks[0] = torch.compile(model.encoder.down_blocks[0], backend="eager")
    state = torch.nn.DataParallel(model).state_dict()
    assert "module.decoder._orig_mod.conv_in.weight" in state
    assert_same_bits(read({name: a.numpy() for name, a in state.items()}, PLAIN)[1], weights)


@pytest.mark.parametrize("use", [{}, {"use_ema": True}])
def test_a_wrapped_moving_average_is_read(tmp_path, use):
    arrays = wrapped(stored(PLAIN, tmp_path, "ldm"), "_orig_mod", r"^decoder\.")
    average = {f"model_ema.{key.replace('.', '')}": a + np.float32(0.5) for key, a in arrays.items()}
    assert "model_ema.decoder_orig_modconv_inweight" in average
    wanted = {key: a + np.float32(0.5 if use else 0) for key, a in tagged(PLAIN).items()}
    assert_same_bits(read(arrays | average, **use)[1], wanted)


@pytest.mark.parametrize("one", ["encoder.conv_in.weight", "decoder._orig_mod.conv_out.bias"])
def test_two_names_that_are_one_without_wrappers_are_refused(tmp_path, one):
    arrays = stored(PLAIN, tmp_path)
    half, rest = one.replace("_orig_mod.", "").split(".", 1)
    other = f"{half}.module.{rest}"
    a = arrays.pop(f"{half}.{rest}")
    words = rf"wild\.safetensors: {one} and {other} are both {half}\.{rest} without the names of wrappers .*: save"
    with pytest.raises(WeightMapError, match=words) as caught:
        read(arrays | {one: a, other: a})
    assert "\n" not in str(caught.value)


def test_a_wrapped_copy_beside_the_model_is_another_vae_that_its_prefix_chooses(tmp_path):
    plain = stored(PLAIN, tmp_path)
    arrays = plain | {f"module.{key}": a + np.float32(1) for key, a in plain.items()}
    with pytest.raises(WeightMapError, match=r"2 VAEs in .*, under the prefixes \['', 'module\.'\]: give prefix="):
        read(arrays)
    assert_same_bits(read(arrays, prefix="")[1], tagged(PLAIN))
    assert_same_bits(read(arrays, prefix="module.")[1], {key: a + np.float32(1) for key, a in tagged(PLAIN).items()})


def test_names_outside_the_model_keep_their_modules(tmp_path):
    """Two of them may become one without the wrapper's name: that is no fault of the VAE."""
    arrays = wrapped(stored(PLAIN, tmp_path, "ldm", FULL), "module", r"\bdecoder\.")
    beside = {name: np.zeros(3, np.float32) for name in ("unet.module.x", "unet.x", f"{FULL}loss.module.x")}
    vae = locate(Wild(arrays | beside))
    assert beside.keys() <= set(vae.file)
    assert vae.ignored() == [f"{FULL}loss.module.x"]


@pytest.mark.parametrize("name", ["modules.0.weight", "my_module.weight", "encoder.module_list.0.bias"])
def test_a_name_that_only_resembles_a_wrapper_is_no_wrapper(name):
    assert bare(name) == name


def test_an_incomplete_wrapped_file_is_still_refused_with_every_problem(tmp_path):
    arrays = wrapped(stored(PLAIN, tmp_path), "_orig_mod", r"^decoder\.")
    del arrays["decoder._orig_mod.conv_out.bias"], arrays["quant_conv.bias"]
    with pytest.raises(WeightMapError) as caught:
        read(arrays | {"decoder._orig_mod.extra.weight": np.zeros(3, np.float32)})
    lines = [" ".join(line.split()).split(" (")[0] for line in str(caught.value).splitlines()[1:]]
    assert sorted(lines) == [
        "missing decoder.conv_out.bias",
        "missing quant_conv.bias",
        "unexpected decoder.extra.weight",
    ]


def test_a_wrapped_file_is_described_without_the_wrappers(tmp_path):
    arrays = wrapped(stored(PLAIN, tmp_path), "_orig_mod", r"^(?:encoder|decoder)\.")
    found = inspect_weights(written(tmp_path, arrays))
    assert (found.prefix, found.dialect, found.tensors, found.others) == ("", "diffusers", len(arrays), 0)
    assert found.problems == ()
