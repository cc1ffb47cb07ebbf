"""PyTorch's module has the methods of the model: copies, processors, and what pipelines and trainers call."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from diffusers import AutoencoderKL as Theirs
from support.configs import TINY, relative_l2
from support.models import array, tiny
from support.module_runs import PARTS, assert_equal, latents, loss, pictures, results
from torch import nn

# -- copies ------------------------------------------------------------------------------------------------------


def saved_and_loaded(module: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module)), saved_and_loaded])
@pytest.mark.parametrize("run", [False, True])
def test_a_copy_has_the_settings_and_computes_the_same_to_the_bit(again, run):
    module = tiny("torch").module()
    module.set_attn_processor("fused")
    module.set_padding(("circular", "zeros"))
    module.enable_tiling("exact", band_rows=3)
    module.register_to_config(scaling_factor=0.5)
    with torch.no_grad():
        before = results(module) if run else None
        twin = again(module)
        assert_equal(results(twin), before or results(module))
        twin.disable_tiling()
        twin.decoder.conv_out.bias.add_(1)
        assert module.use_tiling
        assert_equal(results(module), before or results(again(module)))
    assert twin.config.get("scaling_factor") == 0.5


# -- processors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processor", ["eager", "chunked", "fused", "lora"])
def test_processors_are_set_as_in_the_model(processor):
    vae, module = tiny("torch"), tiny("torch").module()
    names, count = set(module.state_dict()), len(list(module.parameters()))
    for each in (vae, module):
        each.set_attn_processor(processor)
    with torch.no_grad():
        assert_equal(results(module), results(vae))
        assert_equal(results(vae.with_params(module.state_dict())), results(vae))
    loss(module).backward()
    new = set(module.state_dict()) - names
    assert len(new) == {"fused": 4, "lora": 16}.get(processor, 0)
    assert all(module.get_parameter(name).grad is not None for name in new)
    module.set_attn_processor("sdpa")
    assert set(module.state_dict()) == names
    assert len(list(module.parameters())) == count


def test_a_lora_is_fused_into_the_parameters_that_optimizers_know():
    module = tiny("torch").module()
    parameter = module.decoder.mid_block.attentions.get_submodule("0.to_q").weight
    module.set_attn_processor("lora")
    with torch.no_grad():
        for name, p in module.named_parameters():
            if name.endswith("lora.up.weight"):
                p.fill_(0.1)
        expected = results(module)
        before = parameter.clone()
        module.fuse_lora()
        assert not torch.equal(parameter, before)
        assert module.decoder.mid_block.attentions.get_submodule("0.to_q").weight is parameter
        for one, other in zip(results(module), expected, strict=True):
            assert relative_l2(array(one), array(other)) <= 2e-6


def test_projections_that_were_frozen_stay_frozen_when_fused():
    module = tiny("torch").module().requires_grad_(False)
    module.fuse_qkv_projections()
    assert not any(p.requires_grad for p in module.parameters())


# -- the rest of what pipelines and trainers call ----------------------------------------------------------------


def test_a_saved_module_is_loaded_by_diffusers(tmp_path):
    module = tiny("torch").module()
    module.save_pretrained(tmp_path, safe_serialization=True)
    loaded = Theirs.from_pretrained(tmp_path)
    assert all(torch.equal(x, module.state_dict()[name]) for name, x in loaded.state_dict().items())


def test_methods_of_the_model_give_what_they_give_there():
    vae = tiny("torch")
    module, x, z = vae.module(), pictures(), latents()
    for each in (vae, module):
        PARTS["tiles"](each)
        each.disable_tiling()
    with torch.no_grad():
        assert torch.equal(module.tiled_decode(z).sample, vae.tiled_decode(z).sample)
        (ours,), (expected,) = module.tiled_encode(x, return_dict=False), vae.tiled_encode(x, return_dict=False)
        assert torch.equal(ours.parameters, expected.parameters)
        latent = module.encode_latents(x, seed=3)
        assert torch.equal(latent, vae.encode_latents(x, seed=3))
        assert torch.equal(module.decode_latents(latent), vae.decode_latents(latent))
    assert module.num_parameters() == vae.num_parameters()
    assert module.estimate_memory((1, 3, 64, 64)).run == vae.estimate_memory((1, 3, 64, 64)).run
    module.register_to_config(scaling_factor=0.25)
    scaled = array(vae.encode_latents(x)) / TINY.scaling_factor * 0.25
    assert relative_l2(array(module.encode_latents(x).detach()), scaled) <= 2e-6
