"""Pictures of diffusers' pipelines are the same with vaespec in the place of diffusers' own computation."""

from __future__ import annotations

from functools import cache

import diffusers
import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.vae import Decoder, Encoder
from peft import LoraConfig
from support.configs import relative_l2
from support.pipelines import PIPELINES, build, make_vae, picture, pipeline_class, run

import vaespec
import vaespec_diffusers
from vaespec.tiling import banded

SAME = 2e-6
"""The largest relative L2 distance of two float32 pictures that differ in rounding."""

FAMILIES = ("sd-img2img", "sdxl", "sd3-inpaint", "flux-fill", "flux2-edit", "z-image", "kolors")
"""A pipeline of each family; one that encodes a picture too, if it has one."""

each_pipeline = pytest.mark.parametrize("name", PIPELINES)
each_family = pytest.mark.parametrize("name", FAMILIES)


@cache
def expected(name: str) -> np.ndarray:
    """The picture in float32 by diffusers alone."""
    return run(build(name), name)


@pytest.fixture
def ours_only(monkeypatch):
    """Ends the test if diffusers' own encoder or decoder computes anything."""

    def forbidden(self, *inputs, **options):
        raise AssertionError(f"diffusers' {type(self).__name__} was called")

    monkeypatch.setattr(Encoder, "forward", forbidden)
    monkeypatch.setattr(Decoder, "forward", forbidden)


@pytest.fixture
def small_bands(monkeypatch) -> list[int]:
    """Bands of a few rows by default. The list that is returned gets a number for each run in bands."""
    runs: list[int] = []
    compiled = banded.BandedOps.bands

    def counted(self, model):
        runs.append(1)
        return compiled(self, model)

    monkeypatch.setattr(banded, "BAND", 1 << 11)  # 2 rows of 32 px with 32 channels
    monkeypatch.setattr(banded.BandedOps, "bands", counted)
    return runs


def assign(pipe, vae) -> None:
    """Put a VAE into a pipeline that was built."""
    if isinstance(pipe, diffusers.ModularPipeline):
        pipe.update_components(vae=vae)
    else:
        pipe.vae = vae


def distance(actual: np.ndarray, name: str) -> float:
    return relative_l2(actual, expected(name))


# -- installed ---------------------------------------------------------------------------------------------------------


@each_pipeline
def test_the_picture_is_that_of_diffusers(name, request):
    reference = expected(name)
    request.getfixturevalue("ours_only")
    pipe = build(name)
    vaespec_diffusers.install(pipe)
    assert relative_l2(run(pipe, name), reference) <= SAME


@each_pipeline
def test_the_picture_in_exact_bands_is_that_of_diffusers(name, small_bands, request):
    reference = expected(name)
    request.getfixturevalue("ours_only")
    pipe = build(name)
    vaespec_diffusers.install(pipe, tiling="exact")
    assert relative_l2(run(pipe, name), reference) <= SAME
    assert small_bands


def answered_in(dtype: torch.dtype, images: np.ndarray) -> np.ndarray:
    """A picture as it is if the VAE answers in this dtype: with force_upcast, diffusers' answers in float32."""
    decoded = torch.tensor(images * 2 - 1).to(dtype)
    return (decoded / 2 + 0.5).float().numpy()


@each_pipeline
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.filterwarnings("ignore:`upcast_vae`:FutureWarning")  # diffusers' own call of its deprecated method
def test_a_pipeline_moved_to_a_narrow_dtype_is_no_less_accurate_than_with_diffusers(name, dtype):
    """Both make their own roundings, and the denoiser adds its own: half of diffusers' error is chance."""
    pipe = build(name)
    vaespec_diffusers.install(pipe)
    pipe.to(dtype)
    actual, theirs = run(pipe, name), answered_in(dtype, run(build(name).to(dtype), name))
    assert pipe.vae.dtype == dtype
    assert np.isfinite(actual).all()
    assert distance(actual, name) <= 1.5 * distance(theirs, name)


