"""Write goldens/diffusers.npz: what diffusers computes, frozen. Run it again when configs.py changes."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
from support.configs import CONFIGS, images, uniform
from support.oracle import decoded, encoded, oracle

GOLDENS = Path(__file__).with_name("diffusers.npz")
SIZES = {
    "sd": (16, 24),
    "flux2-small-decoder": (16, 16),
    "kl-f16": (16, 33),
    "cogview": (9, 17),
    "one-level": (5, 7),
    "mish": (6, 8),
    "gelu": (6, 8),
    "relu": (6, 8),
    "attention-in-the-decoder-only": (7, 6),
}


def golden(name: str) -> dict[str, np.ndarray]:
    config, (model, _) = CONFIGS[name], oracle(name)
    mean, logvar = encoded(model, images(config, *SIZES[name]))
    pictures = decoded(model, uniform("golden", mean.shape, -2, 2))
    return {"size": np.array(SIZES[name]), "mean": mean, "logvar": logvar, "decoded": pictures}


if __name__ == "__main__":
    arrays = {f"{name}/{what}": array for name in SIZES for what, array in golden(name).items()}
    np.savez_compressed(GOLDENS, **arrays, version=np.array(diffusers.__version__))
    print(f"{GOLDENS}: {len(arrays)} arrays, {GOLDENS.stat().st_size} bytes, diffusers {diffusers.__version__}")
