"""Statistics merged from bands are the statistics of the whole, also if the mean is large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.configs import relative_l2, uniform
from support.models import FINEST, each_backend

from vaespec.registry import get_backend, make_ops
from vaespec.tiling.lazy import merged_statistics

EXACT = {"float64": 1e-13, "float32": 3e-6}


def ops_of(backend: str, dtype: str | None = None):
    return make_ops(get_backend(backend), "cpu", dtype or FINEST[backend], "default")


@given(heights=st.lists(st.integers(1, 6), min_size=1, max_size=6), groups=st.sampled_from([1, 2, 4]))
def test_merged_statistics_are_those_of_the_whole(heights, groups):
    x = 1e4 + uniform("moments", (2, 4, sum(heights), 3)) * (1 + np.arange(4).reshape(4, 1, 1))
    bands = np.split(x, np.cumsum(heights)[:-1], axis=2)
    parts = [(band.shape[2], band.mean((2, 3)), band.var((2, 3))) for band in bands]
    mean, sigma2 = merged_statistics(parts, groups)
    x_g = x.reshape(2, groups, -1)
    np.testing.assert_allclose(mean, x_g.mean(-1).repeat(4 // groups, 1), rtol=1e-14)
    np.testing.assert_allclose(sigma2, x_g.var(-1).repeat(4 // groups, 1), rtol=1e-9)  # around 1e4, of 16 digits


@each_backend
def test_statistics_are_centred(backend):
    """E[x²] - E[x]² has no correct digit in float32 if the mean is 1000 times the deviation."""
    ops = ops_of(backend, "float32")
    x = (1000 + uniform("far", (2, 5, 64, 48))).astype(np.float32)
    mean, sigma2 = (
        np.asarray(ops.to_numpy(m), np.float64) for m in ops.channel_statistics(ops.from_nchw(ops.from_numpy(x)))
    )
    np.testing.assert_allclose(mean, x.mean((2, 3), np.float64), rtol=2e-7)
    np.testing.assert_allclose(sigma2, x.astype(np.float64).var((2, 3)), rtol=1e-5)


@each_backend
@pytest.mark.parametrize("batch", [1, 3])
def test_normalizing_with_the_statistics_of_the_groups_is_a_group_norm(backend, batch):
    ops = ops_of(backend)
    x, scale, shift = uniform("map", (batch, 6, 5, 7)), uniform("scale", (6,)), uniform("shift", (6,))
    m = ops.from_nchw(ops.from_numpy(x))
    parts = [(5, *map(ops.to_numpy, ops.channel_statistics(m)))]
    statistics = [ops.from_host(part.astype(parts[0][1].dtype)) for part in merged_statistics(parts, 3)]
    y = ops.to_nchw(ops.normalize(m, *statistics, ops.from_numpy(scale), ops.from_numpy(shift), eps=1e-2))
    expected = torch.nn.functional.group_norm(
        *map(torch.tensor, (x,)), 3, torch.tensor(scale), torch.tensor(shift), 1e-2
    )
    assert relative_l2(ops.to_numpy(y), expected.numpy()) <= EXACT[FINEST[backend]]


@each_backend
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_the_host_keeps_sixteen_bits_as_they_are(backend, dtype):
    ops = ops_of(backend, dtype)
    x = ops.from_nchw(ops.from_numpy(uniform("x", (1, 2, 3, 4))))
    back = ops.from_host(ops.to_numpy(x))
    assert back.dtype == x.dtype
    np.testing.assert_array_equal(ops.to_numpy(back), ops.to_numpy(x))
