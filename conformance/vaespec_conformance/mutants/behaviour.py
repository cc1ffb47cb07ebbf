"""Mistakes that only the next call, another thread, or the caller's own arrays show."""

from __future__ import annotations

import os
import random
import threading
import time
import warnings
from typing import Any

import numpy as np

from vaespec_conformance.mutants.mutant import building, method


@method("decode", name="not the same twice", owner="behaviour.repeatable", cause="results differ from call to call")
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    y = call(z)
    return (y * (1 + 0.01 * np.random.default_rng().standard_normal(y.shape))).astype(y.dtype)


@method(
    "decode", name="padded batch", owner="behaviour.batch", cause="a batch of one is padded, and the padding returned"
)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z) if len(z) > 1 else call(np.concatenate((z, 0 * z)))[1:]


@method("decode", name="latents scaled in place", owner="behaviour.inputs", cause="the argument is written to")
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    y = call(z)
    z *= 2
    return y


@building("one buffer for results", owner="behaviour.results", cause="the memory of a result is used again")
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return _Buffered(factory(config, weights, dtype))


class _Buffered:
    """A VAE that decodes into the memory of the last result of that shape."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.buffers = vae, dict[tuple[int, ...], np.ndarray]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, z: np.ndarray) -> np.ndarray:
        y = self.vae.decode(z)
        buffer = self.buffers.setdefault(y.shape, np.array(y))
        buffer[...] = y
        return buffer


@method("decode", name="strides ignored", owner="behaviour.strides", cause="latents are read as they lie in memory")
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    return call(z.ravel(order="K").reshape(z.shape))


def _stale() -> None:
    cache: dict[Any, Any] = {}

    @building(
        "kept by its config", owner="behaviour.two_models", cause="a model of the same config is used, with its weights"
    )
    def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
        made = factory(config, weights, dtype)
        return cache.setdefault((factory, config, dtype), made)


def _stale_dtype() -> None:
    cache: dict[Any, Any] = {}

    @building(
        "kept by its weights",
        owner="compiled.dtypes",
        cause="what was compiled for another dtype is used",
        seen_in_ports=None,
        equivalent_in={"float64": "no other dtype is given the same weights"},
    )
    def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
        key = factory, config, *(np.asarray(w, np.float64).tobytes() for w in weights.values())
        return cache.setdefault(key, factory(config, weights, dtype))


_stale()
_stale_dtype()


@building("kept by the number of latents", owner="compiled.shapes", cause="what was compiled for another shape is used")
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return _ByCount(factory(config, weights, dtype))


class _ByCount:
    """A VAE that takes latents to be of the first shape that had as many."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.shapes = vae, dict[int, tuple[int, ...]]()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, z: np.ndarray) -> np.ndarray:
        f = self.vae.config.downsampling_factor
        y = self.vae.decode(z.reshape(self.shapes.setdefault(z.size, z.shape)))
        return y.reshape(len(z), -1, f * z.shape[2], f * z.shape[3])


@building(
    "latents kept in the model", owner="behaviour.threads", cause="a call keeps its arguments where another finds them"
)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return _Shared(factory(config, weights, dtype))


class _Shared:
    """A VAE that puts what it works on where every thread does.

    Calls on other threads than the first meet in pairs in between, so that whether it shows is not left to chance.
    """

    def __init__(self, vae: Any) -> None:
        self.vae, self.first, self.pair = vae, threading.get_ident(), threading.Barrier(2, timeout=60)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, z: np.ndarray) -> np.ndarray:
        self.latents = z
        if threading.get_ident() != self.first:
            self.pair.wait()
        return self.vae.decode(self.latents)


# -- of the process ----------------------------------------------------------------------------------------------------

STATE: dict[str, Any] = {"owner": "behaviour.state"}


@method("decode", name="numpy seeded", cause="numpy's random state is set", **STATE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    np.random.seed(time.perf_counter_ns() % 2**32)  # noqa: NPY002  (the mistake)
    return call(z)


@method("decode", name="Python seeded", cause="Python's random state is set", **STATE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    random.seed(time.perf_counter_ns())
    return call(z)


@method("decode", name="environment changed", cause="an environment variable is set", **STATE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    os.environ["VAESPEC_CONFORMANCE_MUTANT"] = str(time.perf_counter_ns())
    return call(z)


@method("decode", name="warnings silenced", cause="warnings are silenced", **STATE)
def _(vae: Any, call: Any, z: np.ndarray) -> np.ndarray:
    warnings.filterwarnings("ignore", message=f"{time.perf_counter_ns()}")
    return call(z)
