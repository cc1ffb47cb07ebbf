"""The attention layer, and its processors: how the tokens are projected, weighed and projected back.

A processor is data, as a layer is. It lists the parameters it looks up, and turns the canonical ones (to_q, to_k, to_v,
to_out.0) into its own and back, so that a model may change its processor at any time.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from vaespec.errors import InputError
from vaespec.layers import GroupNorm, Linear, Params, Sequential, Table
from vaespec.ops import Array, Layer, Ops

QKV = ("to_q", "to_k", "to_v")
PROJECTIONS = (*QKV, "to_out.0")

Weights = Mapping[str, np.ndarray]


class Processor:
    """Project, attend, project back. A subclass changes one of the steps; `layer` is the Attention it works for."""

    def __call__(self, layer: Attention, t: Array, params: Params, ops: Ops) -> Array:
        """Normalised tokens (B, N, C) -> what is added to the map, as tokens."""
        q, k, v = self.project(layer, t, params, ops)
        return self.output(layer, self.attend(q, k, v, ops, scale=layer.channels**-0.5), params, ops)

    def project(self, layer: Attention, t: Array, params: Params, ops: Ops) -> tuple[Array, ...]:
        """Tokens -> queries, keys and values."""
        return tuple(layer.linear(part)(t, params, ops) for part in QKV)

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V."""
        return ops.attention(q, k, v, scale=scale)

    def output(self, layer: Attention, t: Array, params: Params, ops: Ops) -> Array:
        """The last projection."""
        return layer.linear("to_out.0")(t, params, ops)

    def parameters(self, layer: Attention) -> Table:
        """Names, shapes and roles of what the projections look up."""
        for part in PROJECTIONS:
            yield from layer.linear(part).parameters()

    def adopt(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """Canonical weights of the projections -> those that `parameters` lists."""
        return dict(weights)

    def release(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """The inverse of `adopt`."""
        return dict(weights)


@dataclass(frozen=True)
class Sdpa(Processor):
    """The backend's own scaled dot-product attention: the default."""


@dataclass(frozen=True)
class Attention:
    """x + processor(norm(x)), over all pixels: one head as wide as the map."""

    name: str
    channels: int
    groups: int
    processor: Processor = Sdpa()

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        t = ops.tokens(self.norm()(x, params, ops))
        return ops.add(x, ops.pixels(self.processor(self, t, params, ops), like=x))

    def norm(self) -> GroupNorm:
        """What the tokens are made from."""
        return GroupNorm(f"{self.name}.group_norm", self.channels, self.groups)

    def linear(self, part: str) -> Linear:
        """The projection of that name: to_q, to_k, to_v or to_out.0."""
        return Linear(f"{self.name}.{part}", self.channels, self.channels)

    def parameters(self) -> Table:
        yield from self.norm().parameters()
        yield from self.processor.parameters(self)


@dataclass(frozen=True)
class Eager(Processor):
    """The formula, with all N × N weights in memory."""

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return ops.eager_attention(q, k, v, scale=scale)


@dataclass(frozen=True)
class Chunked(Processor):
    """`size` tokens at a time against `size` others: exact, in memory that does not grow with N²."""

    size: int = 1024

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"chunks of {self.size} tokens: expected at least 1.")

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return ops.chunked_attention(q, k, v, scale=scale, size=self.size)


@dataclass(frozen=True)
class Fused(Processor):
    """Queries, keys and values from one linear map, `to_qkv`; `core` attends."""

    core: Processor = Sdpa()

    def project(self, layer: Attention, t: Array, params: Params, ops: Ops) -> tuple[Array, ...]:
        return ops.split(self._linear(layer)(t, params, ops), 3)

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return self.core.attend(q, k, v, ops, scale=scale)

    def parameters(self, layer: Attention) -> Table:
        yield from self._linear(layer).parameters()
        yield from layer.linear("to_out.0").parameters()

    def adopt(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        names = {end: [f"{layer.name}.{part}.{end}" for part in QKV] for end in ("weight", "bias")}
        kept = {name: a for name, a in weights.items() if name not in names["weight"] + names["bias"]}
        fused = {f"{layer.name}.to_qkv.{end}": np.concatenate([weights[n] for n in names[end]]) for end in names}
        return kept | fused

    def release(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        released = dict(weights)
        for end in ("weight", "bias"):
            thirds = np.split(released.pop(f"{layer.name}.to_qkv.{end}"), 3)
            released |= {f"{layer.name}.{part}.{end}": a for part, a in zip(QKV, thirds, strict=True)}
        return released

    def _linear(self, layer: Attention) -> Linear:
        return Linear(f"{layer.name}.to_qkv", layer.channels, 3 * layer.channels)


@dataclass(frozen=True)
class LoRA(Processor):
    """Each projection W t + b plus scale · alpha / rank · up(down(t)); `core` attends. Hu et al., arXiv:2106.09685.

    `alpha` defaults to `rank`. A new one changes nothing: down is N(0, 1 / rank²), drawn from `seed`, and up is zero
    (as diffusers 0.23). The parameters are named `….processor.to_q_lora.down.weight` and so on, as there.
    """

    rank: int = 4
    alpha: float | None = None
    scale: float = 1.0
    core: Processor = Sdpa()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a LoRA of rank {self.rank}: expected at least 1.")

    @property
    def factor(self) -> float:
        """What the update is multiplied by."""
        return self.scale * (1.0 if self.alpha is None else self.alpha / self.rank)

    def project(self, layer: Attention, t: Array, params: Params, ops: Ops) -> tuple[Array, ...]:
        projected = zip(QKV, super().project(layer, t, params, ops), strict=True)
        return tuple(ops.add(y, self._update(layer, part, t, params, ops)) for part, y in projected)

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return self.core.attend(q, k, v, ops, scale=scale)

    def output(self, layer: Attention, t: Array, params: Params, ops: Ops) -> Array:
        return ops.add(super().output(layer, t, params, ops), self._update(layer, "to_out.0", t, params, ops))

    def parameters(self, layer: Attention) -> Table:
        yield from super().parameters(layer)
        for part in PROJECTIONS:
            for linear in self._linears(layer, part):
                yield from linear.parameters()

    def adopt(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        adopted = dict(weights)
        for part in PROJECTIONS:
            down, up = (f"{linear.name}.weight" for linear in self._linears(layer, part))
            rng = np.random.default_rng((self.seed, zlib.crc32(down.encode())))
            adopted[down] = rng.standard_normal((self.rank, layer.channels), np.float32) / np.float32(self.rank)
            adopted[up] = np.zeros((layer.channels, self.rank), np.float32)
        return adopted

    def release(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """Without the update."""
        canonical = dict(super().parameters(layer))
        return {name: a for name, a in weights.items() if name in canonical}

    def merge(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """With the update added to the canonical weights."""
        merged = self.release(layer, weights)
        for part in PROJECTIONS:
            down, up = (weights[f"{linear.name}.weight"].astype(np.float64) for linear in self._linears(layer, part))
            name = f"{layer.name}.{part}.weight"
            merged[name] = (merged[name] + self.factor * (up @ down)).astype(merged[name].dtype)
        return merged

    def _update(self, layer: Attention, part: str, t: Array, params: Params, ops: Ops) -> Array:
        down, up = self._linears(layer, part)
        return ops.scale(up(down(t, params, ops), params, ops), self.factor)

    def _linears(self, layer: Attention, part: str) -> tuple[Linear, Linear]:
        name = f"{layer.name}.processor.{part.removesuffix('.0')}_lora"
        down = Linear(f"{name}.down", layer.channels, self.rank, bias=False)
        return down, Linear(f"{name}.up", self.rank, layer.channels, bias=False)


# -- which layer has which ------------------------------------------------------------------------------------------

NAMES: dict[str, Processor] = {
    "sdpa": Sdpa(),
    "eager": Eager(),
    "chunked": Chunked(),
    "fused": Fused(),
    "lora": LoRA(),
    # diffusers' classes. Its sliced and xFormers ones save memory, which here is what chunks are for.
    "AttnProcessor": Eager(),
    "AttnProcessor2_0": Sdpa(),
    "XFormersAttnProcessor": Chunked(),
    "SlicedAttnProcessor": Chunked(),
    "FusedAttnProcessor2_0": Fused(),
    "LoRAAttnProcessor": LoRA(core=Eager()),
    "LoRAAttnProcessor2_0": LoRA(),
    "LoRAXFormersAttnProcessor": LoRA(core=Chunked()),
}
MEANINGLESS = dict.fromkeys(
    (
        "AttnAddedKVProcessor",
        "AttnAddedKVProcessor2_0",
        "SlicedAttnAddedKVProcessor",
        "XFormersAttnAddedKVProcessor",
        "LoRAAttnAddedKVProcessor",
    ),
    "it adds keys and values made from a text",
) | dict.fromkeys(
    ("CustomDiffusionAttnProcessor", "CustomDiffusionAttnProcessor2_0", "CustomDiffusionXFormersAttnProcessor"),
    "it trains the keys and values of a text",
)


def as_processor(given: Any) -> Processor:
    """A processor from itself, its name, or the name, class or object of one of diffusers'; else InputError."""
    if isinstance(given, Processor):
        return given
    name = given if isinstance(given, str) else getattr(given, "__name__", type(given).__name__)
    if name in MEANINGLESS:
        raise InputError(f"attention processor {name}: {MEANINGLESS[name]}, and this VAE reads none; choose sdpa.")
    if name not in NAMES:
        raise InputError(
            f"attention processor {name!r}: choose {', '.join(NAMES)}, or an object of vaespec.attention.Processor."
        )
    if not isinstance(given, type) and getattr(given, "state_dict", dict)():
        raise InputError(
            f"a {name} with weights of its own: give vaespec.attention.LoRA and load them as its parameters."
        )
    return NAMES[name]


def assign(given: Any, layers: Iterable[Attention]) -> dict[str, Processor]:
    """The processor of each layer, by the layer's name, from one for all or a mapping of `{name}.processor`.

    A mapping must name every layer and nothing else, else InputError; it is not changed.
    """
    names = [layer.name for layer in layers]
    if not isinstance(given, Mapping):
        return dict.fromkeys(names, as_processor(given))
    keys = {f"{name}.processor": name for name in names}
    for problem, wrong in (("unknown", set(given) - set(keys)), ("missing", set(keys) - set(given))):
        if wrong:
            raise InputError(
                f"attention processors: {problem} {', '.join(map(repr, sorted(map(str, wrong))))}; "
                f"expected {', '.join(keys) or 'none: this model has no attention'}."
            )
    return {keys[key]: as_processor(processor) for key, processor in given.items()}


def attention_layers(model: Sequential) -> list[Attention]:
    """The attention layers of a model, in order."""
    return [layer for layer in model.layers if isinstance(layer, Attention)]


def with_processors(model: Sequential, processors: Mapping[str, Processor]) -> Sequential:
    """The same model with these processors, by the names of attention layers; others keep theirs."""

    def changed(layer: Layer) -> Layer:
        if isinstance(layer, Attention) and layer.name in processors:
            return replace(layer, processor=processors[layer.name])
        return layer

    return Sequential(tuple(map(changed, model.layers)))
