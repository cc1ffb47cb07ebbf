"""MLX as its users know it: lazy arrays, transforms, and an `nn.Module` that trains, freezes, saves and quantises.

That it computes the specification is in test_backends. On this machine MLX computes on the CPU; on Apple's chips the
same code runs on Metal.
"""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import ml_dtypes
import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
import pytest
import torch
from configs import CONFIGS, EPS, TINY, assert_within, images, narrow, relative_l2, uniform
from mlx.utils import tree_flatten
from models import EXACT, array, model, tiny

from vaespec import BackendError, InputError, ReferenceOps, backends
from vaespec.attention import LoRA
from vaespec.backend import Switch
from vaespec_mlx import MlxBackend
from vaespec_mlx.ops import MlxOps

OPS = MlxOps("cpu", "float32")
WIDE = narrow((32, 64), layers_per_block=1, norm_num_groups=8)
"""Its attention is 64 wide: as many as nn.quantize takes for a group."""

each_dtype = pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])


def pictures(config=TINY, batch: int = 2) -> mx.array:
    return OPS.from_numpy(images(config, 16, 24, batch))


def noise(config=TINY) -> mx.array:
    return OPS.from_numpy(uniform("latents", (2, config.latent_channels, 3, 5), -2, 2))


def loss(encode, decode, x):
    """½ · MSE + 10⁻⁶ · KL, in what any framework's arrays can do."""
    posterior = encode(x).latent_dist
    difference = decode(posterior.mode()).sample - x
    return 0.5 * (difference * difference).mean() + 1e-6 * posterior.kl().mean()


def functional_loss(params, encode, decode, x):
    return loss(partial(encode, params), partial(decode, params), x)


def module_loss(module, x):
    return loss(module.encode, module.decode, x)


def named(tree) -> dict[str, mx.array]:
    return dict(tree_flatten(tree))


# -- arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)])
def test_every_finite_16_bit_number_passes_through_unchanged(dtype, kind):
    """Subnormal ones, negative zero and the largest among them."""
    every = np.arange(2**16, dtype=np.uint16).view(kind)
    every = every[np.isfinite(every.astype(np.float32))]
    ops = MlxOps("cpu", dtype)
    for given in (every, every.astype(np.float32), every.astype(np.float64)):
        back = ops.to_numpy(ops.from_numpy(given))
        assert back.dtype == kind
        np.testing.assert_array_equal(back.view(np.uint16), every.view(np.uint16))


@each_dtype
def test_results_become_numpy_without_a_copy_and_cannot_be_changed_there(dtype):
    vae = tiny("mlx", dtype)
    found = vae.decode(noise()).sample
    read = vae.to_numpy(found)
    assert np.shares_memory(read, vae.to_numpy(found))
    with pytest.raises(ValueError, match="read-only"):
        read[:] = 0


@each_dtype
def test_everything_is_in_the_dtype_of_the_model(dtype):
    vae, kind = tiny("mlx", dtype), getattr(mx, dtype)
    params, encode, decode = vae.functional()
    assert {p.dtype for p in params.values()} == {kind}
    x, z = pictures().astype(kind), noise().astype(kind)
    for found in (vae.encode(x).latent_dist.mean, vae.decode(z).sample, vae.encode_latents(x, seed=1)):
        assert found.dtype == kind
    assert encode(params, x).latent_dist.parameters.dtype == decode(params, z).sample.dtype == kind


def test_a_single_pixel_decodes_and_encodes():
    vae, reference = model("sd", "mlx"), model("sd", "numpy")
    z = uniform("pixel", (1, 4, 1, 1))
    x = array(reference.decode(z).sample)
    assert relative_l2(array(vae.decode(z).sample), x) <= EXACT["float32"]
    expected = array(reference.encode(x).latent_dist.parameters)
    assert relative_l2(array(vae.encode(x).latent_dist.parameters), expected) <= EXACT["float32"]


