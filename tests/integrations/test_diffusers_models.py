"""diffusers' classes that compute with vaespec: made, loaded, saved, copied, and switched like diffusers' own."""

import copy
import json
import pickle
import weakref

import diffusers
import pytest
import torch
from support.installed import TOLERANCE, decoded, distance, latents, tiny_vae

import vaespec
import vaespec_diffusers
from vaespec.errors import InputError

CLASSES = [
    (diffusers.AutoencoderKL, vaespec_diffusers.AutoencoderKL),
    (diffusers.AutoencoderKLFlux2, vaespec_diffusers.AutoencoderKLFlux2),
]


@pytest.fixture
def folder(tmp_path):
    tiny_vae().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("theirs", "ours"), CLASSES, ids=lambda cls: cls.__name__)
def test_a_vae_computes_with_vaespec_from_the_beginning(theirs, ours):
    vae = tiny_vae(ours)
    assert isinstance(vae, theirs)
    assert distance(decoded(vae), decoded(tiny_vae(theirs))) < TOLERANCE
    assert vae.report().calls[0].computed_by == "engine"


def test_a_saved_vae_is_loaded_by_diffusers_own_class(folder):
    vae = vaespec_diffusers.AutoencoderKL.from_pretrained(folder)
    vae.save_pretrained(folder / "again")
    assert json.loads((folder / "again/config.json").read_text())["_class_name"] == "AutoencoderKL"
    plain = diffusers.AutoencoderKL.from_pretrained(folder / "again")
    assert type(plain) is diffusers.AutoencoderKL
    assert distance(decoded(vae), decoded(plain)) < TOLERANCE


def test_a_pipeline_names_diffusers_class():
    from diffusers.pipelines.pipeline_loading_utils import _fetch_class_library_tuple

    assert _fetch_class_library_tuple(tiny_vae(vaespec_diffusers.AutoencoderKL)) == ("diffusers", "AutoencoderKL")


@pytest.mark.parametrize("dtype", [None, torch.float16, "auto"], ids=str)
def test_a_single_file_is_loaded_in_any_dialect(folder, dtype):
    source = vaespec.load(folder)
    source.save_single_file(folder / "vae.safetensors", dialect="ldm")
    vae = vaespec_diffusers.AutoencoderKL.from_single_file(folder / "vae.safetensors", config=folder, torch_dtype=dtype)
    assert vae.dtype == (torch.float16 if dtype is torch.float16 else torch.float32)
    assert (vae.training, vae.device.type, vae.config["sample_size"]) == (False, "cpu", 16)
    assert distance(decoded(vae.float()), decoded(tiny_vae())) < (2e-2 if dtype is torch.float16 else TOLERANCE)


def test_a_single_file_for_the_other_class_or_with_an_unknown_option_is_refused(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    with pytest.raises(InputError, match=r"is AutoencoderKL.s: load it with vaespec_diffusers\.AutoencoderKL\."):
        vaespec_diffusers.AutoencoderKLFlux2.from_single_file(file, config=folder)
    with pytest.raises(InputError, match="from_single_file has no original_config=: it takes config"):
        vaespec_diffusers.AutoencoderKL.from_single_file(file, original_config="v1.yaml")
    with pytest.raises(InputError, match=r"dtype=torch\.float16 and torch_dtype=torch\.float32: give one"):
        vaespec_diffusers.AutoencoderKL.from_single_file(file, dtype=torch.float16, torch_dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "dtype"), [("torch_dtype", "float16"), ("dtype", torch.float16), ("dtype", "float16")]
)
def test_the_dtype_of_a_single_file_has_both_names_of_diffusers(folder, name, dtype):
    file = folder / "diffusion_pytorch_model.safetensors"
    vae = vaespec_diffusers.AutoencoderKL.from_single_file(file, config=folder, **{name: dtype})
    assert vae.dtype is torch.float16
    with pytest.raises(InputError, match="torch_dtype='fp16': choose float32, float64, float16, bfloat16 or auto"):
        vaespec_diffusers.AutoencoderKL.from_single_file(file, config=folder, **{name: "fp16"})


