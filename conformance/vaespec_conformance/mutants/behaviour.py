"""Mistakes that show only in the next call, in another thread, or in the caller's own arrays."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import ChangedVae, builder, method


@method("decode", "behaviour.repeatable")
def decode_differs_from_call_to_call(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Results differ from call to call, as if dropout or noise were still on."""
    y = call(z)
    return (y * (1 + 0.01 * np.random.default_rng().standard_normal(y.shape))).astype(y.dtype)


@method("decode", "behaviour.batch")
def decode_returns_the_padding_of_a_batch(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """A batch of one item is padded to two, and the padding is returned."""
    return call(z) if len(z) > 1 else call(np.concatenate((z, 0 * z)))[1:]


@method("decode", "behaviour.inputs")
def decode_scales_latents_in_place(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """The argument is changed in place."""
    y = call(z)
    z *= 2
    return y


@builder("behaviour.results")
def results_share_one_buffer(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A call writes its result into the memory of an earlier result of the same shape."""
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    def decode(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
        y = call(z)
        buffer = buffers.setdefault(y.shape, np.array(y))
        buffer[...] = y
        return buffer

    return ChangedVae(factory(config, weights, dtype), {"decode": decode})


@method("decode", "behaviour.strides")
def decode_ignores_strides(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """Strides are ignored: numbers are read in the order in which they are stored."""
    return call(z.ravel(order="K").reshape(z.shape))


CACHE: dict[Any, Any] = {}


@builder("behaviour.two_models")
def models_cached_by_config(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A model built earlier from the same config is used again, with its own weights."""
    return CACHE.setdefault((factory, config, dtype), factory(config, weights, dtype))


@builder("compiled.dtypes", seen_in_ports=None, equivalent_in={"float64": "no other dtype is given the same weights"})
def models_cached_by_weights(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A program compiled for another dtype is used."""
    key = factory, config, *(np.asarray(w, np.float64).tobytes() for w in weights.values())
    return CACHE.setdefault(key, factory(config, weights, dtype))


@builder("compiled.shapes")
def programs_cached_by_number_of_latents(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A program compiled for another shape with as many latents is used."""
    shapes: dict[int, tuple[int, ...]] = {}

    def decode(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
        f = vae.config.downsampling_factor
        y = call(z.reshape(shapes.setdefault(z.size, z.shape)))
        return y.reshape(len(z), -1, f * z.shape[2], f * z.shape[3])

    return ChangedVae(factory(config, weights, dtype), {"decode": decode})


@builder("behaviour.threads")
def latents_shared_by_threads(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A call stores its latents in the model, where a call in another thread replaces them."""
    first, pair, shared = threading.get_ident(), threading.Barrier(2, timeout=60), dict[str, np.ndarray]()

    def decode(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
        shared["latents"] = z
        if threading.get_ident() != first:
            pair.wait()  # calls in other threads meet in pairs, so that the mistake always shows
        return call(shared["latents"])

    return ChangedVae(factory(config, weights, dtype), {"decode": decode})


# -- in the state of the process ---------------------------------------------------------------------------------------


@method("decode", "behaviour.state")
def decode_seeds_numpy(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """A call sets NumPy's global random state."""
    np.random.seed(time.perf_counter_ns() % 2**32)  # noqa: NPY002  (the mistake)
    return call(z)


@method("decode", "behaviour.state")
def decode_seeds_python(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """A call sets Python's global random state."""
    random.seed(time.perf_counter_ns())
    return call(z)


@method("decode", "behaviour.state")
def decode_sets_an_environment_variable(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """A call sets an environment variable."""
    os.environ["VAESPEC_CONFORMANCE_MUTANT"] = str(time.perf_counter_ns())
    return call(z)


@method("decode", "behaviour.state")
def decode_silences_warnings(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    """A call adds a filter that silences warnings."""
    warnings.filterwarnings("ignore", message=f"{time.perf_counter_ns()}")
    return call(z)
