"""A group norm with its activation on a GPU, in Triton: two passes over a map that lies in memory as (B, H, W, C).

PyTorch gives all pixels of a group to one block of threads, 32 blocks for an image, and SiLU is one more pass. Here
each strip of pixels has a block of its own; moments of strips are merged as in Chan, Golub & LeVeque 1983.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 8192  # of a strip: what a block of threads holds in its registers


def suits(channels: int, groups: int) -> bool:
    """Triton's blocks are powers of two."""
    return all(n & (n - 1) == 0 for n in (channels, groups)) and channels <= NUMBERS


def group_norm(x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float, silu: bool) -> Tensor:
    """γ · (x - μ) / √(σ² + ε) + β, then SiLU if asked for: (B, C, H, W) -> the same, channels-last; float32 inside."""
    B, C, H, W = x.shape
    x = x.contiguous(memory_format=torch.channels_last)
    y, size, rows = torch.empty_like(x), H * W, NUMBERS // C
    grid = (triton.cdiv(size, rows), B)
    means, squares = (torch.empty((B, grid[0], groups), dtype=torch.float32, device=x.device) for _ in range(2))
    _moments[grid](x, means, squares, size, C, groups, rows)
    mu, sigma2 = _merged(means, squares, size, rows, C // groups)
    factor = scale.float().view(groups, -1) * torch.rsqrt(sigma2 + eps)[..., None]
    centre = mu[..., None].expand(factor.shape).contiguous()
    _normalized[grid](x, y, centre, factor.contiguous(), shift, size, C, rows, silu)
    return y


def _merged(means: Tensor, squares: Tensor, size: int, rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Means and sums of squared deviations of strips (B, strips, G) -> μ, σ² of the whole (B, G)."""
    starts = torch.arange(means.shape[1], device=means.device) * rows
    counts = (width * (size - starts).clamp(max=rows)).float()[:, None]
    mu = (counts * means).sum(1) / (width * size)
    total = (squares + counts * (means - mu[:, None]).square()).sum(1)
    return mu, total / (width * size)


@triton.jit
def _moments(x, means, squares, size, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Of the pixels of a strip, by groups: mean, and sum of squared deviations from it."""
    strip, item, strips = tl.program_id(0), tl.program_id(1).to(tl.int64), tl.num_programs(0)
    row = strip * ROWS + tl.arange(0, ROWS)
    inside = (row < size)[:, None]
    at = (item * size + row)[:, None] * C + tl.arange(0, C)[None, :]
    grouped = tl.reshape(tl.load(x + at, mask=inside, other=0).to(tl.float32), (ROWS, G, C // G))
    count = tl.minimum(size - strip * ROWS, ROWS) * (C // G)
    mean = tl.sum(tl.sum(grouped, 2), 0) / count
    deviation = tl.where(inside[:, :, None], grouped - mean[None, :, None], 0)
    out = (item * strips + strip) * G + tl.arange(0, G)
    tl.store(means + out, mean)
    tl.store(squares + out, tl.sum(tl.sum(deviation * deviation, 2), 0))


@triton.jit
def _normalized(x, y, centre, factor, shift, size, C: tl.constexpr, ROWS: tl.constexpr, SILU: tl.constexpr):  # type: ignore[no-untyped-def]
    """(x - centre) · factor + shift of the pixels of a strip, then SiLU; centre and factor (B, C), shift (C,)."""
    strip, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, channel = strip * ROWS + tl.arange(0, ROWS), tl.arange(0, C)
    inside = (row < size)[:, None]
    at = (item * size + row)[:, None] * C + channel[None, :]
    deviation = tl.load(x + at, mask=inside, other=0).to(tl.float32) - tl.load(centre + item * C + channel)[None, :]
    z = deviation * tl.load(factor + item * C + channel)[None, :] + tl.load(shift + channel).to(tl.float32)[None, :]
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)
