"""Weights that are chosen so that a layer passes its input on, or makes a map from nothing, or adds nothing.

A layer is *quiet* if its residual branch is zero; a layer without one keeps its weights. It is *silent* if it returns
its input, as far as its widths allow: then its convolution is the middle pixel, without bias. What a silent layer
computes cannot show, and nor can what a quiet one computes in its branch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec.attention import Attention
from vaespec.layers import NormAct, Resnet

Weights = dict[str, np.ndarray]

GENTLE_SCALE, GENTLE_SHIFT = 0.25, 1.0
"""Scale and shift of a silent norm before an activation: around 1, the activation is nearly linear."""


def own(layer: Any, weights: Weights) -> Weights:
    """The weights that a layer reads."""
    return {name: weights[name] for name, _ in layer.parameters()}


def quiet(layer: Any, weights: Weights) -> Weights:
    """Weights with which a residual branch adds zeros, and everything else is as in `weights`."""
    return own(layer, weights) | {name: w for name, w in silent(layer).items() if _in_branch(name, layer)}


def silent(layer: Any) -> Weights:
    """Weights with which the layer returns its input, as far as its widths allow."""
    shapes = {name: row.shape for name, row in layer.parameters()}
    if isinstance(layer, NormAct):
        gentle = {"weight": GENTLE_SCALE, "bias": GENTLE_SHIFT}
        return {name: np.full(shape, gentle[name.rsplit(".", 1)[1]]) for name, shape in shapes.items()}
    return {name: _neutral(name, shape, branch=_in_branch(name, layer)) for name, shape in shapes.items()}


def without_output(layer: Any) -> Weights:
    """Weights with which a convolution returns zeros."""
    return {name: np.zeros(row.shape) for name, row in layer.parameters()}


def scaled(layer: Any, gain: float, mean: np.ndarray) -> Weights:
    """Weights with which a layer that `can_scale` returns (y - mean) · gain, where y is what it returns if silent."""
    chosen = silent(layer)
    kernel = next(name for name in chosen if not _in_branch(name, layer) and name.endswith("weight"))
    chosen[kernel] = chosen[kernel] * gain
    chosen[kernel.removesuffix("weight") + "bias"] = -gain * mean
    return chosen


def idle(layer: Any) -> bool:
    """Whether the layer, if it is quiet, returns its input bit by bit."""
    return isinstance(layer, Attention) or (isinstance(layer, Resnet) and not layer.shortcut())


def can_scale(layer: Any) -> bool:
    """Whether a layer has a convolution from its input to its output."""
    return not isinstance(layer, NormAct) and not idle(layer)


def _in_branch(name: str, layer: Any) -> bool:
    return isinstance(layer, Attention) or (isinstance(layer, Resnet) and ".conv_shortcut." not in name)


def _neutral(name: str, shape: tuple[int, ...], *, branch: bool) -> np.ndarray:
    if branch:
        return np.ones(shape) if "norm" in name.rsplit(".", 2)[-2] and name.endswith("weight") else np.zeros(shape)
    return np.zeros(shape) if name.endswith("bias") else _passing(shape)


def _passing(shape: tuple[int, ...]) -> np.ndarray:
    """A kernel (O, I, k, k) that returns the middle pixel: channels as they are, or repeated, or added up.

    Its numbers are powers of two, so that every dtype has them, and differ within a group, so that a norm sees them.
    """
    kernel = np.zeros(shape)
    outputs, inputs = np.indices(shape[:2])
    same = (outputs - inputs) % min(shape[:2]) == 0
    far = np.maximum(outputs // shape[1], inputs // shape[0])
    kernel[:, :, shape[2] // 2, shape[3] // 2] = np.where(same, 0.5 ** (far * (1 + outputs % 2)), 0.0)
    return kernel
