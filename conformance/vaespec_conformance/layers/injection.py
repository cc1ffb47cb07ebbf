"""Injection: for mistakes that show although every residual branch is quiet, like a missing skip.

The probe "from j" has a map of zeros before layer j, which makes a map from its own biases; the layers behind it are
quiet. A mistake before j sees zeros only and vanishes; one at j or behind it shows. So the last j that is wrong is
the wrong layer, or the mistake is between it and the next layer that injects.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from vaespec.analysis.rounding import rounded
from vaespec.attention import Attention
from vaespec.layers import Conv, Downsample, NormAct, Resnet, Upsample
from vaespec_conformance.layers.neutral_weights import Weights, idle, own, quiet, silent, without_output
from vaespec_conformance.layers.probing import Answer, Bench

CONSTANT = 2.0**-6
"""A value whose mean over any number of pixels is exact."""


@dataclass(frozen=True)
class Injection:
    """The probes of one half, with weights for the layer that injects, and an input."""

    bench: Bench
    weights: Weights
    x: np.ndarray

    def real(self, j: int) -> Answer:
        """The probe "from j", with layer j as it is; from the last norm on, all layers are."""
        layers = self.bench.layers
        stop = len(layers) if j >= self.head else j + 1
        return self._ask(j, {k: own(layers[k], self.weights) for k in range(j, stop)})

    def constants(self, j: int, values: np.ndarray | None = None) -> Answer:
        """The probe "from j", in which layer j makes a map that is constant in each channel.

        The next layer that changes the size is silent if it is a downsampling: its zeros below and on the right would
        make differences, which show mistakes of layers that constants are meant not to show.
        """
        layers = self.bench.layers
        chosen = silent(layers[j])
        bias = next(name for name in reversed(chosen) if name.endswith(_LAST_BIAS[type(layers[j])]))
        drawn = rounded(np.random.default_rng(j).uniform(-1, 1, chosen[bias].shape), self.bench.dtype)
        chosen[bias] = drawn if values is None else np.broadcast_to(values, drawn.shape)
        resampling = [k for k in range(j + 1, self.head) if isinstance(layers[k], Upsample | Downsample)]
        downsampling = [k for k in resampling[:1] if isinstance(layers[k], Downsample)]
        return self._ask(j, {j: chosen} | {k: silent(layers[k]) for k in downsampling})

    def constant_before(self, k: int, values: np.ndarray, chosen: Weights) -> np.ndarray:
        """The result with a constant map before layer k, which has the weights `chosen`: a convolution is before it."""
        before = without_output(self.bench.layers[k - 1])
        bias = next(name for name in before if name.endswith("bias"))
        return self._ask(k, {k - 1: before | {bias: values}, k: chosen}).actual

    @property
    def head(self) -> int:
        """The number of the last norm and its activation."""
        return next(i for i, layer in enumerate(self.bench.layers) if isinstance(layer, NormAct))

    def suspects(self) -> list[int]:
        """The layers among which the wrong one is: the last that injects wrongly, up to the next that injects rightly.

        Resnets inject maps with a structure; between them, other layers inject constants.
        """
        if not self.real(self.head).right:
            return list(range(self.head, len(self.bench.layers)))
        resnets = [i for i, layer in enumerate(self.bench.layers) if isinstance(layer, Resnet)]
        wrong = [j for j in resnets if not self.real(j).right]
        after = next((j for j in resnets if j > wrong[-1]), self.head) if wrong else resnets[0]
        first = wrong[-1] if wrong else 0
        for j in range(after - 1, first, -1):
            if type(self.bench.layers[j]) in _LAST_BIAS and not self.constants(j).right:
                return list(range(j, after + 1))
        return list(range(first, after + 1))

    def decided(self, suspects: list[int]) -> int | None:
        """The wrong one of the suspects, by what kinds of maps show the mistake; None if that does not decide it."""
        layers, (first, *others) = self.bench.layers, suspects
        if first >= self.head:
            silenced = {k: silent(layer) for k, layer in enumerate(layers) if k >= first}
            return None if self._ask(self.head, silenced).right or not self._ends_rightly() else first
        if not isinstance(layers[first], Resnet):
            return first if first else None
        resampling = [k for k in others if isinstance(layers[k], Upsample | Downsample)]
        if resampling:
            return resampling[0] if self.constants(first).right else None
        if others[-1] == self.head:
            if not self.constants(first, np.array(CONSTANT)).right or self.constants(first).right:
                return first
            return self.head
        return None if len(others) > 1 else first

    def _ends_rightly(self) -> bool:
        """Whether constants that the last convolution makes arrive: if not, what is behind the layers is wrong."""
        last = len(self.bench.layers) - 1
        chosen = without_output(self.bench.layers[last])
        bias = next(name for name in chosen if name.endswith("bias"))
        values = rounded(np.resize((4.1, -2.3, 1.7, -0.3), chosen[bias].shape), self.bench.dtype)
        return self._ask(self.head, {last: chosen | {bias: values}}).right

    def _ask(self, j: int, changed: dict[int, Weights]) -> Answer:
        """The probe with these weights in some layers, zeros before layer j, and quiet layers behind it."""
        layers, chosen = self.bench.layers, dict(self.weights)
        for k, layer in enumerate(layers):
            before = without_output(layer) if isinstance(layer, Conv) else silent(layer)
            chosen |= changed.get(k, before if k < j else quiet(layer, self.weights))
        passed = frozenset(k for k, layer in enumerate(layers) if k not in changed and idle(layer))
        return self.bench.ask(chosen, self.x if j == 0 else 0 * self.x, passed)


_LAST_BIAS: dict[type[Any], str] = {
    Resnet: ".conv2.bias",
    Attention: ".to_out.0.bias",
    Conv: ".bias",
    Upsample: ".bias",
    Downsample: ".bias",
}
"""The bias that a layer adds to its result, by its kind."""
