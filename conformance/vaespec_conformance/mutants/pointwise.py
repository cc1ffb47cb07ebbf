"""Mistakes in activations, and in what only moves or adds numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import as_map, map_numbers, reformulated, replaced

SILU: dict[str, Any] = {"owner": "ops.silu", "seen_in_ports": "model.encode"}
IN_16_BITS = {dtype: "its rounding is coarser" for dtype in ("bfloat16", "float16")}

SIGMOID = np.vectorize(lambda x: 1 / (1 + math.exp(-x)) if x > -700 else 0.0)
ERF = np.vectorize(math.erf)


@reformulated("silu", "GELU", cause="this is GELU", **SILU)
def _(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + ERF(x * 0.5**0.5))


@reformulated("silu", "x σ(1.702 x)", cause="this is the quick GELU, x σ(1.702 x)", **SILU)
def _(x: np.ndarray) -> np.ndarray:
    return x * SIGMOID(1.702 * x)


@reformulated("silu", "hard swish", cause="this is the hard swish", **SILU)
def _(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x / 6 + 0.5, 0, 1)


@reformulated("silu", "σ alone", cause="this is the sigmoid, without x", **SILU)
def _(x: np.ndarray) -> np.ndarray:
    return SIGMOID(x)


@reformulated("silu", "a fast exponential", cause="the exponential is off by 1e-4", equivalent_in=IN_16_BITS, **SILU)
def _(x: np.ndarray) -> np.ndarray:
    decay = np.exp(np.minimum(-x, 700)) * (1 + 1e-4)
    return x / (1 + decay)


@reformulated(
    "silu",
    "x eˣ / (1 + eˣ)",
    owner="ops.silu",
    cause="eˣ overflows",
)
def _(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        grown = np.exp(x.astype(np.float32))
        return x * (grown / (1 + grown))


@replaced("silu", "in place", owner="interop.arguments", cause="the result is written over the argument")
def _(ops: Any, call: Any, x: Any) -> Any:
    y = call(x)
    x[...] = y
    return y


@reformulated("gelu", "with tanh", owner="ops.gelu", cause="this is the form with tanh")
def _(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3)))


@reformulated(
    "mish",
    "((1 + eˣ)² - 1) / ((1 + eˣ)² + 1)",
    owner="ops.mish",
    cause="eˣ overflows",
)
def _(x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", invalid="ignore"):
        square = (1 + np.exp(x.astype(np.float32))) ** 2
        return x * ((square - 1) / (square + 1))


@reformulated("mish", "SiLU", owner="ops.mish", cause="this is SiLU", seen_in_ports="model.encode")
def _(x: np.ndarray) -> np.ndarray:
    return x * SIGMOID(x)


@reformulated("relu", "leaky", owner="ops.relu", cause="negative numbers leak")
def _(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x, 0.01 * x)


# -- moving and adding -----------------------------------------------------------------------------------------------

UPSAMPLE: dict[str, Any] = {"owner": "structure.upsample", "seen_in_ports": "model.decode"}


@reformulated("upsample_nearest2x", "bilinear", cause="pixels are interpolated", **UPSAMPLE)
def _(x: np.ndarray) -> np.ndarray:
    for axis in (2, 3):
        y = x.repeat(2, axis)
        x = 0.5 * (y + np.roll(y, 1, axis))
    return x


@reformulated("upsample_nearest2x", "shifted", cause="pixels are shifted by one", **UPSAMPLE)
def _(x: np.ndarray) -> np.ndarray:
    return np.roll(x.repeat(2, 2).repeat(2, 3), 1, 3)


@reformulated("upsample_nearest2x", "tiled", cause="the map is repeated, not each pixel", **UPSAMPLE)
def _(x: np.ndarray) -> np.ndarray:
    return np.tile(x, (1, 1, 2, 2))


@replaced(
    "add", "the branch alone", owner="structure.add", cause="the input is not added", seen_in_ports="model.encode"
)
def _(ops: Any, call: Any, x: Any, y: Any) -> Any:
    return call(0 * x, y)


@replaced("add", "halved", owner="structure.add", cause="the sum is halved", seen_in_ports="model.encode")
def _(ops: Any, call: Any, x: Any, y: Any) -> Any:
    return call(0.5 * x, 0.5 * y)


@replaced(
    "tokens",
    "column by column",
    owner="structure.tokens",
    cause="pixels are taken column by column",
    seen_in_ports="model.decode",
)
def _(ops: Any, call: Any, x: Any) -> Any:
    return call(as_map(ops, map_numbers(ops, x).transpose(0, 1, 3, 2)))


@replaced(
    "pixels",
    "column by column",
    owner="structure.pixels",
    cause="pixels are put back column by column",
    seen_in_ports="model.decode",
)
def _(ops: Any, call: Any, t: Any, like: Any) -> Any:
    x = map_numbers(ops, call(t, like))
    B, C, H, W = x.shape
    return as_map(ops, x.reshape(B, C, W, H).transpose(0, 1, 3, 2))


@replaced("split", "every n-th channel", owner="structure.split", cause="parts are of every n-th channel")
def _(ops: Any, call: Any, t: Any, parts: int) -> Any:
    return tuple(t[:, :, i::parts] for i in range(parts))


@replaced("scale", "divided", owner="structure.scale", cause="tokens are divided, not multiplied")
def _(ops: Any, call: Any, t: Any, factor: float) -> Any:
    return call(t, 1 / factor if factor else 1.0)
