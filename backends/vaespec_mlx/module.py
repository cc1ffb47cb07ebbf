"""AutoencoderKLModule: the model as MLX users expect it, with diffusers' names and MLX's kernel layout (OHWI)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from vaespec.architecture import DECODER, ENCODER, HALVES, Half
from vaespec.copying import Guarded
from vaespec.layers import Sequential
from vaespec.model import Model
from vaespec.noise import Seed
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.posterior import DiagonalGaussian
from vaespec.reference import ReferenceOps
from vaespec.upcast import unchecked
from vaespec_mlx.quantized import QuantizedWeight


class Part(nn.Module):
    """A half, or the 1 x 1 convolution between a half and the latents, with its parameters beneath it.

    `m.encoder(x)` are the moments before quant_conv; `m.decoder(z)` takes latents after post_quant_conv.
    """

    def __init__(self, layers: Sequential, ops: ReferenceOps, force_upcast: bool | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._layers, self._ops, self._force_upcast = layers, ops, force_upcast

    def __call__(self, x: mx.array, wide: bool = False) -> mx.array:
        """Run the layers: (B, C, H, W) -> (B, C, H, W). If float16 is upcast and `wide`, the result is float32."""
        arrays = self._arrays()
        return self._layers(x, arrays, unchecked(self._ops, self._layers, arrays, self._force_upcast, wide=wide))

    def _arrays(self) -> dict[str, Any]:
        """The parameters by name, looked up anew each time: training and `nn.quantize` replace them."""
        return {name: self._array(name) for name, _ in self._layers.parameters()}

    def _array(self, name: str) -> mx.array | QuantizedWeight:
        _, *path, leaf = name.split(".")
        part: Any = self
        for step in path:
            part = part[int(step) if isinstance(part, list) else step]
        return QuantizedWeight(part) if leaf == "weight" and isinstance(part, nn.QuantizedLinear) else part[leaf]


class AutoencoderKLModule(Guarded, nn.Module):
    """An `mlx.nn.Module` around the specification: its parameters train, its linear maps can be quantized.

    It owns its parameters: copies of the model's, which `vae.with_params(module.parameters())` gives back.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.config = model.config
        self._model = model.replace(params={})
        rows = {name: row for name, row in model.table().items() if row.trained}
        linear = {name.removesuffix(".weight") for name, row in rows.items() if row.role == "linear"}
        quantized = {name for name in linear if "_lora." not in name}  # LoRA trains, and keeps its precision
        tree = tree_unflatten([(name, model.ops.copy(model.params[name])) for name in rows])
        for half in HALVES.values():
            for name, layers in getattr(model, half.name).parts().items():
                part = Part(layers, model.ops, model.config.force_upcast)
                self[name] = _filled(part, tree[name], name, quantized)

    def encode(self, x: mx.array, return_dict: bool = True) -> AutoencoderKLOutput | tuple[DiagonalGaussian]:
        """Images (B, C, H, W) in [-1, 1] -> posterior."""
        posterior = self._posterior(x)
        return AutoencoderKLOutput(posterior) if return_dict else (posterior,)

    def decode(self, z: mx.array, return_dict: bool = True, generator: Any = None) -> DecoderOutput | tuple[mx.array]:
        """Latents -> images. `generator` is accepted and ignored, as in diffusers."""
        sample = self._run(DECODER, z)
        return DecoderOutput(sample) if return_dict else (sample,)

    def __call__(
        self,
        sample: mx.array,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: Any = None,
        *,
        seed: Seed | None = None,
    ) -> DecoderOutput | tuple[mx.array]:
        """Images -> images, through the posterior's mode or a sample; the output holds the posterior, a tuple does not.

        Without sample_posterior a generator is ignored, as in diffusers, and a seed raises InputError.
        """
        posterior = self._posterior(sample)
        images = self._run(DECODER, posterior.mode_or_sample(sample_posterior, generator, seed=seed))
        return DecoderOutput(images, posterior) if return_dict else (images,)

    def _posterior(self, x: mx.array) -> DiagonalGaussian:
        return DiagonalGaussian(self._run(ENCODER, x))

    def _run(self, half: Half, x: mx.array) -> mx.array:
        """Call the parts of a half. Raises InputError if the model does not have it."""
        *first, last = self._model.layers(half).parts()
        for part in first:
            x = self[part](x, wide=True)
        return self[last](x)


def _filled(module: nn.Module, tree: Mapping[str, Any], name: str, quantized: set[str]) -> nn.Module:
    """Put a nested dict of arrays into a module; those named in `quantized` become nn.Linear, for `nn.quantize`."""
    dict.update(module, {key: _as_modules(part, f"{name}.{key}", quantized) for key, part in tree.items()})
    return module


def _as_modules(tree: Any, name: str, quantized: set[str]) -> Any:
    """Turn a nested dict of arrays into modules."""
    if isinstance(tree, mx.array):
        return tree
    if isinstance(tree, list):
        return [_as_modules(part, f"{name}.{i}", quantized) for i, part in enumerate(tree)]
    kind = nn.Linear if name in quantized else nn.Module
    module = kind.__new__(kind)
    nn.Module.__init__(module)  # type: ignore[no-untyped-call]  # not nn.Linear's, which draws random weights
    return _filled(module, tree, name, quantized)
