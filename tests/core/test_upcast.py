"""Float16 that overflows is computed in float32, layer by layer: as the config says, or when it happens."""

from __future__ import annotations

import copy
import json
import pickle
import tracemalloc
import warnings

import array_api_compat.numpy
import diffusers
import jax
import jax.numpy as jnp
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
import torch
from support.configs import drawn_weights, images, narrow, relative_l2, uniform
from support.models import BACKENDS, NATIVE, array, each_backend

from vaespec import AutoencoderConfig, AutoencoderKL, NonFiniteError, ReferenceOps, parameters
from vaespec.architecture import DECODER
from vaespec.errors import Float16OverflowWarning
from vaespec.model import Model
from vaespec.tiling.planner import MemoryPlan, estimate
from vaespec.upcast import UpcastOps

CONFIG = narrow((8, 16), layers_per_block=1, force_upcast=True)
OVERFLOWING = [name for name in BACKENDS if name != "numpy"]  # NumPy's maps are float32 whatever the dtype


def overflowing() -> dict[str, np.ndarray]:
    """Float16 weights whose maps exceed 65,504: residual maps, queries, keys, values, and the input of conv_out.

    The moments and images are as small as ever.
    """
    weights = drawn_weights({name: row.shape for name, row in parameters(CONFIG).items()})
    factors = {
        "mid_block.resnets.0.conv2.weight": 5e4,
        **{f"mid_block.attentions.0.to_{part}.weight": 7e4 for part in "qkv"},
        "conv_norm_out.weight": 3e4,
        "conv_out.weight": 2e-4,
    }
    for half in ("encoder", "decoder"):
        for name, factor in factors.items():
            weights[f"{half}.{name}"] = weights[f"{half}.{name}"] * factor
    return {name: a.astype(np.float16) for name, a in weights.items()}


WEIGHTS = overflowing()
Z = uniform("z", (1, 4, 5, 3), -2, 2).astype(np.float16)
X = images(CONFIG, 10, 6).astype(np.float16)


def model(backend: str, force_upcast: bool | None = True, *, precision: str | None = None, **options) -> AutoencoderKL:
    """The model whose float16 overflows, on a framework's own operations."""
    placed = {"backend": backend, "device": "cpu", "dtype": "float16", "precision": precision or NATIVE[backend]}
    return AutoencoderKL(CONFIG.replace(force_upcast=force_upcast), WEIGHTS, **placed, **options)


def run(vae: AutoencoderKL, verb: str = "decode"):
    return vae.decode(Z).sample if verb == "decode" else vae.encode(X).latent_dist.mean


EXACT = {
    verb: array(run(AutoencoderKL(CONFIG, WEIGHTS, backend="numpy", dtype="float64"), verb))
    for verb in ("encode", "decode")
}


def assert_as_exact_as_rounding(y, verb: str = "decode") -> None:
    """The result is float16, and at most twice as far from the exact one as the exact one rounded to float16."""
    assert str(y.dtype).rpartition(".")[2] == "float16"
    exact = EXACT[verb]
    assert relative_l2(array(y), exact) <= 2 * relative_l2(exact.astype(np.float16), exact)


def stored(vae: AutoencoderKL) -> dict[str, bytes]:
    return {name: np.array(vae.to_numpy(a)).tobytes() for name, a in vae._model.params.items()}


@pytest.mark.parametrize("mode", ["whole", "bands"])
@pytest.mark.parametrize("verb", ["encode", "decode"])
@each_backend
def test_what_overflows_is_as_exact_as_its_rounding_and_changes_no_parameter(backend, verb, mode):
    vae = model(backend)
    if mode == "bands":
        vae.enable_tiling("exact", band_rows=4)
    before = stored(vae)
    y = run(vae, verb)
    assert_as_exact_as_rounding(y, verb)
    np.testing.assert_array_equal(array(run(vae, verb)), array(y))
    assert stored(vae) == before


@pytest.mark.parametrize(
    ("backend", "mode"),
    [(backend, mode) for backend in OVERFLOWING for mode in ("whole", "bands") if (backend, mode) != ("jax", "bands")],
)  # JAX compiles every operation on bands three times: in float16, to find the layer, and in float32
def test_an_overflow_that_nothing_foretold_is_computed_again_and_named_once(backend, mode):
    vae = model(backend, None)
    if mode == "bands":
        vae.enable_tiling("exact", band_rows=4)
    words = (
        r"the decoder overflows in float16, first in the conv2d after reading decoder\.mid_block\.resnets\.0\.conv2\."
    )
    with pytest.warns(Float16OverflowWarning, match=words) as seen:
        y = run(vae)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    assert "register_to_config(force_upcast=True)" in str(seen[0].message)
    assert_as_exact_as_rounding(y)
    np.testing.assert_array_equal(array(run(vae)), array(y))  # and no warning, which would be an error


