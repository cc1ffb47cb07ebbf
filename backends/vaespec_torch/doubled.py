"""A convolution of a map in which every pixel stands twice, without that map: 16 products in place of 36.

Along one side of …, s₀, s₀, s₁, s₁, …, a filter g of 3 taps gives, where s₀ stands first and second,

    g₀ s₋₁ + (g₁ + g₂) s₀   and   (g₀ + g₁) s₀ + g₂ s₁

so that the outputs of either kind are a convolution of s with 2 taps.
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
"""Of outputs of either kind, and each of their 2 taps: which of the 3 are its sum."""


@dataclass(frozen=True)
class Doubled:
    """x (B, C, H, W) with every pixel twice along both sides: `height` rows of that, but for the first `above`."""

    x: Tensor
    above: int
    height: int

    @classmethod
    def of(cls, x: Tensor) -> Doubled:
        """All rows."""
        return cls(x, 0, 2 * x.shape[2])

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W) of what it stands for."""
        B, C, _, W = self.x.shape
        return B, C, self.height, 2 * W

    def rows(self, start: int, stop: int) -> Doubled:
        """Rows start … stop - 1, not computed yet."""
        return Doubled(self.x, self.above + start, stop - start)

    def whole(self) -> Tensor:
        """The map."""
        return F.interpolate(self.x, scale_factor=2.0, mode="nearest")[:, :, self.above : self.above + self.height]

    def suits(self, kernel: Tensor, stride: int, padding: Padding) -> bool:
        """Whether a convolution of it is one of x: by 3 x 3 taps, with zeros beyond the borders of x alone."""
        (above, below), sides = padding
        inside = (above and self.above) or (below and self.above + self.height < 2 * self.x.shape[2])
        return kernel.shape[2:] == (3, 3) and stride == 1 and sides == (1, 1) and max(above, below) <= 1 and not inside

    def convolved(self, kernel: Tensor, bias: Tensor, padding: Padding) -> Tensor:
        """The result of a convolution that suits."""
        (B, _, H, W), O = self.x.shape, len(kernel)
        y = self.x.new_empty((B, 2 * H, 2 * W, O)).movedim(-1, 1)
        for (p, q), taps in summed(kernel):
            y[:, :, p::2, q::2] = F.conv2d(self.x, taps, bias, padding=1)[:, :, p : p + H, q : q + W]
        (above, below), _ = padding
        return y[:, :, self.above + 1 - above : self.above + self.height - 1 + below]


def summed(kernel: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """(O, I, 3, 3) -> for the outputs at 2 i + p, 2 j + q: (p, q) and their taps (O, I, 2, 2), each rounded once."""
    O, I = kernel.shape[:2]
    taps = kernel.new_tensor(TAPS)
    sums = torch.einsum("pik,qjl->pqijkl", taps, taps).reshape(16, 9) @ kernel.movedim(1, -1).reshape(O, 9, I)
    of_outputs = sums.reshape(O, 2, 2, 2, 2, I).movedim(-1, 1)
    for p, q in product(range(2), range(2)):
        yield (p, q), of_outputs[:, :, p, q]
