"""vaespec on NumPy alone: float32 and float64, 16-bit storage, every core."""

from __future__ import annotations

from vaespec_numpy.ops import NumpyOps


class NumpyBackend:
    """The backend named "numpy", which is always installed."""

    name = "numpy"
    framework = "numpy"
    dtypes = ("float32", "float64", "float16", "bfloat16")
    native = ("conv2d", "group_norm", "silu", "relu", "upsample_nearest2x", "linear", "attention")

    def devices(self) -> tuple[str, ...]:
        return ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> NumpyOps:
        return NumpyOps(dtype, precision)


backend = NumpyBackend()