@pytest.mark.parametrize("ratio", [0.0, 30.0])
@pytest.mark.parametrize("groups", [1, 4])
def test_the_norm_of_a_large_map_is_as_good_as_that_of_a_small_one(groups, ratio):
    """As in test_backends, the mean is off by a few roundings of the largest of its 2 million numbers."""
    x = (np.random.default_rng(0).standard_normal((1, 8, 512, 512)) + ratio).astype(np.float32)
    scale, shift, how = np.ones(8), np.zeros(8), {"groups": groups, "eps": 1e-6}
    expected = ReferenceOps(np).group_norm(x.astype(np.float64), scale, shift, **how)
    found = OPS.group_norm(OPS.from_nchw(mx.array(x)), OPS.from_numpy(scale), OPS.from_numpy(shift), **how)
    bound = 4 * EPS["float32"] * (1 + abs(x).max()) * (1 + abs(expected))  # σ is 1
    assert_within(array(OPS.to_nchw(found)), expected, bound)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_attention_in_16_bits_rounds_its_result_only(dtype):
    """Logits reach hundreds, where bfloat16 has steps of one: rounded, they would change the weights by their size."""
    ops = MlxOps("cpu", dtype)
    q, k, v = (ops.from_numpy(uniform(name, (2, 50, 64), -size, size)) for name, size in (("q", 9), ("k", 9), ("v", 1)))
    expected = ReferenceOps(np).attention(array(q), array(k), array(v), scale=0.5)
    found = ops.attention(q, k, v, scale=0.5)
    assert found.dtype == ops.storage
    assert_within(array(found), expected, EPS[dtype])


# -- samples -----------------------------------------------------------------------------------------------------


@each_dtype
def test_a_key_draws_what_mlx_draws_with_it_in_the_dtype_of_the_model(dtype):
    posterior, key = tiny("mlx", dtype).encode(pictures()).latent_dist, mx.random.key(7)
    drawn = posterior.sample(key)
    epsilon = mx.random.normal(posterior.mean.shape, getattr(mx, dtype), key=key)
    assert drawn.dtype == getattr(mx, dtype)
    assert mx.array_equal(drawn, posterior.sample(noise=epsilon))
    assert not mx.array_equal(drawn, posterior.sample(mx.random.key(8)))


def test_without_a_key_the_state_of_mlx_is_used():
    posterior, draws = tiny("mlx").encode(pictures()).latent_dist, []
    for seed in (3, 3, 4):
        mx.random.seed(seed)
        draws.append(posterior.sample())
    assert mx.array_equal(draws[0], draws[1])
    assert not mx.array_equal(draws[0], draws[2])
    assert not mx.array_equal(draws[2], posterior.sample())


def test_a_list_has_a_key_for_each_item():
    posterior = tiny("mlx").encode(pictures()).latent_dist
    keys = [mx.random.key(1), mx.random.key(2)]
    drawn = posterior.sample(keys)
    for i, key in enumerate(keys):
        item = posterior.replace(parameters=posterior.parameters[i : i + 1])
        assert mx.array_equal(drawn[i : i + 1], item.sample(key))
    with pytest.raises(InputError, match="2 generators for a batch of 1"):
        item.sample(keys)


def test_the_noise_of_a_seed_is_float32_and_rounded_once():
    posterior = tiny("mlx", "bfloat16").encode(pictures()).latent_dist
    wide = posterior.replace(parameters=posterior.parameters.astype(mx.float32)).sample(seed=5)
    assert mx.array_equal(posterior.sample(seed=5), wide.astype(mx.bfloat16))


def test_a_generator_of_another_framework_is_refused():
    posterior = tiny("mlx").encode(pictures()).latent_dist
    with pytest.raises(InputError, match=r"generator is a Generator: give a key of mlx\.core\.random, a numpy\.random"):
        posterior.sample(torch.Generator())


# -- precision and devices ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [None, "1", "0"])
def test_the_cpu_is_always_precise(monkeypatch, setting):
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    if setting:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert MlxOps("cpu", "float32", "highest").precision == "highest"


@pytest.mark.parametrize("setting", [None, "1"])
def test_the_gpu_is_precise_only_where_the_environment_says_so(monkeypatch, setting):
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    assert MlxOps("gpu", "float32", "highest").precision == "highest"
    monkeypatch.delenv("MLX_ENABLE_TF32")
    if setting:
        monkeypatch.setenv("MLX_ENABLE_TF32", setting)
    assert MlxOps("gpu", "float32").precision == "default"
    with pytest.raises(BackendError, match=r"'highest' on gpu: MLX decides about TF32 once.*set MLX_ENABLE_TF32=0"):
        MlxOps("gpu", "float32", "highest")


