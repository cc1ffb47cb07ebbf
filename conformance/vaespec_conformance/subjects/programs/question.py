"""A question to a program, which is one call of one model, and the answer to it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from vaespec import AutoencoderConfig
from vaespec.architecture import DECODER, ENCODER, HALVES
from vaespec.dtypes import numpy_dtype
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError, UnansweredError

ENCODE, DECODE, DESCRIBE = ENCODER.verb, DECODER.verb, "describe"
RESULTS: dict[str, tuple[str, ...]] = {ENCODE: ("mean", "logvar"), DECODE: ("sample",)}
"""The tensors of an answer."""
COUNTERS = ("bn.num_batches_tracked",)
"""Weights that are integers: FLUX.2 has one."""
INPUTS: dict[str, str] = {half.verb: half.source for half in HALVES.values()}
"""The tensor of an input file."""


@dataclass(frozen=True)
class Model:
    """The config and the weights of a model, in the dtype in which a program gets them."""

    config: AutoencoderConfig
    weights: Mapping[str, np.ndarray]
    dtype: str

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything: two models with equal digests are the same."""
        digest = hashlib.sha256(json.dumps([self.dtype, self.config.to_dict()], sort_keys=True).encode())
        for name, w in sorted(self.weights.items()):
            digest.update(f"{name}{w.shape}{w.dtype}".encode() + np.ascontiguousarray(w).tobytes())
        return digest.hexdigest()

    def stored(self) -> dict[str, np.ndarray]:
        """The weights as they are written: contiguous, in the dtype of the model."""
        return {name: as_stored(w, "int64" if name in COUNTERS else self.dtype) for name, w in self.weights.items()}


@dataclass(frozen=True)
class Question:
    """One call: "encode" of images or "decode" of latents by a model. "describe" needs neither model nor input."""

    call: str
    model: Model | None = None
    x: np.ndarray = field(default_factory=lambda: np.zeros(0))
    layers: bool = False

    @cached_property
    def key(self) -> str:
        """Equal for equal questions."""
        model = self.model.digest if self.model else ""
        parts = f"{self.call} {self.layers} {self.x.shape} {self.x.dtype} {model}"
        return hashlib.sha256(parts.encode() + np.ascontiguousarray(self.x).tobytes()).hexdigest()

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that each tensor of the answer has."""
        assert self.model
        config, (batch, _, height, width) = self.model.config, self.x.shape
        f = config.downsampling_factor
        if self.call == ENCODE:
            return batch, config.latent_channels, height // f, width // f
        return batch, config.out_channels, f * height, f * width


@dataclass(frozen=True)
class Answer:
    """What a program answered: tensors, or a reason why not. `layers` are the results of layers, if it gave some."""

    tensors: Mapping[str, np.ndarray] = field(default_factory=dict)
    layers: Mapping[str, np.ndarray] = field(default_factory=dict)
    not_supported: str | None = None
    refusal: str | None = None
    failure: str | None = None
    facts: Mapping[str, object] = field(default_factory=dict)

    def result(self, call: str) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """The array of decode; the pair of encode, or the mean alone. Raises the error that the answer stands for.

        That is NotSupportedError if the program does not take the case, ConformanceError if it refuses the model or the
        input, and UnansweredError if it crashed, hung or answered in another way than the protocol says.
        """
        if self.not_supported is not None:
            raise NotSupportedError(self.not_supported)
        if self.refusal is not None:
            raise ConformanceError(f"{call}: the program answered with an error: {self.refusal}")
        if self.failure is not None:
            raise UnansweredError(f"{call}: {self.failure}")
        first, *others = (self.tensors[name] for name in RESULTS[call] if name in self.tensors)
        return (first, others[0]) if others else first


def as_stored(a: np.ndarray, dtype: str) -> np.ndarray:
    """A copy in a dtype, contiguous, as a file holds it."""
    with np.errstate(over="ignore"):
        return np.array(a, numpy_dtype(dtype), order="C")
