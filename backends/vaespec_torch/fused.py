"""The operations of a run on maps that lie as (B, H, W, C), whose order PyTorch's group norm would change and back."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
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
    """TorchOps for one run without gradients. A norm waits for its activation: with Triton, both are one pass."""

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
        if _triton(x):
            from vaespec_torch import group_norm

            if group_norm.suits(x.shape[1], groups):
                return group_norm.group_norm(x, scale, shift, groups=groups, eps=eps, silu=silu)
        y = self._of_moments(norm)
        return super().silu(y) if silu else y

    def _of_moments(self, norm: Norm) -> Tensor:
        """Of x less one number of each group: PyTorch's σ² is E[x²] - E[x]² in this order, and cancels far from 0."""
        x, scale, shift, groups, eps = norm
        B, C, H, W = x.shape
        width = C // groups
        centre = x[:, ::width, :1, :1]
        near = x - centre.repeat_interleave(width, 1)
        _, mean, rstd = torch.native_group_norm(near, scale.float(), shift.float(), B, C, H * W, groups, eps)
        moments = (centre.flatten(1) + mean, rstd**-2 - eps)
        mean, sigma2 = (each.repeat_interleave(width, 1) for each in moments)
        return self.normalize(x, mean, sigma2, scale, shift, eps=eps)


def _triton(x: Tensor) -> bool:
    return x.is_cuda and _installed("triton")


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None
