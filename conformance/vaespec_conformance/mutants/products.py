"""Mistakes in convolutions and linear maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import reformulated, replaced

SPECIFICATION = ReferenceOps(np)
SAME_AS_TF32 = {dtype: "its numbers have no more than the 11 bits of TF32" for dtype in ("bfloat16", "float16")}
STRUCTURE: dict[str, Any] = {"owner": "structure.conv2d", "seen_in_ports": "model.encode"}


def _downsampling(other: Any) -> Any:
    """Another padding of the convolutions of stride 2."""

    def function(ops: Any, call: Any, x: Any, w: Any, b: Any, *, stride: int, padding: Any) -> Any:
        return call(x, w, b, stride=stride, padding=other if stride == 2 else padding)

    return function


for _name, _padding in (
    ("zeros above and left at stride 2", ((1, 0), (1, 0))),
    ("zeros above and right at stride 2", ((1, 0), (0, 1))),
    ("zeros on all sides at stride 2", ((1, 1), (1, 1))),
):
    _cause = f"padding is {_padding} at stride 2, not ((0, 1), (0, 1))"
    replaced("conv2d", _name, cause=_cause, **STRUCTURE)(_downsampling(_padding))


def _filled(mode: Any) -> Any:
    def formula(x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Any) -> np.ndarray:
        x = np.pad(x, ((0, 0), (0, 0), *padding), mode=mode) if any(map(any, padding)) else x
        return SPECIFICATION.conv2d(x, w, b, stride=stride, padding=((0, 0), (0, 0)))

    return formula


reformulated("conv2d", "borders repeated", cause="borders are padded by repeating pixels, not with zeros", **STRUCTURE)(
    _filled("edge")
)
reformulated("conv2d", "borders mirrored", cause="borders are padded by mirroring, not with zeros", **STRUCTURE)(
    _filled("symmetric")
)


@reformulated("conv2d", "kernel flipped", cause="the kernel is flipped: this is no correlation", **STRUCTURE)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    return SPECIFICATION.conv2d(x, w[:, :, ::-1, ::-1], b, **how)


@reformulated(
    "conv2d", "height and width of the kernel", cause="height and width of the kernel are swapped", **STRUCTURE
)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    return SPECIFICATION.conv2d(x, w.transpose(0, 1, 3, 2), b, **how)


@reformulated("conv2d", "input and output of the kernel", cause="input and output channels are swapped", **STRUCTURE)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    square = w.shape[0] == w.shape[1]
    return SPECIFICATION.conv2d(x, w.transpose(1, 0, 2, 3) if square else w, b, **how)


@replaced("conv2d", "no bias", cause="the bias is not added", **STRUCTURE)
def drop_bias(ops: Any, call: Any, x: Any, w: Any, b: Any, **how: Any) -> Any:
    """conv2d without its bias: also the canary of a backend."""
    return call(x, w, 0 * b, **how)


@replaced("conv2d", "bias twice", cause="the bias is added twice", **STRUCTURE)
def _(ops: Any, call: Any, x: Any, w: Any, b: Any, **how: Any) -> Any:
    return call(x, w, 2 * b, **how)


@reformulated("conv2d", "odd pixels at stride 2", cause="stride 2 begins at the second pixel", **STRUCTURE)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Any) -> np.ndarray:
    (top, bottom), (left, right) = padding
    shifted = ((top - 1, bottom + 1), (left - 1, right + 1)) if stride == 2 else padding
    x = x[:, :, max(0, -shifted[0][0]) :, max(0, -shifted[1][0]) :]
    shifted = tuple((max(0, before), after) for before, after in shifted)
    return SPECIFICATION.conv2d(x, w, b, stride=stride, padding=shifted)


# -- precision -------------------------------------------------------------------------------------------------------


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounded to the 11 bits that a product of TF32 takes."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


@reformulated(
    "conv2d",
    "TF32",
    owner="ops.conv2d",
    cause="products are TF32's: 11 bits of each factor",
    seen_in_ports="model.encode",
    equivalent_in=SAME_AS_TF32,
)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    return SPECIFICATION.conv2d(tf32(x), tf32(w), b, **how)


@reformulated(
    "conv2d",
    "bfloat16",
    owner="ops.conv2d",
    cause="products are bfloat16's: 8 bits of each factor",
    seen_in_ports="model.encode",
    equivalent_in={"bfloat16": "that is its dtype"},
)
def _(x: np.ndarray, w: np.ndarray, b: np.ndarray, **how: Any) -> np.ndarray:
    return SPECIFICATION.conv2d(rounded(x, "bfloat16"), rounded(w, "bfloat16"), b, **how)


# -- linear maps -----------------------------------------------------------------------------------------------------

LINEAR: dict[str, Any] = {"owner": "structure.linear", "seen_in_ports": "model.decode"}


@reformulated("linear", "transposed", cause="the weight is (in, out), not (out, in)", **LINEAR)
def _(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return SPECIFICATION.linear(t, w.T if w.shape[0] == w.shape[1] else w, b)


@reformulated("linear", "no bias", cause="the bias is not added", **LINEAR)
def _(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return SPECIFICATION.linear(t, w, None)


@reformulated(
    "linear",
    "TF32",
    owner="ops.linear",
    cause="products are TF32's",
    seen_in_ports="model.decode",
    equivalent_in=SAME_AS_TF32,
)
def _(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    return SPECIFICATION.linear(tf32(t), tf32(w), b)
