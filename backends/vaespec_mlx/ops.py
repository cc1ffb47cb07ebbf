"""The operations on MLX: maps are (B, H, W, C), and are evaluated when their numbers are needed."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache, partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import vaespec_mlx.arrays  # noqa: F401  (registers arrays and keys)
from vaespec.dtypes import narrow, storage_dtype, widen
from vaespec.errors import BackendError
from vaespec.ops import Layer, Padding
from vaespec.parameter import Parameter
from vaespec.reference import ReferenceOps
from vaespec_cpu.engine import Engine
from vaespec_mlx.derivatives import with_derivatives
from vaespec_mlx.quantized import QuantizedWeight

SHAPES_KEPT = 64


class MlxOps(ReferenceOps):
    """The operations on one device; MLX's arrays have no device.

    Products follow the dtype of the weights, so that params may be cast after `functional()`.
    """

    map_layout = "NHWC"
    conv_layout = "OHWI"
    linear_layout = "OI"

    def __init__(self, device: str, dtype: str, precision: str = "default") -> None:
        if precision == "highest" and device != "cpu" and os.environ.get("MLX_ENABLE_TF32") != "0":
            raise BackendError(
                f"precision 'highest' on {device}: MLX decides about TF32 once, when it first computes; set "
                "MLX_ENABLE_TF32=0 before."
            )
        super().__init__(mx, dtype, mx.Device(getattr(mx, device)))
        self.precision = precision

    @property
    def storage(self) -> mx.Dtype:
        """The dtype as MLX's."""
        return getattr(mx, self.dtype)

    @property
    def on_engine(self) -> bool:
        """Whether the CPU engine computes outside of transforms: it reads a CPU's arrays in place."""
        return self.device.type == mx.DeviceType.cpu and self.precision == "default"

    @property
    def engine(self) -> Engine:
        return Engine(self.xp, self.dtype, self.layout, self.to_numpy, mx.array)

    def needs_framework(self, *arrays: Any) -> bool:
        """Whether MLX itself must compute with these arrays: quantized, or cast to another dtype."""
        return not self.on_engine or not all(self.is_array(a) and a.dtype == self.storage for a in arrays)

    def compile(self, model: Layer) -> Callable[[mx.array, Mapping[str, mx.array]], mx.array]:
        """MLX's arrays do not say whether they are traced, so for MLX the engine is one step with derivatives."""
        run = super().compile(model)
        step = with_derivatives(run, lambda x, params: model(x, params, self))
        return lambda x, params: (run if self.needs_framework(*params.values()) else step)(x, params)

    def with_compiler(self) -> CompilingOps:
        return CompilingOps(self.device.type.name, self.dtype, self.precision)

    def inference_ops(self, params: Mapping[str, mx.array]) -> tuple[Any, Mapping[str, Any]]:
        """Without the engine, evaluate layer by layer: the graph, and its memory, is never more than a layer's."""
        if self.needs_framework(*params.values()):
            return _EvaluatingOps(self), params
        return self.engine.ops(), self.engine.params(params)

    def apply(self, function: Callable[[Any, Mapping[str, Any]], Any], x: Any, params: Mapping[str, Any]) -> Any:
        with mx.stream(self.device):
            return function(x, params)

    def from_numpy(self, a: np.ndarray) -> mx.array:
        with np.errstate(over="ignore"):  # numbers beyond float16 become infinity, which the caller reports
            return mx.array(np.asarray(a, storage_dtype(self.dtype), order="C"))

    def to_numpy(self, x: mx.array) -> np.ndarray:
        shared = np.asarray(x.view(mx.uint16) if x.dtype == mx.bfloat16 else x)  # NumPy does not know MLX's bfloat16
        shared.flags.writeable = False
        if x.dtype != mx.bfloat16:
            return shared
        import ml_dtypes

        return shared.view(ml_dtypes.bfloat16)

    def from_host(self, a: np.ndarray) -> mx.array:
        return mx.array(a)

    def materialize(self, x: mx.array) -> mx.array:
        mx.eval(x)
        return x

    def workspace(self, op: str, x: tuple[int, ...], y: tuple[int, ...], kernel: tuple[int, ...] = ()) -> int:
        """On the CPU, a convolution copies the k · k shifted views of a map side by side, in float32."""
        shifted = op == "conv2d" and self.device.type == mx.DeviceType.cpu
        return shifted * 4 * x[0] * math.prod(y[2:]) * math.prod(kernel[1:])

    def cast(self, x: mx.array) -> mx.array:
        return x.astype(self.storage)

    def is_array(self, x: object) -> bool:
        return isinstance(x, mx.array)

    def load_params(self, params: Mapping[str, np.ndarray], table: Mapping[str, Parameter]) -> dict[str, mx.array]:
        if not self.on_engine:
            return super().load_params(params, table)
        return {name: self.materialize(a) for name, a in self.engine.load_params(params, table).items()}

    def copy(self, x: mx.array) -> mx.array:
        return _evaluated(mx.contiguous(mx.array(x)))  # in this order: `contiguous` alone copies only if it must

    def store(self, x: mx.array) -> mx.array:
        x = self.copy(self.cast(x))
        return _evaluated(self.engine.ordered(x, mx.contiguous)) if self.on_engine else x

    def widen(self, weight: mx.array | QuantizedWeight) -> mx.array | QuantizedWeight:
        """A quantized weight is multiplied in the dtype of the tokens."""
        return weight if isinstance(weight, QuantizedWeight) else super().widen(weight)

    def from_nchw(self, x: mx.array) -> mx.array:
        return x.transpose(0, 2, 3, 1)

    def to_nchw(self, x: mx.array) -> mx.array:
        return x.transpose(0, 3, 1, 2)

    def conv2d(self, x: mx.array, w: mx.array, b: mx.array, *, stride: int, padding: Padding) -> mx.array:
        (top, bottom), (left, right) = padding
        x = x.astype(w.dtype)
        if top == bottom and left == right:
            return mx.conv2d(x, w, stride, (top, left)) + b
        return mx.conv2d(mx.pad(x, [(0, 0), (top, bottom), (left, right), (0, 0)]), w, stride) + b

    def group_norm(self, x: mx.array, scale: mx.array, shift: mx.array, *, groups: int, eps: float) -> mx.array:
        B, H, W, C = x.shape
        x_g = widen(x, mx).reshape(B, H, W, groups, C // groups)
        centred = x_g - _mean(x_g)
        x_hat = (centred * mx.rsqrt(_mean(mx.square(centred)) + eps)).reshape(B, H, W, C)
        return narrow(x_hat * scale + shift, x, mx)

    def silu(self, x: mx.array) -> mx.array:
        return narrow(_silu(widen(x, mx)), x, mx)

    def mish(self, x: mx.array) -> mx.array:
        return narrow(_mish(widen(x, mx)), x, mx)

    def gelu(self, x: mx.array) -> mx.array:
        return narrow(nn.gelu(widen(x, mx)), x, mx)

    def relu(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0)  # in this order: if they are equal, the gradient is the second's

    def upsample_nearest2x(self, x: mx.array) -> mx.array:
        B, H, W, C = x.shape
        return mx.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C)).reshape(B, 2 * H, 2 * W, C)

    def tokens(self, x: mx.array) -> mx.array:
        B, H, W, C = x.shape
        return x.reshape(B, H * W, C)

    def pixels(self, t: mx.array, like: mx.array) -> mx.array:
        return t.reshape(like.shape)

    def linear(self, t: mx.array, w: mx.array | QuantizedWeight, b: mx.array | None) -> mx.array:
        y = w.product(t) if isinstance(w, QuantizedWeight) else t.astype(w.dtype) @ w.T
        return y if b is None else y + b

    def attention(self, q: mx.array, k: mx.array, v: mx.array, *, scale: float) -> mx.array:
        q_w, k_w, v_w = (widen(t, mx)[:, None] for t in (q, k, v))  # an axis of heads; 16 bits would round logits
        return narrow(mx.fast.scaled_dot_product_attention(q_w, k_w, v_w, scale=scale).squeeze(1), v, mx)


