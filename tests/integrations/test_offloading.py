"""Weights that are elsewhere until a layer runs: an installed VAE finds them, and its pictures stay diffusers'."""

from __future__ import annotations

import accelerate
import diffusers
import numpy as np
import pytest
import torch
from accelerate.hooks import AlignDevicesHook, CpuOffload
from diffusers.hooks.group_offloading import GroupOffloadingHook, apply_group_offloading
from diffusers.hooks.layerwise_casting import LayerwiseCastingHook
from support.configs import relative_l2
from support.pipelines import build, make_vae, run

import vaespec
import vaespec_diffusers

SAME = 2e-6
CPU = torch.device("cpu")


def sequential(pipe) -> None:
    """What `enable_sequential_cpu_offload` does, but to "cpu": it says "cpu:0", where accelerate loses parameters."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            accelerate.cpu_offload(part, CPU, offload_buffers=len(part._parameters) > 0)


def grouped(**options):
    return lambda pipe: apply_group_offloading(pipe.vae, onload_device=CPU, offload_device=CPU, **options)


WAYS = {
    "model": (lambda pipe: pipe.enable_model_cpu_offload(device="cpu"), CpuOffload),
    "sequential": (sequential, AlignDevicesHook),
    "block_level": (grouped(offload_type="block_level", num_blocks_per_group=1), GroupOffloadingHook),
    "leaf_level": (grouped(offload_type="leaf_level"), GroupOffloadingHook),
    "the pipeline's": (
        lambda pipe: pipe.enable_group_offload(onload_device=CPU, offload_device=CPU, offload_type="leaf_level"),
        GroupOffloadingHook,
    ),
}
each_way = pytest.mark.parametrize("way", WAYS)
FIRST = ("offloaded", "installed")


def runs_of(monkeypatch, hook: type) -> list[torch.nn.Module]:
    """The modules for which a hook of this class ran before their forward, in order, from now on."""
    ran: list[torch.nn.Module] = []
    original = hook.pre_forward

    def counted(self, module, *inputs, **options):
        ran.append(module)
        return original(self, module, *inputs, **options)

    monkeypatch.setattr(hook, "pre_forward", counted)
    return ran


def names_of(vae: torch.nn.Module, modules: list[torch.nn.Module]) -> set[str]:
    names = {id(module): name for name, module in vae.named_modules()}
    return {names[id(module)] for module in modules if id(module) in names}


@each_way
@pytest.mark.parametrize("name", ["sd-img2img", "sdxl", "flux2"])
@pytest.mark.parametrize("first", FIRST)
def test_an_offloaded_pipeline_makes_the_picture_of_diffusers(way, name, first, monkeypatch):
    offload, hook = WAYS[way]
    theirs, pipe = build(name), build(name)
    offload(theirs)
    ran = runs_of(monkeypatch, hook)
    expected = run(theirs, name)
    hooked = names_of(theirs.vae, ran)
    for step in (first, *(each for each in FIRST if each != first)):
        offload(pipe) if step == "offloaded" else vaespec_diffusers.install(pipe)
    ran.clear()
    for _ in range(2):
        assert relative_l2(run(pipe, name), expected) <= SAME
    assert hooked <= names_of(pipe.vae, ran)


def test_a_hook_of_model_offload_runs_once_for_each_call(monkeypatch):
    pipe = build("sd-img2img")
    vaespec_diffusers.install(pipe)
    pipe.enable_model_cpu_offload(device="cpu")
    ran = runs_of(monkeypatch, CpuOffload)
    run(pipe, "sd-img2img")
    assert sum(module is pipe.vae for module in ran) == 2  # one encode, one decode


def test_sequential_offload_leaves_the_weights_where_they_were():
    vae = make_vae()
    vaespec_diffusers.install(vae)
    accelerate.cpu_offload(vae, CPU)
    with torch.no_grad():
        vae.decode(torch.zeros(1, 4, 8, 8))
    assert {parameter.device.type for parameter in vae.parameters()} == {"meta"}


@pytest.mark.parametrize("level", ["block_level", "leaf_level"])
@pytest.mark.parametrize("first", FIRST)
def test_groups_in_files_are_read_back(level, first, tmp_path):
    """diffusers does not bring FLUX.2's statistics back from files, so this VAE is another."""
    vae, z = make_vae("flux"), torch.ones(1, 16, 8, 8)
    with torch.no_grad():
        expected = make_vae("flux").decode(z).sample
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
    options = {"offload_type": level, "offload_to_disk_path": str(tmp_path), **blocks}
    for step in (first, *(each for each in FIRST if each != first)):
        if step == "offloaded":
            apply_group_offloading(vae, onload_device=CPU, offload_device=CPU, **options)
        else:
            vaespec_diffusers.install(vae)
    with torch.no_grad():
        for _ in range(2):
            assert relative_l2(vae.decode(z).sample, expected) <= SAME


