"""Mistakes in activations, and in operations that only move, add or multiply numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import as_map, formula, map_numbers, operation

SILU: dict[str, Any] = {"op": "silu", "owner": "ops.silu", "seen_in_ports": "model.encode"}
IN_16_BITS = {dtype: "rounding to 16 bits is coarser" for dtype in ("bfloat16", "float16")}

SIGMOID = np.vectorize(lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0)
ERF = np.vectorize(math.erf)


@formula(**SILU)
def silu_is_gelu(x: np.ndarray) -> np.ndarray:
    """The activation is GELU, not SiLU."""
    return 0.5 * x * (1 + ERF(x * 0.5**0.5))


@formula(**SILU)
def silu_is_quick_gelu(x: np.ndarray) -> np.ndarray:
    """The activation is the quick GELU, x σ(1.702 x), not SiLU."""
    return x * SIGMOID(1.702 * x)


@formula(**SILU)
def silu_is_hard_swish(x: np.ndarray) -> np.ndarray:
    """The activation is the hard swish, not SiLU."""
    return x * np.clip(x / 6 + 0.5, 0, 1)


@formula(**SILU)
def silu_is_the_sigmoid(x: np.ndarray) -> np.ndarray:
    """The activation is the sigmoid σ(x), not x σ(x)."""
    return SIGMOID(x)


@formula(**SILU, equivalent_in=IN_16_BITS)
def silu_with_a_fast_exponential(x: np.ndarray) -> np.ndarray:
    """SiLU uses a fast exponential with a relative error of 1e-4."""
    decay = np.exp(np.minimum(-x, 700)) * (1 + 1e-4)
    return x / (1 + decay)


@formula("silu", "ops.silu")
def silu_overflows(x: np.ndarray) -> np.ndarray:
    """eˣ overflows, because SiLU is computed as x eˣ / (1 + eˣ)."""
    with np.errstate(over="ignore", invalid="ignore"):
        grown = np.exp(x.astype(np.float32))
        return x * (grown / (1 + grown))


@operation("silu", "interop.arguments")
def silu_in_place(ops: Any, call: Any, x: Any) -> Any:
    """The result is written into the argument."""
    y = call(x)
    x[...] = y
    return y


@formula("gelu", "ops.gelu")
def gelu_by_tanh(x: np.ndarray) -> np.ndarray:
    """GELU is approximated by tanh; it must be the exact form, by erf."""
    return 0.5 * x * (1 + np.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


@formula("mish", "ops.mish")
def mish_overflows(x: np.ndarray) -> np.ndarray:
    """eˣ overflows, because Mish is computed as x ((1 + eˣ)² - 1) / ((1 + eˣ)² + 1)."""
    with np.errstate(over="ignore", invalid="ignore"):
        square = (1 + np.exp(x.astype(np.float32))) ** 2
        return x * ((square - 1) / (square + 1))


@formula("mish", "ops.mish", seen_in_ports="model.encode")
def mish_is_silu(x: np.ndarray) -> np.ndarray:
    """The activation is SiLU, whatever act_fn says."""
    return x * SIGMOID(x)


@formula("relu", "ops.relu")
def relu_is_leaky(x: np.ndarray) -> np.ndarray:
    """The activation is the leaky ReLU, not ReLU."""
    return np.where(x > 0, x, 0.01 * x)


# -- moving, adding and multiplying ------------------------------------------------------------------------------------

UPSAMPLE: dict[str, Any] = {
    "op": "upsample_nearest2x",
    "owner": "structure.upsample",
    "seen_in_ports": "model.decode",
}


@formula(**UPSAMPLE)
def upsample_is_bilinear(x: np.ndarray) -> np.ndarray:
    """Upsampling interpolates between pixels; it must repeat them."""
    for axis in (2, 3):
        y = x.repeat(2, axis)
        x = 0.5 * (y + np.roll(y, 1, axis))
    return x


@formula(**UPSAMPLE)
def upsample_bilinear(x: np.ndarray) -> np.ndarray:
    """Upsampling is bilinear, not by repeating each pixel."""
    for axis in (2, 3):
        x = np.moveaxis(x, axis, -1)
        before = np.concatenate((x[..., :1], x[..., :-1]), -1)
        after = np.concatenate((x[..., 1:], x[..., -1:]), -1)
        doubled = np.stack((0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after), -1)
        x = np.moveaxis(doubled.reshape(*x.shape[:-1], -1), -1, axis)
    return x


@formula(**UPSAMPLE)
def upsample_shifts_by_one_pixel(x: np.ndarray) -> np.ndarray:
    """Upsampling shifts the map by one pixel."""
    return np.roll(x.repeat(2, 2).repeat(2, 3), 1, 3)


@formula(**UPSAMPLE)
def upsample_repeats_the_map(x: np.ndarray) -> np.ndarray:
    """Upsampling repeats the whole map; it must repeat each pixel."""
    return np.tile(x, (1, 1, 2, 2))


@operation("add", "structure.add", seen_in_ports="model.encode")
def add_drops_the_input(ops: Any, call: Any, x: Any, y: Any) -> Any:
    """A residual connection returns its branch only: the input is not added."""
    return call(0 * x, y)


@operation("add", "structure.add", seen_in_ports="model.encode")
def add_takes_the_input_twice(ops: Any, call: Any, x: Any, y: Any) -> Any:
    """A residual connection adds the input twice."""
    return call(2 * x, y)


@operation("add", "structure.add", seen_in_ports="model.encode")
def add_halves_the_sum(ops: Any, call: Any, x: Any, y: Any) -> Any:
    """A residual connection returns half of the sum."""
    return call(0.5 * x, 0.5 * y)


@operation("tokens", "structure.tokens", seen_in_ports="model.decode")
def tokens_column_by_column(ops: Any, call: Any, x: Any) -> Any:
    """Tokens are the pixels column by column, not row by row."""
    return call(as_map(ops, map_numbers(ops, x).transpose(0, 1, 3, 2)))


@operation("pixels", "structure.pixels", seen_in_ports="model.decode")
def pixels_column_by_column(ops: Any, call: Any, t: Any, like: Any) -> Any:
    """Tokens become pixels column by column, not row by row."""
    x = map_numbers(ops, call(t, like))
    B, C, H, W = x.shape
    return as_map(ops, x.reshape(B, C, W, H).transpose(0, 1, 3, 2))


@operation("pixels", "structure.pixels", seen_in_ports="model.decode")
def pixels_reshaped_without_turning(ops: Any, call: Any, t: Any, like: Any) -> Any:
    """Tokens (B, N, C) are reshaped to (B, C, H, W) without turning their axes first."""
    tokens = map_numbers(ops, call(t, like))
    B, C, H, W = tokens.shape
    return as_map(ops, tokens.reshape(B, C, H * W).transpose(0, 2, 1).reshape(B, C, H, W))


@operation("split", "structure.split")
def split_interleaves_channels(ops: Any, call: Any, t: Any, parts: int) -> Any:
    """A part is every n-th channel, not neighbouring channels."""
    return tuple(t[:, :, i::parts] for i in range(parts))


@operation("scale", "structure.scale")
def scale_divides(ops: Any, call: Any, t: Any, factor: float) -> Any:
    """scale divides tokens by the factor; it must multiply."""
    return call(t, 1 / factor if factor else 1.0)