def _mean(x_g: mx.array) -> mx.array:
    """Mean of each sample and group: (B, H, W, G, C / G) -> (B, 1, 1, G, 1)."""
    for axis in (2, 1, 4):  # MLX's CPU adds number by number: three short sums round less than a long one
        x_g = x_g.mean(axis, keepdims=True)
    return x_g


def _evaluated(x: mx.array) -> mx.array:
    """Evaluate x, which another thread could not do later; inside mx.compile there is nothing to evaluate yet."""
    with suppress(ValueError):
        mx.eval(x)
    return x


@partial(mx.compile, shapeless=True)
def _silu(x: mx.array) -> mx.array:
    decay = _decay(x)
    return x * mx.where(x < 0, decay, 1) / (1 + decay)


@partial(mx.compile, shapeless=True)
def _mish(x: mx.array) -> mx.array:
    return x * mx.tanh(mx.maximum(x, 0) + mx.log1p(_decay(x)))


def _decay(x: mx.array) -> mx.array:
    """e^-|x|, from an exact exponent: on the CPU, mx.exp rounds |x| · log₂ e, and is off by |x| roundings."""
    return mx.power(math.exp(64), -mx.abs(x) / 64)


class CompilingOps(MlxOps):
    """Runs what mx.compile makes of a model, for each shape: one graph, which holds more memory than one layer.

    Where the CPU engine computes, it stays, since it is faster than the graph. The graphs of the last SHAPES_KEPT
    shapes are kept; MLX would keep all.
    """

    def compile(self, model: Layer) -> Callable[[mx.array, Mapping[str, mx.array]], mx.array]:
        engine = super().compile(model)

        @lru_cache(maxsize=SHAPES_KEPT)
        def graph(shape: tuple[int, ...]) -> Callable[[mx.array, Mapping[str, mx.array]], mx.array]:
            return mx.compile(lambda x, params: model(x, params, self))

        def compiled(x: mx.array, params: Mapping[str, mx.array]) -> mx.array:
            return (graph(x.shape) if self.needs_framework(*params.values()) else engine)(x, params)

        return compiled

    def with_compiler(self) -> CompilingOps:
        """Already compiled: return self."""
        return self


class _EvaluatingOps:
    """MlxOps that evaluate the result of every layer at once."""

    def __init__(self, ops: MlxOps) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def run(self, layer: Layer, x: mx.array, params: Mapping[str, mx.array]) -> mx.array:
        y = self.ops.run(layer, x, params)
        mx.eval(y)
        return y
