"""Group norm with its activation on a GPU, in Triton: two passes over a map that is stored as (B, H, W, C).

PyTorch gives all pixels of a group to one block of threads, 32 blocks for an image, and SiLU is one more pass. Here
each strip of pixels has its own block; the moments of strips are merged by Chan, Golub & LeVeque 1983.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 8192  # in a strip: as many as a block of threads holds in its registers


def suits(channels: int, groups: int) -> bool:
    """Whether the kernels can compute this norm: Triton's blocks are powers of two."""
    return all(n & (n - 1) == 0 for n in (channels, groups)) and channels <= NUMBERS


def group_norm(x: Tensor, scale: Tensor, shift: Tensor, *, groups: int, eps: float, silu: bool) -> Tensor:
    """y = γ · (x - μ) / √(σ² + ε) + β, then SiLU if requested: x, y (B, C, H, W), y channels-last; float32 inside."""
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
    """Merge means and sums of squared deviations of strips (B, strips, G) into μ, σ² of the whole (B, G)."""
    starts = torch.arange(means.shape[1], device=means.device) * rows
    counts = (width * (size - starts).clamp(max=rows)).float()[:, None]
    mu = (counts * means).sum(1) / (width * size)
    total = (squares + counts * (means - mu[:, None]).square()).sum(1)
    return mu, total / (width * size)


@triton.jit
def _moments(x, means, squares, size, C: tl.constexpr, G: tl.constexpr, ROWS: tl.constexpr):  # type: ignore[no-untyped-def]
    """Store mean and sum of squared deviations of each group, over the pixels of a strip."""
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
    """Store (x - centre) · factor + shift, then SiLU, for the pixels of a strip; centre, factor (B, C), shift (C,)."""
    strip, item = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, channel = strip * ROWS + tl.arange(0, ROWS), tl.arange(0, C)
    inside = (row < size)[:, None]
    at = (item * size + row)[:, None] * C + channel[None, :]
    deviation = tl.load(x + at, mask=inside, other=0).to(tl.float32) - tl.load(centre + item * C + channel)[None, :]
    z = deviation * tl.load(factor + item * C + channel)[None, :] + tl.load(shift + channel).to(tl.float32)[None, :]
    if SILU:
        z = z * tl.sigmoid(z)
    tl.store(y + at, z.to(y.dtype.element_ty), mask=inside)
