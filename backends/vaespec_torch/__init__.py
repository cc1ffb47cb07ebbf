"""vaespec on PyTorch: CPU and CUDA, autograd, and an `nn.Module` view. PyTorch is imported when first used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaespec.config import AutoencoderConfig
    from vaespec_torch.module import AutoencoderKLModule
    from vaespec_torch.ops import TorchOps


class TorchBackend:
    """What `backend="torch"` stands for."""

    name = "torch"
    framework = "torch"
    dtypes = ("float32", "float64", "bfloat16", "float16")

    def devices(self) -> tuple[str, ...]:
        import torch

        cuda = tuple(f"cuda:{i}" for i in range(torch.cuda.device_count()))
        return (*cuda, *(("mps",) if torch.backends.mps.is_available() else ()), "cpu")

    def ops(self, device: str, dtype: str) -> TorchOps:
        from vaespec_torch.ops import TorchOps

        return TorchOps(device, dtype)

    def module(self, config: AutoencoderConfig, params: dict[str, Any], ops: TorchOps) -> AutoencoderKLModule:
        """The model as an `nn.Module` that trains; it takes the tensors of `params` as its own."""
        from vaespec_torch.module import AutoencoderKLModule

        return AutoencoderKLModule(config, params, ops)


backend = TorchBackend()
