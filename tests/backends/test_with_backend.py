"""A model moves between backends: the same numbers, the same weights, and no more memory than they take."""

from __future__ import annotations

import gc
import tracemalloc
from functools import cache
from itertools import product

import numpy as np
import pytest
from support.configs import CONFIGS, narrow, relative_l2, uniform
from support.models import BACKENDS, EXACT, array, each_backend, model, tiny

from vaespec import AutoencoderKL, BackendError

NAME = "flux2"  # attention, both quant convs, statistics and a counter
SAME = 2.5 * EXACT["float32"]
"""Each backend may be EXACT from the specification, so that two may be twice that apart, and a little more."""

each_pair = pytest.mark.parametrize(("source", "target"), list(product(BACKENDS, repeat=2)))


@cache
def on(backend: str) -> AutoencoderKL:
    """Shared between tests, so not to be changed."""
    return model(NAME, backend, "float32")


def images_of(vae: AutoencoderKL) -> np.ndarray:
    return array(vae.decode_latents(uniform("latents", (1, 32, 2, 3), -2, 2).astype(np.float32)))


def bits(vae: AutoencoderKL) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in vae.weights().items()}


@each_pair
def test_a_model_on_another_backend_makes_the_same_images_and_stays_where_it_was(source, target):
    vae = on(source)
    expected = images_of(vae)
    moved = vae.with_backend(target, device="cpu")
    assert (vae.backend, moved.backend, moved.dtype) == (source, target, "float32")
    assert relative_l2(images_of(moved), expected) <= SAME
    np.testing.assert_array_equal(images_of(vae), expected)


@each_pair
def test_weights_go_to_another_backend_and_back_without_losing_a_bit(source, target):
    moved = on(source).with_backend(target, device="cpu")
    assert bits(moved) == bits(on(source))
    assert bits(moved.with_backend(source, device="cpu")) == bits(on(source))


@each_backend
def test_weights_lose_only_what_the_new_dtype_cannot_hold(backend):
    halves = on("numpy").with_backend(backend, device="cpu", dtype="float16").weights()
    for name, weight in on("numpy").weights().items():
        kept = weight.astype(np.float16) if weight.dtype == np.float32 else weight
        assert (name, halves[name].tobytes()) == (name, kept.tobytes())


@each_backend
def test_precision_goes_along_unless_another_is_given(backend):
    precise = AutoencoderKL.from_config(CONFIGS[NAME], backend="numpy", precision="highest")
    assert precise.with_backend(backend, device="cpu").precision == "highest"
    assert precise.with_backend(backend, device="cpu", precision="default").precision == "default"


def test_a_backend_that_is_not_there_leaves_the_model_as_it_was():
    vae = tiny("numpy")
    with pytest.raises(BackendError, match="no backend named 'abacus'"):
        vae.with_backend("abacus")
    assert vae.backend == "numpy"


WIDE = narrow((64, 128), layers_per_block=1)


@pytest.mark.parametrize("source", BACKENDS)
def test_moving_to_numpy_takes_the_memory_of_the_weights_once(source):
    """NumPy's allocations, which tracemalloc sees: the result, and at most a quarter of it meanwhile."""
    vae = tiny(source, config=WIDE)
    size = sum(a.nbytes for a in vae.weights().values())
    assert size > 4 << 20
    vae.with_backend("numpy")  # what is imported and cached on the way does not count
    gc.collect()
    tracemalloc.start()
    try:
        moved = vae.with_backend("numpy")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert moved.backend == "numpy"
    assert size <= peak <= 1.25 * size
