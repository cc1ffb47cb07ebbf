"""`AutoencoderKL.module()` is an `nn.Module` as PyTorch users know them."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support import replica
from support.configs import CONFIGS, TINY, images, relative_l2, sizes, uniform
from support.models import array, model, tiny
from support.oracle import decoded, diffusers_model, encoded, oracle
from torch import nn
from torch.nn.utils import parametrizations, parametrize
from torch.utils import _pytree as pytree

from vaespec import AutoencoderKL

KINDS = ("sd", "flux2", "flux2-small-decoder", "attention-everywhere", "quant-conv-only", "cogview")


def pictures(config=TINY, batch=2, height=16, width=16, dtype=torch.float32) -> torch.Tensor:
    return torch.tensor(images(config, height, width, batch), dtype=dtype)


def noise(config, batch=2, height=16, width=16) -> torch.Tensor:
    f = config.downsampling_factor
    return torch.tensor(uniform("noise", (batch, config.latent_channels, height // f, width // f)))


def elbo(vae: nn.Module, x: torch.Tensor, epsilon: torch.Tensor) -> torch.Tensor:
    """A loss through mean, log-variance and both networks; of ours and of diffusers' alike."""
    posterior = vae.encode(x).latent_dist
    sample = vae.decode(posterior.mean + posterior.std * epsilon).sample
    return (sample - x).square().mean() + 1e-3 * posterior.kl().mean()


