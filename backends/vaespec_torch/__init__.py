"""vaespec on PyTorch: CPU and CUDA, autograd, and an `nn.Module` view. PyTorch is imported when first used."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING, ClassVar

from vaespec import machine

if TYPE_CHECKING:
    from vaespec.model import Model
    from vaespec_torch.module import AutoencoderKLModule
    from vaespec_torch.ops import TorchOps


class TorchBackend:
    """The backend named "torch"."""

    name = "torch"
    framework = "torch"
    dtypes = ("float32", "float64", "bfloat16", "float16")
    native = ("conv2d", "group_norm", "silu", "mish", "gelu", "relu", "upsample_nearest2x", "linear", "attention")
    switches: ClassVar = {"NVIDIA_TF32_OVERRIDE": "not set: PyTorch decides, with TF32 convolutions on CUDA"}

    def accelerators(self) -> tuple[str, ...]:
        if machine.apple_gpu():
            return ("mps",)
        built_for_cpu = "+cpu" in metadata.version("torch")
        return () if built_for_cpu else tuple(f"cuda:{i}" for i in range(machine.nvidia_gpus()))

    def devices(self) -> tuple[str, ...]:
        import torch

        cuda = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        return (*cuda, *(("mps",) if torch.backends.mps.is_available() else ()), "cpu")

    def ops(self, device: str, dtype: str, precision: str) -> TorchOps:
        from vaespec_torch.ops import TorchOps

        return TorchOps(device, dtype, precision)

    def module(self, model: Model) -> AutoencoderKLModule:
        """Return the model as an `nn.Module` that trains copies of its parameters."""
        from vaespec_torch.module import AutoencoderKLModule

        return AutoencoderKLModule(model)


backend = TorchBackend()
