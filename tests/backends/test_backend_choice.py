"""The choice of a backend, the list of backends, and the error if one cannot be used."""

from __future__ import annotations

import importlib
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import array_api_strict
import jax.numpy as jnp
import ml_dtypes
import mlx.core as mx
import numpy as np
import pytest
import torch
from support.configs import CONFIGS, TINY, relative_l2
from support.models import BACKENDS, each_backend
from support.oracle import expected, oracle
from threadpoolctl import threadpool_info

import vaespec
import vaespec.backend
from vaespec import AutoencoderKL, BackendError, ReferenceOps, backends, machine, register_backend
from vaespec.ops import KERNELS
from vaespec.registry import choose_backend, get_backend


class Strict:
    """The smallest backend: an Array API namespace."""

    name = "strict"
    framework = "array-api-strict"
    dtypes = ("float32", "float64")

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        return ReferenceOps(array_api_strict, dtype)


class Missing(Strict):
    name = "cuneiform"
    framework = "no-such-framework"


class Broken(Strict):
    name = "broken"

    def accelerators(self) -> tuple[str, ...]:
        return ("cuda:0",)

    def devices(self) -> tuple[str, ...]:
        raise OSError("libchip.so: cannot open shared object file")


@pytest.fixture(autouse=True)
def _nothing_is_accelerated(monkeypatch):
    for probe in ("nvidia_gpus", "tpus", "apple_gpu"):
        monkeypatch.setattr(machine, probe, lambda: 0)


@pytest.fixture
def has(monkeypatch):
    """has("torch", "cuda:0"): a backend that reports a device, and can use it unless another is `usable`."""

    def has(name: str, reported: str, usable: str | None = None) -> None:
        cls = type(get_backend(name))
        monkeypatch.setattr(cls, "accelerators", lambda self: (reported,))
        monkeypatch.setattr(cls, "devices", lambda self: (usable or reported, "cpu"))

    return has


