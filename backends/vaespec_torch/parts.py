"""The parts of AutoencoderKLModule: modules with a forward, which hooks, FSDP, accelerate and torch.compile wrap."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from vaespec.layers import Sequential
from vaespec.ops import Layer, Padding
from vaespec_torch.ops import TorchOps

Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


class Part(nn.Module):
    """A half, or the 1 x 1 convolution between a half and the latents, with its parameters beneath it.

    `m.encoder(x)` are the moments before quant_conv; `m.decoder(z)` takes latents after post_quant_conv.
    """

    def __init__(self, layers: Sequential, ops: TorchOps) -> None:
        super().__init__()
        self.ops, self._layers = ops, layers
        names = [name for name, _ in layers.parameters()]
        self._places = [(name, *name.partition(".")[2].rpartition(".")[::2]) for name in names]

    def forward(self, x: Tensor) -> Tensor:
        """Run the layers: (B, C, H, W) -> (B, C, H, W)."""
        return self._layers(x, self._params(), self.ops)

    def _params(self) -> dict[str, Any]:
        """For each name the module that owns the parameter, to be called; for the part's own parameters, the tensor.

        They are looked up anew each time: parametrizations, FSDP and offloading put others in their place.
        """
        found: dict[str, Any] = {}
        for name, path, leaf in self._places:
            owner = self.get_submodule(path)
            found[name] = owner if path and leaf in ("weight", "bias") else getattr(owner, leaf)
        return found


class Weights(nn.Module):
    """The parameters of one layer, which compute when they are called: so hooks run around each layer."""

    def forward(self, x: Tensor, compute: Compute) -> Tensor:
        weight: Any = self.weight  # a parameter, a parametrization's result, or what FSDP gathered
        return compute(x, weight, getattr(self, "bias", None))


class ModuleOps(TorchOps):
    """TorchOps for which a kernel may be the module that owns it."""

    def conv2d(self, x: Tensor, w: Any, b: Any, *, stride: int, padding: Padding) -> Tensor:
        return _owned(partial(super().conv2d, stride=stride, padding=padding), x, w, b)

    def group_norm(self, x: Tensor, scale: Any, shift: Any, *, groups: int, eps: float) -> Tensor:
        return _owned(partial(super().group_norm, groups=groups, eps=eps), x, scale, shift)

    def linear(self, t: Tensor, w: Any, b: Any) -> Tensor:
        return _owned(super().linear, t, w, b)

    def widen(self, weight: Any) -> Any:
        """A module widens what it owns within its own call, since a hook may bring it there."""
        widen = super().widen
        if isinstance(weight, Tensor):
            return widen(weight)

        def call(x: Tensor, compute: Compute) -> Tensor:
            return weight(x, lambda x, w, b: compute(x, widen(w), None if b is None else widen(b)))

        return call


class CheckpointingOps(ModuleOps):
    """Computes each layer again for the gradient, and keeps only its input: less memory for a third more time."""

    def run(self, layer: Layer, x: Tensor, params: Mapping[str, Any]) -> Tensor:
        return checkpoint(super().run, layer, x, params, use_reentrant=False)


def _owned(compute: Compute, x: Tensor, w: Any, b: Any) -> Tensor:
    """Compute with a weight and a bias, within the call of the module that owns them, if there is one."""
    return compute(x, w, b) if isinstance(w, Tensor) else w(x, compute)
