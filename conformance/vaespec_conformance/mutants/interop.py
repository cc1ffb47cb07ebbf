"""Mistakes in converting arrays, and in layers that a backend fuses or compiles."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.attention import Attention
from vaespec.layers import Downsample, Resnet, Table, Upsample
from vaespec.ops import Layer
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import (
    Decorator,
    as_map,
    changed_ops,
    map_numbers,
    named,
    operation,
    with_methods,
)

NOT_FLOAT64 = {dtype: "only float64 holds what is lost" for dtype in ("float32", "bfloat16", "float16")}
CONVERTED = {dtype: "converting to 16 bits always copies" for dtype in ("bfloat16", "float16")}


@operation("from_numpy", "interop.round_trip")
def from_numpy_ignores_strides(ops: Any, call: Any, a: np.ndarray) -> Any:
    """Strides are ignored: numbers are read in the order in which they are stored."""
    return call(a.ravel(order="K").reshape(a.shape))


@operation("from_numpy", "interop.round_trip", equivalent_in=NOT_FLOAT64)
def from_numpy_rounds_float64_to_float32(ops: Any, call: Any, a: np.ndarray) -> Any:
    """Float64 numbers are rounded to float32 when they are converted."""
    with np.errstate(over="ignore"):
        return call(a.astype(np.float32))


@operation("from_numpy", "interop.ownership", equivalent_in=CONVERTED)
def from_numpy_shares_memory(ops: Any, call: Any, a: np.ndarray) -> Any:
    """The array shares the memory of the caller's array."""
    return ops.from_host(a) if a.dtype == ops.dtype else call(a)


@operation("from_nchw", "interop.layout", seen_in_ports="model.encode")
def from_nchw_reads_nhwc(ops: Any, call: Any, x: Any) -> Any:
    """An array (B, C, H, W) is read as if it were (B, H, W, C)."""
    B, C, H, W = x.shape
    return call(ops.cast(ops.xp.reshape(x, (B, H, W, C)).transpose(0, 3, 1, 2)))


@operation("to_nchw", "interop.dtype")
def to_nchw_changes_the_dtype(ops: Any, call: Any, x: Any) -> Any:
    """Results have another dtype than the storage dtype."""
    y = ops.to_numpy(call(x))
    return ops.from_host(y.astype(np.float64 if y.dtype == np.float32 else np.float32))


# -- in a fused layer -------------------------------------------------------------------------------------------------


Run = Callable[[Any, Any, Any, Any], Any]


def _layer(kind: type, owner: str, seen_in_ports: str) -> Decorator:
    """The function below, f(ops, layer, x, params), runs every layer of a kind."""

    def register(function: Run) -> Run:
        def change(ops: ReferenceOps) -> ReferenceOps:
            run = type(ops).run

            def fused(self: Any, layer: Any, x: Any, params: Any) -> Any:
                return run(self, _Wrong(cast(Layer, layer), function) if isinstance(layer, kind) else layer, x, params)

            return with_methods(ops, run=fused)

        changed_ops(owner, seen_in_ports=seen_in_ports)(named(function.__name__, function.__doc__ or "", change))
        return function

    return register


@dataclass(frozen=True)
class _Wrong:
    """A layer as a backend's wrong kernel computes it."""

    layer: Layer
    function: Run

    def __call__(self, x: Any, params: Any, ops: Any) -> Any:
        return self.function(ops, self.layer, x, params)

    def parameters(self) -> Table:
        return self.layer.parameters()


@_layer(Resnet, "blocks.resnet", "model.encode")
def resnet_without_residual(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    """A resnet does not add its input to its output."""
    y = layer(x, params, ops)
    return y if layer.shortcut() else ops.add(y, -1 * x)


@_layer(Resnet, "blocks.shortcut", "model.encode")
def shortcut_without_bias(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    """The bias of a resnet's shortcut is not added."""
    name = f"{layer.name}.conv_shortcut.bias"
    return layer(x, {**params, name: 0 * params[name]} if name in params else params, ops)


@_layer(Attention, "blocks.attention", "model.decode")
def attention_without_residual(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    """An attention layer does not add its input to its output."""
    return ops.add(layer(x, params, ops), -1 * x)


@_layer(Downsample, "blocks.downsample", "model.encode")
def downsample_rounds_odd_sizes_up(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    """Maps of odd size are padded to an even size before they are downsampled."""
    a = map_numbers(ops, x)
    return layer(as_map(ops, np.pad(a, ((0, 0), (0, 0), (0, a.shape[2] % 2), (0, a.shape[3] % 2)))), params, ops)


@_layer(Upsample, "blocks.upsample", "model.decode")
def upsample_after_the_convolution(ops: Any, layer: Any, x: Any, params: Any) -> Any:
    """Maps are convolved before they are upsampled, not after."""
    return ops.upsample_nearest2x(layer.conv()(x, params, ops))


@changed_ops("compiled.eager", equivalent_in={"bfloat16": "bfloat16 is the right dtype"})
def eager_layers_in_bfloat16(ops: ReferenceOps) -> ReferenceOps:
    """Layers that are not compiled compute in bfloat16."""
    compile, run = type(ops).compile, type(ops).run

    def rounding(self: Any, layer: Any, x: Any, params: Any) -> Any:
        return run(self, layer, as_map(self, rounded(map_numbers(self, x), "bfloat16")), params)

    return with_methods(ops, run=rounding, compile=lambda self, model: compile(ops, model))
