"""The layers of the model as data: each knows its name, its widths, its parameters, and its formula.

A layer holds no arrays. `layer(x, params, ops)` computes with the ops that it is given; `layer.parameters()` lists the
parameters that it reads from `params`: names (as in diffusers' state dict), shapes and roles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import groupby

from vaespec.ops import Array, Layer, Ops, Padding
from vaespec.parameter import Parameter

GROUP_NORM_EPS = 1e-6  # in every norm of this VAE (diffusers, vae.py); most frameworks' default is 1e-5
SAME: Padding = ((1, 1), (1, 1))
NONE: Padding = ((0, 0), (0, 0))
BELOW_AND_RIGHT: Padding = ((0, 1), (0, 1))  # for stride 2; TensorFlow's "SAME" differs from it on odd sizes

Params = Mapping[str, Array]
Table = Iterator[tuple[str, Parameter]]


@dataclass(frozen=True)
class Conv:
    """A k × k convolution with bias and zero padding."""

    name: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: Padding = SAME

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        w, b = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        return ops.conv2d(x, w, b, stride=self.stride, padding=self.padding)

    def parameters(self) -> Table:
        fan_in = self.in_channels * self.kernel**2
        kernel = (self.out_channels, self.in_channels, self.kernel, self.kernel)
        yield f"{self.name}.weight", Parameter(kernel, "conv", fan_in)
        yield f"{self.name}.bias", Parameter((self.out_channels,), "bias", fan_in)


def pointwise(name: str, in_channels: int, out_channels: int) -> Conv:
    """A 1 × 1 convolution: quant_conv, post_quant_conv, conv_shortcut."""
    return Conv(name, in_channels, out_channels, kernel=1, padding=NONE)


@dataclass(frozen=True)
class GroupNorm:
    """Group normalization with a scale and a shift per channel."""

    name: str
    channels: int
    groups: int

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        scale, shift = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        return ops.group_norm(x, scale, shift, groups=self.groups, eps=GROUP_NORM_EPS)

    def parameters(self) -> Table:
        yield f"{self.name}.weight", Parameter((self.channels,), "norm_scale")
        yield f"{self.name}.bias", Parameter((self.channels,), "norm_shift")


@dataclass(frozen=True)
class NormAct:
    """Group normalization, then the activation. Inside another layer, it needs no name."""

    norm: GroupNorm
    activation: str
    name: str = ""

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        act = getattr(ops, self.activation)
        return act(self.norm(x, params, ops))

    def parameters(self) -> Table:
        return self.norm.parameters()


@dataclass(frozen=True)
class Linear:
    """W t + b on the channels of each token t; b is optional."""

    name: str
    in_channels: int
    out_channels: int
    bias: bool = True

    def __call__(self, t: Array, params: Params, ops: Ops) -> Array:
        return ops.linear(t, params[f"{self.name}.weight"], params[f"{self.name}.bias"] if self.bias else None)

    def parameters(self) -> Table:
        yield f"{self.name}.weight", Parameter((self.out_channels, self.in_channels), "linear", self.in_channels)
        if self.bias:
            yield f"{self.name}.bias", Parameter((self.out_channels,), "bias", self.in_channels)


@dataclass(frozen=True)
class Resnet:
    """x + conv2(act(norm2(conv1(act(norm1(x)))))), with a 1 × 1 convolution on the shortcut if the width changes."""

    name: str
    in_channels: int
    out_channels: int
    groups: int
    activation: str

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        norm_act1, conv1, norm_act2, conv2 = (partial(layer, params=params, ops=ops) for layer in self.branch())
        h = conv2(norm_act2(conv1(norm_act1(x))))
        for conv_shortcut in self.shortcut():
            x = conv_shortcut(x, params, ops)
        return ops.add(x, h)

    def branch(self) -> tuple[NormAct, Conv, NormAct, Conv]:
        """The layers whose result is added to the input."""
        return (
            NormAct(GroupNorm(f"{self.name}.norm1", self.in_channels, self.groups), self.activation),
            Conv(f"{self.name}.conv1", self.in_channels, self.out_channels),
            NormAct(GroupNorm(f"{self.name}.norm2", self.out_channels, self.groups), self.activation),
            Conv(f"{self.name}.conv2", self.out_channels, self.out_channels),
        )

    def shortcut(self) -> tuple[Conv, ...]:
        """The convolution of the input, if the width changes."""
        if self.in_channels == self.out_channels:
            return ()
        return (pointwise(f"{self.name}.conv_shortcut", self.in_channels, self.out_channels),)

    def parameters(self) -> Table:
        for layer in self.branch() + self.shortcut():
            yield from layer.parameters()


@dataclass(frozen=True)
class Upsample:
    """Nearest-neighbour upsampling ×2, then a 3 × 3 convolution."""

    name: str
    channels: int

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        return self.conv()(ops.upsample_nearest2x(x), params, ops)

    def conv(self) -> Conv:
        """The convolution at the higher resolution."""
        return Conv(f"{self.name}.conv", self.channels, self.channels)

    def parameters(self) -> Table:
        return self.conv().parameters()


@dataclass(frozen=True)
class Downsample:
    """A 3 × 3 convolution of stride 2 with zeros below and right only: n -> floor(n / 2)."""

    name: str
    channels: int

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        return self.conv()(x, params, ops)

    def conv(self) -> Conv:
        """The convolution."""
        return Conv(f"{self.name}.conv", self.channels, self.channels, stride=2, padding=BELOW_AND_RIGHT)

    def parameters(self) -> Table:
        return self.conv().parameters()


@dataclass(frozen=True)
class Sequential:
    """Layers that run one after the other."""

    layers: tuple[Layer, ...]

    def __call__(self, x: Array, params: Params, ops: Ops) -> Array:
        """Takes and returns an NCHW array of the backend; between the layers, the backend chooses the order of axes."""
        x = ops.from_nchw(x)
        for layer in self.layers:
            x = ops.run(layer, x, params)
        return ops.to_nchw(x)

    def parts(self) -> dict[str, Sequential]:
        """The layers by the first word of their names, in order: "encoder" and "quant_conv", for instance."""
        grouped = groupby(self.layers, lambda layer: next(layer.parameters())[0].partition(".")[0])
        return {part: Sequential(tuple(layers)) for part, layers in grouped}

    def parameters(self) -> Table:
        for layer in self.layers:
            yield from layer.parameters()
