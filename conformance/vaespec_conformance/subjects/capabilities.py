"""What a subject claims: dtypes, devices, features, the configs and sizes that it takes, and what it does not have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.architecture import HALVES
from vaespec_conformance.subjects.errors import ConformanceError

Configs: TypeAlias = Sequence[AutoencoderConfig] | Callable[[AutoencoderConfig], str | bool | None] | None
"""Configs that a subject takes, or a function config -> None, or why it does not take it. None: any."""
Sizes: TypeAlias = Callable[[int, int, int], str | bool | None] | None
"""(height of the latents, width, batch) -> None, or why it does not take them. None: any."""

OwnWeights: TypeAlias = Callable[[AutoencoderConfig], Mapping[str, np.ndarray]]
"""A config -> the only weights that a port has for it, canonical."""

LOGVAR, QUIET_BUILDING, OTHER_WEIGHTS = "logvar", "quiet building", "other weights"
LACKING = {
    **{half: f"the {half}" for half in HALVES},
    LOGVAR: "the log-variance",
    QUIET_BUILDING: "quiet building",
    OTHER_WEIGHTS: "weights other than its own",
}
"""Required things that a subject may lack, and what a report calls each.

"encoder": it decodes only; "decoder": it encodes only. "logvar": encode returns the mean alone. "quiet building":
building changes random states. "other weights": it has only its own, which `build.weights(config)` returns.
"""
DTYPES = ("float32", "bfloat16", "float16", "float64")

FEATURES = {
    "sample": ("sample",),
    "latents": ("encode_latents", "decode_latents"),
    "tiling": ("tiled_encode", "tiled_decode"),
    "slicing": ("sliced_encode", "sliced_decode"),
    "weights": ("weights",),
}
"""Optional features of a VAE, and the methods that show each. `Assembled` documents the methods."""

PRESUMED = frozenset({"deterministic", "threads"})
"""Features that are assumed if a subject declares no capabilities: equal bits in every run, and in several threads.

A port declares any other feature that no method shows: "legacy_names", if it accepts diffusers' names before 0.18.
"""

BACKEND_FEATURES = frozenset({"banding"})
"""Features of every backend, since they need operations alone: the model in bands of rows."""


@dataclass(frozen=True)
class Capabilities:
    """What a subject claims. Encoding, decoding and loading weights are required, but for what `lacks` names.

    `configs` are the configs that it takes, or a function config -> None or the reason why not; None means any. `sizes`
    is a function (height, width of the latents, batch) -> None or the reason why not. `lacks` names required things
    that it does not have: "encoder", "decoder", "logvar" (encode gives the mean alone), "quiet building" (building may
    change random states), "other weights" (it has only its own).
    """

    dtypes: tuple[str, ...] = ("float32",)
    devices: tuple[str, ...] = ("cpu",)
    features: frozenset[str] = frozenset()
    configs: Configs = None
    sizes: Sizes = None
    lacks: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Terms:
    """What changes the results that are expected of a subject: encode gives the mean alone; it has only its weights."""

    mean_alone: bool = False
    weights: OwnWeights | None = None


NO_TERMS = Terms()


def refused_config(configs: Configs, config: AutoencoderConfig) -> str | None:
    """Why a config is not taken; None if it is."""
    if configs is None:
        return None
    if callable(configs):
        return _reason(configs(config), "it does not take this config")
    return None if config in configs else "it is not one of the configs that are taken"


def refused_size(sizes: Sizes, height: int, width: int, batch: int) -> str | None:
    """Why latents of this size are not taken; None if they are."""
    return None if sizes is None else _reason(sizes(height, width, batch), "it does not take this size")


def _reason(answer: object, default: str) -> str | None:
    """The reason in an answer; a function that says True or False instead is understood, in NumPy's bools as well."""
    if answer is None:
        return None
    if isinstance(answer, bool | np.bool_):
        return None if answer else default
    if isinstance(answer, str):
        return answer or default
    raise ConformanceError(f"a declared function returned {answer!r:.60}: expected None, True, False or a reason.")


@dataclass(frozen=True)
class Gap:
    """A check that the subject declares it fails: `check` is an id, or "id[dtype]" for one dtype."""

    check: str
    kind: Literal["bug", "unsupported", "planned"]
    reason: str
    url: str | None = None
    until: str | None = None

    def covers(self, check: str, dtype: str) -> bool:
        """Whether the gap is about this check in this dtype."""
        return self.check in (check, f"{check}[{dtype}]")
