"""A weight that `mlx.nn.quantize` has quantized."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn


@dataclass(frozen=True)
class QuantizedWeight:
    """Takes the place of a linear map's weight (O, I)."""

    layer: nn.QuantizedLinear

    def product(self, t: mx.array) -> mx.array:
        """Compute t Wᵀ: t (..., I) -> (..., O)."""
        q = self.layer
        sizes = {"group_size": q.group_size, "bits": q.bits, "mode": q.mode}
        return mx.quantized_matmul(t, q.weight, scales=q.scales, biases=q.get("biases"), transpose=True, **sizes)
