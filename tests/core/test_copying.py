"""Copies and pickles of models, ops, functions, results and modules: the same bits, without what is cached."""

from __future__ import annotations

import copy
import io
import multiprocessing
import pickle
import subprocess
import sys

import array_api_strict
import cloudpickle
import joblib
import numpy as np
import pytest
import torch
from support.configs import TINY, images, uniform
from support.models import BACKENDS, array, each_backend, tiny

from vaespec import AutoencoderKL, BackendError, ReferenceOps, register_backend, registry
from vaespec.attention import Chunked, LoRA
from vaespec.model import Model

X = images(TINY, 12, 12).astype(np.float32)
Z = uniform("z", (1, TINY.latent_channels, 6, 6)).astype(np.float32)


def saved_by_torch(thing):
    file = io.BytesIO()
    torch.save(thing, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


WAYS = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
    "torch.save": saved_by_torch,
}
each_way = pytest.mark.parametrize("again", WAYS.values(), ids=WAYS)

SETTINGS = {
    "nothing": lambda vae: None,
    "exact tiling": lambda vae: vae.enable_tiling("exact", band_rows=2),
    "blended tiling": lambda vae: vae.enable_tiling(tile_sample_min_size=8),
    "slicing": lambda vae: vae.enable_slicing(),
    "padding": lambda vae: vae.set_padding(("circular", "reflect")),
    "LoRA": lambda vae: vae.set_attn_processor(LoRA(rank=2)),
    "fused projections": lambda vae: vae.fuse_qkv_projections(),
    "chunks": lambda vae: vae.set_attn_processor(Chunked(size=3)),
}


def results(vae) -> list[np.ndarray]:
    return [array(vae.encode(X).latent_dist.parameters), array(vae.decode(Z).sample)]


def assert_same_bits(one, other) -> None:
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a, b)


# -- models --------------------------------------------------------------------------------------------------------


@each_way
@each_backend
@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_copied_model_computes_the_same_bits(backend, again, used):
    vae = tiny(backend)
    before = results(vae) if used else None
    twin = again(vae)
    assert type(twin) is AutoencoderKL
    assert twin._model is not vae._model
    assert (twin.backend, twin.device, twin.dtype) == (vae.backend, vae.device, vae.dtype)
    assert_same_bits(results(twin), before or results(vae))


@each_backend
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_copied_model_keeps_its_tiling_padding_and_processors(backend, setting):
    vae = tiny(backend)
    SETTINGS[setting](vae)
    expected = results(vae)
    twin = WAYS["pickle"](vae)
    assert twin._tiling == vae._tiling
    assert twin.attn_processors == vae.attn_processors
    assert_same_bits(results(twin), expected)


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("precision", ["default", "highest"])
def test_a_copied_model_keeps_its_dtype_and_precision(backend, dtype, precision):
    vae = tiny(backend, dtype, precision=precision)
    twin = WAYS["pickle"](vae)
    assert (twin.dtype, twin.precision) == (dtype, precision)
    assert_same_bits(results(twin), results(vae))


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_a_copied_model_compiles_again_if_it_was_compiled(backend, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda run, **_: run)
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", compile=True)
    expected = results(vae)
    twin = WAYS["pickle"](vae)
    assert type(twin._model.ops) is type(vae._model.ops)
    assert "compiled" in vars(vae._model)
    assert "compiled" not in vars(twin._model)
    assert_same_bits(results(twin), expected)


@each_backend
def test_params_keep_their_order_in_memory_when_they_are_copied(backend):
    """The order decides the last bit of a product, and how fast the engine reads a kernel."""
    ops, twin = (vae._model for vae in (tiny(backend), WAYS["pickle"](tiny(backend))))
    for name, param in ops.params.items():
        one, other = ops.ops.to_numpy(param), twin.ops.to_numpy(twin.params[name])
        assert (one.strides, one.dtype) == (other.strides, other.dtype)


@each_backend
def test_a_shallow_copy_shares_the_weights_and_not_the_settings(backend):
    vae = tiny(backend)
    vae.encode(X)
    twin = copy.copy(vae)
    twin.enable_slicing()
    assert not vae.use_slicing
    for name, param in vae._model.params.items():
        assert twin._model.params[name] is param
    assert copy.copy(vae._model).params is vae._model.params
    assert "compiled" not in vars(copy.copy(vae._model))


@each_backend
def test_a_deep_copy_shares_no_weights(backend):
    vae = tiny(backend)
    twin = copy.deepcopy(vae)
    for name, param in vae._model.params.items():
        assert not np.shares_memory(*(vae._model.ops.to_numpy(p) for p in (param, twin._model.params[name])))


# -- functions, ops, results, modules ------------------------------------------------------------------------------


@each_way
@each_backend
def test_the_functions_of_a_model_are_copied(backend, again):
    params, encode, decode = tiny(backend).functional()
    ops = tiny(backend)._model.ops
    x, z = ops.from_numpy(X), ops.from_numpy(Z)
    np.testing.assert_array_equal(array(again(decode)(params, z).sample), array(decode(params, z).sample))
    encoded = again(encode)(params, x)
    np.testing.assert_array_equal(array(encoded.latent_dist.mean), array(encode(params, x).latent_dist.mean))


@each_way
@each_backend
def test_a_posterior_and_a_result_are_copied(backend, again):
    vae = tiny(backend)
    for result in (vae.encode(X), vae.decode(Z), vae(X, return_posterior=True)):
        twin = again(result)
        assert type(twin) is type(result)
        assert twin.keys() == result.keys()
    twin, drawn = again(vae.encode(X)).latent_dist, vae.encode(X).latent_dist.sample(seed=1)
    np.testing.assert_array_equal(array(twin.sample(seed=1)), array(drawn))


