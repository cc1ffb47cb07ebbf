"""Mistakes in convolutions and linear maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.reference import ReferenceOps
from vaespec_conformance.mutants.mutant import formula, map_numbers, named, operation

SPECIFICATION = ReferenceOps(np)
SAME_AS_TF32 = {dtype: "its numbers have at most the 11 bits of TF32" for dtype in ("bfloat16", "float16")}
CONV2D: dict[str, Any] = {"op": "conv2d", "owner": "structure.conv2d", "seen_in_ports": "model.encode"}

PADDINGS = {
    "conv2d_pads_above_and_left_at_stride_2": ((1, 0), (1, 0)),
    "conv2d_pads_above_and_right_at_stride_2": ((1, 0), (0, 1)),
    "conv2d_pads_all_sides_at_stride_2": ((1, 1), (1, 1)),
}


def _downsampling(other: Any) -> Any:
    """Convolutions of stride 2 have another padding."""

    def convolve(ops: Any, call: Any, x: Any, w: Any, b: Any, *, stride: int, padding: Any) -> Any:
        return call(x, w, b, stride=stride, padding=other if stride == 2 else padding)

    return convolve


for _name, _padding in PADDINGS.items():
    _cause = f"The padding at stride 2 is {_padding}, not ((0, 1), (0, 1))."
    operation(**CONV2D)(named(_name, _cause, _downsampling(_padding)))


@operation("conv2d", "model.encode", seen_in_ports="model.encode")
def conv2d_same_at_stride_2(ops: Any, call: Any, x: Any, w: Any, b: Any, *, stride: int, padding: Any) -> Any:
    """The padding at stride 2 is TensorFlow's "SAME", which differs on odd sizes."""
    if stride == 2:
        padding = tuple((n % 2, 1) for n in map_numbers(ops, x).shape[2:])
    return call(x, w, b, stride=stride, padding=padding)


@formula("conv2d", "blocks.shortcut", seen_in_ports="model.encode")
def shortcut_without_its_kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """The convolution of the shortcut is left out: channels are repeated or cut off."""
    outputs, inputs, *kernel = w.shape
    if kernel != [1, 1] or outputs == inputs:
        return SPECIFICATION.conv2d(x, w, b, **numbers)
    return x[:, np.arange(outputs) % inputs] + b[:, np.newaxis, np.newaxis]


BORDERS = {
    "conv2d_repeats_the_border": ("The border is padded by repeating its pixels, not with zeros.", "edge"),
    "conv2d_mirrors_the_border": ("The border is padded by mirroring its pixels, not with zeros.", "reflect"),
}


def _padded(mode: Any) -> Any:
    def convolve(x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Any) -> np.ndarray:
        x = np.pad(x, ((0, 0), (0, 0), *padding), mode=mode) if any(map(any, padding)) else x
        return SPECIFICATION.conv2d(x, w, b, stride=stride, padding=((0, 0), (0, 0)))

    return convolve


for _name, (_cause, _mode) in BORDERS.items():
    formula(**CONV2D)(named(_name, _cause, _padded(_mode)))


@formula(**CONV2D)
def conv2d_flips_the_kernel(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """The kernel is flipped; the layer must be a cross-correlation."""
    return SPECIFICATION.conv2d(x, w[:, :, ::-1, ::-1], b, **numbers)


@formula(**CONV2D)
def conv2d_swaps_kernel_height_and_width(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Height and width of the kernel are swapped."""
    return SPECIFICATION.conv2d(x, w.transpose(0, 1, 3, 2), b, **numbers)


@formula(**CONV2D)
def conv2d_swaps_kernel_channels(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Input and output channels of the kernel are swapped."""
    square = w.shape[0] == w.shape[1]
    return SPECIFICATION.conv2d(x, w.transpose(1, 0, 2, 3) if square else w, b, **numbers)


@operation(**CONV2D)
def conv2d_without_bias(ops: Any, call: Any, x: Any, w: Any, b: Any, **numbers: Any) -> Any:
    """The bias is not added."""
    return call(x, w, 0 * b, **numbers)


@operation(**CONV2D)
def conv2d_adds_the_bias_twice(ops: Any, call: Any, x: Any, w: Any, b: Any, **numbers: Any) -> Any:
    """The bias is added twice."""
    return call(x, w, 2 * b, **numbers)


@formula(**CONV2D)
def conv2d_starts_at_the_second_pixel_at_stride_2(
    x: np.ndarray, w: np.ndarray, b: np.ndarray, *, stride: int, padding: Any
) -> np.ndarray:
    """A convolution of stride 2 starts at the second pixel, not at the first."""
    (top, bottom), (left, right) = padding
    shifted = ((top - 1, bottom + 1), (left - 1, right + 1)) if stride == 2 else padding
    x = x[:, :, max(0, -shifted[0][0]) :, max(0, -shifted[1][0]) :]
    shifted = tuple((max(0, before), after) for before, after in shifted)
    return SPECIFICATION.conv2d(x, w, b, stride=stride, padding=shifted)


# -- precision -------------------------------------------------------------------------------------------------------

PRECISION: dict[str, Any] = {**CONV2D, "owner": "ops.conv2d"}


def tf32(x: np.ndarray) -> np.ndarray:
    """Rounds to the 11 bits of a TF32 factor."""
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)


@formula(**PRECISION, equivalent_in=SAME_AS_TF32)
def conv2d_in_tf32(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Convolutions multiply in TF32, which keeps 11 bits of each factor."""
    return SPECIFICATION.conv2d(tf32(x), tf32(w), b, **numbers)


@formula(**PRECISION, equivalent_in={"bfloat16": "bfloat16 is the right dtype"})
def conv2d_in_bfloat16(x: np.ndarray, w: np.ndarray, b: np.ndarray, **numbers: Any) -> np.ndarray:
    """Convolutions multiply in bfloat16, which keeps 8 bits of each factor."""
    return SPECIFICATION.conv2d(rounded(x, "bfloat16"), rounded(w, "bfloat16"), b, **numbers)


# -- linear maps -----------------------------------------------------------------------------------------------------

LINEAR: dict[str, Any] = {"op": "linear", "owner": "structure.linear", "seen_in_ports": "model.decode"}


@formula(**LINEAR)
def linear_transposes_its_weight(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The weight of a linear map is read as (in, out), not as (out, in)."""
    return SPECIFICATION.linear(t, w.T if w.shape[0] == w.shape[1] else w, b)


@formula(**LINEAR)
def linear_without_bias(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The bias of a linear map is not added."""
    return SPECIFICATION.linear(t, w, None)


@formula("linear", "ops.linear", seen_in_ports="model.decode", equivalent_in=SAME_AS_TF32)
def linear_in_tf32(t: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Linear maps multiply in TF32, which keeps 11 bits of each factor."""
    return SPECIFICATION.linear(tf32(t), tf32(w), b)
