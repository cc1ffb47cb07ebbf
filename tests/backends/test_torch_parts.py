"""The halves of a PyTorch module are modules too: they compute, and whatever wraps or hooks them takes effect."""

from __future__ import annotations

import accelerate
import pytest
import torch
import torch.distributed as dist
from support.configs import CONFIGS, TINY, images, narrow, relative_l2, uniform
from support.models import array, model, tiny
from support.oracle import oracle
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor

from vaespec import AutoencoderKL, InputError

SMALL = narrow((4,), layers_per_block=1, norm_num_groups=2)
"""One level, for what torch.compile has to trace."""

PARTS = ("encoder", "quant_conv", "post_quant_conv", "decoder")


def pictures(dtype=torch.float32, config=TINY) -> torch.Tensor:
    return torch.tensor(images(config, 16, 16, 2), dtype=dtype)


def latents() -> torch.Tensor:
    return torch.tensor(uniform("z", (2, 4, 4, 4)), dtype=torch.float32)


def results(module: nn.Module) -> list[torch.Tensor]:
    """Moments, and images of the module's three ways to compute."""
    posterior = module.encode(pictures()).latent_dist
    return [posterior.parameters, module.decode(posterior.mode()).sample, module(pictures()).sample]


def assert_same(some: list[torch.Tensor], others: list[torch.Tensor]) -> None:
    for one, other in zip(some, others, strict=True):
        assert torch.equal(one, other)


