"""Mistakes in taking weights over."""

from __future__ import annotations

from typing import Any

import numpy as np

from vaespec import parameters
from vaespec.initialize import initialize
from vaespec.weights.dialects import DIFFUSERS_DEPRECATED
from vaespec_conformance.mutants.mutant import building, method

STRICT: dict[str, Any] = {"owner": "weights.strict"}
ROUNDED = {dtype: "float32's numbers need no rounding" for dtype in ("float32", "float64")}


@building("missing weights drawn", cause="missing weights are filled up with new ones", **STRICT)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return factory(config, {**initialize(config, 0), **weights}, dtype)


@building("unexpected weights dropped", cause="unexpected weights are left out silently", **STRICT)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    known = parameters(config)
    return factory(config, {name: w for name, w in weights.items() if name in known}, dtype)


@building("weights reshaped", cause="weights of another shape are reshaped", **STRICT)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    table = parameters(config)
    shaped = {name: w.reshape(table[name].shape) if name in table else w for name, w in weights.items()}
    return factory(config, shaped, dtype)


@building("weights read later", owner="weights.owned", cause="the caller's arrays are the model's")
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return _Late(lambda: factory(config, weights, dtype))


class _Late:
    """A VAE that is built anew for each call."""

    def __init__(self, build: Any) -> None:
        self.build = build

    def __getattr__(self, name: str) -> Any:
        return getattr(self.build(), name)


@method("weights", name="kernels (I, O, h, w)", owner="weights.kept", cause="kernels are given back in another order")
def _(vae: Any, call: Any) -> dict[str, np.ndarray]:
    return {name: w.transpose(1, 0, 2, 3) if w.ndim == 4 else w for name, w in call().items()}


@building(
    "weights rounded to zero",
    owner="weights.kept",
    cause="weights are cut to 16 bits, not rounded",
    equivalent_in=ROUNDED,
)
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    bits = {"bfloat16": 16, "float16": 13}.get(dtype, 0)
    return factory(config, {name: _cut(w, bits) for name, w in weights.items()}, dtype)


def _cut(w: np.ndarray, bits: int) -> np.ndarray:
    """Without the last bits of float32."""
    whole = w.astype(np.float32).view(np.uint32)
    return ((whole >> np.uint32(bits)) << np.uint32(bits)).view(np.float32) if bits else w


# -- older names -------------------------------------------------------------------------------------------------------


def renamed(
    factory: Any, config: Any, weights: Any, dtype: str, names: dict[str, str], transposed: bool = False
) -> Any:
    """A VAE that is built from older names as well; `transposed` takes kernels of four axes to be (I, O, 1, 1)."""
    taken = {}
    for name, w in weights.items():
        old = next((old for old in names if f".{old}." in name), None)
        if old and name.endswith("weight") and w.ndim == 4:
            w = w[:, :, 0, 0].T if transposed else w[:, :, 0, 0]
        taken[name.replace(f".{old}.", f".{names[old]}.") if old else name] = w
    return factory(config, taken, dtype)


NAMES = {old: new for new, old in DIFFUSERS_DEPRECATED.leaves.items()}


@building("query and key swapped in older names", owner="weights.legacy_names", cause="query and value are swapped")
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return renamed(factory, config, weights, dtype, {**NAMES, "query": "to_v", "value": "to_q"})


@building("older kernels transposed", owner="weights.legacy_names", cause="1 × 1 kernels of older files are transposed")
def _(factory: Any, config: Any, weights: Any, dtype: str) -> Any:
    return renamed(factory, config, weights, dtype, NAMES, transposed=True)