@pytest.mark.parametrize("switch", ["MLX_ENABLE_TF32", "MLX_CONV_WINOGRAD_WORKING_SET"])
def test_switches_are_told_with_their_values(monkeypatch, switch):
    def told() -> Switch:
        (row,) = (row for row in backends() if row.name == "mlx")
        return row.switches[switch]

    monkeypatch.delenv(switch, raising=False)
    assert told().value is None
    monkeypatch.setenv(switch, "0")
    assert told().value == "0"
    assert told().default == MlxBackend.switches[switch]


@pytest.mark.parametrize("view", ["model", "functional", "module"])
def test_every_view_runs_on_the_device_of_the_model(monkeypatch, view):
    """MLX's arrays are on no device: without being told, operations would take the default one."""
    vae, entered = tiny("mlx", precision="highest"), []
    params, _, decode = vae.functional()
    run = {"model": vae.decode, "functional": partial(decode, params), "module": vae.module().decode}[view]
    stream = mx.stream
    monkeypatch.setattr(mx, "stream", lambda device: entered.append(device) or stream(device))
    run(noise())
    assert entered == [vae.device] * len(vae._model.decoder.layers)


# -- memory ------------------------------------------------------------------------------------------------------


def test_the_model_evaluates_after_each_layer_and_functions_are_lazy(monkeypatch):
    vae, evaluated = tiny("mlx", precision="highest"), []
    evaluate = mx.eval
    monkeypatch.setattr(mx, "eval", lambda *arrays: evaluated.append(arrays) or evaluate(*arrays))
    vae.decode(noise())
    assert len(evaluated) == len(vae._model.decoder.layers)
    vae.encode(pictures())
    assert len(evaluated) == len(vae._model.decoder.layers) + len(vae._model.encoder.layers)
    params, _, decode = vae.functional()
    decode(params, noise())
    vae.module().decode(noise())
    assert len(evaluated) == len(vae._model.decoder.layers) + len(vae._model.encoder.layers)


def test_memory_is_that_of_one_layer():
    """It does not grow with the number of layers, and is less than where the whole graph is evaluated at once."""

    def peak(compute) -> int:
        mx.clear_cache()
        before = mx.get_active_memory()
        mx.reset_peak_memory()
        mx.eval(compute())
        return mx.get_peak_memory() - before

    z = OPS.from_numpy(uniform("z", (1, 4, 32, 32)))
    few, many = (tiny("mlx", precision="highest", config=narrow((8, 8), layers_per_block=layers)) for layers in (1, 12))
    params, _, decode = many.functional()
    mx.eval(z, params)
    by_layer, at_once = peak(lambda: many.decode(z).sample), peak(lambda: decode(params, z).sample)
    assert by_layer <= 1.01 * peak(lambda: few.decode(z).sample)
    assert by_layer < at_once


# -- transforms --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux2", "attention-everywhere", "gelu", "mish", "relu"])
def test_gradients_are_those_of_torch_in_float64(name):
    """Encode and decode are each within EXACT of the specification, and the way back through them as much again."""
    found = {}
    for backend, grad in (("mlx", mx.grad), ("torch", torch.func.grad)):
        vae = model(name, backend)
        params, encode, decode = vae.functional()
        grads = grad(functional_loss)(params, encode, decode, vae._model.ops.from_numpy(images(CONFIGS[name], 16, 24)))
        assert grads.keys() == params.keys()
        found[backend] = vae._model.ops.export(grads, vae._model.table())
    mine, theirs = (np.concatenate([found[backend][key].ravel() for key in found["torch"]]) for backend in found)
    assert relative_l2(mine, theirs) <= 4 * EXACT["float32"]


def test_gradients_pass_through_the_model_itself():
    """Its evaluations do not cut them."""
    vae, z = tiny("mlx", precision="highest"), noise()
    params, _, decode = vae.functional()
    expected = mx.grad(lambda z: decode(params, z).sample.square().sum())(z)
    found = mx.grad(lambda z: vae.decode(z).sample.square().sum())(z)
    assert float(mx.abs(expected).max()) > 0
    assert relative_l2(array(found), array(expected)) <= EXACT["float32"]


