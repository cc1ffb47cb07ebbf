"""Model: the layers of an AutoencoderKL and their parameters, on some ops. A value: to change it is to make another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from vaespec.analysis.finite import first_nonfinite
from vaespec.architecture import DECODER, ENCODER, HALVES, Half, halves_among, parameters, parameters_among
from vaespec.attention import Attention, LoRA, Processor
from vaespec.config import AutoencoderConfig
from vaespec.copying import in_memory_order
from vaespec.errors import BackendError, InputError, NonFiniteError, VaespecError
from vaespec.layers import Sequential
from vaespec.ops import Array
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.parameter import Parameter
from vaespec.posterior import DiagonalGaussian
from vaespec.processors import attention_layers, with_processors
from vaespec.reference import ReferenceOps
from vaespec.trained import adopt

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
        """A model with canonical weights. A half without any weights is left empty."""
        table = parameters_among(weights, config)
        return cls.outline(config, weights, ops).replace(params=ops.load_params(weights, table))

    @classmethod
    def outline(cls, config: AutoencoderConfig, names: Container[str], ops: ReferenceOps) -> Self:
        """A model without params, to plan with, that has the halves whose weights are named."""
        present = halves_among(names, config)
        layers = {name: half.build(config) if name in present else Sequential(()) for name, half in HALVES.items()}
        return cls(config, **layers, params={}, ops=ops)

    def move(self, ops: ReferenceOps) -> Self:
        """This model on other ops; weights are converted one at a time."""
        table = self.table()
        return self.replace(params=ops.load_params(self.ops.export_params(self.params, table), table), ops=ops)

    def replace(self, **changes: Any) -> Self:
        """This model with other fields that fit the rest, such as ops that accept the same params."""
        return dataclasses.replace(self, **changes)

    # -- copies ------------------------------------------------------------------------------------------------

    def __copy__(self) -> Self:
        return self.replace()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickles and deep copies hold the params as NumPy, and nothing that is cached, such as compiled functions."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        stored = {name: in_memory_order(self.ops.to_numpy(x)) for name, x in fields.pop("params").items()}
        return _placed_again, (type(self), fields, stored)

    # -- running -----------------------------------------------------------------------------------------------

    @cached_property
    def compiled(self) -> dict[Half, Run]:
        """(images, params) -> moments for the encoder, (latents, params) -> images for the decoder."""
        halves = (half for half in HALVES.values() if getattr(self, half.name).layers)
        return {half: self.ops.compile(self.layers(half)) for half in halves}

    def run(self, half: Half, x: Array, compile: Callable[[Sequential], Run] | None = None) -> Array:
        """The encoder's moments or the decoder's images, with the model's own params.

        `compile` makes a function of the layers, by default as the ops do. Raises NonFiniteError, which names a layer.
        """
        layers = self.layers(half)
        compiled = self.compiled[half] if compile is None else compile(layers)

        def reason() -> str:
            culprit = first_nonfinite(layers, x, self.params, self.ops)
            return f"NaN or infinity first appears in {culprit or 'the conversion of the result'}"

        return self._finite(half, lambda: compiled(x, self.params), reason)

    def stream(self, half: Half, x: Any, bands: Callable[[Sequential], Stream]) -> Iterator[Array]:
        """The result of `run` in bands of rows, from the top down. `bands` makes a function of the layers.

        Raises NonFiniteError without a layer's name: to find it takes a run of the whole, and perhaps too much memory.
        """
        results = bands(self.layers(half))(x, self.params)
        reason = "run a part of the input without tiling to learn the layer"
        while (y := self._finite(half, lambda: next(results, None), lambda: reason)) is not None:
            yield y

    def _finite(self, half: Half, compute: Callable[[], Array | None], reason: Callable[[], str]) -> Array | None:
        """The result of `compute`. Raises NonFiniteError with the reason if it holds NaN or infinity."""
        with np.errstate(over="ignore", invalid="ignore"):  # reported by the error
            y = compute()
            if y is None or self.ops.all_finite(y):
                return y
            narrow = self.ops.dtype == "float16"
            hint = "; float16 is too narrow for many models: try bfloat16 or float32" if narrow else ""
            raise NonFiniteError(f"the {half.result} are not finite: {reason()}{hint}.")

    def layers(self, half: Half) -> Sequential:
        """The encoder or the decoder. Raises InputError if it has no weights."""
        layers: Sequential = getattr(self, half.name)
        if not layers.layers:
            raise half.absent()
        return layers

    def encode(self, params: Mapping[str, Array], x: Array) -> AutoencoderKLOutput:
        """Images -> posterior, computed with the given params: a pure function, which a framework may trace."""
        return AutoencoderKLOutput(DiagonalGaussian(self.layers(ENCODER)(x, params, self.ops)))

    def decode(self, params: Mapping[str, Array], z: Array) -> DecoderOutput:
        """Latents -> images: a pure function as well."""
        return DecoderOutput(self.layers(DECODER)(z, params, self.ops))

    def functional(self) -> Functional:
        """See AutoencoderKL.functional."""
        table = self.table()
        params = {name: self.ops.copy(self.params[name]) for name, row in table.items() if row.trained}
        return Functional(params, self.encode, self.decode)

    # -- parameters --------------------------------------------------------------------------------------------

    def table(self) -> dict[str, Parameter]:
        """The rows of `params`: the tensors of the config, with those that processors have added or fused.

        Half a model may lack FLUX.2's statistics.
        """
        statistics = parameters(self.config, halves=()).items()
        layers = [*self.encoder.parameters(), *self.decoder.parameters()]
        return dict([*layers, *((name, row) for name, row in statistics if name in self.params or not self.params)])

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
        canonical = parameters_among(weights, self.config)
        return {name: np.array(weights[name], order="C") for name in canonical}  # copies: safe to change

    def with_params(self, params: Mapping[str, Array]) -> Self:
        """See AutoencoderKL.with_params."""
        return self.replace(params={**self.params, **adopt(params, self.table(), self.params, self.ops)})

    # -- attention ---------------------------------------------------------------------------------------------

    def attention_layers(self) -> list[Attention]:
        """The attention layers of the encoder, then of the decoder."""
        return attention_layers(self.encoder) + attention_layers(self.decoder)

    def with_processors(self, processors: Mapping[str, Processor]) -> Self:
        """This model with other processors, by the names of the layers; a LoRA that is replaced is left out."""
        changed = self
        for layer in self.attention_layers():
            changed = changed._exchange(layer, processors[layer.name], layer.processor.release)
        return changed

    def with_fused_lora(self) -> Self:
        """This model with every LoRA added to the weights."""
        changed = self
        for layer in self.attention_layers():
            if isinstance(layer.processor, LoRA):
                changed = changed._exchange(layer, layer.processor.core, layer.processor.merge)
        return changed

    def _exchange(self, layer: Attention, processor: Processor, release: Callable[..., dict[str, np.ndarray]]) -> Self:
        """This model with another processor for one layer, and its projections in the form that the processor needs."""
        params, chosen = self.params, {layer.name: processor}
        before, after = (dict(p.parameters(layer)) for p in (layer.processor, processor))
        if before != after:
            canonical = release(layer, self.ops.export_params({name: params[name] for name in before}, before))
            kept = {name: p for name, p in params.items() if name not in before}
            params = kept | self.ops.load_params(processor.adopt(layer, canonical), after)
        return self.replace(
            encoder=with_processors(self.encoder, chosen), decoder=with_processors(self.decoder, chosen), params=params
        )


def _placed_again(
    cls: type[Model], fields: dict[str, Any], stored: Mapping[str, tuple[np.ndarray, tuple[int, ...]]]
) -> Model:
    """The model that was pickled, with its params on its ops. Raises BackendError if the device is not here."""
    ops = fields["ops"]
    try:
        return cls(**fields, params={name: _placed(array, ops, axes) for name, (array, axes) in stored.items()})
    except VaespecError:
        raise
    except Exception as error:  # a framework without the device can raise anything
        raise BackendError(
            f"the pickled model cannot be placed on {ops.device} here ({error}): move it with to('cpu') first."
        ) from error


def _placed(array: np.ndarray, ops: ReferenceOps, axes: tuple[int, ...]) -> Array:
    """A transposed array on the ops, stored in the order that it has now."""
    x = ops.from_host(array)
    return x if axes == tuple(range(array.ndim)) else ops.materialize(ops.xp.permute_dims(x, axes))