@pytest.fixture
def not_installed(monkeypatch):
    """not_installed("torch"): hides an installed distribution."""
    absent: set[str] = set()
    installed = metadata.version

    def version(distribution: str) -> str:
        if distribution in absent:
            raise metadata.PackageNotFoundError(distribution)
        return installed(distribution)

    monkeypatch.setattr(metadata, "version", version)
    return absent.add


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install("clay-tablets", "code"): installs a distribution with the entry point `mine`."""
    monkeypatch.syspath_prepend(tmp_path)
    modules = []

    def install(distribution: str, code: str) -> None:
        module = distribution.replace("-", "_")
        modules.append(module)
        (tmp_path / f"{module}.py").write_text(code)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{vaespec.registry.GROUP}]\nmine = {module}:backend\n")
        importlib.invalidate_caches()
        vaespec.registry._entry_points.cache_clear()

    yield install
    vaespec.registry._entry_points.cache_clear()
    for module in modules:
        sys.modules.pop(module, None)


def described(name: str) -> vaespec.registry.BackendInfo:
    """The row of a backend in `backends()`; also checks that the rows of the other backends are good."""
    rows = {info.name: info for info in backends()}
    assert all(rows[own].available for own in BACKENDS if own != name)
    return rows[name]


# -- the choice ---------------------------------------------------------------------------------------------------


def test_the_argument_comes_before_the_environment_and_the_environment_before_an_accelerator(monkeypatch, has):
    has("torch", "cuda:0")
    monkeypatch.setenv("VAESPEC_BACKEND", "mlx")
    assert choose_backend().name == "mlx"
    assert choose_backend("numpy").name == "numpy"


def test_without_an_argument_a_model_uses_the_backend_of_the_environment(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "torch")
    assert AutoencoderKL.from_config(TINY).backend == "torch"
    assert AutoencoderKL.from_config(TINY, backend="numpy").backend == "numpy"


def test_an_empty_environment_variable_chooses_nothing(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "")
    assert choose_backend().name == "numpy"


def test_an_unknown_backend_in_the_environment_is_refused_with_the_variables_name(monkeypatch):
    monkeypatch.setenv("VAESPEC_BACKEND", "cupy")
    names = "numpy, jax, mlx, reference, torch"
    with pytest.raises(
        BackendError, match=f"^VAESPEC_BACKEND: no backend named 'cupy': choose {names}, or the import path"
    ):
        AutoencoderKL.from_config(TINY)


def test_without_an_accelerator_numpy_is_used():
    assert choose_backend().name == "numpy"


@pytest.mark.parametrize(
    ("devices", "chosen"),
    [
        ({"torch": "cuda:0"}, "torch"),
        ({"jax": "gpu:0"}, "jax"),
        ({"jax": "tpu:0"}, "jax"),
        ({"mlx": "gpu"}, "mlx"),
        ({"torch": "mps"}, "torch"),
        ({"jax": "tpu:0", "torch": "cuda:0"}, "torch"),
        ({"jax": "gpu:0", "torch": "cuda:0"}, "torch"),
        ({"jax": "tpu:0", "mlx": "gpu"}, "jax"),
        ({"mlx": "tpu", "jax": "gpu:0"}, "mlx"),
        ({"mlx": "gpu", "torch": "mps"}, "mlx"),
        ({"jax": "gpu:0", "torch": "mps"}, "jax"),
        ({"jax": "npu:0", "torch": "mps"}, "torch"),
        ({"torch": "npu:0"}, "torch"),
    ],
)
def test_cuda_comes_before_tpu_before_gpu_before_mps_before_others(has, devices, chosen):
    for name, device in devices.items():
        has(name, device)
    assert choose_backend().name == chosen


def test_an_accelerator_that_the_framework_cannot_use_is_passed_over(has):
    has("torch", "cuda:0", usable="cpu")
    assert choose_backend().name == "numpy"
    has("mlx", "gpu")
    assert choose_backend().name == "mlx"


def test_an_accelerator_of_a_framework_that_is_not_installed_is_passed_over(has, not_installed):
    has("torch", "cuda:0")
    has("mlx", "gpu")
    not_installed("torch")
    assert choose_backend().name == "mlx"


def test_a_framework_that_cannot_start_raises_if_requested_and_is_passed_over_otherwise(has):
    register_backend(Broken())
    with pytest.raises(
        BackendError, match=r"backend 'broken' cannot start \(OSError.*libchip.*repair array-api-strict"
    ):
        AutoencoderKL.from_config(TINY, backend="broken")
    assert AutoencoderKL.from_config(TINY).backend == "numpy"
    has("mlx", "gpu")
    assert choose_backend().name == "mlx"


def test_out_of_memory_is_not_told_as_a_broken_framework(monkeypatch):
    def full(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr("vaespec_mlx.MlxBackend.devices", full)
    with pytest.raises(MemoryError):
        AutoencoderKL.from_config(TINY, backend="mlx")
    monkeypatch.setattr("vaespec_mlx.MlxBackend.accelerators", full)
    with pytest.raises(MemoryError):
        described("mlx")


def test_the_error_names_our_extra_if_a_framework_cannot_start(monkeypatch):
    monkeypatch.setattr("vaespec_mlx.MlxBackend.devices", Broken.devices)
    with pytest.raises(BackendError, match=r'repair mlx \(pip install "vaespec\[mlx\]"\), or choose another backend\.'):
        AutoencoderKL.from_config(TINY, backend="mlx")


def test_a_backend_that_fails_to_list_accelerators_is_passed_over_and_reported(monkeypatch, has):
    has("mlx", "gpu")
    monkeypatch.setattr("vaespec_torch.TorchBackend.accelerators", Broken.devices)
    assert choose_backend().name == "mlx"
    assert "backend 'torch' of vaespec is broken (OSError('libchip.so" in described("torch").problem


def test_a_registered_backend_hides_an_installed_one():
    class Mine(Strict):
        name = "numpy"

    register_backend(Mine())
    assert get_backend("numpy").framework == "array-api-strict"
    assert described("numpy").distribution == "this process"


# -- the list ----------------------------------------------------------------------------------------------------


def test_backends_are_listed_numpy_first_with_what_they_need():
    register_backend(Missing())
    assert [info.name for info in backends()] == ["numpy", *sorted({*BACKENDS[1:], "cuneiform", "reference"})]
    torch_row = described("torch")
    assert torch_row.version == metadata.version("torch")
    assert torch_row.distribution == "vaespec"
    assert torch_row.devices == ("cpu",)
    row = described("cuneiform")
    assert not row.available
    assert (row.version, row.devices, row.distribution) == (None, (), "this process")


def test_the_listed_devices_are_the_accelerators_and_the_cpu(monkeypatch):
    monkeypatch.setattr(machine, "apple_gpu", lambda: True)
    assert described("mlx").devices == ("gpu", "cpu")
    assert described("torch").devices == ("mps", "cpu")


def test_switches_are_listed_with_their_values_and_defaults(monkeypatch):
    monkeypatch.setenv("JAX_ENABLE_X64", "1")
    monkeypatch.delenv("MLX_ENABLE_TF32", raising=False)
    jax_switch, mlx_switch = described("jax").switches["JAX_ENABLE_X64"], described("mlx").switches["MLX_ENABLE_TF32"]
    assert (jax_switch.value, jax_switch.default) == ("1", "not set: no float64")
    assert mlx_switch.value is None
    assert "TF32" in mlx_switch.default


@pytest.mark.parametrize("op", KERNELS)
@each_backend
def test_an_operation_is_listed_as_native_if_the_backend_has_a_kernel_for_it(backend, op):
    instance = get_backend(backend)
    assert instance.ops("cpu", "float32", "default").provenance(op) == described(backend).ops[op]
    assert set(instance.native) <= set(KERNELS)


# -- errors -------------------------------------------------------------------------------------------------------


def test_an_unknown_backend_is_refused_with_the_known_ones():
    with pytest.raises(BackendError, match=r"^no backend named 'tensorflow': choose numpy, jax, mlx, reference, torch"):
        AutoencoderKL.from_config(TINY, backend="tensorflow")


def test_the_error_of_a_missing_framework_says_how_to_install_it():
    register_backend(Missing())
    with pytest.raises(
        BackendError, match=r"'cuneiform' needs no-such-framework, .*: pip install no-such-framework\.$"
    ):
        AutoencoderKL.from_config(TINY, backend="cuneiform")


@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
def test_a_missing_framework_of_our_backends_is_named_with_its_extra(backend, not_installed):
    not_installed(backend)
    sentence = f'backend {backend!r} needs {backend}, which is not installed: pip install "vaespec[{backend}]".'
    with pytest.raises(BackendError) as refused:
        AutoencoderKL.from_config(TINY, backend=backend)
    assert str(refused.value) == described(backend).problem == sentence
    assert described(backend).version is None
    assert choose_backend().name == "numpy"


BACKEND = """
class Mine:
    name, framework, dtypes = "mine", "numpy", ("float32",)
    def devices(self): return ("cpu",)
    def ops(self, device, dtype, precision): ...
