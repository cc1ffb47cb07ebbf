"""NumPy's engine on another framework's arrays: in a CPU's memory they are the same numbers.

An adapter says how its arrays are looked at as NumPy's, and how NumPy's become its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from vaespec_cpu.lazy_ops import FusedOps, Map


class EngineOps(FusedOps):
    """The framework's arrays in and out, and NumPy's in between. Nothing is recorded for gradients."""

    def __init__(
        self, dtype: str, as_numpy: Callable[[Any], np.ndarray], as_array: Callable[[np.ndarray], Any]
    ) -> None:
        super().__init__(dtype)
        self.as_numpy, self.as_array = as_numpy, as_array

    def from_nchw(self, x: Any) -> np.ndarray:
        """The framework's array -> a map of the engine."""
        return super().from_nchw(self.as_numpy(x))

    def to_nchw(self, x: Map) -> Any:
        """A map of the engine -> the framework's array."""
        return self.as_array(super().to_nchw(x))
