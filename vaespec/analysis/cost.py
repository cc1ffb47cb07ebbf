"""How much does a run cost? The model on fake arrays: arithmetic, traffic and memory, before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vaespec.architecture import half_of, parameters
from vaespec.config import AutoencoderConfig
from vaespec.layers import Params
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter

Direction = Literal["encode", "decode"]

# Arithmetic per number in operations that are neither convolutions nor matrix products: 0.2 % of the SD decoder.
NORM_FLOPS, ACTIVATION_FLOPS, ADD_FLOPS = 7, 5, 1


@dataclass(frozen=True)
class Cost:
    """The cost of one run. A multiplication and an addition are two flops.

    `peak_bytes` is the most that feature maps and tokens hold at one time, each freed after the model last uses it;
    memory that a backend needs inside an operation (im2col, attention logits) is not included. `moved_bytes` counts
    every operation's inputs, weights and output once.
    """

    conv_flops: int
    attention_flops: int
    other_flops: int
    moved_bytes: int
    peak_bytes: int
    weight_bytes: int
    output_shape: tuple[int, ...]

    @property
    def flops(self) -> int:
        """Flops of all operations."""
        return self.conv_flops + self.attention_flops + self.other_flops


def cost(
    config: AutoencoderConfig,
    direction: Direction,
    size: tuple[int, int],
    batch: int = 1,
    bytes_per_number: int = 4,
) -> Cost:
    """The cost of encoding images, or decoding latents, of `size` (height, width)."""
    half = half_of(direction)
    model = half.build(config)
    ops, table = CostOps(bytes_per_number), dict(model.parameters())
    output = model(ops.array(batch, half.in_channels(config), *size), table, ops)
    weights = sum(math.prod(parameter.shape) for parameter in parameters(config).values())
    return Cost(
        ops.conv_flops,
        ops.attention_flops,
        ops.other_flops,
        ops.moved_bytes,
        ops.peak_bytes,
        weights * bytes_per_number,
        output.shape,
    )


class FakeArray:
    """An array without numbers: maps (B, C, H, W), tokens (B, N, C). Views share its `memory`."""

    def __init__(self, shape: tuple[int, ...], memory: Allocation) -> None:
        self.shape, self.memory = shape, memory

    @property
    def size(self) -> int:
        """Count of the numbers that the array would hold."""
        return math.prod(self.shape)

    def __getitem__(self, index: Sequence[Any]) -> FakeArray:
        """Return a view, by slices and an ellipsis at the end."""
        cut = [s for s in index if s is not ...]
        sides = [len(range(*s.indices(side))) for s, side in zip(cut, self.shape, strict=False)]
        return FakeArray((*sides, *self.shape[len(cut) :]), self.memory)


class Allocation:
    """Bytes that `ops` count as held until Python frees this object."""

    def __init__(self, ops: CostOps, held: int) -> None:
        self.ops, self.held = ops, held
        ops._hold(held)

    def __del__(self) -> None:
        self.ops._hold(-self.held)


class CostOps:
    """Every operation returns a fake array of its result's shape and adds up what the operation would cost.

    An array counts as held until Python frees its FakeArray, so the model's own variables decide how long it lives.
    """

    def __init__(self, bytes_per_number: int) -> None:
        self.bytes_per_number = bytes_per_number
        self.conv_flops = self.attention_flops = self.other_flops = 0
        self.moved_bytes = self.held_bytes = self.peak_bytes = 0

    def array(self, *shape: int) -> FakeArray:
        """Allocate an array."""
        return FakeArray(shape, Allocation(self, math.prod(shape) * self.bytes_per_number))

    def _hold(self, change: int) -> None:
        self.held_bytes += change
        self.peak_bytes = max(self.peak_bytes, self.held_bytes)

    def _result(self, *shape: int, read: tuple[FakeArray | Parameter, ...]) -> FakeArray:
        result = self.array(*shape)
        numbers = result.size + sum(math.prod(array.shape) for array in read)
        self.moved_bytes += numbers * self.bytes_per_number
        return result

    def run(self, layer: Layer, x: FakeArray, params: Params) -> FakeArray:
        return layer(x, params, self)

    def from_nchw(self, x: FakeArray) -> FakeArray:
        return x

    def to_nchw(self, x: FakeArray) -> FakeArray:
        return x

    def conv2d(self, x: FakeArray, w: Parameter, b: Parameter, *, stride: int, padding: Padding) -> FakeArray:
        (B, C, H, W), (O, _, kh, kw), ((top, bottom), (left, right)) = x.shape, w.shape, padding
        h, wd = (H + top + bottom - kh) // stride + 1, (W + left + right - kw) // stride + 1
        self.conv_flops += 2 * B * O * h * wd * C * kh * kw
        return self._result(B, O, h, wd, read=(x, w, b))

    def group_norm(self, x: FakeArray, scale: Parameter, shift: Parameter, *, groups: int, eps: float) -> FakeArray:
        self.other_flops += NORM_FLOPS * x.size
        return self._result(*x.shape, read=(x, scale, shift))

    def silu(self, x: FakeArray) -> FakeArray:
        self.other_flops += ACTIVATION_FLOPS * x.size
        return self._result(*x.shape, read=(x,))

    mish = gelu = relu = silu

    def add(self, x: FakeArray, y: FakeArray) -> FakeArray:
        self.other_flops += ADD_FLOPS * x.size
        return self._result(*x.shape, read=(x, y))

    def upsample_nearest2x(self, x: FakeArray) -> FakeArray:
        B, C, H, W = x.shape
        return self._result(B, C, 2 * H, 2 * W, read=(x,))

    def tokens(self, x: FakeArray) -> FakeArray:
        B, C, H, W = x.shape
        return self.array(B, H * W, C)

    def pixels(self, t: FakeArray, like: FakeArray) -> FakeArray:
        return self.array(*like.shape)

    def linear(self, t: FakeArray, w: Parameter, b: Parameter | None) -> FakeArray:
        B, N, _ = t.shape
        self.attention_flops += 2 * B * N * math.prod(w.shape)
        return self._result(B, N, w.shape[0], read=(t, w) if b is None else (t, w, b))

    def split(self, t: FakeArray, parts: int) -> tuple[FakeArray, ...]:
        B, N, C = t.shape
        return tuple(self.array(B, N, C // parts) for _ in range(parts))

    def scale(self, t: FakeArray, factor: float) -> FakeArray:
        self.other_flops += t.size
        return self._result(*t.shape, read=(t,))

    def attention(self, q: FakeArray, k: FakeArray, v: FakeArray, *, scale: float) -> FakeArray:
        B, N, C = q.shape
        self.attention_flops += 4 * B * N * N * C
        return self._result(B, N, C, read=(q, k, v))

    eager_attention = attention

    def chunked_attention(self, q: FakeArray, k: FakeArray, v: FakeArray, *, scale: float, size: int) -> FakeArray:
        return self.attention(q, k, v, scale=scale)