def test_weights_on_a_disk_are_read_back(tmp_path):
    vae, z = make_vae(), torch.ones(1, 4, 8, 8)
    vaespec_diffusers.install(vae)
    accelerate.disk_offload(vae, str(tmp_path), execution_device=CPU)
    with torch.no_grad():
        assert relative_l2(vae.decode(z).sample, make_vae().decode(z).sample) <= SAME


@pytest.mark.parametrize("first", FIRST)
@pytest.mark.parametrize("tiling", [None, "exact"])
def test_layers_stored_in_float8_compute_as_diffusers_does(first, tiling, monkeypatch):
    def cast(vae):
        vae.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)

    theirs, vae, z = make_vae(), make_vae(), torch.ones(1, 4, 8, 8)
    cast(theirs)
    for step in (first, *(each for each in FIRST if each != first)):
        cast(vae) if step == "offloaded" else vaespec_diffusers.install(vae, tiling=tiling)
    ran = runs_of(monkeypatch, LayerwiseCastingHook)
    with torch.no_grad():
        expected = theirs.decode(z).sample
        hooked = names_of(theirs, ran)
        ran.clear()
        assert relative_l2(vae.decode(z).sample, expected) <= SAME
        assert relative_l2(make_vae().decode(z).sample, expected) > 1e-3
    assert hooked <= names_of(vae, ran)
    stored = {name: parameter.dtype for name, parameter in theirs.named_parameters()}
    assert {name: parameter.dtype for name, parameter in vae.named_parameters()} == stored
    assert torch.float8_e4m3fn in stored.values()


@each_way
def test_an_offloaded_pipeline_works_in_exact_bands(way):
    offload, _ = WAYS[way]
    pipe = build("sdxl-img2img")
    vaespec_diffusers.install(pipe, tiling="exact")
    offload(pipe)
    assert relative_l2(run(pipe, "sdxl-img2img"), run(build("sdxl-img2img"), "sdxl-img2img")) <= SAME


@each_way
def test_an_offloaded_pipeline_takes_a_module_of_vaespec(way):
    offload, _ = WAYS[way]
    pipe = build("sd-img2img")
    pipe.vae = vaespec.load(pipe.vae, backend="torch").module()
    if way != "block_level":  # which is told the blocks by diffusers' own models
        offload(pipe)
    assert relative_l2(run(pipe, "sd-img2img"), run(build("sd-img2img"), "sd-img2img")) <= SAME


@each_way
def test_an_offloaded_pipeline_takes_our_class(way, tmp_path):
    offload, _ = WAYS[way]
    make_vae().save_pretrained(tmp_path)
    pipe = build("sd-img2img", vaespec_diffusers.AutoencoderKL.from_pretrained(tmp_path))
    offload(pipe)
    assert relative_l2(run(pipe, "sd-img2img"), run(build("sd-img2img"), "sd-img2img")) <= SAME


@each_way
def test_restoring_an_offloaded_vae_leaves_the_offloading(way):
    offload, _ = WAYS[way]
    pipe = build("sd")
    offload(pipe)
    with vaespec_diffusers.install(pipe):
        run(pipe, "sd")
    theirs = build("sd")
    offload(theirs)
    assert np.array_equal(run(pipe, "sd"), run(theirs, "sd"))
    assert isinstance(pipe.vae, diffusers.AutoencoderKL)
