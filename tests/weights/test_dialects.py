"""What is written in a dialect is what that dialect's own world writes, and comes back bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import diffusers
import jax
import mlx.core as mx
import msgpack
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file as read_safetensors
from support.checkpoints import PLAIN, WEIGHTS_FILE, written
from support.checkpoints import tagged as tagged_for
from support.configs import CONFIGS, uniform
from support.oracle import diffusers_model
from support.real_files import FILES
from support.wild import FORMATS, Wild, assert_same, in_the_file, listing, read, tagged

from vaespec import AutoencoderConfig, AutoencoderKL, WeightMapError, parameters
from vaespec.weights import load_file, save_file, stored
from vaespec.weights.dialects import DIALECTS
from vaespec.weights.layouts import to_stored
from vaespec.weights.locate import locate

SUFFIX = {name: dialect.suffix for name, dialect in DIALECTS.items()}


def read_flax(path: Path) -> dict[str, np.ndarray]:
    """By msgpack and the format's description alone: a map of maps, whose leaves are (shape, dtype, bytes)."""

    def array(code: int, content: bytes) -> np.ndarray:
        assert code == 1
        shape, dtype, raw = msgpack.unpackb(content)
        return np.frombuffer(raw, dtype).reshape(shape)

    def leaves(node: dict, path: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        found = {}
        for key, value in node.items():
            found |= leaves(value, (*path, key)) if isinstance(value, dict) else {".".join((*path, key)): value}
        return found

    return leaves(msgpack.unpackb(path.read_bytes(), ext_hook=array))


READ = {".safetensors": read_safetensors, ".msgpack": read_flax}


def saved(folder: Path, name: str, dialect: str, weights: dict[str, np.ndarray]) -> Path:
    path = folder / f"model{SUFFIX[dialect]}"
    save_file(path, CONFIGS[name], weights, dialect=dialect)
    return path


def weights_of(name: str) -> dict[str, np.ndarray]:
    return tagged({key: row.shape for key, row in parameters(CONFIGS[name]).items()})


# -- there and back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", CONFIGS)
def test_a_file_is_as_its_world_would_write_it_and_comes_back_bit_for_bit(tmp_path, name, dialect):
    weights, form = weights_of(name), FORMATS[dialect]
    path = saved(tmp_path, name, dialect, weights)
    raw = READ[SUFFIX[dialect]](path)
    canonical = {form.canonical(key, CONFIGS[name].levels): a for key, a in raw.items()}
    assert canonical.keys() == weights.keys()
    assert all(a.ndim == form.rank(weights[key]) for key, a in canonical.items())
    assert_same(raw, in_the_file({key: a.shape for key, a in raw.items()}, form, weights))
    needed = dialect if dialect in ("mlx", "diffusionkit") and one_width(name) else None
    config, found = load_file(path, CONFIGS[name], dialect=needed)
    assert config == CONFIGS[name]
    assert_same(found, weights)


def one_width(name: str) -> bool:
    return len(set(CONFIGS[name].decoder_widths)) == 1


@pytest.mark.parametrize("dialect", ["mlx", "diffusionkit"])
@pytest.mark.parametrize("name", [name for name in CONFIGS if one_width(name) and CONFIGS[name].levels > 1])
def test_an_order_of_levels_that_nothing_shows_must_be_given(tmp_path, name, dialect):
    path = saved(tmp_path, name, dialect, weights_of(name))
    with pytest.raises(WeightMapError, match=r"of mlx or of diffusionkit, .*: give dialect="):
        load_file(path, CONFIGS[name])


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", ["sd", "flux2-small-decoder", "kl-f16", "cogview"])
def test_a_model_is_the_same_from_every_dialect_to_the_last_bit(tmp_path, name, dialect):
    config = CONFIGS[name]
    vae = AutoencoderKL.from_config(config, seed=0, backend="numpy", dtype="float32")
    path = saved(tmp_path, name, dialect, dict(vae.weights()))
    again = AutoencoderKL.from_single_file(path, config=config, backend="numpy", dtype="float32")
    x = uniform("images", (1, config.in_channels, 2 * config.downsampling_factor, 16)).astype(np.float32)
    z = vae.encode(x).latent_dist.mode()
    np.testing.assert_array_equal(again.encode(x).latent_dist.mode(), z)
    np.testing.assert_array_equal(again.decode(z).sample, vae.decode(z).sample)


# -- names and shapes of real files ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith("-conv4d")])
def test_a_saved_file_has_the_names_and_shapes_of_the_real_one(name):
    """At full width, and so without numbers. mflux leaves the count of batches out."""
    file, config = FILES[name], AutoencoderConfig.from_dict(listing(f"{FILES[name].family}.config"))
    dialect, written = DIALECTS[file.dialect], {}
    for canonical, row in parameters(config).items():
        a = to_stored(np.broadcast_to(np.float32(0), row.shape), row, dialect.layout, dialect.axes(row))
        written[file.prefix + dialect.stored(canonical, config.levels)] = list(a.shape)
    if name == "flux2-mflux":
        del written["bn.num_batches_tracked"]
    assert written == {key.replace("/", "."): shape for key, shape in listing(name).items()}


# -- LDM's names around diffusers' attention ---------------------------------------------------------------------

SPELLINGS = {
    "the scripts of diffusers since 0.15": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "with its norm": {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"},
    "with LDM's output": {"q": "to_q", "k": "to_k", "v": "to_v"},
    "with an output that is no list": {"q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out"},
    "the newer script on older names": {"q": "query", "k": "key", "v": "value", "proj_out": "proj_attn"},
    "the norm alone": {"norm": "group_norm"},
}


def respelled(arrays: dict[str, np.ndarray], spelling: dict[str, str], axes: int, half: str = "") -> dict:
    """The file with other names in the attention of the half, or of both, and with kernels of so many axes."""
    found = {}
    for key, a in arrays.items():
        head, attention, rest = key.partition(f"{half}.mid.attn_1.")
        leaf, _, kind = rest.partition(".")
        if attention:
            a = a.reshape(*a.shape[:2], *[1] * (axes - 2)) if a.ndim > 1 else a
            key = f"{head}{attention}{spelling.get(leaf, leaf)}.{kind}"
        found[key] = a
    return found


@pytest.mark.parametrize("axes", [2, 3, 4])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_ldms_names_around_diffusers_attention_are_read(tmp_path, spelling, axes):
    weights, path = tagged_for(PLAIN), tmp_path / "ldm.safetensors"
    save_file(path, PLAIN, weights, dialect="ldm", prefix="first_stage_model.")
    arrays = respelled(read_safetensors(path), SPELLINGS[spelling], axes)
    config, found = read(arrays)
    assert config == read(read_safetensors(path))[0]
    assert_same(found, weights)
    vae = locate(Wild(arrays))
    assert (vae.dialect.name, vae.unread({vae.stored(name) for name in weights})) == ("ldm", ([], []))


@pytest.mark.parametrize("dialect", ["bfl", "mlx-flux"])
def test_the_same_names_are_read_in_the_dialects_that_have_ldms(tmp_path, dialect):
    weights, path = tagged_for(PLAIN), tmp_path / "ldm.safetensors"
    save_file(path, PLAIN, weights, dialect=dialect)
    arrays = respelled(read_safetensors(path), SPELLINGS["with its norm"], axes=2)
    assert_same(read(arrays)[1], weights)
    assert locate(Wild(arrays)).dialect.name == dialect


@pytest.mark.parametrize("half", ["encoder", "decoder"])
def test_halves_may_have_different_names(tmp_path, half):
    weights, path = tagged_for(PLAIN), tmp_path / "ldm.safetensors"
    save_file(path, PLAIN, weights, dialect="ldm")
    arrays = respelled(read_safetensors(path), SPELLINGS["with its norm"], axes=2, half=half)
    assert_same(read(arrays)[1], weights)


def test_an_attention_under_two_names_is_refused(tmp_path):
    path = tmp_path / "ldm.safetensors"
    save_file(path, PLAIN, tagged_for(PLAIN), dialect="ldm")
    arrays = read_safetensors(path)
    again = respelled(arrays, SPELLINGS["with its norm"], axes=2)
    with pytest.raises(WeightMapError, match=r"unexpected  \w+\.mid\.attn_1\.to_q\.weight"):
        read(arrays | again, strict=False)
    del again["encoder.mid.attn_1.to_q.bias"]
    with pytest.raises(WeightMapError, match=r"missing     encoder\.mid\.attn_1\.to_q\.bias   \(needed for encoder"):
        read(again)


def test_a_model_from_such_a_file_has_the_same_results(tmp_path):
    vae = AutoencoderKL.from_config(PLAIN, seed=0, backend="numpy", dtype="float32")
    path = tmp_path / "ldm.safetensors"
    save_file(path, PLAIN, dict(vae.weights()), dialect="ldm")
    arrays = respelled(read_safetensors(path), SPELLINGS["the scripts of diffusers since 0.15"], axes=2)
    again = AutoencoderKL.from_single_file(written(tmp_path, arrays), config=PLAIN, backend="numpy", dtype="float32")
    x = uniform("images", (1, 3, 16, 16)).astype(np.float32)
    z = vae.encode(x).latent_dist.mode()
    np.testing.assert_array_equal(again.encode(x).latent_dist.mode(), z)
    np.testing.assert_array_equal(again.decode(z).sample, vae.decode(z).sample)


# -- those whose formats they are --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3", "kl-f16", "three-layers"])
def test_diffusers_reads_our_deprecated_names(tmp_path, name):
    """It renames the attention of old files as it loads them."""
    config, weights = CONFIGS[name], weights_of(name)
    saved(tmp_path, name, "diffusers-deprecated", weights).rename(tmp_path / WEIGHTS_FILE)
    (tmp_path / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    model, report = diffusers.AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    assert_same({key: a.numpy() for key, a in model.state_dict().items()}, weights)
    assert model.state_dict().keys() == diffusers_model(config).state_dict().keys()


def kernels(folder: Path, dialect: str) -> tuple[np.ndarray, np.ndarray]:
    """A convolution and a linear map as a file of this dialect has them."""
    names = {"conv": "encoder.down_blocks.1.resnets.0.conv1.weight", "q": "encoder.mid_block.attentions.0.to_q.weight"}
    raw = READ[SUFFIX[dialect]](saved(folder, "sd", dialect, weights_of("sd")))
    return tuple(raw[DIALECTS[dialect].stored(name, CONFIGS["sd"].levels)] for name in names.values())


def test_a_stored_kernel_is_in_its_frameworks_hands_the_same_map(tmp_path):
    """torch takes OIHW, MLX OHWI, JAX any named order, flax's Dense x @ W. Sums of integers are exact."""
    weights = {key: np.asarray(a % 16) for key, a in weights_of("sd").items()}
    x, tokens = np.rint(4 * uniform("x", (1, 8, 5, 6))).astype(np.float32), np.arange(24, dtype=np.float32)[None]
    found = {}
    for dialect in ("diffusers", "mlx", "mflux", "flax"):
        conv, q = (np.float32(a % 16) for a in kernels(tmp_path, dialect))
        found[dialect] = RUN[dialect](x, conv), tokens @ (q if dialect == "flax" else q.T)
    wanted = torch.nn.functional.conv2d(
        torch.tensor(x), torch.tensor(weights["encoder.down_blocks.1.resnets.0.conv1.weight"]), padding=1
    ).numpy()
    for dialect, (y, linear) in found.items():
        np.testing.assert_array_equal(y, wanted, dialect)
        np.testing.assert_array_equal(linear, tokens @ weights["encoder.mid_block.attentions.0.to_q.weight"].T, dialect)


def by_torch(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    return torch.nn.functional.conv2d(torch.tensor(x), torch.tensor(kernel), padding=1).numpy()


def by_mlx(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    y = mx.conv2d(mx.array(x.transpose(0, 2, 3, 1)), mx.array(kernel), padding=1, stream=mx.cpu)
    return np.array(y).transpose(0, 3, 1, 2)


def by_jax(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    axes = ("NCHW", "HWIO", "NCHW")
    return np.asarray(jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes))


RUN = {"diffusers": by_torch, "mlx": by_mlx, "mflux": by_mlx, "flax": by_jax}


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dictionary_in_a_dialect_has_the_tensors_of_the_file(dialect, tmp_path):
    name = "flux2" if dialect == "mflux-flux2" else "sd"
    weights = weights_of(name)
    path, named = saved(tmp_path, name, dialect, weights), stored(CONFIGS[name], weights, dialect=dialect)
    written = READ[path.suffix](path)
    assert named.keys() == written.keys()
    for key, tensor in named.items():
        np.testing.assert_array_equal(tensor, written[key])
        assert tensor.flags["C_CONTIGUOUS"]
        assert not any(np.shares_memory(tensor, w) for w in weights.values())


def test_a_dictionary_passes_on_what_does_not_fit():
    weights = weights_of("sd")
    weights["encoder.conv_in.bias"] = weights["encoder.conv_in.bias"][:-1]
    named = stored(CONFIGS["sd"], weights | {"extra.weight": np.zeros(3, np.float32)}, prefix="vae.")
    assert named["vae.encoder.conv_in.bias"].shape == weights["encoder.conv_in.bias"].shape
    assert "vae.extra.weight" in named
