"""Wrappers' names inside the names of tensors are read over, wherever they are; nothing else is."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.configs import CONFIGS, drawn_weights
from support.oracle import diffusers_model
from support.real_files import FILES, ONE_OF_EACH, filled
from support.wild import Wild, assert_same, read

from vaespec import WeightMapError, parameters
from vaespec.weights.inspect import inspect_weights
from vaespec.weights.locate import locate
from vaespec.weights.wrappers import WRAPPERS, bare

SD = CONFIGS["sd"]


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
def test_a_wrapper_inside_names_is_read_over(place, wrapper):
    file = FILES["sd1-ldm-full-prefix"]
    arrays = wrapped(filled(file), wrapper, PLACES[place])
    assert arrays.keys() != filled(file).keys()
    config, weights = read(arrays)
    assert_same(weights, file.weights)
    assert config == read(filled(file))[0]


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_any_wrappers_at_any_depth_of_any_name_are_read_over(name):
    """Each name has its own wrappers, also before the prefix and in it."""
    draw = random.Random(0)
    file = FILES[name]
    arrays = {}
    for key, a in filled(file).items():
        parts = key.split(".")
        for _ in range(draw.randrange(4)):
            parts.insert(draw.randrange(len(parts)), draw.choice(WRAPPERS))
        arrays[".".join(parts)] = a
    assert_same(read(arrays)[1], file.weights)
    assert locate(Wild(arrays)).dialect.name == file.dialect


def test_what_torch_itself_writes_for_compiled_halves_and_data_parallel_models_is_read():
    weights = {name: a.astype(np.float32) for name, a in drawn_weights(shapes()).items()}
    model = diffusers_model(SD).float()
    model.load_state_dict({name: torch.from_numpy(a) for name, a in weights.items()})
    model.decoder = torch.compile(model.decoder)
    model.encoder.down_blocks[0] = torch.compile(model.encoder.down_blocks[0])
    state = torch.nn.DataParallel(model).state_dict()
    assert "module.decoder._orig_mod.conv_in.weight" in state
    assert_same(read({name: a.numpy() for name, a in state.items()}, SD)[1], weights)


def shapes() -> dict[str, tuple[int, ...]]:
    return {name: row.shape for name, row in parameters(SD).items()}


@pytest.mark.parametrize("use", [{}, {"use_ema": True}])
def test_a_wrapped_moving_average_is_read(use):
    file = FILES["sd1-ldm-standalone"]
    arrays = wrapped(filled(file), "_orig_mod", r"^decoder\.")
    average = {f"model_ema.{key.replace('.', '')}": a + np.float32(0.5) for key, a in arrays.items()}
    assert "model_ema.decoder_orig_modconv_inweight" in average
    wanted = {key: a + np.float32(0.5 if use else 0) for key, a in file.weights.items()}
    assert_same(read(arrays | average, **use)[1], wanted)


@pytest.mark.parametrize("one", ["encoder.conv_in.weight", "decoder._orig_mod.conv_out.bias"])
def test_two_names_that_are_one_without_wrappers_are_refused(one):
    arrays = filled(FILES["sd1-diffusers"])
    half, rest = one.replace("_orig_mod.", "").split(".", 1)
    other = f"{half}.module.{rest}"
    a = arrays.pop(f"{half}.{rest}")
    words = rf"wild\.safetensors: {one} and {other} are both {half}\.{rest} without the names of wrappers .*: save"
    with pytest.raises(WeightMapError, match=words) as caught:
        read(arrays | {one: a, other: a})
    assert "\n" not in str(caught.value)


def test_a_wrapped_copy_beside_the_model_is_another_vae_that_its_prefix_chooses():
    file = FILES["sd1-diffusers"]
    copy = {f"module.{key}": a + np.float32(1) for key, a in filled(file).items()}
    arrays = filled(file) | copy
    with pytest.raises(WeightMapError, match=r"2 VAEs in .*, under the prefixes \['', 'module\.'\]: give prefix="):
        read(arrays)
    assert_same(read(arrays, prefix="")[1], file.weights)
    assert_same(read(arrays, prefix="module.")[1], {key: a + np.float32(1) for key, a in file.weights.items()})


def test_names_outside_the_model_keep_their_modules():
    """Two of them may become one without the wrapper's name: that is no fault of the VAE."""
    arrays = wrapped(filled(FILES["sd1-ldm-full-prefix"]), "module", r"\bdecoder\.")
    beside = {name: np.zeros(3, np.float32) for name in ("unet.module.x", "unet.x", "first_stage_model.loss.module.x")}
    vae = locate(Wild(arrays | beside))
    assert beside.keys() <= set(vae.file)
    assert vae.ignored() == ["first_stage_model.loss.module.x"]


@pytest.mark.parametrize(
    "name", ["modules.0.weight", "my_module.weight", "encoder.module_list.0.bias", "encoder.conv_in"]
)
def test_a_name_that_only_resembles_a_wrapper_is_no_wrapper(name):
    assert bare(name) == name


def test_an_incomplete_wrapped_file_is_still_refused_with_every_problem():
    arrays = wrapped(filled(FILES["sd1-diffusers"]), "_orig_mod", r"^decoder\.")
    del arrays["decoder._orig_mod.conv_out.bias"], arrays["quant_conv.bias"]
    with pytest.raises(WeightMapError) as caught:
        read(arrays | {"decoder._orig_mod.adapter.weight": np.zeros(3, np.float32)})
    for line in (
        "missing     decoder.conv_out.bias",
        "missing     quant_conv.bias",
        "unexpected  decoder.adapter.weight",
    ):
        assert line in str(caught.value)


def test_a_wrapped_file_is_described_without_the_wrappers(tmp_path):
    path = tmp_path / "model.safetensors"
    weights = {name: a.astype(np.float32) for name, a in drawn_weights(shapes()).items()}
    save_file(wrapped(weights, "_orig_mod", r"^(?:encoder|decoder)\."), path)
    found = inspect_weights(path)
    assert (found.prefix, found.dialect, found.tensors, found.others) == ("", "diffusers", len(weights), 0)
