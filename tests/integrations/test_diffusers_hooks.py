"""Hooks of a VAE's submodules: they bring the weights for each layer, as often as diffusers' own calls would."""

import accelerate
import diffusers
import pytest
import torch
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.group_offloading import ModuleGroup
from support.installed import TOLERANCE, decoded, distance, tiny_vae

import vaespec_diffusers
from vaespec.errors import NonFiniteWarning

CPU = torch.device("cpu")
PARTS = [{}, {"tiling": "exact"}]


@pytest.mark.parametrize("options", PARTS, ids=str)
def test_weights_that_accelerate_offloads_are_brought_for_their_layer_and_taken_away(options):
    vae = accelerate.cpu_offload(tiny_vae(), CPU)
    with vaespec_diffusers.install(vae, **options) as handle:
        assert distance(decoded(vae), decoded(tiny_vae())) < TOLERANCE
        assert handle.report().calls[0].computed_by == "engine"
    assert all(p.is_meta for p in vae.parameters())


def test_hooks_that_are_added_after_the_installation_are_entered_too():
    vae = tiny_vae()
    with vaespec_diffusers.install(vae):
        accelerate.cpu_offload(vae, CPU)
        assert distance(decoded(vae), decoded(tiny_vae())) < TOLERANCE


@pytest.mark.parametrize("options", PARTS, ids=str)
@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
@pytest.mark.parametrize("cls", [diffusers.AutoencoderKL, diffusers.AutoencoderKLFlux2], ids=lambda cls: cls.__name__)
def test_groups_that_are_offloaded_to_files_are_loaded_once_for_a_run(cls, kind, options, tmp_path, monkeypatch):
    vae, loaded = tiny_vae(cls), []
    blocks = 1 if kind == "block_level" else None
    apply_group_offloading(
        vae, CPU, CPU, offload_type=kind, num_blocks_per_group=blocks, offload_to_disk_path=str(tmp_path)
    )
    onload = ModuleGroup.onload_
    monkeypatch.setattr(ModuleGroup, "onload_", lambda group: (loaded.append(group), onload(group)))
    with vaespec_diffusers.install(vae, **options) as handle:
        assert distance(decoded(vae), decoded(tiny_vae(cls))) < TOLERANCE
    assert handle.report().calls[0].computed_by == "engine"
    assert len(loaded) == len(set(map(id, loaded))) > 0


def test_a_layer_that_is_stored_in_8_bits_is_cast_for_its_run_alone():
    vae = tiny_vae()
    apply_layerwise_casting(vae, torch.float8_e4m3fn, torch.float32)
    expected = decoded(vae)
    with vaespec_diffusers.install(vae) as handle:
        assert distance(decoded(vae), expected) < TOLERANCE
    assert handle.report().calls[0].computed_by == "engine"
    assert vae.decoder.conv_in.weight.dtype == torch.float8_e4m3fn


def test_a_run_that_fails_leaves_every_hook(monkeypatch):
    vae = accelerate.cpu_offload(tiny_vae(), CPU)
    with vaespec_diffusers.install(vae):
        monkeypatch.setattr("vaespec_cpu.lazy_ops.LazyOps.upsample_nearest2x", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            decoded(vae)
    assert all(p.is_meta for p in vae.parameters())


class Doubling(ModelHook):
    """A hook of a kind that vaespec does not know."""

    def post_forward(self, module, output):
        return 2 * output


def test_a_hook_of_an_unknown_kind_is_left_to_diffusers_and_said_once():
    vae = tiny_vae()
    HookRegistry.check_if_exists_or_initialize(vae.decoder.conv_in).register_hook(Doubling(), "doubling")
    expected = decoded(vae)
    with vaespec_diffusers.install(vae) as handle:
        with pytest.warns(UserWarning, match=r"decoder\.conv_in has a hook of an unknown kind, Doubling"):
            first = decoded(vae)
        second = decoded(vae)  # a second warning would be an error
    assert torch.equal(first, expected)
    assert torch.equal(second, expected)
    assert [call.computed_by for call in handle.report().calls] == ["diffusers", "diffusers"]
    assert "Doubling" in str(handle.report())


def test_a_gradient_through_offloaded_weights_is_left_to_diffusers():
    vae = accelerate.cpu_offload(tiny_vae(), CPU)
    z = torch.zeros((1, 4, 8, 8), requires_grad=True)
    with (
        vaespec_diffusers.install(vae) as handle,
        pytest.warns(UserWarning, match="a gradient is recorded, and post_quant_conv has a hook"),
    ):
        vae.decode(z).sample.sum().backward()
    assert z.grad.abs().sum() > 0
    assert handle.report().calls[0].computed_by == "diffusers"


@pytest.mark.parametrize("options", [{}, {"precision": "highest"}, {"tiling": "exact"}], ids=str)
def test_a_weight_that_is_not_finite_is_named(options):
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.conv_in.bias[0] = float("nan")
    accelerate.cpu_offload(vae, CPU)
    with (
        vaespec_diffusers.install(vae, **options),
        pytest.warns(NonFiniteWarning, match=r"the weight decoder\.conv_in\.bias"),
    ):
        assert decoded(vae).isnan().any()
    assert all(p.is_meta for p in vae.parameters())


@pytest.mark.parametrize("options", [{}, {"precision": "highest"}, {"tiling": "exact"}], ids=str)
def test_a_layer_whose_result_is_not_finite_is_named(options):
    vae = tiny_vae()
    with torch.no_grad():
        vae.decoder.up_blocks[0].upsamplers[0].conv.weight.fill_(3e38)
    accelerate.cpu_offload(vae, CPU)
    with (
        vaespec_diffusers.install(vae, **options),
        pytest.warns(NonFiniteWarning, match=r"conv2d after reading decoder\.up_blocks\.0\.upsamplers\.0\.conv\."),
    ):
        decoded(vae)
