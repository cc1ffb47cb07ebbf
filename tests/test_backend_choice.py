"""Which backend is used, and what is said where it cannot be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import array_api_strict
import ml_dtypes
import numpy as np
import pytest
import torch
from configs import CONFIGS, TINY, relative_l2
from models import BACKENDS
from oracle import expected, oracle
from threadpoolctl import threadpool_info

import vaespec.backend
from vaespec import AutoencoderKL, BackendError, ReferenceOps, backends, register_backend


class Strict:
    """Tier 0: an Array API namespace and nothing else."""

    name = "strict"
    framework = "array-api-strict"
    dtypes = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def ops(self, device: str, dtype: str) -> ReferenceOps:
        return ReferenceOps(array_api_strict, dtype)


class Missing(Strict):
    name = "cuneiform"
    framework = "no-such-framework"


def test_the_argument_wins_over_the_environment(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "torch")
    assert AutoencoderKL.from_config(TINY).backend == "torch"
    assert AutoencoderKL.from_config(TINY, backend="numpy").backend == "numpy"


def test_the_environment_is_checked_as_the_argument_is(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "cupy")
    with pytest.raises(BackendError, match="no backend named 'cupy': known are numpy, torch"):
        AutoencoderKL.from_config(TINY)


def test_without_a_choice_an_accelerator_is_taken_else_numpy(monkeypatch):
    monkeypatch.setattr("vaespec_torch.TorchBackend.devices", lambda self: ("cpu",))
    assert vaespec.backend.choose_backend().name == "numpy"
    monkeypatch.setattr("vaespec_torch.TorchBackend.devices", lambda self: ("cuda:0", "cpu"))
    assert vaespec.backend.choose_backend().name == "torch"


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(BackendError, match="no backend named 'tensorflow': known are numpy, torch"):
        AutoencoderKL.from_config(TINY, backend="tensorflow")


def test_backends_are_listed_numpy_first_with_what_they_need():
    register_backend(Missing())
    listed = {info.name: info for info in backends()}
    assert list(listed) == ["numpy", "cuneiform", "torch"]
    assert listed["numpy"].available
    assert listed["torch"].available
    assert listed["torch"].version == metadata.version("torch")
    assert not listed["cuneiform"].available
    assert listed["torch"].distribution == "vaespec"
    assert listed["cuneiform"].distribution == "this process"


def test_a_missing_framework_of_a_stranger_is_named():
    register_backend(Missing())
    with pytest.raises(BackendError, match=r"needs no-such-framework.*pip install no-such-framework"):
        AutoencoderKL.from_config(TINY, backend="cuneiform")


def test_torch_that_is_not_installed_is_named_with_its_extra(monkeypatch):
    installed = metadata.version

    def version(distribution):
        if distribution == "torch":
            raise metadata.PackageNotFoundError(distribution)
        return installed(distribution)

    monkeypatch.setattr(vaespec.backend.metadata, "version", version)
    with pytest.raises(BackendError, match=r'needs torch, which is not installed: pip install "vaespec\[torch\]"'):
        AutoencoderKL.from_config(TINY, backend="torch")
    assert not {info.name: info for info in backends()}["torch"].available
    assert vaespec.backend.choose_backend().name == "numpy"


@pytest.fixture
def plugins(monkeypatch):
    """Sets the entry points that are found: name -> import path, one list per name."""

    def found(**paths: list[str]) -> None:
        pairs = [(name, path) for name, several in paths.items() for path in several]
        points = [metadata.EntryPoint(name, path, vaespec.backend.GROUP) for name, path in pairs]
        monkeypatch.setattr(vaespec.backend.metadata, "entry_points", lambda group: points)
        vaespec.backend._entry_points.cache_clear()

    yield found
    monkeypatch.undo()
    vaespec.backend._entry_points.cache_clear()


def test_two_plugins_of_one_name_are_an_error_that_names_both(plugins):
    plugins(numpy=["vaespec_numpy:backend"], mine=["one.package:backend", "another.package:backend"])
    with pytest.raises(BackendError, match=r"'mine' is provided by another\.package:backend and one\.package:backend"):
        vaespec.backend.get_backend("mine")
    assert [info.name for info in backends()] == ["numpy", "mine"]
    assert "uninstall one" in backends()[1].problem


def test_a_plugin_that_cannot_be_imported_says_why(plugins):
    plugins(numpy=["vaespec_numpy:backend"], mine=["no_such_module:backend"])
    with pytest.raises(BackendError, match=r"'mine' of .* cannot be loaded .*No module named 'no_such_module'"):
        vaespec.backend.get_backend("mine")
    assert vaespec.backend.choose_backend().name == "numpy"


def test_a_plugin_that_is_no_backend_is_refused(plugins):
    plugins(mine=["math:pi"])
    with pytest.raises(BackendError, match=r"has not the members of vaespec\.backend\.Backend"):
        vaespec.backend.get_backend("mine")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_dtype_is_refused_with_the_known_ones(backend):
    with pytest.raises(BackendError, match=f"{backend!r} has no dtype 'int8': choose float32, float64"):
        AutoencoderKL.from_config(TINY, backend=backend, dtype="int8")


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_unknown_device_is_refused_with_those_at_hand(backend):
    with pytest.raises(BackendError, match=f"{backend!r} has no device 'tpu:0' here: choose .*cpu"):
        AutoencoderKL.from_config(TINY, backend=backend, device="tpu:0")


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), torch.float64, "float64", "torch.float64"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtypes_may_be_those_of_any_framework(backend, dtype):
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", dtype=dtype)
    assert vae.dtype == "float64"
    assert str(vae.decode(np.zeros((1, 4, 1, 1))).sample.dtype).endswith("float64")


def test_bfloat16_may_be_that_of_ml_dtypes():
    assert AutoencoderKL.from_config(TINY, backend="numpy", dtype=ml_dtypes.bfloat16).dtype == "bfloat16"


@pytest.mark.parametrize("name", ["sd", "flux2", "gelu"])
def test_an_array_api_namespace_alone_is_a_backend(name):
    register_backend(Strict())
    config, (_, weights) = CONFIGS[name], oracle(name)
    vae = AutoencoderKL(config, weights, backend="strict", dtype="float64")
    x, moments, z, pictures = expected(name, "square")
    posterior = vae.encode(x).latent_dist
    assert relative_l2(vae.to_numpy(posterior.mean), moments[:, : config.latent_channels]) <= 1e-13
    assert relative_l2(vae.to_numpy(vae.decode(z).sample), pictures) <= 1e-13
    numpy_vae = AutoencoderKL(config, weights, backend="numpy", dtype="float64")
    latents = vae.to_numpy(vae.encode_latents(x, seed=1))
    assert relative_l2(latents, numpy_vae.encode_latents(x, seed=1)) <= 1e-13
    assert vae.to_numpy(vae(x).sample).shape == x.shape
    vae.enable_slicing()
    assert relative_l2(vae.to_numpy(vae.decode(vae._ops.from_numpy(z)).sample), pictures) <= 1e-13


def test_a_registered_backend_hides_an_installed_one():
    class Mine(Strict):
        name = "numpy"

    register_backend(Mine())
    assert vaespec.backend.get_backend("numpy").framework == "array-api-strict"


class Broken(Strict):
    name = "broken"

    def devices(self):
        raise OSError("libchip.so: cannot open shared object file")


def test_a_framework_that_cannot_start_is_told_to_who_asks_and_passed_over_otherwise():
    register_backend(Broken())
    with pytest.raises(BackendError, match=r"backend 'broken' cannot start \(OSError.*libchip.*repair"):
        AutoencoderKL.from_config(TINY, backend="broken")
    assert AutoencoderKL.from_config(TINY).backend == "numpy"


def test_models_in_several_threads_leave_blas_as_it_was():
    """The number of its threads belongs to the process; strips.py sets it while it works."""

    def blas():
        return sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())

    vae, x = AutoencoderKL.from_config(TINY, backend="numpy"), np.zeros((1, 3, 64, 64), np.float32)
    expected, before = vae(x).sample, blas()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: vae(x).sample, range(12)))
    assert blas() == before
    for result in results:
        np.testing.assert_array_equal(result, expected)
