"""The engine works in strips, on every core: results do not depend on it."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.configs import CONFIGS, EPS, assert_within, images, relative_l2, sizes, uniform
from support.models import EXACT, each_backend, model
from support.oracle import decoded, oracle

import vaespec_cpu.threads
from vaespec import AutoencoderKL
from vaespec_cpu.memory import fresh
from vaespec_cpu.ops import group_moments


def in_strips(monkeypatch, elements: int, cores: int, grain: int = 1):
    monkeypatch.setattr(vaespec_cpu.threads, "GRAIN", grain)
    monkeypatch.setattr(vaespec_cpu.threads, "STRIP_ELEMENTS", elements)
    monkeypatch.setattr(vaespec_cpu.threads, "cores", lambda: cores)


@pytest.mark.parametrize("elements", [20, 1000, 1 << 30])
@pytest.mark.parametrize("cores", [1, 2, 7])
@pytest.mark.parametrize("name", ["kl-f16", "flux2"])
def test_results_do_not_depend_on_strips_or_cores(monkeypatch, name, cores, elements):
    """Except for the order of summation: float64 rounding."""
    config = CONFIGS[name]
    x = images(config, *sizes(config)["odd"], batch=2)
    vae = AutoencoderKL(config, oracle(name)[1], backend="numpy", dtype="float64")
    whole = vae(x, return_posterior=True)
    in_strips(monkeypatch, elements, cores)
    cut = vae(x, return_posterior=True)
    assert relative_l2(cut.sample, whole.sample) <= 1e-14
    assert relative_l2(cut.posterior.parameters, whole.posterior.parameters) <= 1e-14


@given(rows=st.integers(1, 300), per_row=st.integers(1, 1000), cores=st.integers(1, 9), elements=st.integers(1, 5000))
def test_strips_cover_every_row_once_and_occupy_every_core(rows, per_row, cores, elements):
    with pytest.MonkeyPatch.context() as monkeypatch:
        in_strips(monkeypatch, elements, cores)
        pieces = list(vaespec_cpu.threads.strips(rows, per_row))
    assert [row for piece in pieces for row in range(rows)[piece]] == list(range(rows))
    assert len(pieces) >= min(cores, rows) or max(piece.stop - piece.start for piece in pieces) <= -(-rows // cores)
    assert all((piece.stop - piece.start) * per_row <= max(elements, per_row) for piece in pieces)


@pytest.mark.parametrize("per_row", [1, 60, 10**6])
def test_work_that_takes_less_time_than_sharing_it_is_not_cut(monkeypatch, per_row):
    in_strips(monkeypatch, 1 << 18, 4, grain=1 << 13)
    pieces = list(vaespec_cpu.threads.strips(100, per_row))
    assert len(pieces) == {1: 1, 60: 1, 10**6: 100}[per_row]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from Linux's files")
def test_a_big_array_returns_its_memory_to_the_system_when_it_is_freed():
    before, y = resident(), fresh((3, 5 << 20), np.dtype(np.float32))
    y[...] = 1
    view = y[1:]
    del y
    held = resident()
    assert float(view.sum(dtype=np.float64)) == 2 * (5 << 20)
    del view
    assert held - before >= 60 << 20
    assert resident() - before <= 1 << 20


def resident() -> int:
    """Bytes of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_an_array_too_big_for_the_machine_raises_memory_error():
    with pytest.raises(MemoryError, match="Unable to allocate"):
        fresh((1 << 45, 7), np.dtype(np.float32))


@pytest.mark.parametrize("elements", [1 << 4, 1 << 12, 1 << 30])
def test_moments_are_centred_if_the_mean_is_ten_thousand_deviations(monkeypatch, elements):
    """float32 holds the mean to u · 10⁴ = 6e-4 deviations; a few of these are lost, not u · 10⁸ as in E[x²] - E[x]²."""
    in_strips(monkeypatch, elements, 2)
    x = (1e4 + math.sqrt(3) * uniform("x", (1024, 16))).astype(np.float32)
    mean, var = group_moments(x, 4)
    grouped = x.astype(np.float64).reshape(1024, 4, 4)
    u = EPS["float32"] / 2
    assert_within(mean, grouped.mean(axis=(0, 2)), 4 * u * 1e4)
    assert_within(var, grouped.var(axis=(0, 2)), 4 * u * 1e4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 13), (13, 1)])
@each_backend
def test_maps_of_one_row_or_column_are_the_specification(backend, shape):
    vae, z = model("kl-f4", backend), uniform("z", (2, 3, *shape))
    assert relative_l2(vae.to_numpy(vae.decode(z).sample), decoded(oracle("kl-f4")[0], z)) <= EXACT[vae.dtype]
