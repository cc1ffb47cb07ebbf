"""BandedOps: the model in bands of rows, with the numbers of the whole and a fraction of its memory.

What the model calls returns at once, with a map that is yet to be computed. A convolution is computed when its rows are
wanted more than once: band by band, each with the rows around it that the kernel reaches, and kept in a store together
with the moments of each band. Normalisation, activation, doubling, and the residual that is added are computed while a
band is read or written. So every map is written once, no convolution is computed twice, and what is not read again is
given back. Attention takes the tokens in chunks.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, TypedDict, TypeVar

from vaespec.analysis.cost import CostOps
from vaespec.errors import InputError
from vaespec.ops import Array, Layer, Padding
from vaespec.tiling.lazy import Lazy, Map, Tokens, group_moments, spans
from vaespec.tiling.padding import CircularOps
from vaespec.tiling.stores import NewStore, Place, Read, cut, new_store

L = TypeVar("L", bound=Lazy)

BAND = 1 << 22
"""Numbers, 16 MiB of float32. Memory from 32 MiB on comes from the system anew each time, which takes longer than what
is done in it: most of the time of a whole map goes there.
"""


class Bands(TypedDict, total=False):
    """How BandedOps works: on `band_rows` rows of a map at one time, and `chunk` tokens of attention (1024).

    Both at most. By default there are as many rows as make 16 MiB of a map in float32: fewer where it is wide.
    `store` is where maps are kept meanwhile: "device", "host", or a folder for temporary files. `progress(done, total)`
    is called after each band; what it raises ends the run, and frees what it held.
    """

    band_rows: int | None
    chunk: int
    store: Place
    progress: Callable[[int, int], None] | None


@dataclass(frozen=True)
class BandedOps:
    """The same results as `ops`, up to the order of sums, for inference: no gradient passes.

    At most `band_rows` rows of a map are computed at one time, by default as many as make a `BAND`, and `chunk` tokens
    against `chunk` others. `store` is where maps are kept: "device", "host", or a folder for temporary files.
    `progress(done, total)`, in flops of convolution and attention, is called after each piece of work by what `bands`
    returns; what it raises ends the run.
    """

    ops: Any  # ReferenceOps, or what stands for them
    band_rows: int | None = None
    chunk: int = 1024
    store: Place | NewStore = "device"
    progress: Callable[[int, int], None] | None = None
    report: Callable[[int], None] = lambda flops: None

    def __post_init__(self) -> None:
        for what, size in (("bands", self.band_rows), ("chunks", self.chunk)):
            if size is not None and size < 1:
                raise InputError(f"{what} of {size}: expected at least 1.")

    # -- around the model ----------------------------------------------------------------------------------

    def bands(self, model: Layer) -> Callable[[Any, Mapping[str, Array]], Iterator[Array]]:
        """(x, params) -> the result in bands of rows (B, C, rows, W), from the top down, telling of progress.

        x is an array of the backend, or anything with a shape that has x[:, :, start:stop, :].
        """

        def run(x: Any, params: Mapping[str, Array]) -> Iterator[Array]:
            inner, params = self.ops.inference_ops(params)
            ops = replace(self, ops=inner)
            if self.progress is not None:
                ops = replace(ops, report=_Progress(self.progress, _flops(model, x.shape)))
            result: Map = model(x, params, ops)
            for _, band in ops._bands(result.take(), result.length, result.most):
                yield band

        return run

    def compile(self, model: Layer) -> Callable[[Any, Mapping[str, Array]], Array]:
        """(x, params) -> the result, joined."""
        run = self.bands(model)
        return lambda x, params: _join(list(run(x, params)), 2, self.ops.xp)

    def run(self, layer: Layer, x: Map, params: Mapping[str, Array]) -> Map:
        """What came before is computed now, when it is known who reads it, and nobody else holds what it is made of."""
        result: Map = layer(self._settle_map(x), params, self)
        return result

    def from_nchw(self, x: Any) -> Map:
        def rows(start: int, stop: int) -> Array:
            return self.ops.from_nchw(x[:, :, start:stop, :])

        B, C, H, W = x.shape
        return Map((B, C, H, W), self._rows(B * C * W), rows, ())

    def to_nchw(self, x: Map) -> Map:
        return x.derive(lambda start, stop, read: self.ops.to_nchw(read(start, stop)))

    # -- what is kept --------------------------------------------------------------------------------------

    def _rows(self, numbers: int) -> int:
        """At one time, of maps with so many numbers in a row."""
        return self.band_rows or max(1, BAND // numbers)

    def _bands(self, read: Read, length: int, most: int) -> Iterator[tuple[int, Array]]:
        """(rows, band) from the top down, each computed as `ops` runs a layer."""
        for start, stop in spans(length, most):
            band = self.ops.run(lambda span, *_: read(*span), (start, stop), {})
            yield stop - start, self.ops.materialize(band)

    def _keep_map(self, x: Map) -> Map:
        """x, with its rows in a store and their moments known.

        With it what may take the place of its sources, which are then let go: a residual block's narrow shortcut.
        """
        if x.kept is None:
            x.ready()
            substitutes = {m for root in x.roots() for m in root.substitutes if m.kept is None and m.length == x.length}
            maps = (x, *(substitutes - {x}))
            for several in zip(*map(self._into_store, maps), strict=True):
                del several  # each a band, kept by now
        return x

    def _into_store(self, x: Map) -> Iterator[None]:
        """A band at each step."""
        kept = new_store(self.store, self.ops, self._axis)
        for rows, band in self._bands(x.take(), x.length, x.most):
            kept.append(band)
            mean, sigma2 = map(self.ops.materialize, self.ops.channel_statistics(band))
            x.moments.append((rows, mean, sigma2))
            yield
        x.kept = kept

    def _settle_map(self, x: Map) -> Map:
        """x, ready to be read more than once."""
        x.ready()
        return x if x.settled else self._keep_map(x)

    def _settle_tokens(self, t: Tokens) -> Tokens:
        t.ready()
        if not t.settled:
            kept = new_store(self.store, self.ops, axis=1)
            for _, band in self._bands(t.take(), t.length, self.chunk):
                kept.append(band)
            t.kept = kept
        return t

    # -- convolutions --------------------------------------------------------------------------------------

    @property
    def _axis(self) -> int:
        """Of the rows of a map."""
        return self.ops.map_layout.index("H")

    def conv2d(self, x: Map, w: Array, b: Array, *, stride: int, padding: Padding) -> Map:
        """Rows start … stop - 1 are made from rows s · start - above … s · (stop - 1) - above + k - 1 of x."""
        (above, below), sides = padding
        kernel = dict(zip(self.ops.conv_layout, w.shape, strict=True))
        B, C, H, W = x.shape
        h, wd = (H + above + below - kernel["H"]) // stride + 1, (W + sum(sides) - kernel["W"]) // stride + 1
        most = self._rows(B * max(stride * C * W, kernel["O"] * wd))
        tallest = max(stop - start for start, stop in spans(h, most)) if self.ops.fixed_shapes else 0

        def rows(start: int, stop: int, *reads: Read) -> Array:
            first, last = stride * start - above, stride * (stop - 1) - above + kernel["H"]
            band, borders = self._load(H, first, last, stride * max(0, tallest - (stop - start)), *reads)
            y = self.ops.conv2d(band, w, b, stride=stride, padding=(borders, sides))
            self.report(2 * math.prod(w.shape) * B * (stop - start) * wd)
            return cut(y, self._axis, 0, stop - start) if tallest else y

        wraps = isinstance(self.ops, CircularOps) and self.ops.rows
        y = Map((B, kernel["O"], h, wd), most, rows, (x, x, x) if wraps else (x,), cheap=False, before=self._settle_map)
        if kernel["H"] == 1 and kernel["O"] < kernel["I"]:
            x.substitutes.add(y)
        return y

    def _load(
        self, length: int, first: int, last: int, spare: int, read: Read, *wrapped: Read
    ) -> tuple[Array, tuple[int, int]]:
        """Rows first … last - 1 of a map, and how many of zeros are missing above and below.

        What lies beyond the borders is there already if it is the other end's rows, or if shapes are fixed: then with
        `spare` rows more.
        """
        above, below = max(0, -first), max(0, last - length)
        band = read(max(0, first), min(last, length))
        if not wrapped and not self.ops.fixed_shapes:
            return band, (above, below)
        band = _array(band)
        zeros = [self.ops.xp.zeros_like(cut(band, self._axis, 0, 1))]
        top, bottom = zeros * above, zeros * below
        if wrapped:
            from_bottom, from_top = wrapped
            top = [_array(from_bottom(length - above, length))] if above else []
            bottom = [_array(from_top(0, below))] if below else []
        return _join([*top, band, *bottom, *zeros * spare], self._axis, self.ops.xp), (0, 0)

    # -- elementwise ---------------------------------------------------------------------------------------

    def group_norm(self, x: Map, scale: Array, shift: Array, *, groups: int, eps: float) -> Map:
        bands = x.moments  # known once x is kept

        @functools.cache
        def moments() -> tuple[Array, Array]:
            parts = [(rows, self.ops.to_numpy(mean), self.ops.to_numpy(sigma2)) for rows, mean, sigma2 in bands]
            mean, sigma2 = (self.ops.from_host(m.astype(parts[0][1].dtype)) for m in group_moments(parts, groups))
            return mean, sigma2

        def rows(start: int, stop: int, read: Read) -> Array:
            mean, sigma2 = moments()
            return self.ops.normalize(read(start, stop), mean, sigma2, scale, shift, eps=eps)

        return x.derive(rows, before=self._keep_map)

    def silu(self, x: Map) -> Map:
        return self._elementwise(self.ops.silu, x)

    def mish(self, x: Map) -> Map:
        return self._elementwise(self.ops.mish, x)

    def gelu(self, x: Map) -> Map:
        return self._elementwise(self.ops.gelu, x)

    def relu(self, x: Map) -> Map:
        return self._elementwise(self.ops.relu, x)

    def add(self, x: L, y: L) -> L:
        return self._elementwise(self.ops.add, x, y)

    def scale(self, t: L, factor: float) -> L:
        return self._elementwise(lambda piece: self.ops.scale(piece, factor), t)

    def _elementwise(self, op: Callable[..., Array], x: L, *others: L) -> L:
        return x.derive(lambda start, stop, *reads: op(*(read(start, stop) for read in reads)), *others)

    def upsample_nearest2x(self, x: Map) -> Map:
        def rows(start: int, stop: int, read: Read) -> Array:
            first = start // 2
            doubled = self.ops.upsample_nearest2x(read(first, -(-stop // 2)))
            return cut(doubled, self._axis, start - 2 * first, stop - 2 * first)

        B, C, H, W = x.shape
        most = self._rows(B * C * 2 * W)
        return Map((B, C, 2 * H, 2 * W), most, rows, (x,), before=self._settle_map)  # kept while it is small

    # -- tokens --------------------------------------------------------------------------------------------

    def tokens(self, x: Map) -> Tokens:
        width = x.shape[3]

        def tokens(start: int, stop: int, read: Read) -> Array:
            first = start // width
            t = self.ops.tokens(read(first, -(-stop // width)))
            return cut(t, 1, start - first * width, stop - first * width)

        return Tokens(x.length * width, tokens, (x,))

    def pixels(self, t: Tokens, like: Map) -> Map:
        width = like.shape[3]

        def rows(start: int, stop: int, read: Read) -> Array:
            piece = read(start * width, stop * width)
            sizes = {"N": piece.shape[0], "C": piece.shape[2], "H": stop - start, "W": width}
            return self.ops.pixels(piece, SimpleNamespace(shape=tuple(sizes[axis] for axis in self.ops.map_layout)))

        return Map(like.shape, like.most, rows, (t,))

    def linear(self, t: Tokens, w: Array, b: Array | None) -> Tokens:
        def tokens(start: int, stop: int, read: Read) -> Array:
            piece = read(start, stop)
            y = self.ops.linear(piece, w, b)
            self.report(2 * math.prod(y.shape) * piece.shape[2])
            return y

        return t.derive(tokens, cheap=False)

    def split(self, t: Tokens, parts: int) -> tuple[Tokens, ...]:
        def part(i: int) -> Tokens:
            rows = lambda start, stop, read: self.ops.split(read(start, stop), parts)[i]  # noqa: E731
            return t.derive(rows, before=self._settle_tokens)

        return tuple(map(part, range(parts)))

    def attention(self, q: Tokens, k: Tokens, v: Tokens, *, scale: float) -> Tokens:
        return self.chunked_attention(q, k, v, scale=scale, size=self.chunk)

    eager_attention = attention

    def chunked_attention(self, q: Tokens, k: Tokens, v: Tokens, *, scale: float, size: int) -> Tokens:
        size = min(size, self.chunk)

        def tokens(start: int, stop: int, read: Read) -> Array:
            self._settle_tokens(k), self._settle_tokens(v)
            chunks = (read(start + first, start + last) for first, last in spans(stop - start, size))
            return _join([self._attend(queries, k, v, scale, size) for queries in chunks], 1, self.ops.xp)

        return q.derive(tokens, cheap=False)

    def _attend(self, q: Array, k: Tokens, v: Tokens, scale: float, size: int) -> Array:
        """A chunk of queries against all keys. See ReferenceOps.chunked_attention."""
        (B, n, C), keys, values = q.shape, k.open(), v.open()
        merged: tuple[Array, ...] = ()
        for start, stop in spans(k.length, size):
            chunk = self.ops.attend_chunk(q, keys(start, stop), values(start, stop), scale)
            merged = tuple(map(self.ops.materialize, self.ops.merge_chunks(merged, chunk) if merged else chunk))
            self.report(4 * B * n * (stop - start) * C)
        return self.ops.divide_chunks(merged, q)


def _array(x: Any) -> Array:
    """x, or what it makes when it is read."""
    return x[(...,)]


def _join(parts: list[Array], axis: int, xp: Any) -> Array:
    return parts[0] if len(parts) == 1 else xp.concat(parts, axis=axis)


class _Progress:
    """Adds up flops for progress(done, total)."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, flops: int) -> None:
        self.done += flops
        self.progress(self.done, self.total)


def _flops(model: Layer, shape: tuple[int, ...]) -> int:
    """Of the convolutions and the attention of model(x), x of that shape."""
    ops = CostOps(bytes_per_number=0)
    model(ops.array(*shape), dict(model.parameters()), ops)
    return ops.conv_flops + ops.attention_flops