@each_way
@pytest.mark.parametrize("backend", ["torch", "mlx"])
def test_a_module_is_copied_before_and_after_a_run(backend, again):
    vae = tiny(backend)
    module, z = vae.module(), vae._model.ops.from_numpy(Z)
    new, expected = again(module), array(module.decode(z).sample)
    np.testing.assert_array_equal(array(new.decode(z).sample), expected)
    np.testing.assert_array_equal(array(again(module).decode(z).sample), expected)


@each_way
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_model_on_any_array_api_namespace_is_copied(again, dtype):
    ops = ReferenceOps(array_api_strict, dtype, array_api_strict.Device("CPU_DEVICE"))
    model = Model.place(TINY, tiny().weights(), ops)
    twin = again(model)
    assert (twin.ops.xp, twin.ops.dtype, twin.ops.device) == (array_api_strict, dtype, ops.device)
    z = ops.from_numpy(Z)
    expected, result = model.decode(model.params, z).sample, twin.decode(twin.params, z).sample
    np.testing.assert_array_equal(np.asarray(result), np.asarray(expected))


class Counting(ReferenceOps):
    """Ops with a state of their own."""

    def __init__(self) -> None:
        super().__init__(np)
        self.calls = 0

    def add(self, x, y):
        self.calls += 1
        return super().add(x, y)


@each_way
def test_ops_are_copied_with_the_state_of_a_subclass(again):
    ops = Counting()
    ops.add(1.0, 2.0)
    twin = again(ops)
    assert (type(twin), twin.calls, twin.xp) == (Counting, 1, np)
    ops.add(1.0, 2.0)
    assert (copy.copy(ops).calls, copy.copy(ops).xp, twin.calls) == (2, np, 1)


class Registered:
    """A backend that only this process knows."""

    name = "registered"
    framework = "numpy"
    dtypes = ("float32",)

    def devices(self):
        return ("cpu",)

    def ops(self, device, dtype, precision):
        return ReferenceOps(np, dtype)


def test_a_model_on_a_backend_that_a_process_registered_is_copied():
    register_backend(Registered())
    vae = AutoencoderKL.from_config(TINY, backend="registered")
    pickled = pickle.dumps(vae)
    registry._registered.clear()
    assert_same_bits(results(pickle.loads(pickled)), results(vae))


# -- in other processes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_model_is_sent_to_another_process(method):
    """PyTorch's, JAX's and MLX's are read there by a new interpreter."""
    models = [tiny(backend) for backend in (BACKENDS if method == "spawn" else ("numpy",))]
    expected = [results(vae) for vae in models]
    with multiprocessing.get_context(method).Pool(1) as pool:
        for vae, before in zip(models, expected, strict=True):
            sample = pool.apply_async(vae.decode, (Z,), {"return_dict": False}).get(timeout=300)
            np.testing.assert_array_equal(array(sample[0]), before[1])


def test_a_model_is_sent_to_a_worker_of_joblib():
    vae = tiny()
    (images,) = joblib.Parallel(n_jobs=2, timeout=300)([joblib.delayed(vae.decode)(Z)])
    np.testing.assert_array_equal(images.sample, results(vae)[1])


# -- where something is missing ------------------------------------------------------------------------------------

REFUSED = """
import pickle, sys
for module in ("torch", "jax", "mlx.core", "array_api_strict"):
    sys.modules[module] = None
from vaespec import BackendError
for line in sys.stdin:
    try: pickle.loads(bytes.fromhex(line))
    except BackendError as error: print(error)
"""
"""Prints what an interpreter without frameworks says to each pickle."""


def test_what_needs_a_framework_that_is_not_here_is_refused_in_a_sentence():
    pickled = [("array_api_strict", pickle.dumps(ReferenceOps(array_api_strict, "float32")))]
    for backend, module in (("torch", "torch"), ("jax", "jax"), ("mlx", "mlx.core")):
        vae = tiny(backend)
        things = [vae, vae._model, vae._model.ops, vae.functional().decode]
        things += [vae.module()] if backend != "jax" else []
        pickled += [(module, pickle.dumps(thing)) for thing in things]
    lines = "\n".join(data.hex() for _, data in pickled)
    done = subprocess.run([sys.executable, "-c", REFUSED], input=lines, capture_output=True, text=True, check=True)
    for (module, _), said in zip(pickled, done.stdout.splitlines(), strict=True):
        assert said.startswith(f"the pickled object needs {module}, which cannot be imported here (")
        assert said.endswith("): install it, or pickle the model on another backend (with_backend).")


def test_a_model_whose_backend_is_not_installed_says_how_to_install_it(monkeypatch):
    pickled = pickle.dumps(tiny("torch"))
    monkeypatch.setattr(registry, "_framework_version", lambda distribution: None)
    with pytest.raises(BackendError, match=r"^backend 'torch' needs torch, which is not installed: pip install"):
        pickle.loads(pickled)


def test_a_model_whose_device_is_not_here_is_refused_in_a_sentence(monkeypatch):
    jax_model, torch_model = AutoencoderKL.from_config(TINY, backend="jax", device="cpu:2"), tiny("torch")._model
    pickled = pickle.dumps(jax_model)
    monkeypatch.setattr("jax.local_devices", lambda backend=None: [])
    with pytest.raises(
        BackendError, match=r"^the pickled object is on JAX's cpu:2, which this process does not have: mo"
    ):
        pickle.loads(pickled)
    torch_model.ops.device = torch.device("cuda:7")  # as if it came from a machine with GPUs
    with pytest.raises(BackendError, match=r"^the pickled model cannot be placed on cuda:7 here \(.*\): move it with"):
        pickle.loads(pickle.dumps(torch_model))
