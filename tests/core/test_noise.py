"""Noise is a function of seed and item, and of nothing else; and it is normal."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vaespec import InputError
from vaespec.noise import standard_normal

SHAPE = (4, 6, 5)


@given(seed=st.integers(0, 2**64 - 1), batch=st.integers(1, 5), data=st.data())
def test_any_batch_split_gives_the_same_noise(seed, batch, data):
    cut = data.draw(st.integers(0, batch))
    whole = standard_normal((batch, *SHAPE), seed)
    parts = standard_normal((cut, *SHAPE), seed), standard_normal((batch - cut, *SHAPE), seed, first_item=cut)
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(seeds=st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
def test_a_list_of_seeds_seeds_item_by_item(seeds):
    whole = standard_normal((len(seeds), *SHAPE), seeds)
    for item, seed in zip(whole, seeds, strict=True):
        np.testing.assert_array_equal(item, standard_normal((1, *SHAPE), seed)[0])


def test_items_and_seeds_differ():
    noise = standard_normal((3, *SHAPE), 0)
    assert len(np.unique(noise)) == noise.size
    assert not np.isin(standard_normal((3, *SHAPE), 1), noise).any()


def test_an_odd_count_is_the_beginning_of_the_even_one():
    np.testing.assert_array_equal(standard_normal((1, 7), 3)[0], standard_normal((1, 8), 3)[0, :7])


@pytest.mark.parametrize("seeds", [[1, 2], [1, 2, 3, 4], [], (1,)])
def test_a_wrong_number_of_seeds_is_refused(seeds):
    with pytest.raises(InputError, match=f"{len(seeds)} seeds for a batch of 3: give one seed, or one per item"):
        standard_normal((3, *SHAPE), seeds)


@pytest.mark.parametrize("seed", [-1, 2**64, [0, -1], [2**64, 0]])
def test_a_seed_out_of_range_is_refused_by_value(seed):
    with pytest.raises(InputError, match=rf"seed={-1 if '-1' in str(seed) else 2**64}: expected an integer from 0"):
        standard_normal((2, *SHAPE), seed)


@pytest.mark.parametrize("seed", [np.int64(5), np.uint8(5), [np.int32(5)], np.array([5])])
def test_integers_of_numpy_are_seeds(seed):
    np.testing.assert_array_equal(standard_normal((1, *SHAPE), seed), standard_normal((1, *SHAPE), 5))


def test_an_empty_batch_has_empty_noise():
    assert standard_normal((0, *SHAPE), 0).shape == (0, *SHAPE)


def test_mean_variance_and_tails_are_standard_normal():
    """n = 400,000 draws: the mean varies by 1/√n, the variance by √(2/n), the fourth moment by √(96/n); 5 σ each."""
    noise = standard_normal((2, 200_000), 12345).astype(np.float64).reshape(-1)
    n = noise.size
    assert np.isfinite(noise).all()
    assert abs(noise.mean()) < 5 / math.sqrt(n)
    assert abs(noise.var() - 1) < 5 * math.sqrt(2 / n)
    assert abs((noise**4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert abs(np.corrcoef(noise[0::2], noise[1::2])[0, 1]) < 5 / math.sqrt(n / 2)
    for quantile, expected in [(0.5, 0.0), (0.8413447, 1.0), (0.9772499, 2.0)]:
        density = math.exp(-(expected**2) / 2) / math.sqrt(2 * math.pi)
        tolerance = 5 * math.sqrt(quantile * (1 - quantile) / n) / density
        assert abs(np.quantile(noise, quantile) - expected) < tolerance


def test_the_first_numbers_never_change():
    """Frozen at vaespec 0.1.0; float32, one rounding of slack for another C library's log and cos."""
    expected = [
        [0.158533841, 2.9828794, -1.92569196, -0.824925542, -0.202503279],
        [0.00537724607, -0.642766356, -0.887198925, 0.0944284499, -0.120744191],
    ]
    np.testing.assert_allclose(standard_normal((2, 5), 0), expected, rtol=2**-22)
    np.testing.assert_allclose(standard_normal((1, 5), 0, first_item=1), expected[1:], rtol=2**-22)
    assert standard_normal((2, 5), 0).dtype == np.float32


def test_the_definition_is_philox_and_box_muller():
    """By hand: bits of Philox(key=(seed, item)), the top 53 as a uniform at a cell's centre, then Box & Muller."""
    bits = np.random.Philox(key=np.array([7, 2], np.uint64)).random_raw(2)
    u1, u2 = (((int(b) >> 11) + 0.5) / 2**53 for b in bits)
    radius = math.sqrt(-2 * math.log(u1))
    by_hand = [radius * math.cos(2 * math.pi * u2), radius * math.sin(2 * math.pi * u2)]
    np.testing.assert_allclose(standard_normal((3, 2), 7)[2], by_hand, rtol=2**-22)


def test_noise_neither_reads_nor_moves_global_generators():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)
    states = random.getstate(), np.random.get_state()[1].copy(), torch.get_rng_state()  # noqa: NPY002
    first = standard_normal((2, *SHAPE), 9)
    assert random.getstate() == states[0]
    np.testing.assert_array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert torch.equal(torch.get_rng_state(), states[2])
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    np.testing.assert_array_equal(standard_normal((2, *SHAPE), 9), first)


@pytest.mark.parametrize("seed", [1.5, "12", "ab", [0.5, 1], -1, 2**64, [None, 1]])
def test_a_seed_that_is_no_integer_in_range_is_refused(seed):
    with pytest.raises(InputError, match="expected an integer from 0 to 2"):
        standard_normal((2, 3), seed)
