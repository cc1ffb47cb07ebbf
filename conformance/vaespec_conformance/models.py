"""The configs and weights that models are examined with: narrow, and made to show the known mistakes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaespec import AutoencoderConfig, parameters
from vaespec.analysis.rounding import rounded
from vaespec_conformance.cases import Case


def narrow(widths: tuple[int, ...], **fields: object) -> AutoencoderConfig:
    """As many levels as widths, without attention but in the middle, unless block types are given."""
    blocks = {
        "block_out_channels": widths,
        "down_block_types": ("DownEncoderBlock2D",) * len(widths),
        "up_block_types": ("UpDecoderBlock2D",) * len(widths),
    }
    return AutoencoderConfig(**{**blocks, "norm_num_groups": 4, "sample_size": 16, **fields})  # type: ignore[arg-type]


CONFIGS = {
    "two levels": narrow((8, 16), latent_channels=4),
    "no quant conv": narrow(
        (8, 8), latent_channels=6, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.3
    ),
    "attention": narrow(
        (8, 16),
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        layers_per_block=2,
    ),
    "three levels": narrow((4, 8, 8), norm_num_groups=2, mid_block_add_attention=False),
}


def weights(config: AutoencoderConfig, regime: str, case: Case, dtype: str) -> Mapping[str, np.ndarray]:
    """Canonical float64 weights that the dtype holds."""
    rng = case.rng("weights")
    return {name: rounded(_drawn(name, row.shape, regime, rng), dtype) for name, row in parameters(config).items()}


def _drawn(name: str, shape: tuple[int, ...], regime: str, rng: np.random.Generator) -> np.ndarray:
    *_, module, leaf = name.split(".")
    if "norm" in module:
        return rng.uniform(0.5, 1.5, shape) if leaf == "weight" else rng.uniform(-0.5, 0.5, shape)
    if leaf == "bias":
        return rng.uniform(-0.3, 0.3, shape)
    return rng.standard_normal(shape) * (1.2 / np.prod(shape[1:])) ** 0.5
