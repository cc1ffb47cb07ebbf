"""A convolution of an upsampled map, computed without that map: 16 products in place of 36.

Along one axis of …, s₀, s₀, s₁, s₁, …, a filter g of 3 taps gives, at the first and at the second s₀,

    g₀ s₋₁ + (g₁ + g₂) s₀   and   (g₀ + g₁) s₀ + g₂ s₁

so the outputs of either kind are a convolution of s with 2 taps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from vaespec.ops import Padding

TAPS = ((1, 0, 0), (0, 1, 1)), ((1, 1, 0), (0, 0, 1))
"""For the outputs of either kind, and each of their 2 taps: which of the 3 taps it is the sum of."""


@dataclass(frozen=True)
class Upsampled2x:
    """Rows of the nearest upsampling of x (B, C, H, W), not computed: see vaespec_cpu.lazy.Upsampled2x."""

    x: Tensor
    above: int
    height: int

    @classmethod
    def of(cls, x: Tensor) -> Upsampled2x:
        """Describe all rows."""
        return cls(x, 0, 2 * x.shape[2])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of the map that readers see."""
        B, C, _, W = self.x.shape
        return B, C, self.height, 2 * W

    def rows(self, start: int, stop: int) -> Upsampled2x:
        """Rows start … stop - 1, not computed yet."""
        return Upsampled2x(self.x, self.above + start, stop - start)

    def whole(self) -> Tensor:
        """Compute the map."""
        return F.interpolate(self.x, scale_factor=2.0, mode="nearest")[:, :, self.above : self.above + self.height]

    def suits(self, kernel: Tensor, stride: int, padding: Padding) -> bool:
        """Whether `convolved` can compute a convolution: 3 x 3 taps, and zeros only beyond the borders of x."""
        (above, below), sides = padding
        inside = (above and self.above) or (below and self.above + self.height < 2 * self.x.shape[2])
        return kernel.shape[2:] == (3, 3) and stride == 1 and sides == (1, 1) and max(above, below) <= 1 and not inside

    def convolved(self, kernel: Tensor, bias: Tensor, padding: Padding) -> Tensor:
        """Compute a convolution that `suits`."""
        (B, _, H, W), O = self.x.shape, len(kernel)
        y = self.x.new_empty((B, 2 * H, 2 * W, O)).movedim(-1, 1)
        for (p, q), taps in summed(kernel):
            y[:, :, p::2, q::2] = F.conv2d(self.x, taps, bias, padding=1)[:, :, p : p + H, q : q + W]
        (above, below), _ = padding
        return y[:, :, self.above + 1 - above : self.above + self.height - 1 + below]


def summed(kernel: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Yield (p, q), and the taps (O, I, 2, 2) of the outputs at 2 i + p, 2 j + q, from a kernel (O, I, 3, 3).

    Each tap is rounded once.
    """
    O, I = kernel.shape[:2]
    taps = kernel.new_tensor(TAPS)
    sums = torch.einsum("pik,qjl->pqijkl", taps, taps).reshape(16, 9) @ kernel.movedim(1, -1).reshape(O, 9, I)
    by_output = sums.reshape(O, 2, 2, 2, 2, I).movedim(-1, 1)
    for p, q in product(range(2), range(2)):
        yield (p, q), by_output[:, :, p, q]