def test_the_gradient_of_relu_is_zero_at_zero():
    """As in torch."""
    grad = mx.grad(lambda x: OPS.relu(x).sum())(mx.array([-1.0, -0.0, 0.0, 1.0]))
    assert grad.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("op", ["silu", "mish", "gelu", "relu"])
def test_gradients_of_activations_are_those_of_torch_at_every_magnitude(op):
    """They are of size 1; those of gelu come from e^(-x² / 2), to some roundings of x² / 2 ≤ 104 of it."""
    magnitudes = np.concatenate((np.geomspace(1e-38, 1e4, 500), [88.0, 89.0, 104.0, 3e38])).astype(np.float32)
    x = np.concatenate((magnitudes, -magnitudes))
    found = mx.grad(lambda x: getattr(OPS, op)(x).sum())(mx.array(x))
    exact = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    getattr(torch.nn.functional, op)(exact).sum().backward()
    assert_within(array(found), exact.grad.numpy(), 8 * EPS["float32"])


def test_gradients_of_a_constant_map_are_finite():
    x, weight = mx.full((1, 4, 4, 8), 3.1), mx.ones(8)
    grad = mx.grad(lambda x: OPS.group_norm(x, weight, weight, groups=4, eps=1e-6).square().sum())(x)
    assert mx.isfinite(grad).all()


def test_compiled_functions_give_the_same_arrays():
    """What mx.compile returns are arrays: the posterior is made again from its parameters."""
    vae = model("attention-everywhere", "mlx")
    params, encode, decode = vae.functional()
    module = vae.module()
    x = pictures()
    z = vae.encode(x).latent_dist.mode()
    functions = {
        lambda x: encode(params, x).latent_dist.parameters: x,
        lambda z: decode(params, z).sample: z,
        lambda x: module.encode(x).latent_dist.parameters: x,
        lambda z: module.decode(z).sample: z,
    }
    for function, argument in functions.items():
        found = mx.compile(function)(argument)
        assert relative_l2(array(found), array(function(argument))) <= EXACT["float32"]


def test_the_params_of_a_compiled_function_are_an_argument():
    vae, z = tiny("mlx"), noise()
    params, _, decode = vae.functional()
    compiled = mx.compile(lambda params, z: decode(params, z).sample)
    for scale in (1.0, 0.5):
        scaled = {name: scale * p for name, p in params.items()}
        assert relative_l2(array(compiled(scaled, z)), array(decode(scaled, z).sample)) <= EXACT["float32"]


def test_vmap_adds_an_axis():
    vae, z = tiny("mlx"), noise()
    params, _, decode = vae.functional()
    mapped = mx.vmap(lambda z: decode(params, z[None]).sample[0])(z)
    assert relative_l2(array(mapped), array(vae.decode(z).sample)) <= EXACT["float32"]


# -- the module --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sd", "flux2", "kl-f16", "attention-everywhere"])
def test_the_module_has_the_names_of_diffusers_and_the_kernels_of_mlx(name):
    vae = model(name, "mlx")
    found = named(vae.module().parameters())
    trained = {key: row for key, row in vae._model.table().items() if row.trained}
    assert found.keys() == trained.keys()
    for key, row in trained.items():
        shape = (row.shape[0], *row.shape[2:], row.shape[1]) if row.role == "conv" else row.shape
        assert found[key].shape == shape, key


@pytest.mark.parametrize("name", ["sd", "attention-everywhere"])
def test_the_module_computes_what_the_model_computes(name):
    vae, x = model(name, "mlx"), pictures(CONFIGS[name])
    assert isinstance(vae.module(), nn.Module)
    output = vae.module()(x, sample_posterior=True, seed=3)
    expected = vae(x, sample_posterior=True, seed=3, return_posterior=True)
    assert relative_l2(array(output.sample), array(expected.sample)) <= EXACT["float32"]
    found, exact = output.posterior.parameters, expected.posterior.parameters
    assert relative_l2(array(found), array(exact)) <= EXACT["float32"]
    by_mode = vae.module()(x).sample
    assert relative_l2(array(by_mode), array(vae(x).sample)) <= EXACT["float32"]


