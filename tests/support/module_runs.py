"""What tests of PyTorch's module run: the tiny model in parts, and its results."""

from __future__ import annotations

import torch
from support.configs import TINY, images, uniform

TILES = {"tile_latent_min_size": 4, "tile_sample_min_size": 8}
PARTS = {
    "whole": lambda vae: None,
    "slices": lambda vae: vae.enable_slicing(),
    "tiles": lambda vae: vae.enable_tiling(**TILES),
    "bands": lambda vae: vae.enable_tiling("exact", band_rows=3),
    "auto": lambda vae: vae.enable_tiling("auto", max_memory="64GiB"),
    "circular": lambda vae: vae.set_padding("circular"),
}


def pictures() -> torch.Tensor:
    return torch.tensor(images(TINY, 16, 16, 2), dtype=torch.float32)


def latents(batch: int = 2) -> torch.Tensor:
    return torch.tensor(uniform("z", (batch, 4, 8, 8)), dtype=torch.float32)


def results(vae) -> list[torch.Tensor]:
    """Moments and images."""
    return [vae.encode(pictures()).latent_dist.parameters, vae.decode(latents()).sample]


def assert_equal(ours: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def loss(vae: torch.nn.Module) -> torch.Tensor:
    """Through the encoder and the decoder, in the dtype of the parameters."""
    x = pictures().to(vae.dtype)
    return (vae.decode(vae.encode(x).latent_dist.mean).sample - x).square().mean()
