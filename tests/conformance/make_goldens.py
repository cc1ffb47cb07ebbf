"""Writes the suite's goldens.npz, the results of diffusers. Run it again when the suite's configs change."""

from __future__ import annotations

import sys
from pathlib import Path

import diffusers
import numpy as np
import torch

sys.path.append(str(Path(__file__).parent.parent))
from support.oracle import decoded, diffusers_model, encoded

from vaespec_conformance.cases.goldens import FILE, SIZES, golden_images, golden_latents, golden_weights
from vaespec_conformance.cases.models import CONFIGS


def frozen(name: str) -> dict[str, np.ndarray]:
    """The results of diffusers for one of the suite's configs."""
    model = diffusers_model(CONFIGS[name])
    weights = golden_weights({key: tuple(tensor.shape) for key, tensor in model.state_dict().items()})
    model.load_state_dict({key: torch.tensor(w) for key, w in weights.items()}, strict=True)
    moments = np.concatenate(encoded(model, golden_images(name)), axis=1)
    return {f"{name}/moments": moments, f"{name}/decoded": decoded(model, golden_latents(name))}


if __name__ == "__main__":
    arrays = {key: a for name in SIZES for key, a in frozen(name).items()}
    np.savez_compressed(FILE, **arrays, version=np.array(diffusers.__version__))
    print(f"{FILE}: {len(arrays)} arrays, {FILE.stat().st_size} bytes, diffusers {diffusers.__version__}")
