"""The operations of a run on a GPU, where a norm waits for its activation, so that both are one pass over a map."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

from torch import Tensor

from vaespec_torch.ops import TorchOps


class Norm(NamedTuple):
    """A group norm that nobody has read yet."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    groups: int
    eps: float


class FusedOps(TorchOps):
    """TorchOps for one run without gradients; with kernels of our own where Triton is, as with PyTorch for CUDA."""

    def group_norm(self, x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float) -> Norm:  # type: ignore[override]
        return Norm(x, scale, shift, groups, eps)

    def silu(self, x: Tensor | Norm) -> Tensor:
        return self._made(x, silu=True) if isinstance(x, Norm) else super().silu(x)

    def mish(self, x: Tensor | Norm) -> Tensor:
        return super().mish(self._made(x))

    def gelu(self, x: Tensor | Norm) -> Tensor:
        return super().gelu(self._made(x))

    def relu(self, x: Tensor | Norm) -> Tensor:
        return super().relu(self._made(x))

    def tokens(self, x: Tensor | Norm) -> Tensor:
        tokens: Tensor = super().tokens(self._made(x))
        return tokens

    def _made(self, norm: Tensor | Norm, silu: bool = False) -> Tensor:
        """A map, and its SiLU if asked for."""
        if isinstance(norm, Tensor):
            return norm
        x, scale, shift, groups, eps = norm
        if _triton():
            from vaespec_torch import group_norm

            if group_norm.suits(x.shape[1], groups):
                return group_norm.group_norm(x, scale, shift, groups=groups, eps=eps, silu=silu)
        y = super().group_norm(x, scale, shift, groups=groups, eps=eps)
        return super().silu(y) if silu else y


@cache
def _triton() -> bool:
    return find_spec("triton") is not None
