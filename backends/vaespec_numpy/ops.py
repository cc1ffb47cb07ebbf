"""The operations of the NumPy backend: the CPU engine's, on NumPy's own arrays."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vaespec_cpu.lazy_ops import LazyOps
from vaespec_cpu.memory import give_back
from vaespec_cpu.ops import CpuOps


class NumpyOps(CpuOps):
    """The operations on the CPU, in float32 or float64; weights and results may be stored in 16 bits."""

    def inference_ops(self, params: Mapping[str, np.ndarray]) -> tuple[CpuOps, Mapping[str, np.ndarray]]:
        """Return LazyOps; for a subclass a copy of itself, since LazyOps would not call the subclass's operations."""
        if type(self) is not NumpyOps:
            return super().inference_ops(params)
        give_back()  # memory that loading, or the run before, has freed
        return LazyOps(self.dtype, self.precision), params
