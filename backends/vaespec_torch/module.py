"""AutoencoderKLModule: the model as PyTorch users expect it, with diffusers' state-dict names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vaespec.copying import Guarded
from vaespec.model import Model
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec_torch.ops import CheckpointingOps, TorchOps, in_device_order


class AutoencoderKLModule(Guarded, nn.Module):
    """An `nn.Module` around the specification: its parameters train, its state_dict is diffusers'.

    `encode(x)` (B, C, H, W) in [-1, 1] -> AutoencoderKLOutput; `decode(z)` -> DecoderOutput; calling it does both.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.config = model.config
        self._model = model.bare(model.ops)
        table = model.table()
        for name, tensor in model.params.items():
            own = in_device_order(tensor) if tensor.ndim == 4 else tensor.contiguous()  # safetensors' order
            _register(self, name, own, trains=table[name].trained)
        self._places = [(name, *name.rpartition(".")[::2]) for name, row in table.items() if row.trained]

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Images -> posterior."""
        return self._model.encode(self._tensors(), x)

    def decode(self, z: Tensor) -> DecoderOutput:
        """Latents -> images."""
        return self._model.decode(self._tensors(), z)

    def forward(self, x: Tensor, sample_posterior: bool = False, **options: Any) -> DecoderOutput:
        """Images -> images, through the posterior's mode or a sample (`options`: see DiagonalGaussian.sample)."""
        posterior = self.encode(x).latent_dist
        z = posterior.sample(**options) if sample_posterior else posterior.mode()
        return self.decode(z).replace(posterior=posterior)

    def enable_gradient_checkpointing(self) -> None:
        """Keep only the layers' inputs for the gradient, and compute the rest again."""
        self._model = self._model.bare(CheckpointingOps.like(self._model.ops))

    def disable_gradient_checkpointing(self) -> None:
        """Keep every activation for the gradient."""
        self._model = self._model.bare(TorchOps.like(self._model.ops))

    @property
    def is_gradient_checkpointing(self) -> bool:
        """Whether gradient checkpointing is enabled."""
        return isinstance(self._model.ops, CheckpointingOps)

    def _tensors(self) -> dict[str, Tensor]:
        """The tensors by name, looked up anew each time: a parametrization puts a property in a parameter's place."""
        return {name: getattr(self.get_submodule(path), leaf) for name, path, leaf in self._places}


def _register(root: nn.Module, name: str, tensor: Tensor, *, trains: bool) -> None:
    """Register a tensor under its dotted name, with an empty module for each part of the name."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if trains:
        root.register_parameter(leaf, nn.Parameter(tensor.detach()))
    else:
        root.register_buffer(leaf, tensor.detach())
