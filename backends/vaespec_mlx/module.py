"""AutoencoderKLModule: the model as MLX users expect it, with diffusers' names and MLX's kernel layout (OHWI)."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from vaespec.copying import Guarded
from vaespec.model import Model
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec_mlx.quantized import QuantizedWeight


class AutoencoderKLModule(Guarded, nn.Module):
    """An `mlx.nn.Module` around the specification: its parameters train, its linear maps can be quantized.

    `encode(x)` (B, C, H, W) in [-1, 1] -> AutoencoderKLOutput; `decode(z)` -> DecoderOutput; calling it does both.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = model.config
        self._model = model.bare(model.ops)
        rows = {name: row for name, row in model.table().items() if row.trained}
        linear = {name.removesuffix(".weight") for name, row in rows.items() if row.role == "linear"}
        quantized = {name for name in linear if "_lora." not in name}  # LoRA trains, and keeps its precision
        for name, part in tree_unflatten([(name, model.params[name]) for name in rows]).items():
            self[name] = _as_modules(part, name, quantized)

    def encode(self, x: mx.array) -> AutoencoderKLOutput:
        """Images -> posterior."""
        return self._model.encode(self._arrays(), x)

    def decode(self, z: mx.array) -> DecoderOutput:
        """Latents -> images."""
        return self._model.decode(self._arrays(), z)

    def __call__(self, x: mx.array, sample_posterior: bool = False, **options: Any) -> DecoderOutput:
        """Images -> images, through the posterior's mode or a sample (`options`: see DiagonalGaussian.sample)."""
        posterior = self.encode(x).latent_dist
        z = posterior.sample(**options) if sample_posterior else posterior.mode()
        return self.decode(z).replace(posterior=posterior)

    def _arrays(self) -> dict[str, Any]:
        """The parameters by name, looked up anew each time: training and `nn.quantize` replace them."""
        return {name: self._array(name) for name, row in self._model.table().items() if row.trained}

    def _array(self, name: str) -> mx.array | QuantizedWeight:
        *path, leaf = name.split(".")
        part: Any = self
        for step in path:
            part = part[int(step) if isinstance(part, list) else step]
        return QuantizedWeight(part) if leaf == "weight" and isinstance(part, nn.QuantizedLinear) else part[leaf]


def _as_modules(tree: Any, name: str, quantized: set[str]) -> Any:
    """Turn a nested dict of arrays into modules; names in `quantized` become nn.Linear, for `nn.quantize` to find."""
    if isinstance(tree, mx.array):
        return tree
    if isinstance(tree, list):
        return [_as_modules(part, f"{name}.{i}", quantized) for i, part in enumerate(tree)]
    kind = nn.Linear if name in quantized else nn.Module
    module = kind.__new__(kind)
    nn.Module.__init__(module)  # type: ignore[no-untyped-call]  # not nn.Linear's, which draws random weights
    dict.update(module, {key: _as_modules(part, f"{name}.{key}", quantized) for key, part in tree.items()})
    return module
