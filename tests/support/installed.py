"""Tiny VAEs of diffusers, for the tests of what is installed in them."""

from __future__ import annotations

from functools import cache

import diffusers
import torch

LEVELS = {"block_out_channels": (16, 32), "norm_num_groups": 8, "latent_channels": 4, "sample_size": 16}


def tiny_vae(cls=diffusers.AutoencoderKL, **fields):
    """A VAE of two levels with random weights, the same each time, in evaluation mode."""
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return cls(**blocks, **LEVELS, **({"layers_per_block": 1} | fields)).eval()


@cache
def latents(batch: int = 1) -> torch.Tensor:
    return torch.randn((batch, 4, 8, 12), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def decoded(vae, z=None) -> torch.Tensor:
    return vae.decode(latents() if z is None else z).sample.float()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).norm() / other.norm())


TOLERANCE = 1e-5  # float32, of which either computation rounds in its own order; weights are random and not scaled