def test_a_single_file_without_the_scale_that_a_pipeline_needs_is_warned_of(folder):
    file = folder / "diffusion_pytorch_model.safetensors"
    config = json.loads((folder / "config.json").read_text()) | {"scaling_factor": None}
    with pytest.warns(UserWarning, match=r"scaling factor of .* is not known .*: give family= or config=\."):
        vaespec_diffusers.AutoencoderKL.from_single_file(file, config=config)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda vae: pickle.loads(pickle.dumps(vae))])
@pytest.mark.parametrize("installed", [True, False], ids=["installed", "ours"])
def test_a_copy_computes_with_vaespec_on_its_own_parameters(copied, installed):
    vae = tiny_vae() if installed else tiny_vae(vaespec_diffusers.AutoencoderKL)
    if installed:
        vaespec_diffusers.install(vae, tiling="exact", padding="circular")
    before = decoded(vae)
    other = copied(vae)
    with torch.no_grad():
        vae.decoder.conv_in.weight.zero_()
    assert torch.equal(decoded(other), before)
    assert other.padding == vae.padding
    assert "engine" in str(other.report())
    assert "bands" in str(other.report()) or not installed


def test_a_vae_that_is_deleted_is_freed_at_once():
    vae = tiny_vae()
    vaespec_diffusers.install(vae)
    decoded(vae)
    alive = weakref.ref(vae)
    del vae
    assert alive() is None


def test_tiling_without_a_mode_keeps_the_mode_that_was_given():
    vae = tiny_vae(vaespec_diffusers.AutoencoderKL)
    for given, parts in (("exact", "bands"), (True, "bands"), ("blend", "blended"), (True, "blended")):
        vae.enable_tiling(given)
        decoded(vae)
        assert parts in vae.report().calls[-1].parts
    vae.disable_tiling()
    decoded(vae)
    assert vae.report().calls[-1].parts == "one piece"


def test_tiles_are_those_of_diffusers_attributes():
    vae, plain = tiny_vae(vaespec_diffusers.AutoencoderKL), tiny_vae()
    for each in (vae, plain):
        each.enable_tiling()
        each.tile_latent_min_size, each.tile_sample_min_size, each.tile_overlap_factor = 6, 12, 0.5
    assert distance(decoded(vae), decoded(plain)) < TOLERANCE
    assert distance(decoded(plain), decoded(tiny_vae())) > 1e-3


def test_memory_is_estimated_for_the_parts_that_are_set():
    vae = tiny_vae(vaespec_diffusers.AutoencoderKL)
    whole = vae.estimate_memory((1, 3, 256, 256)).run
    vae.enable_tiling("exact", band_rows=4)
    assert vae.estimate_memory((1, 3, 256, 256)).run < whole


def test_slices_are_diffusers_switch():
    vae = tiny_vae(vaespec_diffusers.AutoencoderKL)
    vae.enable_slicing()
    z = latents(2)
    assert distance(decoded(vae, z), decoded(tiny_vae(), z)) < TOLERANCE
    assert vae.report().calls[-1].parts == "one image at a time"


def test_the_report_says_what_ran():
    vae = tiny_vae(vaespec_diffusers.AutoencoderKL)
    assert str(vae.report()) == "nothing has been encoded or decoded yet"
    decoded(vae)
    vae.decode(latents())
    first, second = vae.report().calls
    assert first[:6] == ("decode", "engine", "one piece", (1, 4, 8, 12), "float32", "cpu")
    assert first.memory > 8 * 12 * 4 * 16 * 4
    assert (second.computed_by, second.parts, second.memory) == ("autograd", "one piece", None)
    assert str(vae.report()).startswith("decode 1 x 4 x 8 x 12, float32 on cpu: engine, one piece, ")
