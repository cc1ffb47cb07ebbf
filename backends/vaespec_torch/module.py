"""AutoencoderKLModule: the model as PyTorch users expect it, with diffusers' state-dict names."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vaespec.architecture import decoder, encoder, parameters
from vaespec.config import AutoencoderConfig
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec_torch.ops import TorchOps


class AutoencoderKLModule(nn.Module):
    """An `nn.Module` around the specification: its parameters train, its state_dict is diffusers'.

    `encode(x)` (B, C, H, W) in [-1, 1] -> AutoencoderKLOutput; `decode(z)` -> DecoderOutput; calling it does both.
    """

    def __init__(self, config: AutoencoderConfig, params: dict[str, Any], ops: TorchOps) -> None:
        super().__init__()
        self.config = config
        self._ops = ops
        self._encoder_layers, self._decoder_layers = encoder(config), decoder(config)
        for name, row in parameters(config).items():
            _register(self, name, params[name], trains=row.trained)

    def encode(self, x: Tensor) -> AutoencoderKLOutput:
        """Images -> posterior."""
        return AutoencoderKLOutput(DiagonalGaussian(self._encoder_layers(x, self._tensors(), self._ops)))

    def decode(self, z: Tensor) -> DecoderOutput:
        """Latents -> images."""
        return DecoderOutput(self._decoder_layers(z, self._tensors(), self._ops))

    def forward(self, x: Tensor, sample_posterior: bool = False, **how: Any) -> DecoderOutput:
        """Images -> images, through the posterior's mode, or a sample of it (`how`: see DiagonalGaussian.sample)."""
        posterior = self.encode(x).latent_dist
        z = posterior.sample(**how) if sample_posterior else posterior.mode()
        return self.decode(z).replace(posterior=posterior)

    def _tensors(self) -> dict[str, Tensor]:
        return dict(self.named_parameters())


def _register(root: nn.Module, name: str, tensor: Tensor, *, trains: bool) -> None:
    """Hang a tensor under its dotted name: an empty module for each part, as nn.Module builds state-dict names."""
    *path, leaf = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    if trains:
        root.register_parameter(leaf, nn.Parameter(tensor.detach()))
    else:
        root.register_buffer(leaf, tensor.detach())
