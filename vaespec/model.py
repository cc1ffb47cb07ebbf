"""Model: the layers of an AutoencoderKL and their parameters, on some ops. A value: what changes it makes another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from vaespec.analysis.finite import first_nonfinite
from vaespec.architecture import HALVES, halves_among, parameters
from vaespec.attention import Attention, LoRA, Processor
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, NonFiniteError
from vaespec.layers import Sequential
from vaespec.ops import Array
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.parameter import Parameter
from vaespec.posterior import DiagonalGaussian
from vaespec.processors import attention_layers, with_processors
from vaespec.reference import ReferenceOps

Run = Callable[[Array, Mapping[str, Array]], Array]
Stream = Callable[[Any, Mapping[str, Array]], Iterator[Array]]


class Functional(NamedTuple):
    """A model as a value and two pure functions, for jit, grad, vmap and sharding."""

    params: dict[str, Array]
    encode: Callable[[Mapping[str, Array], Array], AutoencoderKLOutput]
    decode: Callable[[Mapping[str, Array], Array], DecoderOutput]


@dataclass(frozen=True, eq=False)
class Model:
    """`params` are arrays of `ops`, in its layouts, by the names that `table` lists."""

    config: AutoencoderConfig
    encoder: Sequential
    decoder: Sequential
    params: Mapping[str, Array]
    ops: ReferenceOps

    @classmethod
    def place(cls, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], ops: ReferenceOps) -> Self:
        """A model with canonical weights: of both halves, or of one, the other then being empty."""
        halves = halves_among(weights, config)
        layers = {half: build(config) if half in halves else Sequential(()) for half, build in HALVES.items()}
        return cls(config, **layers, params=ops.load_params(weights, parameters(config, halves)), ops=ops)

    def move(self, ops: ReferenceOps) -> Self:
        """The same on other ops; each weight is converted on its way, one at a time."""
        table = self.table()
        return self._replace(params=ops.load_params(self.ops.export_params(self.params, table), table), ops=ops)

    def with_config(self, config: AutoencoderConfig) -> Self:
        """The same layers under another config, which differs in nothing that weights show."""
        return self._replace(config=config)

    def _replace(self, **changes: Any) -> Self:
        return dataclasses.replace(self, **changes)

    # -- running -----------------------------------------------------------------------------------------------

    @cached_property
    def compiled(self) -> dict[str, Run]:
        """(images, params) -> moments of the encoder, (latents, params) -> images of the decoder."""
        return {half: self.ops.compile(getattr(self, half)) for half in self.halves}

    def run(self, half: str, x: Array) -> Array:
        """The encoder's moments, or the decoder's images, with the params held; NonFiniteError names a layer."""
        layers = self.layers(half)
        with np.errstate(over="ignore", invalid="ignore"):  # told below, with the layer's name
            y = self.compiled[half](x, self.params)
            if self.ops.all_finite(y):
                return y
            culprit = first_nonfinite(layers, x, self.params, self.ops)
        raise self._nonfinite(half, f"NaN or infinity first appears in {culprit or 'the conversion of the result'}")

    def stream(self, half: str, x: Any, bands: Callable[[Sequential], Stream]) -> Iterator[Array]:
        """The same in bands of rows, from the top down; `bands` as BandedOps makes them, of the same arrays."""
        run = bands(self.layers(half))
        with np.errstate(over="ignore", invalid="ignore"):
            results = run(x, self.params)
        while True:
            with np.errstate(over="ignore", invalid="ignore"):  # not around the yield: it is the caller's as well
                y = next(results, None)
                if y is None:
                    return
                finite = self.ops.all_finite(y)
            if not finite:  # a run of the whole, to learn the layer, may be more than the memory holds
                raise self._nonfinite(half, "learn the layer by a run without tiling, on a part of it")
            yield y

    def layers(self, half: str) -> Sequential:
        """The encoder or the decoder; InputError where there are no weights for it."""
        if half not in self.halves:
            raise InputError(f"these weights have no {half}: load them from a file that has, to use it.")
        layers: Sequential = getattr(self, half)
        return layers

    def _nonfinite(self, half: str, where: str) -> NonFiniteError:
        what = {"encoder": "moments", "decoder": "images"}[half]
        narrow = self.ops.dtype == "float16"
        hint = "; float16 is too narrow for many models: try bfloat16 or float32" if narrow else ""
        return NonFiniteError(f"the {what} are not finite: {where}{hint}.")

    def encode(self, params: Mapping[str, Array], x: Array) -> AutoencoderKLOutput:
        """Images -> posterior, with these params: a pure function, which a framework may trace."""
        return AutoencoderKLOutput(DiagonalGaussian(self.encoder(x, params, self.ops)))

    def decode(self, params: Mapping[str, Array], z: Array) -> DecoderOutput:
        """Latents -> images, likewise."""
        return DecoderOutput(self.decoder(z, params, self.ops))

    def functional(self) -> Functional:
        """See AutoencoderKL.functional."""
        return Functional(
            {name: self.params[name] for name, row in self.table().items() if row.trained}, self.encode, self.decode
        )

    def on(self, ops: ReferenceOps) -> Self:
        """With the same params, on other ops that take them."""
        return self._replace(ops=ops)

    def bare(self, ops: ReferenceOps) -> Self:
        """Without params, and on these ops: for a module that has parameters of its own."""
        return self._replace(params={}, ops=ops)

    @property
    def halves(self) -> tuple[str, ...]:
        """ "encoder" and "decoder", or the one that there are weights for."""
        return tuple(half for half in HALVES if getattr(self, half).layers)

    # -- parameters --------------------------------------------------------------------------------------------

    def table(self) -> dict[str, Parameter]:
        """What is in `params`: processors may have added to what the config says, or fused some of it."""
        statistics = parameters(self.config, halves=())
        return dict([*self.encoder.parameters(), *self.decoder.parameters()]) | statistics

    def weights(self) -> dict[str, np.ndarray]:
        """See AutoencoderKL.weights."""
        weights = self.ops.export_params(self.params, self.table())
        for layer in self.attention_layers():
            if isinstance(layer.processor, LoRA):
                raise InputError(
                    f"{layer.name} has a LoRA, which is no part of the VAE's weights: fuse_lora() to add it to them, "
                    "or set_attn_processor('sdpa') to leave it out."
                )
            projections = {name: weights.pop(name) for name, _ in layer.processor.parameters(layer)}
            weights |= layer.processor.release(layer, projections)
        canonical = parameters(self.config, halves_among(weights, self.config))
        return {name: np.array(weights[name], order="C") for name in canonical}  # copies: safe to change

    def with_params(self, params: Mapping[str, Array]) -> Self:
        """See AutoencoderKL.with_params."""
        expected = {name: tuple(self.params[name].shape) for name, row in self.table().items() if row.trained}
        given = {name: tuple(p.shape) for name, p in params.items()}
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if wrong:
            name, others = wrong[0], f" (and {len(wrong) - 1} more)" if wrong[1:] else ""
            raise InputError(
                f"parameter {name} of shape {given.get(name)}: this model has {expected.get(name)}{others}; give all "
                "parameters of functional(), by name."
            )
        return self._replace(params={**self.params, **params})

    # -- attention ---------------------------------------------------------------------------------------------

    def attention_layers(self) -> list[Attention]:
        """Of the encoder, then of the decoder."""
        return attention_layers(self.encoder) + attention_layers(self.decoder)

    def with_processors(self, processors: Mapping[str, Processor]) -> Self:
        """With other processors, by the names of the layers; a LoRA that goes is left out."""
        changed = self
        for layer in self.attention_layers():
            changed = changed._exchange(layer, processors[layer.name], layer.processor.release)
        return changed

    def with_fused_lora(self) -> Self:
        """With every LoRA added to the weights."""
        changed = self
        for layer in self.attention_layers():
            if isinstance(layer.processor, LoRA):
                changed = changed._exchange(layer, layer.processor.core, layer.processor.merge)
        return changed

    def _exchange(self, layer: Attention, processor: Processor, release: Callable[..., dict[str, np.ndarray]]) -> Self:
        """Another processor for one layer, and its projections in the form that wants; other params stay."""
        params, chosen = self.params, {layer.name: processor}
        before, after = (dict(p.parameters(layer)) for p in (layer.processor, processor))
        if before != after:
            canonical = release(layer, self.ops.export_params({name: params[name] for name in before}, before))
            kept = {name: p for name, p in params.items() if name not in before}
            params = kept | self.ops.load_params(processor.adopt(layer, canonical), after)
        return self._replace(
            encoder=with_processors(self.encoder, chosen), decoder=with_processors(self.decoder, chosen), params=params
        )