@pytest.mark.parametrize("backend", OVERFLOWING)
def test_float16_is_left_alone_if_the_config_says_so(backend):
    with pytest.raises(NonFiniteError, match=r"conv2d after reading decoder\.mid_block.*force_upcast=True"):
        run(model(backend, False))


def test_each_half_warns_for_itself_and_remembers_through_copies_and_settings():
    vae = model("torch", None)
    for verb in ("decode", "encode"):
        with pytest.warns(Float16OverflowWarning, match=f"the {verb}r overflows"):
            run(vae, verb)
    vae.set_attn_processor("eager")
    for same in (vae, copy.deepcopy(vae), pickle.loads(pickle.dumps(vae))):
        assert_as_exact_as_rounding(run(same))
    vae.register_to_config(force_upcast=False)
    with pytest.raises(NonFiniteError):
        run(vae)
    vae.register_to_config(force_upcast=None)
    with pytest.warns(Float16OverflowWarning):
        run(vae.with_params(vae._model.params))  # of other weights nothing is known


def test_weights_that_are_not_finite_are_no_overflow():
    vae = model("torch", None)
    params = dict(vae._model.params)
    params["decoder.conv_in.bias"] = params["decoder.conv_in.bias"] * np.inf
    with pytest.raises(NonFiniteError, match=r"the weight decoder\.conv_in\.bias"):
        run(vae.with_params(params))
    with pytest.raises(NonFiniteError, match="the latents hold"):
        vae.decode(Z * np.float16(np.nan))


def test_float16_that_does_not_overflow_is_computed_as_ever():
    """None, "not said", gives the numbers of False; True gives others."""
    options = {"backend": "torch", "device": "cpu", "dtype": "float16", "precision": "highest"}
    y, unsaid, wide = (
        array(AutoencoderKL.from_config(CONFIG.replace(force_upcast=said), **options).decode(Z).sample)
        for said in (False, None, True)
    )
    np.testing.assert_array_equal(unsaid, y)
    assert not np.array_equal(wide, y)


def test_bfloat16_is_not_upcast():
    options = {"backend": "torch", "device": "cpu", "dtype": "bfloat16", "precision": "highest"}
    one, other = (
        array(AutoencoderKL.from_config(CONFIG.replace(force_upcast=said), **options).decode(Z).sample)
        for said in (False, True)
    )
    np.testing.assert_array_equal(one, other)


def test_bands_that_were_yielded_before_an_overflow_are_not_yielded_again(monkeypatch):
    """A float16 run that fails at its third band."""
    vae = model("torch", None)
    vae.enable_tiling("exact", band_rows=3)
    stream = Model.stream

    def late(self, half, x, bands):
        for i, band in enumerate(stream(self.in_float32, half, x, bands)):
            if i == 2 and not isinstance(self.ops, UpcastOps):
                raise NonFiniteError("too large", "the conv2d")
            yield band

    monkeypatch.setattr(Model, "stream", late)
    with pytest.warns(Float16OverflowWarning) as seen:
        taken = list(vae.decode_bands(Z))
    assert seen[0].filename == __file__
    assert_as_exact_as_rounding(torch.cat(taken, 2))


def test_blended_tiles_are_all_computed_again():
    vae = model("torch", None)
    vae.enable_tiling(tile_sample_min_size=4, tile_overlap_factor=0.5)
    with pytest.warns(Float16OverflowWarning):
        y = run(vae)
    np.testing.assert_array_equal(array(run(vae)), array(y))


@pytest.mark.parametrize("processor", ["eager", "chunked", "fused", "lora"])
def test_every_processor_is_upcast(processor):
    vae = model("torch")
    vae.set_attn_processor(processor)
    assert_as_exact_as_rounding(run(vae))


