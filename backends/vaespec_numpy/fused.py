"""Layers computed in one go: a map less to write and to read again for each norm, each activation and each doubling."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from vaespec.layers import GROUP_NORM_EPS, Conv, NormAct, Resnet, Upsample
from vaespec.ops import Layer
from vaespec_numpy.convolution import EXACT
from vaespec_numpy.sources import Normalised

if TYPE_CHECKING:
    from vaespec_numpy.ops import NumpyOps

Params = Mapping[str, np.ndarray]


def run_fused(ops: NumpyOps, layer: Layer, x: np.ndarray, params: Params) -> np.ndarray:
    """layer(x, params, ops)."""
    match layer:
        case Resnet():
            return _resnet(ops, layer, x, params)
        case NormAct():
            return _activated(ops, layer, x, params).whole()
        case Upsample() if ops.forms is not EXACT:
            return ops.upsample_conv2d(x, *_kernel(layer.conv(), params))
    return layer(x, params, ops)


def _resnet(ops: NumpyOps, layer: Resnet, x: np.ndarray, params: Params) -> np.ndarray:
    """The branch with norm and activation applied as the convolutions read, and the shortcut added in place."""
    norm1, conv1, norm2, conv2 = layer.branch()
    h = _convolved(ops, conv1, _activated(ops, norm1, x, params), params)
    h = _convolved(ops, conv2, _activated(ops, norm2, h, params), params)
    for shortcut in layer.shortcut():
        x = shortcut(x, params, ops)
    return ops.add_to(h, x)


def _activated(ops: NumpyOps, layer: NormAct, x: np.ndarray, params: Params) -> Normalised:
    norm = layer.norm
    scale, shift = params[f"{norm.name}.weight"], params[f"{norm.name}.bias"]
    normalised = ops.group_normalised(x, scale, shift, groups=norm.groups, eps=GROUP_NORM_EPS)
    return replace(normalised, activation=ops.activation(layer.activation))


def _convolved(ops: NumpyOps, layer: Conv, x: Normalised, params: Params) -> np.ndarray:
    return ops.conv2d(x, *_kernel(layer, params), stride=layer.stride, padding=layer.padding)


def _kernel(layer: Conv, params: Params) -> tuple[np.ndarray, np.ndarray]:
    return params[f"{layer.name}.weight"], params[f"{layer.name}.bias"]
