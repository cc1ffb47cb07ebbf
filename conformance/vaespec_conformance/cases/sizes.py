"""Cases of real sizes: models so narrow that a large map costs about a second, and the inputs and the cost of a case.

A case holds the JSON of its config, or a name of `models.CONFIGS`. Its `size` is that of the latents (height, width),
`items` is the batch, `half` is "encode" or "decode", and images have `more` rows and columns than the latents need.
"""

from __future__ import annotations

import json
from typing import Literal

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.analysis.cost import Cost, cost
from vaespec.analysis.rounding import rounded
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case

Half = Literal["encode", "decode"]


def _narrow(widths: tuple[int, ...], groups: int, **fields: object) -> str:
    """The JSON of a config with one resnet in each level: only what differs from the defaults."""
    config = models.narrow(widths, norm_num_groups=groups, layers_per_block=1, **fields).to_dict()
    usual = AutoencoderConfig().to_dict()
    return json.dumps({name: value for name, value in config.items() if value != usual.get(name, ...)})


PLAIN = _narrow((4, 4), 2, mid_block_add_attention=False)
THIN = _narrow((2, 2), 1, mid_block_add_attention=False)
DEEP = _narrow((4, 4, 4, 4), 2, mid_block_add_attention=False)
ATTENDING = _narrow((4, 4), 2)
FLAT = _narrow((4,), 2, mid_block_add_attention=False)
BROAD = _narrow((96,), 32)
REAL = _narrow((128, 256, 512, 512), 32)
"""Two levels, with a factor of 2; the same with two channels; four levels, with a factor of 8; attention; one level;
one with more than 64 channels; Stable Diffusion's widths."""

SMALL = (9, 10)
"""Latents on which the error of rounding is predicted for a larger size.

It is relative, and does not grow with the plane: from these to 160 x 157 latents it changes by at most a quarter, in
float32, bfloat16 and float16, and to 65 x 67 with attention by a sixth.
"""
FLOPS, WIDE_FLOPS = 7e10, 8e11
"""Arithmetic of a case, at most, and of the one large case of a half at real widths.

The specification needs some twenty seconds, and a minute and a half.
"""


def sized(config: str, size: tuple[int, int], *, half: Half, items: int = 1, more: int = 0) -> Case:
    """A case of one size."""
    return Case.of(config=config, regime="plain", half=half, size=size, items=items, more=more, seed=1)


def smaller(case: Case) -> Case:
    """The case by which the error of rounding is predicted: one item of the same model, on latents of at most SMALL."""
    size = tuple(min(pair) for pair in zip(case["size"], SMALL, strict=True))
    return Case.of(**{**dict(case.items), "size": size, "items": 1})


def given(case: Case, dtype: str) -> np.ndarray:
    """The images or the latents of a case. Every item, row and column differs from the others."""
    config, (height, width) = models.config_of(case), case["size"]
    if case["half"] == "decode":
        shape = (case["items"], config.latent_channels, height, width)
        slope = np.linspace(-1, 1, height)[:, np.newaxis]  # so that keys of other rows have other means
        return rounded(case.rng("latents").standard_normal(shape) + slope, dtype)
    pixels = (config.downsampling_factor * n + case["more"] for n in (height, width))
    return rounded(case.rng("images").uniform(-1, 1, (case["items"], config.in_channels, *pixels)), dtype)


def cost_of(case: Case) -> Cost:
    """The arithmetic and the memory of a case in float32."""
    config, (height, width) = models.config_of(case), case["size"]
    factor = 1 if case["half"] == "decode" else config.downsampling_factor
    return cost(config, case["half"], (factor * height, factor * width), case["items"])


def memory_of(case: Case) -> int:
    """Bytes that a case may take: its maps twice over, and the logits of attention twice, if nobody spares them."""
    config, (height, width) = models.config_of(case), case["size"]
    tokens = height * width if config.mid_block_add_attention else 0
    return 2 * cost_of(case).peak_bytes + 2 * 4 * case["items"] * tokens**2
