"""The attention layer and its processors. A processor projects the tokens, lets them attend, and projects them back.

A processor is a frozen dataclass without arrays, like a layer. It lists its parameters, and converts the canonical ones
(to_q, to_k, to_v, to_out.0) into its own and back, so that a model can change its processors at any time.
`vaespec.processors` finds the processor for a name, and sets the processors of a model.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from vaespec.deprecation import renamed
from vaespec.errors import InputError
from vaespec.layers import GroupNorm, Linear, Params, Table
from vaespec.ops import Array, Ops

QKV = ("to_q", "to_k", "to_v")
PROJECTIONS = (*QKV, "to_out.0")

Weights = Mapping[str, np.ndarray]


class Processor:
    """Projects, attends, projects back. A subclass changes one of the steps; `layer` is the layer that it is set in."""

    def __call__(self, layer: Attention, t: Array, params: Params, ops: Ops) -> Array:
        """Normalized tokens (B, N, C) -> the tokens (B, N, C) that are added to the feature map."""
        q, k, v = self.project(layer, t, params, ops)
        return self.output(layer, self.attend(q, k, v, ops, scale=layer.channels**-0.5), params, ops)

    def project(self, layer: Attention, t: Array, params: Params, ops: Ops) -> tuple[Array, ...]:
        """Tokens -> queries, keys and values, (B, N, C) each."""
        return tuple(layer.linear(part)(t, params, ops) for part in QKV)

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        """softmax(scale · Q Kᵀ) V, (B, N, C)."""
        return ops.attention(q, k, v, scale=scale)

    def output(self, layer: Attention, t: Array, params: Params, ops: Ops) -> Array:
        """The output projection of the attended tokens."""
        return layer.linear("to_out.0")(t, params, ops)

    def parameters(self, layer: Attention) -> Table:
        """Names, shapes and roles of the parameters of the projections."""
        for part in PROJECTIONS:
            yield from layer.linear(part).parameters()

    def adopt(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """Converts the canonical weights of the projections to the weights that `parameters` lists."""
        return dict(weights)

    def release(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """Inverse of `adopt`."""
        return dict(weights)


@dataclass(frozen=True)
class Sdpa(Processor):
    """The backend's own scaled dot-product attention: the default."""


@dataclass(frozen=True)
class Attention:
    """x + processor(norm(x)), over all pixels, with one head as wide as the feature map."""

    name: str
    channels: int
    groups: int
    processor: Processor = Sdpa()

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        t = ops.tokens(self.norm()(x, params, ops))
        return ops.add(x, ops.pixels(self.processor(self, t, params, ops), like=x))

    def norm(self) -> GroupNorm:
        """The norm before the projections."""
        return GroupNorm(f"{self.name}.group_norm", self.channels, self.groups)

    def linear(self, part: str) -> Linear:
        """The projection named `part`: to_q, to_k, to_v or to_out.0."""
        return Linear(f"{self.name}.{part}", self.channels, self.channels)

    def parameters(self) -> Table:
        yield from self.norm().parameters()
        yield from self.processor.parameters(self)


@dataclass(frozen=True)
class Eager(Processor):
    """The formula as it is written, with all N × N attention weights in memory."""

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return ops.eager_attention(q, k, v, scale=scale)


@dataclass(frozen=True)
class Chunked(Processor):
    """Attends from `size` tokens to `size` tokens at a time: exact, in memory that does not grow with N²."""

    size: int = 1024

    def __post_init__(self) -> None:
        if self.size < 1:
            raise InputError(f"attention in chunks of {self.size} tokens: expected a size of at least 1.")

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return ops.chunked_attention(q, k, v, scale=scale, size=self.size)


@dataclass(frozen=True)
class FusedQKV(Processor):
    """Computes queries, keys and values with one linear map, `to_qkv`; `core` attends."""

    core: Processor = Sdpa()

    def project(self, layer: Attention, t: Array, params: Params, ops: Ops) -> tuple[Array, ...]:
        return ops.split(self._to_qkv(layer)(t, params, ops), 3)

    def attend(self, q: Array, k: Array, v: Array, ops: Ops, *, scale: float) -> Array:
        return self.core.attend(q, k, v, ops, scale=scale)

    def parameters(self, layer: Attention) -> Table:
        yield from self._to_qkv(layer).parameters()
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

    def _to_qkv(self, layer: Attention) -> Linear:
        return Linear(f"{layer.name}.to_qkv", layer.channels, 3 * layer.channels)


@dataclass(frozen=True)
class LoRA(Processor):
    """Adds scale · alpha / rank · up(down(t)) to each projection W t + b; `core` attends. Hu et al., arXiv:2106.09685.

    `alpha` defaults to `rank`. A new LoRA changes nothing, as in diffusers 0.23: down is N(0, 1 / rank²), drawn from
    `seed`, and up is zero. The names are as in diffusers 0.23 too: `….processor.to_q_lora.down.weight` and so on.
    """

    rank: int = 4
    alpha: float | None = None
    scale: float = 1.0
    core: Processor = Sdpa()
    seed: int = 0

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise InputError(f"a LoRA of rank {self.rank}: expected a rank of at least 1.")

    @property
    def factor(self) -> float:
        """The factor of the update: scale · alpha / rank."""
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
        """The canonical weights, without the update."""
        canonical = dict(super().parameters(layer))
        return {name: a for name, a in weights.items() if name in canonical}

    def merge(self, layer: Attention, weights: Weights) -> dict[str, np.ndarray]:
        """The canonical weights, with the update added to them."""
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


if not TYPE_CHECKING:  # a type checker would take any name for one of this module
    __getattr__ = renamed(__name__, {"Fused": "FusedQKV"})