@pytest.mark.parametrize("padding", ["circular", ("reflect", "replicate")])
def test_padding_bands_and_upcasting_are_combined(padding):
    exact = AutoencoderKL(CONFIG, WEIGHTS, backend="reference")
    exact.set_padding(padding)
    expected = exact.decode(Z).sample
    bound = 2 * relative_l2(expected.astype(np.float16), expected)
    for vae in (model("numpy", precision="default"), model("torch")):
        vae.set_padding(padding)
        pure, z = vae.functional(), vae._model.ops.from_numpy(Z)
        results = [vae.decode(Z).sample, pure.decode(pure.params, z).sample]
        vae.enable_tiling("exact", band_rows=3)
        results += [vae.decode(Z).sample, np.concatenate([array(band) for band in vae.decode_bands(Z)], 2)]
        assert all(relative_l2(array(y), expected) <= bound for y in results)


def test_activations_are_those_of_the_upcast_model():
    vae = model("torch")
    vae.set_padding("reflect")
    *_, (name, last) = vae.activations(Z, "decoder")
    assert name == "decoder.conv_out"
    np.testing.assert_array_equal(array(last), array(run(vae)))


def test_an_overflow_of_what_is_recorded_for_a_gradient_is_named_too():
    """The CPU engine would compute in float32; PyTorch itself does not."""
    vae, z = model("torch", None, precision="default"), torch.tensor(Z, requires_grad=True)
    with pytest.warns(Float16OverflowWarning, match=r"first in the conv2d after reading decoder\.mid_block"):
        y = vae.decode(z).sample
    assert_as_exact_as_rounding(y.detach())
    y.float().square().mean().backward()
    assert torch.isfinite(z.grad).all()


# -- pure functions and modules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [True, None])
def test_a_pure_function_is_upcast_unless_the_config_forbids_it(said):
    pure, never = model("torch", said).functional(), model("torch", False).functional()
    z = torch.tensor(Z)
    assert_as_exact_as_rounding(pure.decode(pure.params, z).sample)
    assert not torch.isfinite(never.decode(never.params, z).sample).all()


def test_gradients_of_an_upcast_model_reach_the_float16_parameters():
    pure = model("torch").functional()
    params = {name: t.requires_grad_() for name, t in pure.params.items()}
    pure.encode(params, torch.tensor(X)).latent_dist.mean.float().square().mean().backward()
    gradient = params["encoder.conv_in.weight"].grad
    assert gradient.dtype == torch.float16
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0


def test_jax_compiles_and_differentiates_an_upcast_model():
    pure, z = model("jax", precision="default").functional(), jnp.asarray(Z)
    assert_as_exact_as_rounding(jax.jit(pure.decode)(pure.params, z).sample)
    gradients = jax.eval_shape(jax.grad(lambda params: pure.decode(params, z).sample.sum()), pure.params)
    assert gradients["decoder.conv_in.weight"].dtype == jnp.float16


def test_params_that_were_cast_decide_for_themselves():
    pure = model("mlx").functional()
    for dtype in (mx.float32, mx.bfloat16):
        cast = {name: a.astype(dtype) for name, a in pure.params.items()}
        assert pure.decode(cast, mx.array(Z)).sample.dtype == dtype


def test_mlx_modules_and_transforms_are_upcast():
    module = model("mlx", None).module()
    assert_as_exact_as_rounding(module.decode(mx.array(Z)).sample)
    assert_as_exact_as_rounding(module.encode(mx.array(X)).latent_dist.mean, "encode")
    pure = model("mlx").functional()
    compiled = mx.compile(lambda params, z: pure.decode(params, z).sample)
    assert_as_exact_as_rounding(compiled(pure.params, mx.array(Z)))
    wide = AutoencoderKL(CONFIG, WEIGHTS, backend="mlx", device="cpu").module()
    wide.set_dtype(mx.float16)
    assert_as_exact_as_rounding(wide.decode(mx.array(Z)).sample)


def test_quantized_weights_are_multiplied_in_float32():
    config = narrow((8, 32), layers_per_block=1)
    module = AutoencoderKL.from_config(config, backend="mlx", device="cpu", dtype="float16").module()
    expected = array(module.decode(mx.array(Z)).sample)
    nn.quantize(module, group_size=32, bits=8)
    y = module.decode(mx.array(Z)).sample
    assert y.dtype == mx.float16
    assert relative_l2(array(y), expected) <= 0.05


