"""The specification as a backend: "reference", and any namespace of the Array API, by object or by import path."""

from __future__ import annotations

import copy
import importlib
import json
import pickle
from types import ModuleType, SimpleNamespace

import array_api_compat.torch
import array_api_strict
import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, images, relative_l2, uniform
from support.models import tiny
from support.oracle import expected, oracle

import vaespec
from vaespec import AutoencoderKL, BackendError
from vaespec.namespace import ARGUMENTS, DTYPES, FUNCTIONS

BOUND = 1e-13  # float64 rounding, as in tests/core/test_specification.py
OTHERS = {"array_api_strict": array_api_strict, "numpy": np, "array_api_compat.torch": array_api_compat.torch}

each_namespace = pytest.mark.parametrize("xp", OTHERS.values(), ids=OTHERS)


def model(backend, name: str = "sd", **options) -> AutoencoderKL:
    return AutoencoderKL(CONFIGS[name], oracle(name)[1], backend=backend, **options)


# -- the reference ------------------------------------------------------------------------------------------------


def test_the_reference_is_diffusers_in_float64():
    x, moments, z, decoded = expected("sd", "tall")
    vae = model("reference")
    assert (vae.backend, vae.dtype, vae.device) == ("reference", "float64", "cpu")
    assert relative_l2(vae.encode(x).latent_dist.parameters, moments) <= BOUND
    assert relative_l2(vae.decode(z).sample, decoded) <= BOUND


def test_the_reference_has_another_dtype_if_it_is_requested():
    assert tiny("reference", "float32").decode(uniform("z", (1, 4, 2, 2))).sample.dtype == np.float32
    with pytest.raises(BackendError, match="backend 'reference' has no dtype 'bfloat16': choose float64, float32"):
        tiny("reference", "bfloat16")


def test_a_model_moves_to_the_reference_in_float64_unless_a_dtype_is_given():
    vae = tiny("torch")
    assert vae.with_backend("reference").dtype == "float64"
    assert vae.with_backend("reference", dtype="float32").dtype == "float32"
    assert vae.with_backend("numpy").dtype == "float32"


def test_the_environment_chooses_the_reference_and_a_namespace(monkeypatch):
    for name in ("reference", "array_api_strict"):
        monkeypatch.setenv("VAESPEC_BACKEND", name)
        vae = AutoencoderKL.from_config(TINY)
        assert (vae.backend, vae.dtype) == (name, "float64")


def test_the_reference_is_listed_without_a_kernel_of_its_own():
    (row,) = (info for info in vaespec.backends() if info.name == "reference")
    assert (row.available, row.framework, row.devices, row.distribution) == (True, "numpy", ("cpu",), "vaespec")
    assert set(row.ops.values()) == {"fallback"}


# -- any namespace ------------------------------------------------------------------------------------------------


@each_namespace
def test_a_namespace_is_a_backend_whose_results_are_its_own_arrays(xp):
    x, moments, z, decoded = expected("sd", "tall")
    vae = model(xp)
    posterior, sample = vae.encode(torch.tensor(x)).latent_dist, vae.decode(vae.encode(x).latent_dist.mean).sample
    for array in (posterior.parameters, posterior.sample(seed=1), vae.encode_latents(x), sample):
        assert type(array) is type(xp.zeros((1,)))
        assert array.dtype == xp.float64
    assert relative_l2(vae.to_numpy(posterior.parameters), moments) <= BOUND
    assert relative_l2(vae.to_numpy(vae.decode(z).sample), decoded) <= BOUND


@each_namespace
def test_noise_latents_bands_padding_and_functions_are_those_of_the_reference(xp):
    vae, reference = model(xp, "flux2"), model("reference", "flux2")
    x = images(CONFIGS["flux2"], 16, 32, 2)

    def results(vae: AutoencoderKL):
        z = vae.encode_latents(x, seed=3)
        yield z
        yield vae.encode(x).latent_dist.kl()
        yield vae.decode_latents(z)
        vae.enable_tiling("exact", band_rows=3, store="host")
        yield vae.decode_latents(z)
        vae.disable_tiling()
        vae.set_padding("circular")
        yield vae.decode_latents(z)
        params, encode, _ = vae.functional()
        yield encode(params, vae.with_backend(vae._backend.xp)._model.ops.from_numpy(x)).latent_dist.mean

    for ours, theirs in zip(results(vae), results(reference), strict=True):
        assert relative_l2(vae.to_numpy(ours), theirs) <= BOUND


