"""Norms of maps that are stored as (B, H, W, C), each computed together with the activation that follows it.

PyTorch's own group norm would change that order and back.
"""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from typing import NamedTuple

import torch
from torch import Tensor

FAR = 8.0
"""Standard deviations: squares of numbers no farther from zero are at most 65 times σ², and cost it 6 bits of 24."""


class PendingNorm(NamedTuple):
    """A group norm that is not computed yet."""

    x: Tensor
    scale: Tensor
    shift: Tensor
    groups: int
    eps: float


def norm_near_zero(norm: PendingNorm) -> Tensor | None:
    """Compute PyTorch's group norm, or None if a mean is large: its σ² = E[x²] - E[x]² in this order would cancel."""
    x, scale, shift, groups, eps = norm
    B, C, H, W = x.shape
    y, mean, rstd = torch.native_group_norm(x, scale.float(), shift.float(), B, C, H * W, groups, eps)
    return y if (mean * rstd).abs().max() <= FAR else None


def group_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and σ² of each sample's groups, for every channel (B, C), float32: in two passes, exact far from zero."""
    mean, sigma2 = zip(*(_sample_moments(sample, groups) for sample in torch.split(x, 1)), strict=True)
    return torch.cat(mean), torch.cat(sigma2)


def _sample_moments(x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Moments (1, C) of the groups of one sample, merged from the moments of its channels."""
    C = x.shape[1]
    running = x.new_zeros(C, dtype=torch.float32)  # not used, but the results are of its dtype
    moments = torch.batch_norm_update_stats(x, running, running, momentum=0.0)
    mean_c, sigma2_c = (m.reshape(groups, -1) for m in moments)
    mean = mean_c.mean(1, keepdim=True)
    sigma2 = (sigma2_c + (mean_c - mean).square()).mean(1, keepdim=True)
    return mean.expand_as(mean_c).reshape(1, C), sigma2.expand_as(mean_c).reshape(1, C)


def has_triton(x: Tensor) -> bool:
    """Whether Triton's kernels can compute on the device of x."""
    return x.is_cuda and _installed("triton")


@cache
def _installed(name: str) -> bool:
    return find_spec(name) is not None
