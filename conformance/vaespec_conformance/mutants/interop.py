"""Mistakes in getting arrays in and out, and in what runs around the operations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.attention import Attention
from vaespec.layers import Conv, Resnet, Table, Upsample
from vaespec.ops import Layer
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import (
    _register,
    as_map,
    changing_ops,
    map_numbers,
    replaced,
    with_methods,
)

NOT_FLOAT64 = {dtype: "only float64 holds what is lost" for dtype in ("float32", "bfloat16", "float16")}
CONVERTED = {dtype: "to convert is to copy" for dtype in ("bfloat16", "float16")}


@replaced("from_numpy", "strides ignored", owner="interop.round_trip", cause="numbers are read as they lie in memory")
def _(ops: Any, call: Any, a: np.ndarray) -> Any:
    return call(a.ravel(order="K").reshape(a.shape))


@replaced(
    "from_numpy",
    "float64 by way of float32",
    owner="interop.round_trip",
    cause="float64 is rounded to float32 on its way",
    equivalent_in=NOT_FLOAT64,
)
def _(ops: Any, call: Any, a: np.ndarray) -> Any:
    with np.errstate(over="ignore"):
        return call(a.astype(np.float32))


@replaced(
    "from_numpy",
    "memory shared",
    owner="interop.ownership",
    cause="the array is that of the caller",
    equivalent_in=CONVERTED,
)
def _(ops: Any, call: Any, a: np.ndarray) -> Any:
    return ops.from_host(a) if a.dtype == ops.dtype else call(a)


@replaced(
    "from_nchw",
    "a view",
    owner="interop.layout",
    cause="(B, C, H, W) is taken for (B, H, W, C)",
    seen_in_ports="model.encode",
)
def _(ops: Any, call: Any, x: Any) -> Any:
    B, C, H, W = x.shape
    return call(ops.cast(ops.xp.reshape(x, (B, H, W, C)).transpose(0, 3, 1, 2)))


@replaced(
    "to_nchw",
    "another dtype",
    owner="interop.dtype",
    cause="results are not of the dtype that is stored",
)
def _(ops: Any, call: Any, x: Any) -> Any:
    y = ops.to_numpy(call(x))
    return ops.from_host(y.astype(np.float64 if y.dtype == np.float32 else np.float32))


# -- layers fused wrongly --------------------------------------------------------------------------------------------


Run = Callable[[Any, Any, Any, Any], Any]


def _fused(kind: type, name: str, owner: str, cause: str, seen_in_ports: str) -> Callable[[Run], Run]:
    """The function below, f(ops, layer, x, params), runs every layer of a kind."""

    def register(function: Run) -> Run:
        def change(ops: ReferenceOps) -> ReferenceOps:
            run = type(ops).run

            def fused(self: Any, layer: Any, x: Any, params: Any) -> Any:
                return run(self, _Wrong(cast(Layer, layer), function) if isinstance(layer, kind) else layer, x, params)

            return with_methods(ops, run=fused)

        _register(f"run: {name}", changing_ops(change), owner, cause, seen_in_ports, {})
        return function

    return register


@dataclass(frozen=True)
class _Wrong:
    """A layer as a wrong kernel of a backend would compute it."""

    layer: Layer
    function: Run

    def __call__(self, x: Any, params: Any, ops: Any) -> Any:
        return self.function(ops, self.layer, x, params)

    def parameters(self) -> Table:
        return self.layer.parameters()


@_fused(Resnet, "resnet without its input", "blocks.resnet", "a resnet does not add its input", "model.encode")
def _(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    y = layer(x, params, ops)
    return y if layer.shortcut() else ops.add(y, -1 * x)


@_fused(Resnet, "shortcut without bias", "blocks.shortcut", "the shortcut has no bias", "model.encode")
def _(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    name = f"{layer.name}.conv_shortcut.bias"
    return layer(x, {**params, name: 0 * params[name]} if name in params else params, ops)


@_fused(
    Attention, "attention without its input", "blocks.attention", "attention does not add its input", "model.decode"
)
def _(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    return ops.add(layer(x, params, ops), -1 * x)


@_fused(Conv, "odd sizes halved upwards", "blocks.downsample", "odd sizes are padded to even ones", "model.encode")
def _(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    if layer.stride == 1:
        return layer(x, params, ops)
    a = map_numbers(ops, x)
    return layer(as_map(ops, np.pad(a, ((0, 0), (0, 0), (0, a.shape[2] % 2), (0, a.shape[3] % 2)))), params, ops)


@_fused(
    Upsample, "convolved, then doubled", "blocks.upsample", "maps are convolved before they are doubled", "model.decode"
)
def _(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    return ops.upsample_nearest2x(layer.conv()(x, params, ops))


def _eager_in_bfloat16(ops: ReferenceOps) -> ReferenceOps:
    """Compiled as it should be; layer by layer, from maps that were rounded."""
    compile, run = type(ops).compile, type(ops).run

    def rounding(self: Any, layer: Any, x: Any, params: Any) -> Any:
        if layer is None or not hasattr(layer, "parameters"):
            return run(self, layer, x, params)
        return run(self, layer, as_map(self, rounded(map_numbers(self, x), "bfloat16")), params)

    return with_methods(ops, run=rounding, compile=lambda self, model: compile(ops, model))


_register(
    "run: bfloat16 where not compiled",
    changing_ops(_eager_in_bfloat16),
    "compiled.eager",
    "layers that are not compiled run in bfloat16",
    None,
    {"bfloat16": "that is its dtype"},
)
