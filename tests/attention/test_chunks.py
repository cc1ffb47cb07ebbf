"""Attention in chunks computes attention, in bounded memory."""

from __future__ import annotations

import array_api_strict
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support.configs import EPS, assert_within, relative_l2, uniform
from support.models import EXACT, array, each_backend

from vaespec import InputError, ReferenceOps
from vaespec.attention import Chunked, Eager
from vaespec.registry import get_backend, make_ops

SPECIFICATION = ReferenceOps(np)


def queries_keys_values(shape: tuple[int, ...], largest: float = 1.0) -> list[np.ndarray]:
    """Arrays (B, N, C). With the scale 1 / C, their logits are `largest` at most."""
    return [factor * uniform(key, shape) for key, factor in (("q", largest), ("k", 1), ("v", 1))]


@given(
    extent=st.tuples(st.integers(1, 2), st.integers(1, 40), st.integers(1, 6)),
    size=st.integers(1, 50),
    largest=st.sampled_from([1.0, 30.0, 1e4]),
)
@example(extent=(1, 37, 1), size=1, largest=1e4)
def test_chunks_of_any_size_agree_with_the_whole_and_never_overflow(extent, size, largest):
    """The bound, in units of eps · max |v|, for both results together.

    Logits err by (C + 1) · largest each, which counts twice, in a weight and in the sum of the weights; differences to
    the two greatest logits by 2 · largest; sums of N terms by 2 N; at most N merges of four roundings, in a weighted
    sum and in a sum, by 4 N; and 4 more.
    """
    N, C = extent[1:]
    q, k, v = queries_keys_values(extent, largest)
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        whole = SPECIFICATION.eager_attention(q, k, v, scale=1 / C)
        chunks = SPECIFICATION.chunked_attention(q, k, v, scale=1 / C, size=size)
    assert_within(chunks, whole, EPS["float64"] * ((2 * (C + 1) + 2) * largest + 6 * N + 4))


@each_backend
@pytest.mark.parametrize("largest", [-1e4, 1e4])
def test_one_key_far_above_the_others_has_all_the_weight_in_any_chunk(backend, largest):
    """One token at a time points along its own axis: the others are 1e4 below it, and have no weight."""
    ops, N = make_ops(get_backend(backend), "cpu", "float32", "default"), 5
    k = np.eye(N)[None]
    v = uniform("v", (1, N, N)).astype(np.float32)
    q, k, v = (ops.from_numpy(a) for a in (largest * k, k, v))
    expected = np.eye(N) @ array(v) if largest > 0 else (np.ones((N, N)) - np.eye(N)) @ array(v) / (N - 1)
    for attend in (ops.attention, ops.eager_attention):
        np.testing.assert_allclose(array(attend(q, k, v, scale=1.0)), expected, rtol=0, atol=4 * EPS["float32"])
    for size in (1, 2):
        chunked = ops.chunked_attention(q, k, v, scale=1.0, size=size)
        np.testing.assert_allclose(array(chunked), expected, rtol=0, atol=4 * EPS["float32"])


@pytest.mark.parametrize("size", [1, 5, 12, 13])
def test_gradients_through_chunks_agree_with_the_whole(size):
    ops, gradients = make_ops(get_backend("torch"), "cpu", "float64", "default"), []
    for attend, options in ((ops.eager_attention, {}), (ops.chunked_attention, {"size": size})):
        leaves = [ops.from_numpy(a).requires_grad_() for a in queries_keys_values((2, 12, 3), 30.0)]
        attend(*leaves, scale=1 / 3, **options).square().sum().backward()
        gradients.append([array(leaf.grad) for leaf in leaves])
    for actual, expected in zip(*gradients, strict=True):
        assert relative_l2(actual, expected) <= EXACT["float64"]


class Recorded:
    """A namespace that records the shapes of the results of its functions."""

    def __init__(self, xp):
        self.xp, self.shapes = xp, {}

    def __getattr__(self, name):
        member = getattr(self.xp, name)
        if isinstance(member, type) or not callable(member):  # a dtype
            return member

        def recorded(*args, **kwargs):
            y = member(*args, **kwargs)
            self.shapes.setdefault(name, []).append(y.shape)
            return y

        return recorded


@pytest.mark.parametrize("xp", [np, array_api_strict])
@pytest.mark.parametrize("size", [4, 7, 15, 40])
def test_chunks_never_hold_more_than_size_by_size_weights(xp, size):
    """For one item of the batch, and apart from the result; this test has fewer channels than a chunk has tokens."""
    B, N, C = 2, 30, 3
    ops = ReferenceOps(Recorded(xp))
    q, k, v = queries_keys_values((B, N, C))
    chunks = ops.chunked_attention(*(xp.asarray(a) for a in (q, k, v)), scale=0.5, size=size)
    shapes = ops.xp.shapes
    assert shapes.pop("concat") == [(B, N, C)]
    assert {"matmul", "exp", "sum"} <= shapes.keys()
    assert max(n * m for results in shapes.values() for _, n, m in results) <= size * size
    assert_within(np.asarray(chunks), SPECIFICATION.eager_attention(q, k, v, scale=0.5), (6 * N + 20) * EPS["float64"])


def test_the_recorded_shapes_include_the_weights_of_the_whole():
    ops = ReferenceOps(Recorded(np))
    ops.eager_attention(*queries_keys_values((2, 30, 3)), scale=0.5)
    assert (2, 30, 30) in ops.xp.shapes["matmul"]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("backend", ["torch", "jax", "mlx"])
@pytest.mark.parametrize("processor", [Eager(), Chunked(16)])
def test_logits_of_16_bits_are_not_rounded_and_do_not_overflow(backend, dtype, processor):
    """Only weights, sums of values and the result have 16 bits: 4 roundings of eps / 2, relative to max |v|.

    The products q · k reach 1e5, beyond float16, and the logits a hundred, at which bfloat16 has steps of one half.
    """
    ops = make_ops(get_backend(backend), "cpu", dtype, "default")
    q, k, v = (ops.from_numpy(a) for a in queries_keys_values((2, 64, 512), 16.0))
    q, k = 60 * q, 2 * k
    exact = SPECIFICATION.eager_attention(*(array(t) for t in (q, k, v)), scale=512**-1.0)
    attended = processor.attend(q, k, v, ops, scale=512**-1.0)
    assert_within(array(attended), exact, 2 * EPS[dtype])


@pytest.mark.parametrize("size", [0, -1])
def test_chunks_without_tokens_are_refused(size):
    with pytest.raises(InputError, match=f"attention in chunks of {size} tokens: expected a size of at least 1"):
        Chunked(size)