@each_namespace
def test_a_model_on_a_namespace_is_pickled_by_the_name_of_the_module(xp):
    vae, z = tiny_on(xp), uniform("z", (1, 4, 2, 2))
    before = vae.to_numpy(vae.decode(z).sample)
    pickled = pickle.dumps(vae)
    assert xp.__name__.encode() in pickled
    for again in (pickle.loads(pickled), copy.deepcopy(vae)):
        assert (again.backend, again.device) == (vae.backend, vae.device)
        np.testing.assert_array_equal(again.to_numpy(again.decode(z).sample), before)


def tiny_on(xp, **options) -> AutoencoderKL:
    return AutoencoderKL.from_config(TINY, backend=xp, **options)


def test_a_device_of_a_namespace_is_chosen_by_its_name_or_as_an_object():
    device = array_api_strict.Device("device1")
    z = uniform("z", (1, 4, 2, 2))
    for place in ("device1", device):
        vae = tiny_on(array_api_strict, device=place)
        sample = vae.decode(z).sample
        assert sample.device == device == pickle.loads(pickle.dumps(vae)).device
        np.testing.assert_array_equal(vae.to_numpy(sample), tiny("reference", "float64").decode(z).sample)
        assert vae.encode(images(TINY, 8, 8)).latent_dist.sample(seed=1).device == device
    vae.to("CPU_DEVICE")
    assert vae.device == array_api_strict.Device("CPU_DEVICE")
    with pytest.raises(BackendError, match="'array_api_strict' has no device 'cuda' here: choose CPU_DEVICE, device1"):
        tiny_on(array_api_strict, device="cuda")


def test_a_device_without_the_dtype_is_refused_when_the_model_is_made():
    with pytest.raises(BackendError, match="cannot compute the specification in float64 on no_float64"):
        tiny_on(array_api_strict, device="no_float64")
    assert tiny_on(array_api_strict, device="no_float64", dtype="float32").dtype == "float32"


def test_a_namespace_without_float64_computes_in_its_widest_float():
    without = SimpleNamespace(**{name: getattr(np, name) for name in (*FUNCTIONS, "float32", "float16")})
    vae = tiny_on(without)
    assert vae.dtype == "float32"
    assert vae.decode(uniform("z", (1, 4, 2, 2))).sample.dtype == np.float32


def test_16_bits_are_there_if_the_namespace_has_them():
    z, exact = uniform("z", (1, 4, 2, 2)), tiny("reference", "float64")
    for dtype in ("bfloat16", "float16"):
        vae = tiny_on(array_api_compat.torch, dtype=dtype)
        sample = vae.decode(z).sample
        assert sample.dtype == getattr(torch, dtype)
        assert relative_l2(vae.to_numpy(sample).astype(float), exact.decode(z).sample) < 0.1
        assert pickle.loads(pickle.dumps(vae)).weights()["quant_conv.bias"].dtype.name == dtype
        with pytest.raises(BackendError, match=f"backend 'array_api_strict' has no dtype '{dtype}'"):
            tiny_on(array_api_strict, dtype=dtype)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"precision": "highest"}, "backend 'array_api_strict' has no precision 'highest'"),
        ({"compile": True}, "backend 'array_api_strict' has no compiler"),
        ({"dtype": "int8"}, "backend 'array_api_strict' has no dtype 'int8': choose float64, float32"),
    ],
)
def test_what_a_namespace_cannot_do_is_refused(options, words):
    with pytest.raises(BackendError, match=words):
        tiny_on(array_api_strict, **options)


def test_a_framework_that_array_api_compat_wraps_is_a_namespace():
    assert tiny_on(torch).backend == "array_api_compat.torch"
    assert tiny_on(np).backend == "array_api_compat.numpy"


# -- what a namespace needs -----------------------------------------------------------------------------------------


class Recorded(ModuleType):
    """A namespace that records which of its names are used."""

    def __init__(self) -> None:
        super().__init__("recorded")
        self.used: set[str] = set()

    def __getattr__(self, name):
        if not name.startswith("__"):
            self.used.add(name)
        return getattr(array_api_strict, name)


@pytest.fixture
def recorded(monkeypatch):
    """A recorded namespace that arrays of array_api_strict name as theirs."""
    xp = Recorded()
    xp.__array_namespace_info__ = array_api_strict.__array_namespace_info__
    monkeypatch.setattr(array_api_strict.zeros((1,)).__class__, "__array_namespace__", lambda self, **_: xp)
    return xp


