"""A budget is larger than the error of correct arithmetic and smaller than the error of the known shortcuts."""

from __future__ import annotations

import numpy as np
import pytest
from support.configs import relative_l2

from vaespec.analysis.rounding import rounded
from vaespec_conformance.judging import budgets
from vaespec_conformance.mutants.products import tf32

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("products", [9, 576, 4608])
def test_the_budget_of_a_sum_separates_float32_from_tf32_and_bfloat16(products):
    x, w = RNG.standard_normal((64, products)), RNG.standard_normal((products, 64))
    x, w = x.astype(np.float32).astype(np.float64), w.astype(np.float32).astype(np.float64)
    one_by_one = np.zeros((64, 64), np.float32)
    for column, row in zip(x.T, w, strict=True):
        one_by_one += np.outer(column, row).astype(np.float32)
    budget = budgets.contraction("float32")
    assert relative_l2(one_by_one, x @ w) < budget / 4
    assert relative_l2(tf32(x) @ tf32(w), x @ w) > 8 * budget
    assert relative_l2(rounded(x, "bfloat16") @ rounded(w, "bfloat16"), x @ w) > 50 * budget


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_storing_in_16_bits_takes_a_third_of_the_budget_of_a_sum(dtype):
    y = RNG.standard_normal(100_000)
    share = relative_l2(rounded(y, dtype), y) / budgets.contraction(dtype)
    assert 0.1 < share < 0.4


@pytest.mark.parametrize("ratio", [1.0, 30.0, 1000.0])
def test_a_centered_variance_is_within_its_budget_and_one_pass_is_not_if_the_mean_is_large(ratio):
    x = (RNG.standard_normal((8, 500)) + ratio).astype(np.float32)
    exact = x.astype(np.float64)
    expected = (exact - exact.mean(1, keepdims=True)) / np.sqrt(exact.var(1, keepdims=True) + 1e-6)
    budget = budgets.group_norm("float32", ratio + 1)
    mean = x.mean(1, keepdims=True)
    centered = (x - mean) / np.sqrt(np.square(x - mean).mean(1, keepdims=True) + np.float32(1e-6))
    once = (x - mean) / np.sqrt(np.square(x).mean(1, keepdims=True) - mean * mean + np.float32(1e-6))
    assert relative_l2(centered, expected) < 0.75 * budget
    assert (relative_l2(once, expected) > 10 * budget) == (ratio == 1000)


def test_attention_in_float32_is_within_its_budget_and_in_tf32_is_not():
    q, k, v = (RNG.standard_normal((1, 64, 16)).astype(np.float32).astype(np.float64) * s for s in (2, 2, 1))

    def attend(q, k, dtype):
        logits = (q.astype(dtype) @ k.astype(dtype).transpose(0, 2, 1)) / dtype(4)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ v.astype(dtype)

    expected = attend(q, k, np.float64)
    largest = float((abs(q) @ abs(k).transpose(0, 2, 1)).max()) / 4
    budget = budgets.attention("float32", largest, steepness=4.0)
    assert relative_l2(attend(q, k, np.float32), expected) < budget / 4
    assert relative_l2(attend(tf32(q), tf32(k), np.float64), expected) > 4 * budget


@pytest.mark.parametrize("dtype", list(budgets.EPS))
def test_a_budget_grows_with_the_quantities_that_make_rounding_worse(dtype):
    assert budgets.group_norm(dtype, 100.0) > budgets.group_norm(dtype, 1.0)
    assert budgets.moments(dtype, 100.0) > budgets.moments(dtype, 1.0)
    assert budgets.model(dtype, 1e-2) > budgets.model(dtype, 1e-3) > 0
    assert budgets.model(dtype, 0.0) > 0  # what costs nothing may still be computed in another order
    assert budgets.attention(dtype, 500.0, 60.0) >= budgets.attention(dtype, 5.0, 0.5)


def test_an_activation_may_lose_its_left_tail_but_not_its_right():
    expected, cancelled = np.array([-1e-9, 1.0]), np.array([1.0, 1.0])
    low, high = budgets.activation("float16", expected, cancelled)
    assert low > 1e-9 > 1e-4 * low
    assert high < 3e-3
    assert budgets.activation("float32", expected, 0 * cancelled)[0] < 1e-14


@pytest.mark.parametrize(("share", "grade"), [(0.12, "A"), (0.5, "A"), (0.7, "B"), (0.9, "C")])
def test_a_grade_is_the_used_share_of_the_budget(share, grade):
    assert budgets.grade(share) == grade


def test_the_budget_of_a_model_is_a_multiple_of_the_predicted_error():
    used = 15e-6 / budgets.model("float32", 1e-6)
    assert budgets.times_rounding("float32", used) == pytest.approx(15)
    assert budgets.times_rounding("bfloat16", 0.5) == 2
