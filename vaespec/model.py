"""Model: the layers of an AutoencoderKL and their parameters, on some ops. A value: to change it is to make another."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np

from vaespec.analysis import finite
from vaespec.analysis.finite import first_nonfinite
from vaespec.architecture import DECODER, ENCODER, HALVES, Half, halves_among, parameters, parameters_among
from vaespec.attention import Attention, LoRA, Processor
from vaespec.callers import warn_user
from vaespec.config import AutoencoderConfig
from vaespec.copying import in_memory_order
from vaespec.errors import BackendError, Float16OverflowWarning, InputError, NonFiniteError, VaespecError
from vaespec.layers import Sequential
from vaespec.ops import Array
from vaespec.outputs import AutoencoderKLOutput, DecoderOutput
from vaespec.parameter import Parameter
from vaespec.posterior import DiagonalGaussian
from vaespec.processors import attention_layers, with_processors
from vaespec.reference import ReferenceOps
from vaespec.trained import adopt
from vaespec.upcast import unchecked, upcast

Run = Callable[[Array, Mapping[str, Array]], Array]
Stream = Callable[[Any, Mapping[str, Array]], Iterator[Array]]
Bands = Callable[[Any], Callable[[Sequential], Stream]]
"""bands(ops)(layers) -> a function of x and params that yields the result of the layers in bands of rows."""


class Functional(NamedTuple):
    """A model as a value and two pure functions, for jit, grad, vmap and sharding."""

    params: dict[str, Array]
    encode: Callable[[Mapping[str, Array], Array], AutoencoderKLOutput]
    decode: Callable[[Mapping[str, Array], Array], DecoderOutput]


@dataclass(frozen=True, eq=False)
class Model:
    """`params` are arrays of `ops`, in its layouts, by the names that `table` lists.

    `overflowed` are the names of the halves that overflowed in float16, and are computed in float32 from then on: what
    a run finds out about these weights, and what models with the same weights share.
    """

    config: AutoencoderConfig
    encoder: Sequential
    decoder: Sequential
    params: Mapping[str, Array]
    ops: ReferenceOps
    overflowed: set[str] = field(default_factory=set)

    @classmethod
    def place(cls, config: AutoencoderConfig, weights: Mapping[str, np.ndarray], ops: ReferenceOps) -> Self:
        """A model with canonical weights. A half without any weights is left empty."""
        table = parameters_among(weights, config)
        return cls.outline(config, weights, ops).replace(params=ops.load_params(weights, table))

    @classmethod
    def outline(cls, config: AutoencoderConfig, names: Container[str], ops: ReferenceOps) -> Self:
        """A model without params, to plan with, that has the halves whose weights are named."""
        present = halves_among(names, config)
        layers: dict[str, Any] = {
            name: half.build(config) if name in present else Sequential(()) for name, half in HALVES.items()
        }
        return cls(config, **layers, params={}, ops=ops)

    def move(self, ops: ReferenceOps) -> Self:
        """This model on other ops; weights are converted one at a time."""
        table = self.table()
        params = ops.load_params(self.ops.export_params(self.params, table), table)
        return self.replace(params=params, ops=ops, overflowed=set())

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
        """The encoder's moments or the decoder's images, with the model's own params, on the model's own ops.

        `compile` makes a function of the layers, by default as the ops do. Raises NonFiniteError, which names a layer.
        """
        layers = self.layers(half)
        compiled = self.compiled[half] if compile is None else compile(layers)
        y: Array = self._finite(half, lambda: compiled(x, self.params), x, finite.run_whole)
        return y

    def stream(self, half: Half, x: Any, bands: Bands) -> Iterator[Array]:
        """The result of `run` in bands of rows, from the top down. Raises NonFiniteError, which names a layer."""
        results = bands(self.ops)(self.layers(half))(x, self.params)

        def in_bands(layers: Any, x: Any, params: Mapping[str, Array], ops: Any) -> None:
            for _ in bands(ops)(layers)(x, params):
                pass

        while (y := self._finite(half, lambda: next(results, None), x, in_bands)) is not None:
            yield y

    def _finite(self, half: Half, compute: Callable[[], Array | None], x: Any, run: finite.Run) -> Array | None:
        """The result of `compute`. Raises NonFiniteError if it is not finite, with the layer that `run` shows."""
        with np.errstate(over="ignore", invalid="ignore"):  # reported by the error
            y = compute()
            if y is None or self.ops.all_finite(y):
                return y
            del y
            wide, narrow = self.ops.inference_ops({})[0].wide_maps, self.ops.dtype == "float16"
            # maps were wide, unless a gradient was recorded
            candidates = (upcast(self.ops), self.ops) if wide and narrow else (self.ops,)
            found = (first_nonfinite(self.layers(half), x, self.params, ops, run) for ops in candidates)
            culprit = next(filter(None, found), "the conversion of the result")
        hint = "; float16 is too narrow for many models: try bfloat16 or float32" if narrow else ""
        hint += ", or register_to_config(force_upcast=True)" if narrow and not wide else ""
        raise NonFiniteError(
            f"the {half.result} are not finite: NaN or infinity first appears in {culprit}{hint}.", culprit
        )

    # -- float16 -----------------------------------------------------------------------------------------------

    @cached_property
    def in_float32(self) -> Self:
        """This model, with the same params, on ops whose maps are float32."""
        return self.replace(ops=upcast(self.ops))

    def computing(self, half: Half) -> Self:
        """This model as it computes a half: in float32 if it is float16 and its config, or an overflow before, says so.

        A config that says False is obeyed even then.
        """
        says = self.config.force_upcast
        needed = says or (says is None and half.name in self.overflowed)
        return self.in_float32 if needed and self.ops.dtype == "float16" else self

    def may_overflow(self, half: Half, error: NonFiniteError) -> bool:
        """Whether a half that ended with this error is worth another run in float32: nothing said how to compute it."""
        silent = self.config.force_upcast is None and half.name not in self.overflowed
        return silent and self.ops.dtype == "float16" and bool(error.culprit)

    def remember_overflow(self, half: Half, culprit: str) -> None:
        """Computes a half in float32 from now on. The first time, a Float16OverflowWarning names the culprit."""
        if half.name in self.overflowed:
            return
        self.overflowed.add(half.name)
        warn_user(
            f"the {half.name} overflows in float16, first in {culprit}, and is computed in float32 from now on: "
            "register_to_config(force_upcast=True) computes it so at once, and bfloat16 needs no wider numbers.",
            Float16OverflowWarning,
        )

    def require_size(self, half: Half, shape: tuple[int, ...], parts: str = "") -> None:
        """Raises InputError if a feature map for an input of this shape is too small for the padding of the ops.

        `parts` names what the shape is of, if that is not the input.
        """
        *_, height, width = shape
        f, unit = (self.config.downsampling_factor, "px") if half is ENCODER else (1, "latents")
        what = f"{parts or half.source} of {height} x {width}{f' {unit}' if parts or half is ENCODER else ''}"
        self.ops.require_size(height // f, width // f, what)

    def layers(self, half: Half) -> Sequential:
        """The encoder or the decoder. Raises InputError if it has no weights."""
        layers: Sequential = getattr(self, half.name)
        if not layers.layers:
            raise half.absent()
        return layers

    def encode(self, params: Mapping[str, Array], x: Array) -> AutoencoderKLOutput:
        """Images -> posterior, computed with the given params: a pure function, which a framework may trace."""
        return AutoencoderKLOutput(DiagonalGaussian(self._unchecked(ENCODER, params, x)))

    def decode(self, params: Mapping[str, Array], z: Array) -> DecoderOutput:
        """Latents -> images: a pure function as well."""
        return DecoderOutput(self._unchecked(DECODER, params, z))

    def _unchecked(self, half: Half, params: Mapping[str, Array], x: Array) -> Array:
        """The result of a half with the given params, which may be of another dtype than the model's."""
        self.require_size(half, x.shape)
        layers = self.layers(half)
        return layers(x, params, unchecked(self.ops, layers, params, self.config.force_upcast))

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
        params = {**self.params, **adopt(params, self.table(), self.params, self.ops)}
        return self.replace(params=params, overflowed=set())

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