def trained(module, optimiser, loss, *data, steps: int = 12, compiled: bool = False) -> list[float]:
    """The losses on the way, in MLX's own idiom."""
    gradient, state = nn.value_and_grad(module, loss), [module.state, optimiser.state]

    def step(*data):
        value, grads = gradient(module, *data)
        optimiser.update(module, grads)
        return value

    step = mx.compile(step, inputs=state, outputs=state) if compiled else step
    return [step(*data).item() for _ in range(steps)]


def test_the_module_trains():
    losses = trained(tiny("mlx").module(), optim.Adam(learning_rate=3e-3), module_loss, pictures())
    assert losses[-1] < 0.9 * losses[0]


def test_a_compiled_step_trains_as_the_step_does():
    def decoder_loss(module, z, x):
        return nn.losses.mse_loss(module.decode(z).sample, x)

    def last_layer() -> nn.Module:
        module = model("attention-everywhere", "mlx").module()
        module.freeze()
        module.decoder.conv_out.unfreeze()
        return module

    z, x = noise(), OPS.from_numpy(uniform("x", (2, 3, 6, 10)))
    eager, compiled = (
        trained(last_layer(), optim.SGD(learning_rate=0.1), decoder_loss, z, x, steps=3, compiled=compiled)
        for compiled in (False, True)
    )
    assert eager[2] < eager[1] < eager[0]
    np.testing.assert_allclose(compiled, eager, rtol=EXACT["float32"])


def test_training_a_module_does_not_change_the_model():
    vae, x = tiny("mlx"), pictures()
    before, module = array(vae(x).sample), vae.module()
    _, grads = nn.value_and_grad(module, module_loss)(module, x)
    optim.SGD(learning_rate=1.0).update(module, grads)
    assert not np.array_equal(array(module(x).sample), before)
    np.testing.assert_array_equal(array(vae(x).sample), before)


def test_what_is_frozen_gets_no_gradient():
    module, x = tiny("mlx").module(), pictures()
    every = named(module.parameters()).keys()
    module.freeze()
    assert named(module.trainable_parameters()) == {}
    module.decoder.unfreeze()
    _, grads = nn.value_and_grad(module, module_loss)(module, x)
    assert named(grads).keys() == {name for name in every if name.startswith("decoder.")}
    module.unfreeze()
    assert named(module.trainable_parameters()).keys() == every


def test_a_module_takes_weights_from_a_file(tmp_path):
    vae, x, path = model("sd", "mlx"), pictures(CONFIGS["sd"]), str(tmp_path / "vae.safetensors")
    vae.module().save_weights(path)
    assert mx.load(path).keys() == vae.functional().params.keys()
    other = tiny("mlx", config=CONFIGS["sd"]).module()
    before = other(x).sample
    other.load_weights(path)
    assert not mx.array_equal(other(x).sample, before)
    assert mx.array_equal(other(x).sample, vae.module()(x).sample)


def test_a_module_takes_another_dtype():
    module = tiny("mlx").module()
    module.set_dtype(mx.bfloat16)
    found = module.decode(noise()).sample
    assert found.dtype == mx.bfloat16
    assert mx.array_equal(found, tiny("mlx", "bfloat16").module().decode(noise()).sample)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_module_is_copied_with_its_weights(copied):
    module, x = tiny("mlx").module(), pictures()
    other, before = copied(module), module(x).sample
    module.update({"post_quant_conv": {"bias": mx.ones(4)}})
    assert not mx.array_equal(module(x).sample, before)
    assert mx.array_equal(other(x).sample, before)


def test_a_module_tells_its_parts():
    assert "(to_q): Linear(input_dims=16, output_dims=16, bias=True)" in repr(tiny("mlx").module())


# -- LoRA and quantised weights ----------------------------------------------------------------------------------

PROJECTIONS = {
    f"{coder}.mid_block.attentions.0.{part}"
    for coder in ("encoder", "decoder")
    for part in ("to_q", "to_k", "to_v", "to_out.0")
}


def wide(processor="sdpa"):
    vae = tiny("mlx", config=WIDE)
    vae.set_attn_processor(processor)
    return vae


def quantised(vae, **how) -> nn.Module:
    module = vae.module()
    nn.quantize(module, **how)
    return module