def test_a_module_of_torch_widens_inside_its_own_call():
    """Hooks of a layer see its float16 weight, and the layer's result is float32."""
    module = model("torch").module()
    seen = []
    module.decoder.conv_out.register_forward_hook(lambda layer, args, y: seen.append((layer.weight.dtype, y.dtype)))
    module.decoder.ops = UpcastOps(module.decoder.ops)
    y = module.decoder(torch.tensor(Z))
    assert seen == [(torch.float16, torch.float32)]
    assert y.dtype == torch.float16
    assert torch.isfinite(y).all()


# -- memory --------------------------------------------------------------------------------------------------------


def test_one_layers_weights_are_wide_at_a_time():
    """On tiny maps, the memory of a run is that of the widest kernel in float32, not of the model."""
    config = narrow((32, 64), layers_per_block=2)
    weights = drawn_weights({name: row.shape for name, row in parameters(config).items()})
    pure = Model.place(config, weights, ReferenceOps(array_api_compat.numpy, "float16", "cpu")).functional()
    sizes = [a.size * 4 for name, a in pure.params.items() if name.startswith("decoder.")]
    tracemalloc.start()
    try:
        pure.decode(pure.params, np.ones((1, 4, 2, 2), np.float16))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert max(sizes) < peak < 1.5 * max(sizes) < sum(sizes) / 5


def test_plans_count_maps_in_float32():
    shape, plan = (1, 4, 64, 64), MemoryPlan()
    models = {}
    for backend, precision in (("numpy", "default"), ("torch", "highest")):
        for dtype, said in (("float16", False), ("float16", True), ("float32", True)):
            options = {"backend": backend, "device": "cpu", "precision": precision, "dtype": dtype}
            vae = AutoencoderKL.from_config(CONFIG.replace(force_upcast=said), **options)
            models[backend, dtype, said] = estimate(vae._model.computing(DECODER), DECODER, shape, plan)
    torch16, torch_wide, torch32 = (
        models["torch", *key].run for key in (("float16", False), ("float16", True), ("float32", True))
    )
    assert 1.9 * torch16 < torch_wide
    assert torch_wide == pytest.approx(torch32, rel=0.15)
    engine16, engine32 = models["numpy", "float16", False], models["numpy", "float32", True]
    assert engine16.run == pytest.approx(engine32.run, rel=0.15)  # the engine's maps are float32 in any case
    assert 2 * engine16.result == engine32.result


# -- the config ----------------------------------------------------------------------------------------------------


def test_a_config_that_does_not_say_stays_so_and_is_read_by_diffusers(tmp_path):
    said = CONFIG.replace(force_upcast=None)
    assert "force_upcast" not in said.to_dict()
    assert AutoencoderConfig.from_dict(said.to_dict()) == AutoencoderConfig.from_dict(dict(said)) == said
    vae = AutoencoderKL.from_config(said, backend="numpy")
    vae.save_pretrained(tmp_path)
    assert "force_upcast" not in json.loads((tmp_path / "config.json").read_text())
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path).config.force_upcast is True  # its default, as before
    assert AutoencoderKL.from_pretrained(tmp_path, backend="numpy").config.force_upcast is None


@pytest.mark.parametrize("said", [True, False])
def test_what_a_config_says_is_written(said, tmp_path):
    vae = AutoencoderKL.from_config(CONFIG.replace(force_upcast=None), backend="numpy")
    vae.register_to_config(force_upcast=said)
    vae.save_pretrained(tmp_path)
    assert diffusers.AutoencoderKL.from_pretrained(tmp_path).config.force_upcast is said
    assert AutoencoderKL.from_pretrained(tmp_path, backend="numpy").config.force_upcast is said


def test_a_default_of_diffusers_in_memory_is_not_said():
    fields = {key: value for key, value in CONFIG.to_dict().items() if key not in ("force_upcast", "_class_name")}
    assert AutoencoderConfig.from_dict(diffusers.AutoencoderKL(**fields).config).force_upcast is None
    said = diffusers.AutoencoderKL(**fields, force_upcast=True).config
    assert AutoencoderConfig.from_dict(said).force_upcast is True


def test_a_wrong_list_of_defaults_is_no_list():
    for defaults in (None, "force_upcast", 7, [np.ones(2)], {"force_upcast": 1}):
        values = {**CONFIG.to_dict(), "_use_default_values": defaults}
        assert AutoencoderConfig.from_dict(values).force_upcast is True


def test_warnings_are_not_swallowed_by_the_analysis():
    """The named layer is looked for with NumPy's warnings off, but ours on."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        run(model("mlx", None))
    assert [row.category for row in seen] == [Float16OverflowWarning]
