"""Mistakes in loading weights."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec import parameters
from vaespec.initialize import initialize
from vaespec.weights.dialects import DIFFUSERS_DEPRECATED
from vaespec_conformance.mutants.mutant import builder, method, named

EXACT_IN_FLOAT32 = {dtype: "float32 numbers need no rounding" for dtype in ("float32", "float64")}


@builder("weights.strict")
def missing_weights_initialized(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Missing weights are initialized at random instead of being refused."""
    return factory(config, {**initialize(config, 0), **weights}, dtype)


@builder("weights.strict")
def unexpected_weights_ignored(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Unexpected weights are ignored instead of being refused."""
    known = parameters(config)
    return factory(config, {name: w for name, w in weights.items() if name in known}, dtype)


@builder("weights.strict")
def misshapen_weights_reshaped(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Weights of another shape are reshaped instead of being refused."""
    table = parameters(config)
    shaped = {name: w.reshape(table[name].shape) if name in table else w for name, w in weights.items()}
    return factory(config, shaped, dtype)


@builder("weights.owned")
def weights_read_at_each_call(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """The model reads the caller's arrays at each call instead of keeping copies."""
    return _BuiltAtEachCall(lambda: factory(config, weights, dtype))


class _BuiltAtEachCall:
    def __init__(self, build: Any) -> None:
        self.build = build

    def __getattr__(self, name: str) -> Any:
        return getattr(self.build(), name)


@method("weights", "weights.kept")
def weights_returns_iohw_kernels(vae: Any, call: Any) -> dict[str, np.ndarray]:
    """weights() returns kernels as (I, O, kh, kw), not as (O, I, kh, kw)."""
    return {name: w.transpose(1, 0, 2, 3) if w.ndim == 4 else w for name, w in call().items()}


@builder("weights.kept", equivalent_in=EXACT_IN_FLOAT32)
def weights_truncated_to_16_bits(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """Weights are truncated to 16 bits, not rounded to nearest."""
    bits = {"bfloat16": 16, "float16": 13}.get(dtype, 0)
    return factory(config, {name: _truncated(w, bits) for name, w in weights.items()}, dtype)


def _truncated(w: np.ndarray, bits: int) -> np.ndarray:
    """Float32 numbers without their last bits."""
    whole = w.astype(np.float32).view(np.uint32)
    return ((whole >> np.uint32(bits)) << np.uint32(bits)).view(np.float32) if bits else w


# -- older names -------------------------------------------------------------------------------------------------------


NEWER_NAMES = {old: new for new, old in DIFFUSERS_DEPRECATED.leaves.items()}


def build_renamed(names: dict[str, str], transposed: bool, factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    """A VAE built from weights under older names: `names` maps each to its newer one.

    `transposed` reads kernels with four axes as (I, O, 1, 1).
    """
    renamed = {}
    for name, w in weights.items():
        old = next((old for old in names if f".{old}." in name), None)
        if old and name.endswith("weight") and w.ndim == 4:
            w = w[:, :, 0, 0].T if transposed else w[:, :, 0, 0]
        renamed[name.replace(f".{old}.", f".{names[old]}.") if old else name] = w
    return factory(config, renamed, dtype)


WRONG_NAMES: dict[str, tuple[str, dict[str, str], bool]] = {
    "older_names_swap_query_and_value": (
        "Under older names, query and value are swapped.",
        {**NEWER_NAMES, "query": "to_v", "value": "to_q"},
        False,
    ),
    "older_names_swap_query_and_key": (
        "Under older names, query and key are swapped.",
        {**NEWER_NAMES, "query": "to_k", "key": "to_q"},
        False,
    ),
    "older_kernels_transposed": ("The (O, I, 1, 1) kernels of older files are transposed.", NEWER_NAMES, True),
}


def _renamed(names: dict[str, str], transposed: bool) -> Any:
    return lambda factory, config, weights, dtype: build_renamed(names, transposed, factory, config, weights, dtype)


for _name, (_cause, _names, _transposed) in WRONG_NAMES.items():
    builder("weights.legacy_names")(named(_name, _cause, _renamed(_names, _transposed)))