def test_a_pipeline_installed_after_it_was_moved_computes_in_its_dtype():
    pipe = build("sd").to(torch.bfloat16)
    vaespec_diffusers.install(pipe)
    decoded = pipe.vae.decode(torch.zeros(1, 4, 8, 8, dtype=torch.bfloat16)).sample
    assert decoded.dtype == torch.bfloat16
    assert distance(run(pipe, "sd"), "sd") <= 1.5 * distance(run(build("sd").to(torch.bfloat16), "sd"), "sd")


@pytest.mark.parametrize("switch", ["enable_tiling", "enable_slicing"])
@pytest.mark.parametrize("first", ["switched", "installed"])
def test_the_switches_of_diffusers_act_on_an_installed_vae(switch, first):
    def switched(vae):
        vae.tile_sample_min_size, vae.tile_latent_min_size = 16, 8
        getattr(vae, switch)()

    theirs, ours = make_vae(), make_vae()
    switched(theirs)
    if first == "switched":
        switched(ours)
    vaespec_diffusers.install(ours)
    if first == "installed":
        switched(ours)
    x = torch.cat([picture(), picture().flip(3)])
    with torch.no_grad():
        for_both = [vae.encode(x).latent_dist.mode() for vae in (ours, theirs)]
        images = [vae.decode(for_both[1]).sample for vae in (ours, theirs)]
        whole = make_vae().decode(for_both[1]).sample
    assert relative_l2(for_both[0], for_both[1]) <= SAME
    assert relative_l2(images[0], images[1]) <= SAME
    assert (relative_l2(images[1], whole) > 1e-3) == (switch == "enable_tiling")


def test_a_batch_of_pictures_is_that_of_diffusers():
    pipe = build("sdxl")
    vaespec_diffusers.install(pipe)
    theirs = run(build("sdxl"), "sdxl", num_images_per_prompt=3)
    assert relative_l2(run(pipe, "sdxl", num_images_per_prompt=3), theirs) <= SAME


# -- a VAE of ours -----------------------------------------------------------------------------------------------------


def saved(name: str, folder) -> dict[str, None]:
    """Saves a pipeline of diffusers; returns what `from_pretrained` has to be told of parts that it lacks."""
    pipe = build(name)
    pipe.save_pretrained(folder)
    return {part: None for part, value in pipe.components.items() if value is None}


def our_class(name: str):
    return getattr(vaespec_diffusers, "AutoencoderKLFlux2" if "flux2" in name else "AutoencoderKL")


@each_family
def test_a_pipeline_takes_our_class_saves_it_and_comes_back(name, tmp_path, request):
    reference = expected(name)
    absent = saved(name, tmp_path / "theirs")
    vae = our_class(name).from_pretrained(tmp_path / "theirs", subfolder="vae")
    pipe = pipeline_class(name).from_pretrained(tmp_path / "theirs", vae=vae, **absent)
    assert pipe.vae is vae
    pipe.save_pretrained(tmp_path / "ours")
    again = pipeline_class(name).from_pretrained(tmp_path / "ours", **absent)
    pipe.set_progress_bar_config(disable=True)
    again.set_progress_bar_config(disable=True)
    assert relative_l2(run(again, name), reference) <= SAME
    request.getfixturevalue("ours_only")
    assert relative_l2(run(pipe, name), reference) <= SAME


@each_family
def test_a_pipeline_takes_our_class_from_a_single_file(name, tmp_path, request):
    reference = expected(name)
    absent = saved(name, tmp_path)
    config = make_vae(PIPELINES[name].vae).config
    vae = our_class(name).from_single_file(tmp_path / "vae/diffusion_pytorch_model.safetensors", config=config)
    pipe = pipeline_class(name).from_pretrained(tmp_path, vae=vae, **absent)
    pipe.set_progress_bar_config(disable=True)
    request.getfixturevalue("ours_only")
    assert relative_l2(run(pipe, name), reference) <= SAME


