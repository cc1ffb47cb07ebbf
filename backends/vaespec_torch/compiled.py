"""TorchOps whose models torch.compile makes ready."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Self

import torch
from torch import Tensor

from vaespec.ops import Layer
from vaespec_torch.ops import TorchOps, true_float32


class CompilingOps(TorchOps):
    """A run is what torch.compile makes of it: one graph for the first shape, and one for all that differ in a size.

    On CUDA each shape is recorded as a CUDA graph too (mode "reduce-overhead"); its results are copied, since the next
    run writes into the same memory.
    """

    def compile(self, model: Layer) -> Callable[[Tensor, Mapping[str, Tensor]], Tensor]:
        """(x, params) -> model(x, params, self), as precise as these ops."""
        recorded = self.device.type == "cuda"

        def run(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            return model(x, params, self)

        graph = torch.compile(run, mode="reduce-overhead" if recorded else None)

        def compiled(x: Tensor, params: Mapping[str, Tensor]) -> Tensor:
            with true_float32() if self.precision == "highest" else nullcontext():
                y = graph(x, params)
            return y.clone() if recorded else y

        return compiled

    def with_compiler(self) -> Self:
        """They do."""
        return self
