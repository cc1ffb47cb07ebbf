"""Views of one memory as PyTorch's tensor and as NumPy's array, on the CPU."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def as_tensor(a: np.ndarray) -> Tensor:
    """View an array as a tensor; a copy if PyTorch cannot view its memory: read-only, or in another order."""
    a = np.require(a, requirements=["C", "W"])
    if a.dtype.name == "bfloat16":  # torch.from_numpy does not know ml_dtypes' type, but the bits are the same
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(a)


def as_numpy(x: Tensor) -> np.ndarray:
    """View a tensor on the CPU as an array, whatever the order of its axes in memory."""
    x = x.detach()
    if x.dtype == torch.bfloat16:
        import ml_dtypes

        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()
