"""A run is planned before it begins: the quickest plan within the limit, or an error with a sufficient limit."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.banded import CLOSE
from support.configs import narrow, relative_l2, uniform
from support.models import array, each_backend, model

from vaespec import AutoencoderKL, InputError
from vaespec.analysis.memory import CeilingError, MemoryOps
from vaespec.architecture import DECODER
from vaespec.errors import MemoryLimitError
from vaespec.machine import MemoryUse, host_memory
from vaespec.model import Model
from vaespec.tiling import planner
from vaespec.tiling.planner import MemoryPlan
from vaespec.tiling.settings import Tiling
from vaespec_cpu.ops import CpuOps
from vaespec_numpy.ops import NumpyOps

CONFIG = narrow((8, 12, 12), layers_per_block=1)  # f = 4
GIB = 2**30
Z = uniform("z", (2, CONFIG.latent_channels, 160, 6))
ONE = (1, *Z.shape[1:])


@pytest.fixture
def vae(monkeypatch) -> AutoencoderKL:
    """A model on a machine where the process holds one GiB, and three are free."""
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(GIB, 3 * GIB))
    return AutoencoderKL.from_config(CONFIG, backend="numpy", dtype="float64")


@pytest.fixture
def ran(monkeypatch) -> list[tuple]:
    """The inputs that our model runs on: shapes of whole inputs, and shapes of inputs in bands, with their options."""
    seen, run, stream = [], Model.run, Model.stream

    def streamed(self, half, x, bands):
        banded = bands(self.ops).__self__
        seen.append((x.shape, banded.band_rows, banded.chunk, str(banded.store)))
        return stream(self, half, x, bands)

    monkeypatch.setattr(Model, "run", lambda self, half, x: seen.append((x.shape,)) or run(self, half, x))
    monkeypatch.setattr(Model, "stream", streamed)
    return seen


def need(vae, plan) -> int:
    """The least sufficient limit for a plan."""
    return GIB + int(planner.MARGIN * planner.estimate(vae._model, DECODER, Z.shape, plan).run)


@pytest.fixture(autouse=True)
def _temporary_files_are_on_a_disk(monkeypatch):
    """Also on a machine whose /tmp is memory."""
    monkeypatch.setattr(planner, "stored_in_memory", lambda folder: not Path(folder).stat())


@pytest.fixture(autouse=True)
def bands_of_few_rows(monkeypatch):
    monkeypatch.setattr("vaespec.tiling.banded.BAND", 1 << 13)


CHUNK = {"chunk": 32}  # of tokens: otherwise attention takes more than the maps


def auto(limit, **bands) -> Tiling:
    return Tiling(enabled=True, mode="auto", max_memory=limit, bands=bands)


def banded(store, **options) -> MemoryPlan:
    return MemoryPlan(slicing=True, bands={"store": str(store), **CHUNK, **options})


def test_the_limit_decides_between_the_whole_slices_bands_and_a_file(vae, ran, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    whole = vae.decode(Z).sample
    for plan, expected in (
        (MemoryPlan(), [(Z.shape,)]),
        (MemoryPlan(slicing=True), [(ONE,)] * 2),
        (banded("device"), [(ONE, None, 32, "device")] * 2),
        (banded(tmp_path), [(ONE, None, 32, str(tmp_path))] * 2),
    ):
        vae.enable_tiling("auto", max_memory=need(vae, plan), **CHUNK)
        ran.clear()
        assert relative_l2(vae.decode(Z).sample, whole) <= CLOSE["float64"]
        assert ran == expected
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=5)
@given(st.floats(0.0, 1.0))
def test_a_limit_that_is_too_little_names_one_that_is_enough(share):
    vae = AutoencoderKL.from_config(CONFIG, backend="numpy", dtype="float64")
    shape = (1, CONFIG.latent_channels, 100, 300)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NumpyOps, "memory", lambda self: MemoryUse(GIB, 3 * GIB))
        choose = partial(planner.choose, vae._model, DECODER, shape)
        with pytest.raises(InputError) as error:
            choose(auto(int(share * GIB) + 1))
        words = (
            r"^max_memory of (?:[\d,]+ bytes|[01]\.\d\d GiB) is too little to decode 1 x 4 x 100 x 300: (\S+ GiB) "
            r"would do, 1\.00 GiB of which are held already"
        )
        enough = planner.as_bytes(re.search(words, str(error.value))[1].replace(" ", ""))
        assert choose(auto(enough)).bands is not None
        with pytest.raises(InputError):
            choose(auto(enough - GIB // 50))


def test_without_a_limit_most_of_the_free_memory_is_used(vae, ran, monkeypatch):
    vae.enable_tiling("auto")
    vae.decode(Z)
    assert ran == [(Z.shape,)]
    free = (need(vae, MemoryPlan(slicing=True)) - GIB) / planner.SHARE + 9
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(GIB, int(free)))
    ran.clear()
    vae.decode(Z)
    assert ran == [(ONE,)] * 2


def test_exact_with_a_limit_always_works_in_bands_and_keeps_the_given_options(vae, ran):
    vae.enable_tiling("exact", max_memory="3GiB", band_rows=7)
    vae.decode(Z)
    assert ran == [(ONE, 7, 1024, "device")] * 2


def test_slicing_that_is_enabled_is_done(vae, ran):
    vae.enable_tiling("auto")
    vae.enable_slicing()
    vae.decode(Z)
    assert ran == [(ONE,)] * 2


def test_a_folder_without_room_is_not_chosen(vae, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limit = need(vae, banded(tmp_path))
    vae.enable_tiling("auto", max_memory=limit, **CHUNK)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    with pytest.raises(InputError, match="is too little to decode 2 x 4 x 160 x 6"):
        vae.decode(Z)
    vae.enable_tiling("exact", max_memory=limit, store=tmp_path, **CHUNK)
    with pytest.raises(InputError, match=r"no room for the maps to decode 2 x 4 x 160 x 6: free some space in"):
        vae.decode(Z)


@pytest.mark.parametrize(
    ("limit", "count"),
    [(123, 123), ("123", 123), ("2GiB", 2**31), ("1.5GiB", 3 * 2**29), (" 800 MB ", 8 * 10**8), ("1TB", 10**12)],
)
def test_limits_are_bytes_or_have_a_unit(limit, count):
    assert planner.as_bytes(limit) == count


@pytest.mark.parametrize("limit", ["", "2 gallons", "GiB", "-1", 0, "0GiB", True, 1.5, "1e9", "2GiBs", "9" * 5000])
def test_limits_that_are_no_numbers_of_bytes_are_refused(vae, limit):
    with pytest.raises(InputError, match=r"max_memory=.*: expected a number of bytes, or one with a unit"):
        vae.enable_tiling("auto", max_memory=limit)
    assert not vae.use_tiling


def test_estimates_grow_with_the_image_and_shrink_with_its_parts(vae):
    shape = (4, 3, 256, 128)
    whole = vae.estimate_memory(shape)
    vae.enable_slicing()
    sliced = vae.estimate_memory(shape)
    vae.enable_tiling("exact", band_rows=8)
    in_bands = vae.estimate_memory(shape)
    vae.enable_tiling(tile_sample_min_size=64)
    in_tiles = vae.estimate_memory(shape)
    assert whole.before == in_bands.before == GIB
    assert whole.run > 2 * sliced.run > 3 * in_bands.run
    assert in_tiles.run < sliced.run
    assert whole.peak > vae.estimate_memory((4, 3, 128, 128)).peak
    assert vae.estimate_memory(shape, "encode").run < whole.run


@pytest.mark.parametrize("shape", [(1, 3, 64), (1, 3, 2, 64), (0, 3, 64, 64)])
def test_an_estimate_is_of_images(vae, shape):
    with pytest.raises(InputError, match=r"images of shape .*: expected \(B, C, height, width\), at least 4 x 4 px"):
        vae.estimate_memory(shape)


def test_a_missing_folder_is_reported_before_the_run(vae, tmp_path):
    vae.enable_tiling("exact", max_memory="3GiB", store=tmp_path / "nowhere")
    with pytest.raises(InputError, match=r"store .*nowhere: No such file or directory; give a folder"):
        vae.decode(Z)


@each_backend
def test_every_backend_reports_used_and_free_memory(backend):
    vae = model("sd", backend)
    held = vae._model.ops.memory()
    assert held.used > 0
    assert held.free > 0
    z = uniform("z", (1, vae.config.latent_channels, 9, 5))
    whole = array(vae.decode(z).sample)
    vae.enable_tiling("auto")
    assert relative_l2(array(vae.decode(z).sample), whole) <= CLOSE[vae.dtype]


def test_an_accelerator_reports_its_own_memory(monkeypatch):
    jax_ops, torch_ops = (model("sd", name)._model.ops for name in ("jax", "torch"))
    statistics = {"bytes_in_use": 10, "bytes_limit": 100}
    jax_ops.device = SimpleNamespace(platform="gpu", memory_stats=lambda: statistics)
    torch_ops.device = torch.device("cuda:0")
    for name, value in (("memory_allocated", 10), ("memory_reserved", 30), ("mem_get_info", (70, 999))):
        monkeypatch.setattr(torch.cuda, name, lambda device, value=value: value)
    for ops in (jax_ops, torch_ops):
        assert (ops.memory(), ops.on_host) == (MemoryUse(10, 90), False)


def test_maps_of_an_accelerator_may_be_stored_in_the_hosts_memory(vae, monkeypatch):
    monkeypatch.setattr(CpuOps, "on_host", False)
    in_bands = planner.estimate(vae._model, DECODER, Z.shape, banded("device", band_rows=8))
    on_the_host = planner.estimate(vae._model, DECODER, Z.shape, banded("host", band_rows=8))
    assert on_the_host.run < in_bands.run
    assert on_the_host.elsewhere > 0 == in_bands.elsewhere
    limit = GIB + int(1.15 * on_the_host.run)
    plan = planner.choose(vae._model, DECODER, ONE, auto(limit, **CHUNK, band_rows=8))
    assert str(plan).endswith("host's memory")


def test_the_process_knows_its_memory():
    before = host_memory()
    held = np.ones(50_000_000, np.uint8)  # above what any C library keeps for itself
    after = host_memory()
    assert after.used - before.used == pytest.approx(held.nbytes, rel=0.2)
    del held
    assert host_memory().used - before.used < 10_000_000


def test_bands_are_yielded_one_by_one_and_make_the_whole(vae):
    whole = vae.decode(Z).sample
    assert [band.shape for band in vae.decode_bands(Z)] == [whole.shape]
    reports: list[int] = []
    vae.enable_tiling("exact", band_rows=16, progress=lambda done, total: reports.append(done))
    bands = vae.decode_bands(Z)
    first = next(bands)
    assert first.shape == (2, 3, 16, 24)
    before = len(reports)
    assert relative_l2(np.concatenate([first, *bands], axis=2), whole) <= CLOSE["float64"]
    assert len(reports) > before
    scaled = np.concatenate(list(vae.decode_bands(Z, normalized=True)), axis=2)
    np.testing.assert_array_equal(scaled, vae.decode_latents(Z))


# -- files: where, how much, and what is memory -------------------------------------------------------------------


def test_the_estimate_and_the_plan_say_which_folder_holds_files(vae, tmp_path):
    vae.enable_tiling("auto", max_memory=need(vae, banded(tmp_path)), offload_folder=tmp_path, **CHUNK)
    expected = vae.estimate_memory((2, 3, 640, 24))
    assert expected.plan.folder == str(tmp_path)
    assert str(expected.plan) == f"bands of rows, stored in files in {tmp_path}"
    assert expected.elsewhere > 0
    vae.enable_tiling("auto", max_memory="3GiB", offload_folder=tmp_path)
    assert vae.estimate_memory((2, 3, 640, 24)).plan.folder is None
    vae.enable_tiling("blend")
    assert vae.estimate_memory((2, 3, 640, 24)).plan.folder is None


def test_a_run_calls_on_plan_with_its_plan(vae, tmp_path):
    plans: list[MemoryPlan] = []
    limit = need(vae, banded(tmp_path))
    vae.enable_tiling("auto", max_memory=limit, offload_folder=tmp_path, on_plan=plans.append, **CHUNK)
    vae.decode(Z)
    list(vae.decode_bands(Z[:1]))
    assert [plan.folder for plan in plans] == [str(tmp_path)] * 2


def test_an_offload_folder_has_to_exist_and_is_for_bands(vae, tmp_path):
    with pytest.raises(InputError, match=r"offload_folder '.*nowhere': there is no such folder"):
        vae.enable_tiling("auto", offload_folder=tmp_path / "nowhere")
    with pytest.raises(InputError, match="offload_folder: only bands have it"):
        vae.enable_tiling("blend", offload_folder=tmp_path)


def test_exact_with_an_offload_folder_uses_it_when_memory_is_short(vae, ran, tmp_path, monkeypatch):
    vae.enable_tiling("exact", offload_folder=tmp_path, **CHUNK)
    vae.decode(Z)
    assert {options[3] for options in ran} == {"device"}
    free = (need(vae, banded(tmp_path)) - GIB) / planner.SHARE + 9
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(GIB, int(free)))
    ran.clear()
    vae.decode(Z)
    assert {options[3] for options in ran} == {str(tmp_path)}


def test_files_in_a_folder_that_is_memory_count_as_memory(vae, tmp_path, monkeypatch):
    on_disk = planner.estimate(vae._model, DECODER, Z.shape, banded(tmp_path))
    monkeypatch.setattr(planner, "stored_in_memory", lambda folder: True)
    in_memory = planner.estimate(vae._model, DECODER, Z.shape, banded(tmp_path))
    assert in_memory.elsewhere == on_disk.elsewhere > 0
    assert on_disk.run < in_memory.run <= on_disk.run + on_disk.elsewhere
    assert str(banded(tmp_path)).endswith(f"in files in {tmp_path}, which is memory")
    limit = GIB + int(planner.MARGIN * on_disk.run)
    vae.enable_tiling("auto", max_memory=limit, offload_folder=tmp_path, **CHUNK)
    with pytest.raises(MemoryLimitError, match="is too little to decode"):
        vae.decode(Z)


def test_files_need_room_even_without_a_limit(vae, tmp_path, monkeypatch):
    vae.enable_tiling("exact", store=tmp_path, **CHUNK)
    vae.decode(Z)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    words = rf"no room for the maps to decode 2 x 4 x 160 x 6: free some space in {tmp_path}, or choose another .*"
    with pytest.raises(InputError, match=words + r"0\.01 GiB in files there would be needed, 0\.00 GiB is free\.$"):
        vae.decode(Z)


def test_a_system_without_a_temporary_folder_has_no_plan_with_files(vae, ran, monkeypatch):
    def missing():
        raise FileNotFoundError

    monkeypatch.setattr("tempfile.gettempdir", missing)
    vae.enable_tiling("auto")
    vae.decode(Z)
    assert ran == [(Z.shape,)]
    vae.enable_tiling("auto", max_memory=GIB + 1, **CHUNK)
    with pytest.raises(MemoryLimitError, match="stored on the device"):
        vae.decode(Z)


def test_an_error_says_if_files_would_do_but_have_no_room(vae, tmp_path, monkeypatch):
    vae.enable_tiling("auto", max_memory=need(vae, banded(tmp_path)), offload_folder=tmp_path, **CHUNK)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(MemoryLimitError, match=f"stored on the device; free some space in {tmp_path}, or choose"):
        vae.decode(Z)


# -- the words of a refusal, and the work of a plan ----------------------------------------------------------------


@pytest.mark.parametrize("above", [0, 1, 2**20, 10**7])
def test_the_limit_that_would_do_is_never_the_one_given(vae, above, monkeypatch):
    """Whatever the digits that are printed: the limit lacks from one byte to 10 MB."""
    shape, run = ONE, planner.estimate(vae._model, DECODER, ONE, banded("/tmp")).run
    limit = GIB + int(planner.MARGIN * run) - 1 - above
    with pytest.raises(MemoryLimitError) as error:
        planner.choose(vae._model, DECODER, shape, auto(limit, **CHUNK))
    given, enough = re.search(r"of (\S+) GiB is too little .*: (\S+) GiB would do", str(error.value)).groups()
    assert float(given) * GIB <= limit < error.value.enough <= planner.as_bytes(f"{enough}GiB")
    assert given != enough
    held = GIB + planner.SLACK  # what a process holds differs from run to run
    monkeypatch.setattr(NumpyOps, "memory", lambda self: MemoryUse(held, 3 * GIB))
    planner.choose(vae._model, DECODER, shape, auto(planner.as_bytes(f"{enough}GiB"), **CHUNK))


def test_the_work_of_a_plan_grows_as_the_picture_does(vae, monkeypatch):
    """Attention's chunks grow with the square of the pixels; the planner looks at two for each chunk of queries."""
    calls = []
    attend = MemoryOps.attend_chunk
    monkeypatch.setattr(MemoryOps, "attend_chunk", lambda self, *args: calls.append(1) or attend(self, *args))
    counts = []
    for rows in (64, 256):
        calls.clear()
        planner.estimate(vae._model, DECODER, (1, 4, rows, 8), banded("device"))
        counts.append(len(calls))
    assert counts == [2 * 64 * 8 // 32, 2 * 256 * 8 // 32]


def test_a_plan_that_exceeds_the_limit_is_broken_off(vae):
    whole = planner.estimate(vae._model, DECODER, Z.shape, MemoryPlan())
    assert planner.estimate(vae._model, DECODER, Z.shape, MemoryPlan(), whole.run) == whole
    with pytest.raises(CeilingError):
        planner.estimate(vae._model, DECODER, Z.shape, MemoryPlan(), whole.run - 1)
