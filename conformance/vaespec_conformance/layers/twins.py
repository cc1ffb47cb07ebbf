"""Twins: two probes in which the first resnet makes the same map in two ways. A right one gives equal results.

Nothing is asked of the layers behind it but that they do the same twice. So it shows whether the first resnet is
right although a layer behind it is wrong: if it is not, the mistake may be in many layers.
"""

from __future__ import annotations

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.layers import Resnet
from vaespec.reference import ReferenceOps
from vaespec_conformance.layers.injection import Injection
from vaespec_conformance.layers.neutral_weights import Weights, own, silent

FAINT = 2e-3
"""The input of the second norm: so small that the norm's eps decides the result."""
EQUAL = {"float32": 1e-4, "float64": 1e-4}
"""The greatest difference of twins, as a share of what another map makes: 16 bits would show in float32."""
EQUAL_IN_16_BITS = 0.05


def first_resnet(injection: Injection) -> int:
    """The number of the first resnet; conv_in is before it."""
    return next(i for i, layer in enumerate(injection.bench.layers) if isinstance(layer, Resnet))


def first_resnet_is_right(injection: Injection) -> bool:
    """Whether the second norm, the activation, the second convolution and the skip of the first resnet are right."""
    k, dtype = first_resnet(injection), injection.bench.dtype
    layer, rng = injection.bench.layers[k], np.random.default_rng(k)
    width = len(injection.weights[f"{layer.name}.conv2.bias"])
    base, entering = (rounded(rng.uniform(-1, 1, width), dtype) for _ in range(2))
    computing = _computing(layer, injection, rounded(FAINT * base, dtype), rng)
    made = layer(np.zeros((1, width, 2, 2)), computing, ReferenceOps(np))[0, :, 0, 0]
    twin = _with_bias(layer, rounded(made + entering / 2, dtype))
    other = _with_bias(layer, rounded(made + entering / 2, dtype)[::-1])
    first = injection.constant_before(k, entering, computing)
    second, third = (injection.constant_before(k, entering / 2, chosen) for chosen in (twin, other))
    if not first.shape == second.shape == third.shape:
        return False
    limit = EQUAL.get(dtype, EQUAL_IN_16_BITS) * np.linalg.norm(second - third)
    return bool(np.linalg.norm(first - second) < limit)  # nothing is shown if no map arrives


def _computing(layer: Resnet, injection: Injection, faint: np.ndarray, rng: np.random.Generator) -> Weights:
    """Weights with which the branch makes a constant map from the bias of its first convolution."""
    chosen = silent(layer) | {f"{layer.name}.conv1.bias": faint}
    chosen |= {name: w for name, w in own(layer, injection.weights).items() if ".norm2." in name}
    kernel = np.zeros_like(chosen[f"{layer.name}.conv2.weight"])
    kernel[:, :, 1, 1] = rounded(rng.uniform(-1, 1, kernel.shape[:2]), injection.bench.dtype)
    return chosen | {f"{layer.name}.conv2.weight": kernel}


def _with_bias(layer: Resnet, bias: np.ndarray) -> Weights:
    """Weights with which the branch is this bias."""
    return silent(layer) | {f"{layer.name}.conv2.bias": bias}