def train_only_lora(module: nn.Module) -> None:
    module.freeze()
    module.apply_to_modules(lambda name, part: part.unfreeze() if "_lora" in name else None)


def test_a_module_has_a_lora_only_where_the_model_has():
    assert not [name for name in named(wide().module().parameters()) if "lora" in name]
    module = wide(LoRA(rank=3)).module()
    lora = {name for name in named(module.parameters()) if "lora" in name}
    assert len(lora) == 2 * len(PROJECTIONS)
    train_only_lora(module)
    assert named(module.trainable_parameters()).keys() == lora


@pytest.mark.parametrize("how", [{"bits": 4, "group_size": 32}, {"bits": 8, "group_size": 64}])
@pytest.mark.parametrize("processor", ["sdpa", "chunked", "lora"])
def test_the_projections_of_attention_are_quantised_and_nothing_else(how, processor):
    vae = wide(processor)
    before, module = vae.functional().params, quantised(vae, **how)
    parts = {name for name, part in module.named_modules() if isinstance(part, nn.QuantizedLinear)}
    assert parts == PROJECTIONS
    after = named(module.parameters())
    for name, p in before.items():
        if name.removesuffix(".weight") not in PROJECTIONS:
            assert mx.array_equal(after[name], p), name


def test_fused_projections_are_quantised_too():
    module = quantised(wide("fused"), bits=8, group_size=64)
    parts = {name.rpartition("attentions.0.")[2] for name, part in module.named_modules() if hasattr(part, "scales")}
    assert parts == {"to_qkv", "to_out.0"}
    assert mx.isfinite(module(pictures(WIDE)).sample).all()


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (4, 64), (8, 32), (8, 64)])
def test_a_quantised_product_is_off_by_a_step_of_each_weight_at_most(bits, group_size):
    """Half a step is lost in rounding, and half more since MLX moves the steps to have zero and an end among them."""
    vae = wide()
    module, params = quantised(vae, bits=bits, group_size=group_size), vae.functional().params
    t = uniform("tokens", (2, 7, 64))
    for name in PROJECTIONS:
        weight, arrays = params[f"{name}.weight"], module._arrays()
        found = OPS.linear(OPS.from_numpy(t), arrays[f"{name}.weight"], arrays[f"{name}.bias"])
        expected = OPS.linear(OPS.from_numpy(t), weight, params[f"{name}.bias"])
        groups = array(weight).reshape(64, -1, group_size)
        step = ((groups.max(-1) - groups.min(-1)) / (2**bits - 1)).repeat(group_size, axis=1)
        assert_within(array(found), array(expected), abs(t) @ step.T + 1e-5)
        assert not mx.array_equal(found, expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantised_model_is_off_by_the_steps_of_its_projections(bits):
    """Uniform weights in ±a have 2a / (2ᵇ - 1) for a step: 1 / (2ᵇ - 1) of their size is lost, in relative L2.

    Encoder and decoder have 8 projections, which lose independently: √8 of that, were the map nothing but theirs.
    The bound for 8 bits is a fifth of what 4 bits lose.
    """
    vae, x = wide(), pictures(WIDE)
    error = relative_l2(array(quantised(vae, bits=bits, group_size=64)(x).sample), array(vae(x).sample))
    assert 0 < error <= math.sqrt(8) / (2**bits - 1)


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "mxfp8", "nvfp4"])
def test_every_way_to_quantise_computes(mode):
    """Some have biases for their groups, some none."""
    vae, x = wide(), pictures(WIDE)
    found = quantised(vae, mode=mode)(x).sample
    assert mx.isfinite(found).all()
    assert not mx.array_equal(found, vae.module()(x).sample)


def test_a_lora_trains_on_quantised_weights():
    module, x = quantised(wide("lora"), bits=4, group_size=32), pictures(WIDE)
    train_only_lora(module)
    before = named(module.parameters())
    losses = trained(module, optim.Adam(learning_rate=1e-2), module_loss, x, steps=6)
    assert losses[-1] < losses[0]
    changed = {name for name, p in named(module.parameters()).items() if not mx.array_equal(p, before[name])}
    assert changed == {name for name in before if "_lora" in name}
