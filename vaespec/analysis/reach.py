"""How far does a pixel reach? The model, with intervals for arrays.

An array is the interval of positions along one axis, which both axes share, that a single input position can
influence through convolutions. Group norm and attention reach everywhere, and are left out: this is the halo a tile
needs once statistics and attention are shared between tiles.
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
    """How many px before and after its own f × f block a latent sees."""
    model, f = encoder(config), config.downsampling_factor
    before = takewhile(lambda px: influence(model, px).last >= 0, count(-1, -1))
    after = takewhile(lambda px: influence(model, px).first <= 0, count(f))
    return len(list(before)), len(list(after))


def decoder_reach(config: AutoencoderConfig) -> tuple[int, int]:
    """How many px before and after its own f × f block a latent influences."""
    touched = influence(decoder(config), 0)
    return -touched.first, touched.last - (config.downsampling_factor - 1)


def influence(model: Layer, position: int) -> Interval:
    """The outputs that the input at `position` can change."""
    touched: Interval = model(Interval(position, position), dict(model.parameters()), ReachOps())
    return touched


class ReachOps:
    """Every operation returns the interval its result can change in."""

    def from_nchw(self, x: Interval) -> Interval:
        return x

    def to_nchw(self, x: Interval) -> Interval:
        return x

    def conv2d(self, x: Interval, w: Any, b: Any, *, stride: int, padding: Padding) -> Interval:
        """Output i reads s·i - p … s·i - p + k - 1, p the zeros before."""
        kernel, (before, _) = w.shape[2], padding[0]
        first = -((kernel - 1 - before - x.first) // stride)  # of the i with s·i - p + k - 1 >= x.first: rounded up
        return Interval(first, (x.last + before) // stride)

    def upsample_nearest2x(self, x: Interval) -> Interval:
        return Interval(2 * x.first, 2 * x.last + 1)

    def add(self, x: Interval, y: Interval) -> Interval:
        return Interval(min(x.first, y.first), max(x.last, y.last))

    def group_norm(self, x: Interval, scale: Any, shift: Any, *, groups: int, eps: float) -> Interval:
        return x

    def silu(self, x: Interval) -> Interval:
        return x

    mish = gelu = relu = tokens = silu

    def run(self, layer: Layer, x: Interval, params: Params) -> Interval:
        reached: Interval = layer(x, params, self)
        return reached

    def pixels(self, t: Interval, like: Interval) -> Interval:
        return t

    def linear(self, t: Interval, w: Any, b: Any) -> Interval:
        return t

    def split(self, t: Interval, parts: int) -> tuple[Interval, ...]:
        return (t,) * parts

    def scale(self, t: Interval, factor: float) -> Interval:
        return t

    def attention(self, q: Interval, k: Interval, v: Interval, *, scale: float) -> Interval:
        return q

    eager_attention = attention

    def chunked_attention(self, q: Interval, k: Interval, v: Interval, *, scale: float, size: int) -> Interval:
        return q
