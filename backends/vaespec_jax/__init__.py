"""vaespec on JAX: CPU, GPU, TPU; pure functions for jit, grad, vmap and sharding. JAX is imported when first used."""

from __future__ import annotations

from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from vaespec import machine

if TYPE_CHECKING:
    from vaespec_jax.ops import JaxOps

GPU_PLUGINS = ("jax-cuda12-plugin", "jax-cuda13-plugin")


class JaxBackend:
    """The backend named "jax"."""

    name = "jax"
    framework = "jax"
    dtypes = ("float32", "float64", "bfloat16", "float16")
    native = ("conv2d", "group_norm", "silu", "mish", "gelu", "relu", "upsample_nearest2x", "linear", "attention")
    switches: ClassVar = {
        "JAX_ENABLE_X64": "not set: no float64",
        "JAX_DEFAULT_MATMUL_PRECISION": "not set: TF32 products on GPUs, bfloat16 on TPUs, unless precision='highest'",
    }

    def accelerators(self) -> tuple[str, ...]:
        gpus = machine.nvidia_gpus() if any(map(_installed, GPU_PLUGINS)) else 0
        tpus = machine.tpus() if _installed("libtpu") else 0
        return (*(f"gpu:{i}" for i in range(gpus)), *(f"tpu:{i}" for i in range(tpus)))

    def devices(self) -> tuple[str, ...]:
        import jax

        accelerators = [f"{device.platform}:{device.id}" for device in jax.local_devices() if device.platform != "cpu"]
        try:
            cpus = [f"cpu:{device.id}" for device in jax.local_devices(backend="cpu")]
        except RuntimeError:  # JAX_PLATFORMS leaves it out
            return tuple(accelerators)
        return (*accelerators, "cpu", *cpus[1:])

    def ops(self, device: str, dtype: str, precision: str) -> JaxOps:
        from vaespec_jax.ops import JaxOps

        return JaxOps(device, dtype, precision)

    def keep_programs(self, folder: Path) -> None:
        """Keeps compiled programs in `folder`, which other processes read; JAX's own settings have priority."""
        import jax

        if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
            settings = {
                "jax_compilation_cache_dir": str(folder),
                "jax_persistent_cache_min_compile_time_secs": 0.0,  # there are many programs, each compiled quickly
                "jax_persistent_cache_min_entry_size_bytes": -1,
            }
            for name, value in settings.items():
                jax.config.update(name, value)  # type: ignore[no-untyped-call]


def _installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


backend = JaxBackend()
