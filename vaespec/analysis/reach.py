"""How far does a pixel reach? Runs the model with intervals in the place of arrays.

An interval holds the positions on one axis that a single input position can influence through convolutions; the other
axis has the same reach. Group norm and attention reach every position, and are left out: the reach is the halo that a
tile needs if tiles share statistics and attention. At the border of an image it is no larger if maps are padded by
reflection or replication, which repeat rows and columns that the kernel reads anyway.
"""

from __future__ import annotations

from itertools import count, takewhile
from typing import Any, NamedTuple

from vaespec.architecture import decoder, encoder
from vaespec.config import AutoencoderConfig
from vaespec.layers import Params
from vaespec.ops import Layer, Padding


class Interval(NamedTuple):
    """Positions from `first` to `last`, both included, on an axis without borders."""

    first: int
    last: int


def encoder_reach(config: AutoencoderConfig) -> tuple[int, int]:
    """The number of px before and after its own f × f block on which a latent depends."""
    model, f = encoder(config), config.downsampling_factor
    before = takewhile(lambda px: influence(model, px).last >= 0, count(-1, -1))
    after = takewhile(lambda px: influence(model, px).first <= 0, count(f))
    return len(list(before)), len(list(after))


def decoder_reach(config: AutoencoderConfig) -> tuple[int, int]:
    """The number of px before and after its own f × f block that a latent influences."""
    reached = influence(decoder(config), 0)
    return -reached.first, reached.last - (config.downsampling_factor - 1)


def influence(model: Layer, position: int) -> Interval:
    """The positions of the output that the input at `position` can change."""
    reached: Interval = model(Interval(position, position), dict(model.parameters()), ReachOps())
    return reached


class ReachOps:
    """Ops on intervals: each operation returns the interval in which its result can change."""

    def conv2d(self, x: Interval, w: Any, b: Any, *, stride: int, padding: Padding) -> Interval:
        """Output i reads inputs s·i - p to s·i - p + k - 1, with p zeros before the first input."""
        kernel, (before, _) = w.shape[2], padding[0]
        first = -((kernel - 1 - before - x.first) // stride)  # the least i with s·i - p + k - 1 >= x.first
        return Interval(first, (x.last + before) // stride)

    def upsample_nearest2x(self, x: Interval) -> Interval:
        return Interval(2 * x.first, 2 * x.last + 1)

    def add(self, x: Interval, y: Interval) -> Interval:
        return Interval(min(x.first, y.first), max(x.last, y.last))

    def split(self, t: Interval, parts: int) -> tuple[Interval, ...]:
        return (t,) * parts

    def run(self, layer: Layer, x: Interval, params: Params) -> Interval:
        reached: Interval = layer(x, params, self)
        return reached

    def unchanged(self, *arguments: Any, **options: Any) -> Interval:
        """Returns the first argument: for operations on one position alone, and for those that are left out."""
        return arguments[0]

    from_nchw = to_nchw = tokens = pixels = linear = scale = silu = mish = gelu = relu = unchanged
    group_norm = attention = eager_attention = chunked_attention = unchanged
