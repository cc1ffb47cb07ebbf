"""The parts of AutoencoderKLModule: modules with a forward, which hooks, FSDP, accelerate and torch.compile wrap."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vaespec.layers import Sequential
from vaespec_torch.owners import Compute, ModuleOps, Owner


class Part(nn.Module):
    """A half, or the 1 x 1 convolution between a half and the latents, with its parameters beneath it.

    `m.encoder(x)` are the moments before quant_conv; `m.decoder(z)` takes latents after post_quant_conv.
    """

    def __init__(self, layers: Sequential, ops: ModuleOps) -> None:
        super().__init__()
        self.ops, self.layers = ops, layers

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers: (B, C, H, W) -> (B, C, H, W)."""
        return self.layers(x, self._params(), self.ops)

    def _params(self) -> dict[str, Any]:
        """For each name the owner of the parameter, to be called; for the part's own parameters, the tensor.

        They are looked up anew each time: parametrizations, FSDP and offloading put others in their place.
        """
        found: dict[str, Any] = {}
        for name, row in self.layers.parameters():
            path, _, leaf = name.partition(".")[2].rpartition(".")
            owner = self.get_submodule(path)
            found[name] = Owner(owner, row.shape, _enter) if path else getattr(owner, leaf)
        return found


class Weights(nn.Module):
    """The parameters of one layer, which compute when they are called: so hooks run around each layer."""

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        weight: Any = self.weight  # a parameter, a parametrization's result, or what FSDP gathered
        return compute(x, weight, getattr(self, "bias", None))


def _enter(owner: nn.Module, x: Tensor, compute: Compute) -> Tensor:
    return owner(x, compute)
