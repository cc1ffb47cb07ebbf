"""BandedOps: exact tiling. The model in bands of rows, with the numbers of the whole and a fraction of its memory.

An operation that the model calls computes nothing yet. It returns a lazy map (`vaespec.tiling.lazy`), which can compute
any of its rows from rows of its inputs.

- A convolution reads, for each band, the rows of its input that the kernel reaches: the band and its halo, for a 3 x 3
  kernel one row above and one below (`_read_with_halo`). So neighbouring bands read some rows twice.
- Yet each convolution is computed once: before a map is read twice, it is computed into a store, band by band
  (`_store_if_costly`), unless no sum stands between its rows and stored ones.
- A group norm needs the statistics of the whole map before its first row: its input is stored, with the mean and
  variance of each band (`_store_map`), which are merged (`group_norm`).
- Norms, activations, upsampling and residual sums are computed again for every reader, which costs less than a store.
- Attention stores keys and values, and takes them, and the queries, in chunks.

A band in a store is freed when the last reader of its map has passed it.
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
from vaespec.ops import Array, BandableOps, Layer, Padding
from vaespec.tiling.lazy import Lazy, Map, Tokens, merged_statistics, spans
from vaespec.tiling.stores import NewStore, Place, Read, cut, new_store

L = TypeVar("L", bound=Lazy)

BAND = 1 << 22
"""Numbers in a band by default: 16 MiB of float32. From 32 MiB on, the system gives an array fresh memory each time,
which takes longer than most operations on it.
"""


class Bands(TypedDict, total=False):
    """Options of BandedOps: at most `band_rows` rows of a map, and `chunk` tokens of attention, are computed at once.

    By default 16 MiB of rows in float32, and 1024 tokens. Meanwhile maps are stored in `store`: "device", "host", or a
    folder for temporary files. `progress(done, total)` is called after each band; if it raises, the run ends, and its
    memory is freed.
    """

    band_rows: int | None
    chunk: int
    store: Place
    progress: Callable[[int, int], None] | None


@dataclass(frozen=True)
class BandedOps:
    """The results of `ops`, up to the order of sums, in bounded memory, without gradients. `Bands` has the options.

    Progress is counted in flops of convolutions and attention: each piece of work gives its own to `report`.
    """

    ops: BandableOps
    band_rows: int | None = None
    chunk: int = 1024
    store: Place | NewStore = "device"
    progress: Callable[[int, int], None] | None = None
    report: Callable[[int], None] = lambda flops: None

    def __post_init__(self) -> None:
        for name, size in (("bands", self.band_rows), ("chunks", self.chunk)):
            if size is not None and size < 1:
                raise InputError(f"{name} of {size}: expected at least 1.")

    # -- running a model -----------------------------------------------------------------------------------

    def bands(self, model: Layer) -> Callable[[Any, Mapping[str, Array]], Iterator[Array]]:
        """A function (x, params) -> the result in bands of rows (B, C, rows, W), from the top down.

        x is an array of the backend, or any object with a shape and x[:, :, start:stop, :].
        """

        def run(x: Any, params: Mapping[str, Array]) -> Iterator[Array]:
            inner, params = self.ops.inference_ops(params)
            ops = replace(self, ops=inner)
            if self.progress is not None:
                ops = replace(ops, report=_Progress(self.progress, _flops(model, x.shape)))
            result: Map = model(x, params, ops)
            for _, band in ops._bands(result.open_last(), result.length, result.most):
                yield band

        return run

    def compile(self, model: Layer) -> Callable[[Any, Mapping[str, Array]], Array]:
        """A function (x, params) -> the whole result."""
        return lambda x, params: self.ops.concat(list(self.bands(model)(x, params)), axis=2)

    def run(self, layer: Layer, x: Map, params: Mapping[str, Array]) -> Map:
        """layer(x, params, self), x stored first: the layer before has returned, so only x holds its inputs."""
        result: Map = layer(self._store_if_costly(x), params, self)
        return result

    def from_nchw(self, x: Any) -> Map:
        def rows(start: int, stop: int) -> Array:
            return self.ops.from_nchw(x[:, :, start:stop, :])

        return Map(x.shape, self._most_rows(x.shape[0] * x.shape[1] * x.shape[3]), rows, ())

    def to_nchw(self, x: Map) -> Map:
        return x.derive(lambda start, stop, read: self.ops.to_nchw(read(start, stop)))

    # -- when a map is stored ------------------------------------------------------------------------------

    def _store_if_costly(self, x: Map) -> Map:
        """x, stored unless reading its rows twice is cheap."""
        x.prepare_inputs()
        return x if x.cheap_to_read else self._store_map(x)

    def _store_map(self, x: Map) -> Map:
        """x, stored with the statistics of each band.

        Also stores substitutes of its inputs (a residual block's narrower shortcut), so that the inputs can be freed.
        """
        if x.stored is None:
            x.prepare_inputs()
            substitutes = {m for source in x.stored_inputs() for m in source.substitutes if m.stored is None}
            maps = (x, *(m for m in substitutes if m is not x and m.length == x.length))
            for _ in zip(*map(self._fill_store, maps), strict=True):
                pass  # a band of each in turn: the bands of their inputs that all have read are freed
        return x

    def _fill_store(self, x: Map) -> Iterator[None]:
        store = new_store(self.store, self.ops, axis=self.ops.map_layout.index("H"))
        for rows, band in self._bands(x.open_last(), x.length, x.most):
            store.append(band)
            mean, sigma2 = map(self.ops.materialize, self.ops.channel_statistics(band))
            x.statistics.append((rows, mean, sigma2))
            yield
        x.stored = store

    def _store_tokens_if_costly(self, t: Tokens) -> Tokens:
        t.prepare_inputs()
        if not t.cheap_to_read:
            store = new_store(self.store, self.ops, axis=1)
            for _, chunk in self._bands(t.open_last(), t.length, self.chunk):
                store.append(chunk)
            t.stored = store
        return t

    def _bands(self, read: Read, length: int, most: int) -> Iterator[tuple[int, Array]]:
        """(rows, band) from the top down, at most `most` rows each, computed in the settings of `ops`."""
        for start, stop in spans(length, most):
            band = self.ops.apply(lambda rows, _: read(*rows), (start, stop), {})
            yield stop - start, self.ops.materialize(band)

    def _most_rows(self, numbers: int) -> int:
        """How many rows to compute at once, of maps with so many numbers in a row."""
        return self.band_rows or max(1, BAND // numbers)

    # -- convolutions, and their halo ----------------------------------------------------------------------

    def conv2d(self, x: Map, w: Array, b: Array, *, stride: int, padding: Padding) -> Map:
        """Rows start … stop - 1 need rows s · start - above … s · (stop - 1) - above + k - 1 of x."""
        (above, below), sides = padding
        kernel = dict(zip(self.ops.conv_layout, w.shape, strict=True))
        B, C, H, W = x.shape
        h, wd = (H + above + below - kernel["H"]) // stride + 1, (W + sum(sides) - kernel["W"]) // stride + 1
        most = self._most_rows(B * max(stride * C * W, kernel["O"] * wd))
        tallest = max(stop - start for start, stop in spans(h, most)) if self.ops.fixed_shapes else 0

        def rows(start: int, stop: int, *reads: Read) -> Array:
            first, last = stride * start - above, stride * (stop - 1) - above + kernel["H"]
            band, borders = self._read_with_halo(H, first, last, max(0, tallest - (stop - start)), stride, *reads)
            y = self.ops.conv2d(band, w, b, stride=stride, padding=(borders, sides))
            self.report(2 * math.prod(w.shape) * B * (stop - start) * wd)
            return self.ops.rows(y, 0, stop - start) if tallest else y

        inputs = (x, x, x) if self.ops.wraps_rows else (x,)
        y = Map((B, kernel["O"], h, wd), most, rows, inputs, cheap=False, before=self._store_if_costly)
        if kernel["H"] == 1 and kernel["O"] < kernel["I"]:
            x.substitutes.add(y)
        return y

    def _read_with_halo(
        self, length: int, first: int, last: int, spare: int, stride: int, read: Read, *other_ends: Read
    ) -> tuple[Array, tuple[int, int]]:
        """Rows first … last - 1 of a map with `length` rows, and how many rows are left for the convolution to pad.

        Rows beyond a map that wraps are its `other_ends`. Fixed shapes are padded here, by `spare` results more.
        """
        above, below = max(0, -first), max(0, last - length)
        band = read(max(0, first), min(last, length))
        if other_ends:
            from_bottom, from_top = other_ends
            top = [from_bottom(length - above, length)] if above else []
            bottom = [from_top(0, below)] if below else []
            band, above, below = self._joined([*top, band, *bottom]), 0, 0
        if self.ops.fixed_shapes:
            band = self.ops.to_array(self.ops.pad_rows(band, above, below, stride=stride))
            zeros = [self.ops.zeros_like(self.ops.rows(band, 0, 1))] * (stride * spare)
            band, above, below = self._joined([band, *zeros]), 0, 0
        return band, (above, below)

    def _joined(self, bands: list[Array]) -> Array:
        return self.ops.concat(list(map(self.ops.to_array, bands)), axis=self.ops.map_layout.index("H"))

    # -- norms, and what is elementwise --------------------------------------------------------------------

    def group_norm(self, x: Map, scale: Array, shift: Array, *, groups: int, eps: float) -> Map:
        statistics = x.statistics  # complete once x is stored

        @functools.cache
        def of_groups() -> tuple[Array, Array]:
            bands = [(rows, self.ops.to_numpy(mean), self.ops.to_numpy(sigma2)) for rows, mean, sigma2 in statistics]
            mean, sigma2 = (self.ops.from_host(m.astype(bands[0][1].dtype)) for m in merged_statistics(bands, groups))
            return mean, sigma2

        def rows(start: int, stop: int, read: Read) -> Array:
            mean, sigma2 = of_groups()
            return self.ops.normalize(read(start, stop), mean, sigma2, scale, shift, eps=eps)

        return x.derive(rows, before=self._store_map)

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
            upsampled = self.ops.upsample_nearest2x(read(first, -(-stop // 2)))
            return self.ops.rows(upsampled, start - 2 * first, stop - 2 * first)

        B, C, H, W = x.shape
        most = self._most_rows(B * C * 2 * W)
        return Map((B, C, 2 * H, 2 * W), most, rows, (x,), before=self._store_if_costly)  # x, a quarter of the size

    # -- tokens and attention ------------------------------------------------------------------------------

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
            return t.derive(rows, before=self._store_tokens_if_costly)

        return tuple(map(part, range(parts)))

    def attention(self, q: Tokens, k: Tokens, v: Tokens, *, scale: float) -> Tokens:
        return self.chunked_attention(q, k, v, scale=scale, size=self.chunk)

    eager_attention = attention

    def chunked_attention(self, q: Tokens, k: Tokens, v: Tokens, *, scale: float, size: int) -> Tokens:
        size = min(size, self.chunk)

        def tokens(start: int, stop: int, read: Read) -> Array:
            self._store_tokens_if_costly(k), self._store_tokens_if_costly(v)
            chunks = (read(start + first, start + last) for first, last in spans(stop - start, size))
            return self.ops.concat([self._attend(queries, k, v, scale, size) for queries in chunks], axis=1)

        return q.derive(tokens, cheap=False)

    def _key_chunks(self, length: int, size: int) -> Iterator[tuple[int, int]]:
        return spans(length, size)

    def _attend(self, q: Array, k: Tokens, v: Tokens, scale: float, size: int) -> Array:
        """A chunk of queries against all keys: see Specification.chunked_attention."""
        (B, n, C), keys, values = q.shape, k.open(), v.open()
        m = l = o = None
        for start, stop in self._key_chunks(k.length, size):
            chunk = self.ops.attend_chunk(q, keys(start, stop), values(start, stop), scale)
            m, l, o = map(self.ops.materialize, self.ops.merge_chunks((m, l, o), chunk) if start else chunk)
            self.report(4 * B * n * (stop - start) * C)
        return self.ops.divide_chunks((m, l, o), q)


class _Progress:
    """Adds up the flops that are reported, for progress(done, total)."""

    def __init__(self, progress: Callable[[int, int], None], total: int) -> None:
        self.progress, self.done, self.total = progress, 0, total

    def __call__(self, flops: int) -> None:
        self.done += flops
        self.progress(self.done, self.total)


def _flops(model: Layer, shape: tuple[int, ...]) -> int:
    """Flops of the convolutions and the attention in model(x), x of that shape."""
    ops = CostOps(bytes_per_number=0)
    model(ops.array(*shape), dict(model.parameters()), ops)
    return ops.conv_flops + ops.attention_flops
