"""The operations on MLX: maps are (B, H, W, C), and lazy until somebody asks for their numbers."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

import vaespec_mlx.arrays  # noqa: F401  (registers arrays and keys)
from vaespec.errors import BackendError
from vaespec.ops import Layer, Padding, ReferenceOps
from vaespec.parameters import storage_dtype
from vaespec.precision import narrow, widen
from vaespec_mlx.quantized import QuantizedWeight


class MlxOps(ReferenceOps):
    """On one device. Products follow the dtype of the weights, so that params may be cast after `functional()`."""

    conv_layout = "OHWI"
    linear_layout = "OI"

    def __init__(self, device: str, dtype: str, precision: str = "default") -> None:
        if precision == "highest" and device != "cpu" and os.environ.get("MLX_ENABLE_TF32") != "0":
            raise BackendError("MLX reads its precision once, when it starts: set MLX_ENABLE_TF32=0 before, for 'highest'.")
        super().__init__(mx, dtype, mx.Device(getattr(mx, device)))
        self.storage = getattr(mx, dtype)

    def compile(self, model: Layer) -> Callable[[mx.array, Mapping[str, mx.array]], mx.array]:
        """Evaluated layer by layer, so that the graph, and the memory it holds, is that of one layer."""
        evaluating = _EvaluatingOps(self)

        def evaluated(x: mx.array, params: Mapping[str, mx.array]) -> mx.array:
            with mx.stream(self.device):
                return model(x, params, evaluating)

        return evaluated

    def from_numpy(self, a: np.ndarray) -> mx.array:
        with np.errstate(over="ignore"):  # beyond float16 is infinity, which the caller reports
            return mx.array(np.asarray(a, storage_dtype(self.dtype), order="C"))

    def to_numpy(self, x: mx.array) -> np.ndarray:
        if x.dtype != mx.bfloat16:
            return np.array(x)
        import ml_dtypes

        return np.array(x.view(mx.uint16)).view(ml_dtypes.bfloat16)  # NumPy does not know MLX's type; the bits are the same

    def cast(self, x: mx.array) -> mx.array:
        return x.astype(self.storage)

    def is_array(self, x: object) -> bool:
        return isinstance(x, mx.array)

    def from_nchw(self, x: mx.array) -> mx.array:
        return x.transpose(0, 2, 3, 1)

    def to_nchw(self, x: mx.array) -> mx.array:
        return x.transpose(0, 3, 1, 2)

    def conv2d(self, x: mx.array, w: mx.array, b: mx.array, *, stride: int, padding: Padding) -> mx.array:
        (top, bottom), (left, right) = padding
        x = x.astype(w.dtype)
        if top == bottom and left == right:
            return mx.conv2d(x, w, stride, (top, left)) + b
        return mx.conv2d(mx.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0))), w, stride) + b

    def group_norm(self, x: mx.array, scale: mx.array, shift: mx.array, *, groups: int, eps: float) -> mx.array:
        B, H, W, C = x.shape
        x_g = widen(x, mx).reshape(B, H * W, groups, C // groups)
        centred = x_g - x_g.mean((1, 3), keepdims=True)
        variance = mx.square(centred).mean((1, 3), keepdims=True)
        x_hat = (centred * mx.rsqrt(variance + eps)).reshape(B, H, W, C)
        return narrow(x_hat * scale + shift, x, mx)

    def silu(self, x: mx.array) -> mx.array:
        return narrow(nn.silu(widen(x, mx)), x, mx)

    def mish(self, x: mx.array) -> mx.array:
        return narrow(nn.mish(widen(x, mx)), x, mx)

    def gelu(self, x: mx.array) -> mx.array:
        return narrow(nn.gelu(widen(x, mx)), x, mx)

    def relu(self, x: mx.array) -> mx.array:
        return mx.maximum(x, 0)

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
        q, k, v = (t[:, None] for t in (q, k, v))  # an axis of heads
        return mx.fast.scaled_dot_product_attention(q, k, v, scale=scale).squeeze(1)


class _EvaluatingOps:
    """The ops of a backend, with every layer's result computed at once."""

    def __init__(self, ops: MlxOps) -> None:
        self.ops = ops

    def __getattr__(self, name: str) -> Any:
        return getattr(self.ops, name)

    def run(self, layer: Layer, x: mx.array, params: Mapping[str, mx.array]) -> mx.array:
        y = layer(x, params, self.ops)
        mx.eval(y)
        return y