"""


def test_a_plugin_is_listed_with_its_distribution(install):
    install("clay-tablets", f"{BACKEND}\nbackend = Mine()")
    row = described("mine")
    assert row.available
    assert row.distribution == "clay-tablets"
    assert set(row.ops.values()) == {"fallback"}
    assert row.switches == {}


def test_two_plugins_with_one_name_are_an_error_that_names_both(install):
    for distribution in ("wax-tablets", "clay-tablets"):
        install(distribution, f"{BACKEND}\nbackend = Mine()")
    with pytest.raises(BackendError, match="'mine' is provided by clay-tablets and wax-tablets: uninstall one of them"):
        get_backend("mine")
    assert described("mine").distribution == "clay-tablets and wax-tablets"
    assert "uninstall one" in described("mine").problem


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (
            "import no_such_module",
            r"cannot be loaded \(ModuleNotFoundError\(.*no_such_module.*repair or uninstall clay",
        ),
        ("raise OSError('no clay')", r"cannot be loaded \(OSError\('no clay'\)\): repair or uninstall clay-tablets\.$"),
        ("", r"cannot be loaded \(AttributeError\(.*'backend'"),
        ("backend = 3", r"lacks name, framework, dtypes, devices, ops: see vaespec\.backend\.Backend\.$"),
        (f"{BACKEND}\nbackend = Mine()\ndel Mine.devices, Mine.ops", r"lacks devices, ops: see"),
        (
            f"{BACKEND}\nMine.dtypes = property(lambda self: 1 / 0)\nbackend = Mine()",
            r"cannot be loaded \(ZeroDivision",
        ),
    ],
)
def test_the_error_of_a_broken_plugin_names_its_distribution_and_the_cause(install, code, words):
    install("clay-tablets", code)
    with pytest.raises(BackendError, match=f"^backend 'mine' of clay-tablets {words}"):
        get_backend("mine")
    row = described("mine")
    assert not row.available
    assert row.problem.startswith("backend 'mine' of clay-tablets ")
    assert choose_backend().name == "numpy"


@pytest.mark.parametrize(
    "change",
    ["dtypes = None", "framework = None", "native = None", "switches = 3", "accelerators = lambda self: 1 / 0"],
)
def test_a_plugin_with_wrong_members_leaves_the_other_rows_good(install, change):
    install("clay-tablets", f"{BACKEND}    {change}\nbackend = Mine()")
    assert "backend 'mine' of clay-tablets is broken (" in described("mine").problem
    assert choose_backend().name == "numpy"


def test_an_object_without_a_backends_members_cannot_be_registered():
    with pytest.raises(BackendError, match="lacks name, framework, dtypes, devices, ops"):
        register_backend(3.14)


UNKNOWN_DTYPES = [(backend, "int8") for backend in BACKENDS] + [("mlx", "float64")]


@pytest.mark.parametrize(("backend", "dtype"), UNKNOWN_DTYPES)
def test_an_unknown_dtype_is_refused_with_the_known_ones(backend, dtype):
    known = ", ".join(get_backend(backend).dtypes)
    with pytest.raises(BackendError, match=f"^backend {backend!r} has no dtype {dtype!r}: choose {known}"):
        AutoencoderKL.from_config(TINY, backend=backend, dtype=dtype)


def test_float64_on_jax_is_refused_unless_jax_enables_it():
    with pytest.raises(BackendError, match="jax_enable_x64"):
        AutoencoderKL.from_config(TINY, backend="jax", dtype="float64")


@each_backend
def test_an_unknown_device_is_refused_with_the_known_ones(backend):
    words = f"^backend {backend!r} has no device 'tpu:0' here: choose .*cpu.*, or another backend"
    with pytest.raises(BackendError, match=words):
        AutoencoderKL.from_config(TINY, backend=backend, device="tpu:0")


@each_backend
def test_an_unknown_precision_is_refused_with_the_known_ones(backend):
    with pytest.raises(BackendError, match=r"^precision 'high': choose default or highest"):
        AutoencoderKL.from_config(TINY, backend=backend, precision="high")


FLOAT16 = [np.float16, np.dtype("float16"), torch.float16, jnp.float16, mx.float16, "float16", "torch.float16"]


@pytest.mark.parametrize("dtype", FLOAT16, ids=str)
@each_backend
def test_a_dtype_of_any_framework_is_taken(backend, dtype):
    vae = AutoencoderKL.from_config(TINY, backend=backend, device="cpu", dtype=dtype)
    assert vae.dtype == "float16"
    assert str(vae.decode(np.zeros((1, 4, 1, 1), np.float32)).sample.dtype).endswith("float16")


def test_bfloat16_of_ml_dtypes_is_taken():
    assert AutoencoderKL.from_config(TINY, backend="numpy", dtype=ml_dtypes.bfloat16).dtype == "bfloat16"


# -- models ------------------------------------------------------------------------------------------------------


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
    assert relative_l2(vae.to_numpy(vae.decode(vae._model.ops.from_numpy(z)).sample), pictures) <= 1e-13


def test_models_in_several_threads_leave_blas_as_it_was():
    """The number of BLAS threads belongs to the process; the CPU engine changes it during a run."""

    def blas():
        return sorted((pool["filepath"], pool["num_threads"]) for pool in threadpool_info())

    vae, x = AutoencoderKL.from_config(TINY, backend="numpy"), np.zeros((1, 3, 64, 64), np.float32)
    expected, before = vae(x).sample, blas()
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda _: vae(x).sample, range(12)))
    assert blas() == before
    for result in results:
        np.testing.assert_array_equal(result, expected)
