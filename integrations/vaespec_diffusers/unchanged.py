"""diffusers' own model, unchanged, behind the two calls of `vaespec check --diffusers`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import numpy as np
import torch

from vaespec.architecture import ENCODER, HALVES, Half, halves_among
from vaespec.config import AutoencoderConfig
from vaespec.errors import BackendError, InputError
from vaespec_torch.views import as_tensor

DTYPES = ("float32", "float64", "float16", "bfloat16")


class Unchanged:
    """diffusers' AutoencoderKL, or AutoencoderKLFlux2, with canonical weights, on a device in a dtype."""

    def __init__(self, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], device: str, dtype: str) -> None:
        if missing := [half for half in HALVES if half not in halves_among(weights, config)]:
            raise InputError(f"these weights have no {missing[0]}, which diffusers' class needs.")
        with torch.device("meta"):
            vae: Any = getattr(diffusers, config.class_name).from_config(config.to_dict())
        tensors = {name: self._placed(as_tensor(weights[name]), device, dtype) for name in weights}
        vae.load_state_dict(tensors, strict=True, assign=True)
        self.vae, self.device, self.dtype = vae.eval(), device, getattr(torch, dtype)

    def run(self, half: Half, x: np.ndarray, tiling: object = None) -> np.ndarray:
        """Images -> moments, or latents -> images, as a whole; bfloat16 as float32."""
        with torch.no_grad():
            tensor = torch.from_numpy(x).to(self.device, self.dtype)
            y = self.vae.encode(tensor).latent_dist.parameters if half is ENCODER else self.vae.decode(tensor).sample
            wide = y.float() if self.dtype == torch.bfloat16 else y
            numbers: np.ndarray = wide.cpu().numpy()
            return numbers

    @staticmethod
    def _placed(tensor: torch.Tensor, device: str, dtype: str) -> torch.Tensor:
        tensor = tensor.to(device, getattr(torch, dtype) if tensor.is_floating_point() else None)
        return tensor.contiguous()


def device_of(name: str | None) -> str:
    """The device of that name, by default the best one here. Raises BackendError if PyTorch does not have it."""
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.zeros(1, device=name or best)
    except Exception as error:  # PyTorch raises different errors
        reason = str(error).split("\n")[0].split(". ")[0].rstrip(".")  # PyTorch goes on for a page
        raise BackendError(f"PyTorch has no device {name!r} here ({reason}): choose {best}, or another.") from None
    return name or best