@pytest.fixture
def _one_process(tmp_path):
    """A group of one process, by gloo."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# -- a forward of their own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux1", "quant-conv-only", "attention-everywhere"])
def test_the_halves_compute_what_those_of_diffusers_compute(name):
    """The moments before quant_conv, and images from latents after post_quant_conv."""
    config, (theirs, _), module = CONFIGS[name], oracle(name), model(name, "torch").module()
    x = pictures(torch.float64, config)
    with torch.no_grad():
        moments, expected = module.encoder(x), theirs.encoder(x)
        assert relative_l2(array(moments), array(expected)) <= 1e-13
        z = expected[:, : config.latent_channels]
        assert relative_l2(array(module.decoder(z)), array(theirs.decoder(z))) <= 1e-13
        for conv, given in (("quant_conv", expected), ("post_quant_conv", z)):
            assert hasattr(module, conv) == (getattr(theirs, conv) is not None)
            if hasattr(module, conv):
                ours = module.get_submodule(conv)(given)
                assert relative_l2(array(ours), array(theirs.get_submodule(conv)(given))) <= 1e-13


def test_the_parts_one_after_the_other_are_the_module():
    module = tiny("torch").module()
    moments = module.quant_conv(module.encoder(pictures()))
    sample = module.decoder(module.post_quant_conv(latents()))
    assert torch.equal(moments, module.encode(pictures()).latent_dist.parameters)
    assert torch.equal(sample, module.decode(latents()).sample)


def test_a_half_trains_alone():
    module = tiny("torch").module()
    module.encoder(pictures()).square().mean().backward()
    assert all((p.grad is not None) == name.startswith("encoder.") for name, p in module.named_parameters())


def test_half_a_model_has_one_half_and_says_so():
    weights = {name: a for name, a in tiny().weights().items() if "decoder." in name or "post_quant" in name}
    module = AutoencoderKL(TINY, weights, backend="torch", device="cpu").module()
    assert torch.equal(module.decoder(module.post_quant_conv(latents())), module.decode(latents()).sample)
    for encode in (module.encode, module):
        with pytest.raises(InputError, match=r"^these weights have no encoder: load them from a file that has one\.$"):
            encode(pictures())


def test_a_part_is_put_in_the_place_of_another():
    module, other = tiny("torch").module(), AutoencoderKL.from_config(TINY, seed=1, backend="torch").module()
    module.decoder = other.decoder
    expected = other.decoder(module.post_quant_conv(latents()))
    assert torch.equal(module.decode(latents()).sample, expected)


# -- hooks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpointing", [False, True])
def test_hooks_of_parts_and_layers_see_what_passes_through_them(checkpointing):
    module, seen = tiny("torch").module(), []
    if checkpointing:
        module.enable_gradient_checkpointing()
    for name in (*PARTS, "decoder.conv_out", "encoder.mid_block.attentions.0.to_q"):
        part = module.get_submodule(name)
        part.register_forward_pre_hook(lambda _, args, name=name: seen.append((f"before {name}", *args[0].shape)))
        part.register_forward_hook(lambda _, args, out, name=name: seen.append((name, *out.shape)))
    with torch.no_grad():
        module.decode(module.encode(pictures()).latent_dist.mode())
    assert seen == [
        ("before encoder", 2, 3, 16, 16),
        ("before encoder.mid_block.attentions.0.to_q", 2, 64, 16),
        ("encoder.mid_block.attentions.0.to_q", 2, 64, 16),
        ("encoder", 2, 8, 8, 8),
        ("before quant_conv", 2, 8, 8, 8),
        ("quant_conv", 2, 8, 8, 8),
        ("before post_quant_conv", 2, 4, 8, 8),
        ("post_quant_conv", 2, 4, 8, 8),
        ("before decoder", 2, 4, 8, 8),
        ("before decoder.conv_out", 2, 8, 16, 16),
        ("decoder.conv_out", 2, 3, 16, 16),
        ("decoder", 2, 3, 16, 16),
    ]


def test_a_hook_changes_what_a_half_returns():
    module = tiny("torch").module()
    expected = module.quant_conv(2 * module.encoder(pictures()))
    module.encoder.register_forward_hook(lambda _, args, out: 2 * out)
    assert torch.equal(module.encode(pictures()).latent_dist.parameters, expected)


def test_accelerate_offloads_a_module_to_the_cpu():
    """Its hooks load the parameters of each layer before it computes, and leave tensors without values after it."""
    module = tiny("torch").module()
    expected = results(module)
    accelerate.cpu_offload(module)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert_same(results(module), expected)
    assert {p.device.type for p in module.parameters()} == {"meta"}


def test_accelerate_offloads_a_module_to_a_folder(tmp_path):
    module = tiny("torch").module()
    expected = results(module)
    accelerate.disk_offload(module, str(tmp_path), execution_device=torch.device("cpu"))
    assert_same(results(module), expected)


# -- wrappers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def in_data_parallel(part: nn.Module) -> nn.Module:
    return nn.parallel.DistributedDataParallel(part)


def compiled(part: nn.Module) -> nn.Module:
    return torch.compile(part, backend="eager")


@pytest.mark.usefixtures("_fresh_dynamo", "_one_process")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch.compile's own access
@pytest.mark.parametrize("wrap", [compiled, checkpoint_wrapper, in_data_parallel])
def test_a_wrapped_half_computes_and_keeps_the_names_of_the_state_dict(wrap):
    vae = tiny("torch", config=SMALL)
    module, plain = vae.module(), vae.module()
    expected, calls = results(module), []
    module.encoder, module.decoder = wrap(module.encoder), wrap(module.decoder)
    for part in (module.encoder, module.decoder):
        part.register_forward_hook(lambda *_: calls.append(1))
    assert_same(results(module), expected)
    assert len(calls) == 4
    assert list(module.state_dict()) == list(plain.state_dict())
    assert list(nn.ModuleDict({"vae": module}).state_dict()) == [f"vae.{name}" for name in plain.state_dict()]
    changed = {name: 2 * x for name, x in plain.state_dict().items()}
    module.load_state_dict(changed, strict=True)
    plain.load_state_dict(module.state_dict(), strict=True)
    assert all(torch.equal(plain.state_dict()[name], x) for name, x in changed.items())
    plain.load_state_dict({name: p for name, p in module.named_parameters()}, strict=True)
    assert_same(results(vae.with_params(module.state_dict()).module()), results(module))


@pytest.mark.usefixtures("_fresh_dynamo")
def test_a_compiled_half_is_one_graph_that_trains():
    module, eager = tiny("torch", config=SMALL).module(), tiny("torch", config=SMALL).module()
    module.encoder = torch.compile(module.encoder, backend="aot_eager", fullgraph=True)
    for each in (module, eager):
        each(pictures()).sample.square().mean().backward()
    for (_, p), (name, q) in zip(module.named_parameters(), eager.named_parameters(), strict=True):
        size = eager.get_parameter(name.replace("to_k.bias", "to_q.bias")).grad.norm()
        assert (p.grad - q.grad).norm() <= 1e-5 * size, name


def test_checkpointing_is_switched_in_wrapped_halves_too():
    module = tiny("torch").module()
    module.encoder = checkpoint_wrapper(module.encoder)
    assert not module.is_gradient_checkpointing
    module.enable_gradient_checkpointing()
    assert module.is_gradient_checkpointing
    assert type(module.encoder._checkpoint_wrapped_module.ops).__name__ == "CheckpointingOps"
    module.disable_gradient_checkpointing()
    assert not module.is_gradient_checkpointing


# -- FSDP --------------------------------------------------------------------------------------------------------


def stepped(module: nn.Module) -> list[torch.Tensor]:
    """The results before and after a step of training."""
    optimizer = torch.optim.SGD(module.parameters(), 0.1)  # first: a run may gather what is sharded
    before = [x.detach() for x in results(module)]
    module(pictures()).sample.square().mean().backward()
    optimizer.step()
    return before + [x.detach() for x in results(module)]


@pytest.mark.usefixtures("_one_process")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_each_half_is_sharded_by_fully_shard(checkpointing):
    vae = tiny("torch")
    module, expected = vae.module(), stepped(vae.module())
    if checkpointing:
        module.enable_gradient_checkpointing()
    mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
    for part in (module.encoder, module.decoder):
        fully_shard(part, mesh=mesh)
    assert isinstance(module.encoder.conv_in.weight, DTensor)
    for one, other in zip(stepped(module), expected, strict=True):
        assert relative_l2(array(one), array(other)) <= 1e-5
    whole = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in module.state_dict().items()}
    back = [vae.with_params(given).decode(latents()).sample for given in (module.state_dict(), whole)]
    assert_same(back[:1], back[1:])


@pytest.mark.usefixtures("_one_process")
@pytest.mark.filterwarnings("ignore:.*NO_SHARD")  # which it switches to, with one process
@pytest.mark.parametrize("original", [False, True])
def test_each_half_is_sharded_by_the_older_fsdp(original):
    vae = tiny("torch")
    module, expected = vae.module(), stepped(vae.module())
    for name in ("encoder", "decoder"):
        sharded = FullyShardedDataParallel(
            getattr(module, name), device_id=torch.device("cpu"), use_orig_params=original
        )
        setattr(module, name, sharded)
    for one, other in zip(stepped(module), expected, strict=True):
        assert relative_l2(array(one), array(other)) <= 1e-5
    assert list(module.state_dict()) == list(vae.module().state_dict())
    module.load_state_dict(vae.module().state_dict(), strict=True)
    assert_same(results(module), expected[:3])
