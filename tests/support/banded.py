"""Models in bands, compared with the same models whole."""

from __future__ import annotations

import numpy as np
from support.configs import CONFIGS, images, relative_l2, uniform
from support.models import model

from vaespec.architecture import decoder, encoder
from vaespec.processors import with_processors
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.padding import PaddingOps

CLOSE = {"float64": 1e-12, "float32": 2e-6}
"""Relative L2 between bands and the whole."""


def layers(name: str, direction: str, processors=None):
    whole = {"encode": encoder, "decode": decoder}[direction](CONFIGS[name])
    return with_processors(whole, processors or {})


def source(name: str, direction: str, height: int, width: int, batch: int = 1) -> np.ndarray:
    """Images of that size to encode, or latents to decode."""
    config = CONFIGS[name]
    if direction == "encode":
        return images(config, height, width, batch)
    return uniform(f"latents {height} {width}", (batch, config.latent_channels, height, width))


def placed(name: str, backend: str, dtype: str | None = None):
    """(ops, params)."""
    on_backend = model(name, backend, dtype)._model
    return on_backend.ops, on_backend.params


def run(ops, params, layers, x: np.ndarray) -> np.ndarray:
    """layers(x) as NumPy, computed by `ops`, in bands or not."""
    inner = ops.ops if isinstance(ops, BandedOps) else ops
    return inner.to_numpy(ops.compile(layers)(inner.from_numpy(x), params))


def difference(
    name: str, backend: str, direction: str, size, *, padding=("zeros", "zeros"), dtype=None, batch=1, **bands
) -> float:
    """Relative L2 between the results of BandedOps(…, **bands) and of the whole."""
    ops, params = placed(name, backend, dtype)
    ops = PaddingOps(ops, *padding)
    x = source(name, direction, *size, batch)
    whole = layers(name, direction)
    return relative_l2(run(BandedOps(ops, **bands), params, whole, x), run(ops, params, whole, x))
