"""vaespec on MLX: Metal on Apple's chips, CPUs elsewhere, and an `mlx.nn.Module`. MLX is imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from vaespec import machine

if TYPE_CHECKING:
    from vaespec.model import Model
    from vaespec_mlx.module import AutoencoderKLModule
    from vaespec_mlx.ops import MlxOps


class MlxBackend:
    """The backend named "mlx"."""

    name = "mlx"
    framework = "mlx"
    dtypes = ("float32", "bfloat16", "float16")
    native = ("conv2d", "group_norm", "silu", "mish", "gelu", "relu", "upsample_nearest2x", "linear", "attention")
    switches: ClassVar = {
        "MLX_ENABLE_TF32": "not set: float32 products may be TF32 on GPUs that have it; 0 makes them float32",
        "MLX_CONV_WINOGRAD_WORKING_SET": "not set: large convolutions on Metal by Winograd's method; 1 turns it off",
    }

    def accelerators(self) -> tuple[str, ...]:
        return ("gpu",) if machine.apple_gpu() else ()

    def devices(self) -> tuple[str, ...]:
        import mlx.core as mx

        return ("gpu", "cpu") if mx.is_available(mx.gpu) else ("cpu",)

    def ops(self, device: str, dtype: str, precision: str) -> MlxOps:
        from vaespec_mlx.ops import MlxOps

        return MlxOps(device, dtype, precision)

    def module(self, model: Model) -> AutoencoderKLModule:
        """Return the model as an `mlx.nn.Module` that trains copies of its parameters."""
        from vaespec_mlx.module import AutoencoderKLModule

        return AutoencoderKLModule(model)


backend = MlxBackend()
