"""In bands, a model gives the numbers of the whole; mistakes that other implementations made change the result."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.banded import CLOSE, difference, layers, placed, run, source
from support.configs import CONFIGS, relative_l2, uniform
from support.models import FINEST

from vaespec.analysis.cost import CostOps
from vaespec.attention import Chunked, Eager, FusedQKV, LoRA, Sdpa
from vaespec.errors import InputError
from vaespec.processors import attention_layers
from vaespec.reference import ReferenceOps
from vaespec.tiling import banded
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.lazy import spans
from vaespec_cpu.ops import CpuOps

VARIED = ("sd", "flux1", "flux2-small-decoder", "cogview", "kl-f16", "attention-everywhere", "one-level", "mish")
directions = st.sampled_from(["encode", "decode"])


@st.composite
def cases(draw, largest: int = 10):
    """(config, direction, size, options of BandedOps), with image sizes that are no multiple of anything too."""
    name, direction = draw(st.sampled_from(VARIED)), draw(directions)
    f = CONFIGS[name].downsampling_factor if direction == "encode" else 1
    size = [f * draw(st.integers(1, largest)) + draw(st.integers(0, f - 1)) for _ in "HW"]
    rows, chunk = draw(st.sampled_from([1, 2, 3, 5, 7, 16, 1000])), draw(st.sampled_from([1, 7, 16, 1000]))
    return name, direction, tuple(max(n, 2 if f > 1 else 1) for n in size), {"band_rows": rows, "chunk": chunk}


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@given(case=cases(), batch=st.integers(1, 2), store=st.sampled_from(["device", "host", "file"]))
def test_bands_are_the_whole_in_float64(tmp_path_factory, backend, case, batch, store):
    name, direction, size, options = case
    store = tmp_path_factory.getbasetemp() if store == "file" else store
    assert difference(name, backend, direction, size, batch=batch, store=store, **options) <= CLOSE["float64"]


@pytest.mark.parametrize("backend", ["numpy", "torch", "mlx"])
@settings(max_examples=15)
@given(case=cases(largest=5))
def test_bands_are_the_whole_in_float32(backend, case):
    name, direction, size, options = case
    assert difference(name, backend, direction, size, dtype="float32", **options) <= CLOSE["float32"]


@pytest.mark.parametrize(
    ("direction", "size", "store"),
    [
        ("decode", (5, 3), "device"),
        ("decode", (5, 3), "host"),
        ("decode", (5, 3), "file"),
        ("encode", (11, 6), "device"),
    ],
)
def test_bands_are_the_whole_on_jax(tmp_path, direction, size, store):
    """Few cases, since JAX compiles every shape."""
    store = tmp_path if store == "file" else store
    assert (
        difference("attention-everywhere", "jax", direction, size, band_rows=4, chunk=9, store=store)
        <= CLOSE["float32"]
    )


@pytest.mark.parametrize("store", ["device", "host", "file"])
@pytest.mark.parametrize(("backend", "dtype"), [("torch", "bfloat16"), ("numpy", "float16"), ("mlx", "bfloat16")])
def test_every_store_keeps_sixteen_bits_as_they_are(tmp_path, backend, dtype, store):
    """Results are rounded at the same places as in the whole; only the last bit of a sum may differ."""
    store = tmp_path if store == "file" else store
    assert difference("sd", backend, "decode", (4, 5), dtype=dtype, batch=2, band_rows=3, store=store) <= 0.02


def test_bands_of_forty_latents_square_are_the_whole():
    assert difference("sd", "torch", "decode", (40, 40), band_rows=32, chunk=100) <= CLOSE["float64"]


# -- what is computed, and in which pieces -------------------------------------------------------------------------


class Spy(ReferenceOps):
    """The specification in float64, with a record of its convolutions and of the sizes of its logits."""

    def __init__(self):
        super().__init__(np)
        self.running, self.logits, self.convolved = False, [], []

    def apply(self, function, x, params):
        self.running = True
        result = super().apply(function, x, params)
        self.running = False
        return result

    def conv2d(self, x, w, b, *, stride, padding):
        assert self.running
        y = super().conv2d(x, w, b, stride=stride, padding=padding)
        self.convolved.append((id(w), x.shape, y.size * w[0].size))
        return y

    def attend_chunk(self, q, k, v, scale):
        self.logits.append((q.shape[1], k.shape[1]))
        return super().attend_chunk(q, k, v, scale)


def spied(direction: str, size, **options) -> Spy:
    spy, (_, params) = Spy(), placed("attention-everywhere", "torch")
    params = {name: p.numpy() for name, p in params.items()}
    run(BandedOps(spy, **options), params, layers("attention-everywhere", direction), source("sd", direction, *size))
    return spy


@given(direction=directions, height=st.integers(4, 30), rows=st.integers(1, 30))
@settings(max_examples=15)
def test_no_convolution_is_computed_twice(direction, height, rows):
    spy, cost = spied(direction, (height, 6), band_rows=rows), CostOps(8)
    whole = layers("attention-everywhere", direction)
    whole(cost.array(*source("sd", direction, height, 6).shape), dict(whole.parameters()), cost)
    assert 2 * sum(flops for *_, flops in spy.convolved) == cost.conv_flops


def test_a_band_is_no_taller_than_band_rows_and_the_halo():
    spy = spied("decode", (11, 6), band_rows=4)
    assert max(shape[2] for _, shape, _ in spy.convolved) == 4 + 2


def test_each_convolution_has_one_shape_if_shapes_are_compiled(monkeypatch):
    monkeypatch.setattr(Spy, "fixed_shapes", True)
    spy = spied("encode", (31, 6), band_rows=4)
    assert len({(w, shape) for w, shape, _ in spy.convolved}) == len({w for w, *_ in spy.convolved})


@given(chunk=st.integers(1, 50), rows=st.integers(1, 9))
@settings(max_examples=15)
def test_logits_are_those_of_a_chunk_of_queries_and_a_chunk_of_keys(chunk, rows):
    spy = spied("decode", (7, 5), band_rows=rows, chunk=chunk)
    assert max(max(shape) for shape in spy.logits) <= chunk


@given(length=st.integers(1, 500), most=st.integers(1, 500))
def test_pieces_cover_everything_once_and_are_nearly_equal(length, most):
    pieces = list(spans(length, most))
    assert [i for start, stop in pieces for i in range(start, stop)] == list(range(length))
    assert len(pieces) == -(-length // max(stop - start for start, stop in pieces)) >= length / most


# -- attention processors ------------------------------------------------------------------------------------------

PROCESSORS = (
    Sdpa(),
    Eager(),
    Chunked(5),
    FusedQKV(),
    FusedQKV(core=Chunked(3)),
    LoRA(rank=2, alpha=3),
    LoRA(core=Eager()),
)


@pytest.mark.parametrize("processor", PROCESSORS, ids=repr)
@pytest.mark.parametrize("backend", ["numpy", "torch", "mlx"])
def test_every_processor_gives_the_result_of_the_whole(backend, processor):
    ops, params = placed("attention-everywhere", backend)
    whole = layers("attention-everywhere", "decode")
    whole = layers("attention-everywhere", "decode", {a.name: processor for a in attention_layers(whole)})
    table = dict(whole.parameters())
    new = {n: uniform(n, p.shape, -0.4, 0.4) for n, p in table.items() if n not in params}
    params = {**params, **ops.load_params(new, table)}
    x = source("sd", "decode", 5, 4)
    expected = run(ops, params, whole, x)
    assert relative_l2(run(BandedOps(ops, band_rows=3, chunk=7), params, whole, x), expected) <= CLOSE[FINEST[backend]]


# -- mistakes ------------------------------------------------------------------------------------------------------


def short_halo(monkeypatch):
    right = BandedOps._read_with_halo

    def read_with_halo(self, length, first, last, spare, read, *other_ends):
        band, borders = right(self, length, first, last, spare, read, *other_ends)
        if last - first >= 3 and first >= 0:
            band = self.ops.to_array(band)
            band = np.concatenate((0 * band[:, :1], band[:, 1:]), axis=1)
        return band, borders

    monkeypatch.setattr(BandedOps, "_read_with_halo", read_with_halo)


def unmerged_variances(monkeypatch):
    right = banded.merged_statistics

    def statistics(bands, groups):
        rows = sum(n for n, *_ in bands)
        return right(bands, groups)[0], sum(n / rows * right([(n, m, v)], groups)[1] for n, m, v in bands)

    monkeypatch.setattr(banded, "merged_statistics", statistics)


def attention_per_band(monkeypatch):
    def attend(self, q, k, v, *, scale, size):
        def tokens(start, stop, *reads):
            return self.ops.attention(*(read(start, stop) for read in reads), scale=scale)

        return q.derive(tokens, self._store_tokens_if_costly(k), self._store_tokens_if_costly(v), cheap=False)

    monkeypatch.setattr(BandedOps, "chunked_attention", attend)


def halo_rows_counted(monkeypatch):
    right = CpuOps.channel_statistics

    def channel_statistics(self, x):
        return right(self, np.concatenate((x, x[:, -1:]), axis=1))

    monkeypatch.setattr(CpuOps, "channel_statistics", channel_statistics)


@pytest.mark.parametrize("mistake", [short_halo, unmerged_variances, attention_per_band, halo_rows_counted])
def test_a_mistake_changes_the_result(monkeypatch, mistake):
    options = {"name": "sd", "backend": "numpy", "direction": "decode", "size": (6, 4), "band_rows": 3, "chunk": 8}
    assert difference(**options) <= CLOSE["float64"]
    mistake(monkeypatch)
    assert difference(**options) > 1e-4


@pytest.mark.parametrize("wrong", [{"band_rows": 0}, {"chunk": -1}])
def test_bands_and_chunks_of_nothing_are_refused(wrong):
    with pytest.raises(InputError, match="expected at least 1"):
        BandedOps(ReferenceOps(np), **wrong)
