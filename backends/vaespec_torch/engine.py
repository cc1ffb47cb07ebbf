"""PyTorch's tensors for NumPy's engine: which it may have, and weights that lie in memory as it reads them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vaespec_cpu.engine import EngineOps
from vaespec_torch.views import as_numpy, as_tensor


def engine(dtype: str) -> EngineOps:
    """The engine on a CPU's tensors."""
    return EngineOps(dtype, as_numpy, as_tensor)


def to_engine(weight: Tensor) -> np.ndarray:
    """The same memory with the engine's axes: HWIO and IO for OIHW and OI."""
    return as_numpy(weight.permute({4: (2, 3, 1, 0), 2: (1, 0)}.get(weight.ndim, tuple(range(weight.ndim)))))


def from_engine(weight: np.ndarray) -> Tensor:
    """The inverse."""
    return as_tensor(weight).permute({4: (3, 2, 0, 1), 2: (1, 0)}.get(weight.ndim, tuple(range(weight.ndim))))


def tracked(*tensors: Tensor) -> bool:
    """Whether PyTorch watches what is done with these: for a gradient, or to compile it."""
    return torch.compiler.is_compiling() or (torch.is_grad_enabled() and any(t.requires_grad for t in tensors))
