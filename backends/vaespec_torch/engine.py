"""NumPy's engine on PyTorch's tensors: in a CPU's memory they are the same numbers, and its convolutions are faster."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vaespec_numpy.fused import FusedOps, Map
from vaespec_torch.views import as_numpy, as_tensor


class EngineOps(FusedOps):
    """Tensors in and out, and NumPy's arrays in between. Nothing is recorded for gradients."""

    def from_nchw(self, x: Tensor) -> np.ndarray:  # type: ignore[override]
        """A tensor -> a map of the engine."""
        return super().from_nchw(as_numpy(x))

    def to_nchw(self, x: Map) -> Tensor:  # type: ignore[override]
        """A map of the engine -> a tensor."""
        return as_tensor(super().to_nchw(x))


def to_engine(weight: Tensor) -> np.ndarray:
    """The same memory with the engine's axes: HWIO and IO for OIHW and OI."""
    return as_numpy(weight.permute({4: (2, 3, 1, 0), 2: (1, 0)}.get(weight.ndim, tuple(range(weight.ndim)))))


def from_engine(weight: np.ndarray) -> Tensor:
    """The inverse."""
    return as_tensor(weight).permute({4: (3, 2, 0, 1), 2: (1, 0)}.get(weight.ndim, tuple(range(weight.ndim))))


def tracked(*tensors: Tensor) -> bool:
    """Whether PyTorch watches what is done with these: for a gradient, or to compile it."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