@each_family
def test_an_installed_pipeline_saves_what_diffusers_loads_alone(name, tmp_path):
    pipe = build(name)
    vaespec_diffusers.install(pipe)
    pipe.save_pretrained(tmp_path)
    absent = {part: None for part, value in pipe.components.items() if value is None}
    again = pipeline_class(name).from_pretrained(tmp_path, **absent)
    again.set_progress_bar_config(disable=True)
    assert type(again.vae).__module__.startswith("diffusers.")
    assert distance(run(again, name), name) <= SAME


@each_pipeline
def test_a_module_of_vaespec_is_assigned_to_a_pipeline(name):
    pipe = build(name)
    assign(pipe, vaespec.load(pipe.vae, backend="torch").module())
    assert distance(run(pipe, name), name) <= SAME


@pytest.mark.parametrize("name", ["sd-img2img", "sdxl", "flux2"])
def test_a_pipeline_moves_a_module_of_vaespec_to_another_dtype(name):
    pipe = build(name)
    assign(pipe, vaespec.load(pipe.vae, backend="torch").module())
    pipe.to(torch.bfloat16)
    assert pipe.vae.dtype == torch.bfloat16
    theirs = run(build(name).to(torch.bfloat16), name)
    assert distance(run(pipe, name), name) <= 1.5 * distance(theirs, name)


# -- adapters ----------------------------------------------------------------------------------------------------------


def adapted(vae: torch.nn.Module) -> torch.nn.Module:
    """The VAE with a LoRA on attention and on convolutions that changes its pictures."""
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv_in", "conv1"]
    torch.manual_seed(0)
    vae.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=False), "style")
    return vae


left_to_diffusers = pytest.mark.filterwarnings("ignore:vaespec leaves this VAE to diffusers:UserWarning")
"""A layer of PEFT is computed by PEFT, and said so."""


@left_to_diffusers
@pytest.mark.parametrize("first", ["adapted", "installed"])
def test_a_lora_acts_on_an_installed_vae_as_on_diffusers(first):
    pipe, theirs = build("sd-img2img"), build("sd-img2img")
    adapted(theirs.vae)
    if first == "adapted":
        adapted(pipe.vae)
    vaespec_diffusers.install(pipe)
    if first == "installed":
        adapted(pipe.vae)
    with_lora = run(theirs, "sd-img2img")
    assert distance(with_lora, "sd-img2img") > 1e-3
    assert relative_l2(run(pipe, "sd-img2img"), with_lora) <= SAME
    pipe.vae.disable_adapters()
    assert distance(run(pipe, "sd-img2img"), "sd-img2img") <= SAME
    pipe.vae.enable_adapters()
    assert relative_l2(run(pipe, "sd-img2img"), with_lora) <= SAME


@left_to_diffusers
def test_a_lora_acts_on_our_class_as_on_diffusers(tmp_path):
    make_vae().save_pretrained(tmp_path)
    ours, theirs = adapted(vaespec_diffusers.AutoencoderKL.from_pretrained(tmp_path)), adapted(make_vae())
    with torch.no_grad():
        assert relative_l2(ours(picture()).sample, theirs(picture()).sample) <= SAME


def test_a_lora_of_the_denoiser_stays_as_it_is():
    pipe, theirs = build("sdxl"), build("sdxl")
    vaespec_diffusers.install(pipe)
    for each in (pipe, theirs):
        torch.manual_seed(0)
        each.unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_v"], init_lora_weights=False))
    assert relative_l2(run(pipe, "sdxl"), run(theirs, "sdxl")) <= SAME


def test_fused_projections_give_the_same_picture():
    pipe = build("sd")
    vaespec_diffusers.install(pipe)
    pipe.vae.fuse_qkv_projections()
    assert distance(run(pipe, "sd"), "sd") <= SAME
    pipe.vae.unfuse_qkv_projections()
    assert distance(run(pipe, "sd"), "sd") <= SAME
