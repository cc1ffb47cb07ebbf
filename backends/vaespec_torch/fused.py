"""The operations of a run on maps that lie as (B, H, W, C), some put off until their results are read.

PyTorch's group norm would change that order and back, and a convolution of a doubled map read every pixel four times.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vaespec.ops import Padding
from vaespec_torch.doubled import Doubled
from vaespec_torch.ops import TorchOps

FAR = 8.0
"""Standard deviations. Squares of what is no farther from zero are at most 65 times σ², and cost it 6 bits of 24."""


class Norm(NamedTuple):
    """A group norm that nobody has read yet."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    groups: int
    eps: float


class FusedOps(TorchOps):
    """TorchOps for one run without gradients. A norm waits for its activation: with Triton, both are one pass.

    A doubled map waits for its convolution.
    """

    def conv2d(self, x: Tensor | Doubled, w: Tensor, b: Tensor, *, stride: int, padding: Padding) -> Tensor:
        if isinstance(x, Doubled):
            if x.suits(w, stride, padding):
                return x.convolved(w, b, padding)
            x = x.whole()
        return super().conv2d(x, w, b, stride=stride, padding=padding)

    def upsample_nearest2x(self, x: Tensor) -> Doubled:  # type: ignore[override]
        return Doubled.of(x)

    def rows(self, x: Tensor | Doubled, start: int, stop: int) -> Tensor | Doubled:
        return x.rows(start, stop) if isinstance(x, Doubled) else super().rows(x, start, stop)

    def to_array(self, x: Tensor | Doubled) -> Tensor:
        return x.whole() if isinstance(x, Doubled) else x

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
        y = _near_zero(norm) if self.on_host else None
        y = self._of_moments(norm) if y is None else y
        return F.silu(y, inplace=True) if silu else y

    def _of_moments(self, norm: Norm) -> Tensor:
        """From moments in two passes, as exact far from zero."""
        x, scale, shift, groups, eps = norm
        mean, sigma2 = zip(*(_moments(sample, groups) for sample in torch.split(x, 1)), strict=True)
        return self.normalize(x, torch.cat(mean), torch.cat(sigma2), scale, shift, eps=eps)


def _near_zero(norm: Norm) -> Tensor | None:
    """PyTorch's group norm, unless a mean is so large that its σ², which is E[x²] - E[x]² in this order, cancels."""
    x, scale, shift, groups, eps = norm
    B, C, H, W = x.shape
    y, mean, rstd = torch.native_group_norm(x, scale.float(), shift.float(), B, C, H * W, groups, eps)
    return y if (mean * rstd).abs().max() <= FAR else None


def _moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and σ² of one sample's groups, each for all of its channels (1, C), float32: of those of its channels."""
    C = x.shape[1]
    running = x.new_zeros(C, dtype=torch.float32)  # not used, but the results are of its dtype
    of_channels = torch.batch_norm_update_stats(x, running, running, momentum=0.0)
    mean_c, sigma2_c = (m.reshape(groups, -1) for m in of_channels)
    mean = mean_c.mean(1, keepdim=True)
    sigma2 = (sigma2_c + (mean_c - mean).square()).mean(1, keepdim=True)
    return mean.expand_as(mean_c).reshape(1, C), sigma2.expand_as(mean_c).reshape(1, C)


def _triton(x: Tensor) -> bool:
    return x.is_cuda and _installed("triton")


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None