def gradients(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def trained(module: nn.Module, x: torch.Tensor, steps: int) -> list[float]:
    """The losses of some steps of Adam."""
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    losses = []
    for step in range(steps):
        output = module(x, sample_posterior=True, seed=step)
        loss = (output.sample - x).square().mean() + 1e-6 * output.posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


# -- the model of diffusers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_the_module_and_diffusers_load_each_others_state_dict(name):
    config, (theirs, _) = CONFIGS[name], oracle(name)
    module = model(name, "torch").module()
    new = diffusers_model(config)
    new.load_state_dict(module.state_dict(), strict=True)
    x = images(config, *sizes(config)["tall"])
    assert all(torch.equal(tensor, theirs.state_dict()[key]) for key, tensor in new.state_dict().items())
    other = AutoencoderKL.from_config(config, backend="torch", device="cpu", dtype="float64").module()
    other.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        z = other.encode(torch.tensor(x)).latent_dist.mode()
        sample = other.decode(z).sample
    assert relative_l2(array(z), encoded(theirs, x)[0]) <= 1e-13
    assert relative_l2(array(sample), decoded(theirs, array(z))) <= 1e-13
    for kind in ("named_parameters", "named_buffers"):
        assert {key for key, _ in getattr(module, kind)()} == {key for key, _ in getattr(theirs, kind)()}


@pytest.mark.parametrize("name", ["sd", "flux2", "kl-f16", "attention-everywhere", "gelu", "mish", "relu"])
def test_gradients_are_those_of_diffusers(name):
    """Both in float64, by the same operations: 1e-10 leaves a million roundings to ill-conditioned ones.

    Softmax does not change where every key has the same added, so to_k.bias has no gradient but rounding, which is
    compared to the gradient of to_q.bias.
    """
    config, (theirs, _) = CONFIGS[name], oracle(name)
    module, x, epsilon = (
        model(name, "torch").module(),
        pictures(config, 2, 32, 32, torch.float64),
        noise(config, 2, 32, 32),
    )
    elbo(module, x, epsilon).backward()
    theirs.zero_grad()
    elbo(theirs, x, epsilon).backward()
    ours, expected = gradients(module), gradients(theirs)
    assert ours.keys() == expected.keys()
    for key, gradient in ours.items():
        size = expected[key.replace("to_k.bias", "to_q.bias")].norm()
        assert size > 0, key
        assert (gradient - expected[key]).norm() <= 1e-10 * size, key


# -- training ----------------------------------------------------------------------------------------------------


def test_the_module_computes_the_same_as_the_model():
    vae, x = model(backend="torch"), pictures(CONFIGS["sd"], 1, 16, 8, torch.float64)
    output = vae.module()(x, sample_posterior=True, seed=3)
    expected = vae(x, sample_posterior=True, seed=3, return_posterior=True)
    assert torch.equal(output.sample, expected.sample)
    assert torch.equal(output.posterior.parameters, expected.posterior.parameters)


def test_a_few_steps_of_an_optimiser_reduce_the_loss():
    losses = trained(tiny("torch").module(), pictures(), steps=12)
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("again", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_copy_computes_the_same_and_trains_alone(again, checkpointing):
    module, x = tiny("torch").module(), pictures()
    if checkpointing:
        module.enable_gradient_checkpointing()
    before = module(x).sample.detach()
    twin = again(module)
    assert twin.is_gradient_checkpointing == checkpointing
    assert torch.equal(twin(x).sample, before)
    trained(twin, x, steps=1)
    assert not torch.equal(twin(x).sample, before)
    assert torch.equal(module(x).sample, before)


@pytest.mark.parametrize("training", [True, False])
def test_checkpointing_keeps_less_for_the_same_gradients(training):
    config, module = CONFIGS["attention-everywhere"], model("attention-everywhere", "torch").module()
    x, epsilon = pictures(config, dtype=torch.float64), noise(config)
    module.train(training)

    def kept_and_gradients() -> tuple[int, dict[str, torch.Tensor]]:
        """Bytes of the tensors kept for the backward pass, without parameters, and the result."""
        ours = {p.untyped_storage().data_ptr() for p in module.parameters()}
        kept = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in ours:
                kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        module.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = elbo(module, x, epsilon)
            amount = sum(kept.values())
        loss.backward()
        return amount, gradients(module)

    assert not module.is_gradient_checkpointing
    everything, expected = kept_and_gradients()
    module.enable_gradient_checkpointing()
    assert module.is_gradient_checkpointing
    less, same = kept_and_gradients()
    module.disable_gradient_checkpointing()
    assert not module.is_gradient_checkpointing
    assert kept_and_gradients()[0] == everything
    assert less < everything / 3, f"{less} of {everything} bytes"
    assert all(torch.equal(same[name], gradient) for name, gradient in expected.items())


# -- parametrizations --------------------------------------------------------------------------------------------


class Doubled(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


PLACES = {
    "encoder.down_blocks.0.resnets.0.conv1": "encode",
    "decoder.mid_block.attentions.0.to_q": "decode",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_parametrization_takes_effect_and_trains_the_tensor_beneath(place):
    module, doubled, x = tiny("torch").module(), tiny("torch").module(), pictures()
    with torch.no_grad():
        doubled.get_submodule(place).weight.mul_(2)
    parametrize.register_parametrization(module.get_submodule(place), "weight", Doubled())
    assert torch.equal(module(x).sample, doubled(x).sample)
    assert not torch.equal(module(x).sample, tiny("torch").module()(x).sample)
    for each in (module, doubled):
        each(x).sample.square().mean().backward()
    original = module.get_submodule(place).parametrizations.weight.original
    torch.testing.assert_close(original.grad, 2 * doubled.get_submodule(place).weight.grad)
    assert original.grad.abs().max() > 0


@pytest.mark.parametrize("place", PLACES)
def test_weight_norm_changes_nothing_until_its_magnitude_does(place):
    module, x = tiny("torch").module(), pictures()
    before = module(x).sample.detach()
    parametrizations.weight_norm(module.get_submodule(place))
    assert relative_l2(array(module(x).sample), array(before)) <= 2e-6
    with torch.no_grad():
        module.get_submodule(place).parametrizations.weight.original0.mul_(3)
    assert relative_l2(array(module(x).sample), array(before)) > 1e-4


def test_spectral_norm_bounds_a_projection():
    module, x = tiny("torch").module(), pictures()
    parametrizations.spectral_norm(module.get_submodule("decoder.mid_block.attentions.0.to_v"), n_power_iterations=30)
    assert len(trained(module, x, steps=2)) == 2
    weight = module.get_submodule("decoder.mid_block.attentions.0.to_v").weight
    assert abs(torch.linalg.matrix_norm(weight, 2).item() - 1) < 0.01


# -- transforms of torch.func and torch.export -------------------------------------------------------------------


def test_functional_call_computes_with_the_parameters_given():
    module, x = tiny("torch").module(), pictures()
    silent = {name: torch.zeros_like(p) for name, p in module.named_parameters()}
    assert not torch.func.functional_call(module, silent, (x,)).sample.any()
    assert module(x).sample.any()


def test_func_grad_of_the_module_is_its_backward():
    module, x = tiny("torch").module(), pictures()
    params = {name: p.detach() for name, p in module.named_parameters()}
    found = torch.func.grad(lambda p: torch.func.functional_call(module, p, (x,)).sample.square().mean())(params)
    module(x).sample.square().mean().backward()
    for name, expected in gradients(module).items():
        torch.testing.assert_close(found[name], expected)


def test_the_module_exports_with_its_outputs():
    module, x = tiny("torch").module(), pictures()
    exported = torch.export.export(module, (x,)).module()
    output, expected = exported(x), module(x)
    assert type(output) is type(expected)
    assert torch.equal(output.sample, expected.sample)
    assert torch.equal(output.posterior.parameters, expected.posterior.parameters)


# -- torch.compile -----------------------------------------------------------------------------------------------


@pytest.fixture
def _fresh_dynamo():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("_fresh_dynamo")
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("part", ["encode", "decode"])
def test_the_module_compiles_to_one_graph_with_the_gradients_of_eager(part, checkpointing):
    """fullgraph raises if the graph would break. Sums in another order: a few roundings of 2^-24, in float32."""
    module = tiny("torch").module()
    given = pictures() if part == "encode" else noise(TINY).float()
    if checkpointing:
        module.enable_gradient_checkpointing()
    eager = getattr(module, part)
    compiled = torch.compile(eager, fullgraph=True, backend="aot_eager")
    results, found = [], []
    for run in (eager, compiled):
        module.zero_grad()
        result = pytree.tree_leaves(run(given))[0]
        result.square().mean().backward()
        results.append(array(result))
        found.append({name: array(p.grad) for name, p in module.named_parameters() if p.grad is not None})
    assert relative_l2(results[1], results[0]) <= 2e-6
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        size = np.linalg.norm(found[0][name.replace("to_k.bias", "to_q.bias")])
        assert np.linalg.norm(found[1][name] - gradient) <= 1e-5 * size, name
    assert not torch._dynamo.utils.counters["graph_break"]


@pytest.mark.usefixtures("_fresh_dynamo")
def test_another_size_runs_in_the_compiled_module():
    """The second size makes sizes dynamic, and a third compiles nothing more."""
    module = tiny("torch").module()
    encode = torch.compile(module.encode, fullgraph=True, backend="eager")
    for height, width in ((16, 16), (24, 32), (40, 24)):
        with torch._dynamo.config.patch(error_on_recompile=(height == 40)):
            x = pictures(height=height, width=width)
            moments = encode(x).latent_dist.parameters
        assert relative_l2(array(moments), array(module.encode(x).latent_dist.parameters)) <= 2e-6


# -- several processes -------------------------------------------------------------------------------------------


def test_two_processes_average_to_the_gradients_of_the_whole_batch(tmp_path):
    """Each takes half of the batch, and DDP finds the parameters' gradients through outputs with posteriors."""
    command, tests = [sys.executable, "-m", "support.replica"], Path(__file__).parents[1]
    processes = [subprocess.Popen([*command, str(rank), tmp_path], cwd=tests) for rank in range(2)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    expected = replica.gradients(replica.module(), replica.batch())
    first, second = (torch.load(tmp_path / f"gradients{rank}") for rank in range(2))
    for name, gradient in expected.items():
        assert torch.equal(first[name], second[name]), name
        size = expected[name.replace("to_k.bias", "to_q.bias")].norm()
        assert (first[name] - gradient).norm() <= 1e-10 * size, name
