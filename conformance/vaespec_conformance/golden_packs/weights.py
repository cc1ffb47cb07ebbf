"""The weights and inputs of a pack: Philox's raw bits times powers of two, so that they are exact on every machine."""

from __future__ import annotations

import numpy as np

from vaespec import AutoencoderConfig, parameters
from vaespec.analysis.rounding import rounded
from vaespec.architecture import ENCODER, HALVES, Half
from vaespec.dtypes import storage_dtype
from vaespec.parameter import Parameter
from vaespec_conformance.cases.goldens import bias_of, kernel_of, scale_of, uniform
from vaespec_conformance.cases.models import is_normalized_next, is_of_logits, last_bias

FAINT = 2.0**-10
"""The deviation of every map that is normalized: its variance is as large as eps, so that a wrong eps is seen."""
STEEP = 2.0
"""A factor of queries and keys, so that the scale of the attention is seen."""
CLAMPED = 20.0
"""Added to the first channel of the log-variance, so that half of it is clamped."""


def drawn_weights(config: AutoencoderConfig, dtype: str, seed: int) -> dict[str, np.ndarray]:
    """Canonical weights in the dtype."""
    weights = {name: _drawn(name, row, seed) for name, row in parameters(config).items()}
    weights[last_bias(config)][config.latent_channels] += CLAMPED
    return {
        name: w.astype(np.int64 if name.endswith("num_batches_tracked") else storage_dtype(dtype))
        for name, w in weights.items()
    }


def _drawn(name: str, row: Parameter, seed: int) -> np.ndarray:
    drawn = uniform(f"golden pack {seed} {name}", row.shape)
    if row.role == "counter":
        return np.zeros(row.shape)
    if row.role == "norm_scale" or name.endswith("running_var"):
        return scale_of(drawn)
    if row.role in ("norm_shift", "statistic"):
        return bias_of(drawn)
    w = bias_of(drawn) if row.role == "bias" else kernel_of(drawn, row.fan_in)
    if is_normalized_next(name):
        return w * FAINT
    return w * STEEP if is_of_logits(name) else w


def drawn_inputs(config: AutoencoderConfig, size: tuple[int, int], dtype: str, seed: int) -> dict[str, np.ndarray]:
    """Images (1, C, H, W) in [-1, 1) and latents (1, c, H // f, W // f) in [-2, 2), in the dtype."""
    drawn = {half.source: _input(half, config, size, seed) for half in HALVES.values()}
    return {name: rounded(x, dtype).astype(storage_dtype(dtype)) for name, x in drawn.items()}


def _input(half: Half, config: AutoencoderConfig, size: tuple[int, int], seed: int) -> np.ndarray:
    x = uniform(f"golden pack {seed} {half.source}", half.input_shape(config, 1, *size))
    return x if half is ENCODER else 2 * x