def test_the_list_of_functions_is_complete_and_has_none_too_many(recorded):
    """Everything that a model does, run on a namespace that records what it is asked for."""
    x, z = images(TINY, 4, 8, 2), uniform("z", (2, 4, 2, 3))
    for activation in ("mish", "gelu", "relu"):
        AutoencoderKL.from_config(TINY.replace(act_fn=activation), backend=recorded).decode(z)
    vae = AutoencoderKL.from_config(TINY, backend=recorded)
    posterior = vae.encode(x).latent_dist
    for sample in (posterior.sample(seed=[1, 2]), posterior.sample(), posterior.sample([None, None])):
        posterior.nll(sample)
    posterior.kl(), posterior.kl(posterior), posterior.replace(deterministic=True).kl()
    for processor in ("eager", "chunked", "fused", "lora"):
        vae.set_attn_processor(processor)
        vae.decode(z)
    vae.with_params(vae.functional().params).tiled_decode(z)
    vae.enable_tiling("exact", band_rows=3)
    vae.enable_slicing()
    vae.set_padding("circular")
    vae.decode(z)
    list(vae.activations(x, "encoder"))
    flux2 = AutoencoderKL.from_config(CONFIGS["flux2"], backend=recorded, dtype="float32")
    flux2.decode_latents(flux2.encode_latents(torch.tensor(images(CONFIGS["flux2"], 16, 16))))
    assert recorded.used - {*DTYPES, "from_dlpack"} == set(FUNCTIONS)  # without DLPack, NumPy converts


@pytest.mark.parametrize("name", [*FUNCTIONS, "float32"])
def test_a_namespace_that_lacks_a_name_is_refused_with_it_when_the_model_is_made(name):
    kept = {key: getattr(np, key) for key in (*FUNCTIONS, *DTYPES[:2]) if key != name}
    with pytest.raises(BackendError, match=rf"SimpleNamespace is no Array API namespace .*: it lacks {name};"):
        tiny_on(SimpleNamespace(**kept))


def test_a_namespace_without_an_argument_is_refused_with_it():
    assert {name for name, _ in ARGUMENTS} <= {*FUNCTIONS}
    with pytest.raises(BackendError, match=r"mlx.core is no Array API namespace .*: it lacks zeros\(device=\)"):
        tiny_on(mx)


@pytest.mark.parametrize("wrong", [json, "json", 5, object()])
def test_what_is_no_namespace_is_refused_in_one_sentence(wrong):
    with pytest.raises(BackendError, match=r"is no Array API namespace .*: it lacks all functions"):
        tiny_on(wrong)


def test_a_name_that_is_neither_a_backend_nor_a_module_is_refused_with_the_choices():
    for name in ("nowhere", "nowhere.at.all", "../array_api_strict", "array_api_compat.nowhere"):
        with pytest.raises(BackendError, match=rf"no backend named '{name}': choose numpy, .*reference.*namespace\.$"):
            tiny_on(name)


def test_the_name_of_a_backend_is_never_imported_as_a_module():
    assert tiny_on("numpy").dtype == "float32"
    assert type(tiny_on("torch")._model.ops).__name__ == "TorchOps"


def test_a_module_that_cannot_be_imported_is_refused_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_namespace.py").write_text("raise RuntimeError('no chip')")
    (tmp_path / "needy_namespace.py").write_text("import a_package_that_nobody_has")
    importlib.invalidate_caches()
    with pytest.raises(BackendError, match=r"'broken_namespace' cannot be imported \(RuntimeError\('no chip'\)\)"):
        tiny_on("broken_namespace")
    with pytest.raises(BackendError, match="module 'needy_namespace' needs a_package_that_nobody_has, which is not"):
        tiny_on("needy_namespace")


@pytest.mark.parametrize("path", ["dask.array", pytest.param("ndonnx", marks=pytest.mark.thorough)])  # minutes
def test_namespaces_that_defer_compute_the_specification(path):
    xp = pytest.importorskip(path)
    config = TINY.replace(
        block_out_channels=(8,), down_block_types=TINY.down_block_types[:1], up_block_types=TINY.up_block_types[:1]
    )
    vae, reference = (AutoencoderKL.from_config(config, backend=backend) for backend in (xp, "reference"))
    z = uniform("z", (1, 4, 3, 2))
    sample = vae.decode(z).sample
    assert isinstance(sample, type(xp.asarray(0)))
    assert relative_l2(vae.to_numpy(sample), reference.decode(z).sample) <= BOUND
    pickle.loads(pickle.dumps(vae))
