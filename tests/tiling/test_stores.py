"""Memory and files that are not needed any more are freed, also after a failure."""

from __future__ import annotations

import gc
import math
import os
import resource
import tracemalloc
import weakref
from contextlib import suppress
from functools import cache, partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.banded import layers, placed, run, source
from support.models import model

from vaespec.architecture import DECODER
from vaespec.errors import InputError
from vaespec.reference import ReferenceOps
from vaespec.tiling import planner
from vaespec.tiling.banded import BandedOps
from vaespec.tiling.planner import MemoryPlan
from vaespec.tiling.stores import new_store
from vaespec_cpu import memory

REFERENCE = ReferenceOps(np)


@pytest.fixture(scope="module", autouse=True)
def no_array_has_pages_of_its_own():
    """So that tracemalloc sees every array."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(memory, "BIG", math.inf)
        yield


def open_files(folder) -> int:
    """How many files in the folder this process holds open, with a name or without."""
    count = 0
    for descriptor in os.listdir("/dev/fd"):
        with suppress(OSError):  # the descriptor of the listing itself is closed again
            count += os.readlink(f"/dev/fd/{descriptor}").startswith(str(folder))
    return count


def arrays_held() -> int:
    """Bytes of NumPy's arrays that were allocated since tracing began and not freed."""
    of_numpy = tracemalloc.DomainFilter(inclusive=True, domain=np.lib.tracemalloc_domain)
    return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces([of_numpy]).traces)


@cache
def peak(height: int, **bands) -> int:
    """The most bytes that Python and NumPy held at one time while a tall image was decoded."""
    ops, params = placed("sd", "numpy")
    ops, x, whole = (
        BandedOps(ops, **bands) if bands else ops,
        source("sd", "decode", height, 8),
        layers("sd", "decode"),
    )
    run(ops, params, whole, x[:, :, :2])
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        run(ops, params, whole, x)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("place", ["device", "host", "file"])
@given(heights=st.lists(st.integers(1, 5), min_size=1, max_size=6), data=st.data())
def test_a_store_returns_the_rows_that_were_appended(tmp_path_factory, place, heights, data):
    place = tmp_path_factory.getbasetemp() if place == "file" else place
    whole = np.random.default_rng(0).standard_normal((2, 3, sum(heights), 4)).astype(np.float32)
    store = new_store(place, REFERENCE, axis=2)
    for band in np.split(whole, np.cumsum(heights)[:-1], axis=2):
        store.append(band)
    read, start = store.open(), 0
    while start < sum(heights):  # no read begins above the start of the read before
        stop = data.draw(st.integers(start + 1, sum(heights)))
        np.testing.assert_array_equal(read(start, stop), whole[:, :, start:stop])
        start = data.draw(st.integers(start, stop)) if stop < sum(heights) else stop


def test_a_band_is_freed_when_its_last_reader_has_passed():
    store, bands = new_store("device", REFERENCE, axis=2), [np.full((1, 1, 2, 2), i) for i in range(3)]
    for band in bands:
        store.append(band)
    alive, one, other = weakref.ref(bands[0]), store.open(), store.open()
    del store, bands, band
    one(2, 4)
    assert alive() is not None
    other(2, 4)
    assert alive() is None


@pytest.mark.parametrize("store", ["device", "host"])
def test_bands_take_less_memory_than_the_whole(store):
    """Stored: 384 channels of the largest map; the whole holds 256 + 256 + 256 and more."""
    peak(8, band_rows=8, store=store)  # what the first run of a process imports and keeps
    assert peak(96, band_rows=8, store=store) <= 0.6 * peak(96)


@pytest.mark.parametrize("store", [None, "device", "host", "file"])
def test_the_planner_knows_the_memory_of_a_run(tmp_path, store, monkeypatch):
    monkeypatch.setattr(planner, "stored_in_memory", lambda folder: False)  # tracemalloc sees no files
    store = tmp_path if store == "file" else store
    bands = None if store is None else {"band_rows": 8, "chunk": 64, "store": store}
    expected = planner.estimate(model("sd", "numpy")._model, DECODER, (1, 4, 96, 8), MemoryPlan(bands=bands))
    assert expected.run == pytest.approx(peak(96, **bands or {}), rel=0.15)
    assert (expected.elsewhere > 0) == (store == tmp_path)


def test_in_a_file_memory_does_not_grow_with_the_height(tmp_path):
    """Only the result grows: 3 channels of float64, twice while its bands are joined."""
    short, tall = (peak(height, band_rows=8, store=tmp_path) for height in (40, 160))
    assert tall - short <= 1.1 * 2 * 3 * 8 * (160 - 40) * 8 * 64


class StopError(Exception):
    pass


@pytest.mark.parametrize("store", ["device", "host", "file"])
def test_an_error_raised_by_progress_ends_the_run_and_leaves_nothing(tmp_path, store):
    ops, params = placed("sd", "numpy")
    called = []

    def progress(done, total):
        called.append((done, total))
        if len(called) == 40:
            raise StopError

    banded = BandedOps(ops, band_rows=2, store=tmp_path if store == "file" else store, progress=progress)
    gc.collect()
    gc.disable()  # counting references is enough
    tracemalloc.start()
    try:
        with pytest.raises(StopError):
            run(banded, params, layers("sd", "decode"), source("sd", "decode", 24, 24))
        held, most = arrays_held(), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        gc.enable()
    assert held < 0.1 * most
    assert open_files(tmp_path) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("direction", ["encode", "decode"])
def test_progress_counts_up_to_the_total(direction):
    ops, params = placed("sd", "numpy")
    calls = []
    banded = BandedOps(ops, band_rows=2, chunk=5, progress=lambda *call: calls.append(call))
    for _ in range(2):  # each run counts from 0
        calls.clear()
        run(banded, params, layers("sd", direction), source("sd", direction, 17, 16))
        done, totals = zip(*calls, strict=True)
        assert len(set(totals)) == 1
        assert list(done) == sorted(set(done))
        assert done[-1] == totals[0]
        assert len(done) > 50


def test_a_run_in_a_file_leaves_no_file(tmp_path):
    ops, params = placed("sd", "numpy")
    run(BandedOps(ops, store=tmp_path), params, layers("sd", "decode"), source("sd", "decode", 4, 4))
    assert (open_files(tmp_path), list(tmp_path.iterdir())) == (0, [])


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"store '.*nowhere': No such file or directory; give a folder"):
        new_store(tmp_path / "nowhere", REFERENCE, axis=2)


def test_a_full_disk_is_an_input_error(tmp_path):
    """A limit on the size of files fails as a full disk does: after some of the bytes."""
    store, limits = new_store(tmp_path, REFERENCE, axis=2), resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE)
    limit((5000, limits[1]))
    try:
        with pytest.raises(InputError, match=r"store '.*': File too large; give a folder with room"):
            store.append(np.zeros((1, 1, 1000, 1)))
    finally:
        limit(limits)
