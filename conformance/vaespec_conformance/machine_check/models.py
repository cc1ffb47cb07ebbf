"""The sides that are compared: a backend's model, diffusers' own, and the NumPy engine in exact bands."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from vaespec.architecture import ENCODER, Half
from vaespec.config import AutoencoderConfig
from vaespec.errors import (
    BackendError,
    Float16OverflowWarning,
    InputError,
    MemoryLimitError,
    NonFiniteError,
    VaespecError,
)
from vaespec.inputs import as_images, as_latents
from vaespec.model import Model
from vaespec.reference import ReferenceOps
from vaespec.tiling import execution
from vaespec.tiling.settings import Tiling

Weights = Mapping[str, np.ndarray]
WHOLE = Tiling()


class Side(Protocol):
    """A model with its weights on a device; dropped to free them."""

    def run(self, half: Half, x: np.ndarray, tiling: Tiling = WHOLE) -> np.ndarray:
        """Images -> moments, or latents -> images, as NumPy."""


class Result(NamedTuple):
    """What a side answers: an array; or None, and why there is none. `note` is a remark about a right answer."""

    array: np.ndarray | None
    problem: str = ""
    culprit: str = ""
    note: str = ""


@dataclass(frozen=True)
class Placed:
    """A model of vaespec on some ops."""

    model: Model

    @classmethod
    def of(cls, config: AutoencoderConfig, weights: Weights, ops: ReferenceOps) -> Placed:
        """Reads the weights to the device of the ops."""
        return cls(Model.place(config, weights, ops))

    def run(self, half: Half, x: np.ndarray, tiling: Tiling = WHOLE) -> np.ndarray:
        """Runs a half, whole or in the parts that `tiling` names."""
        check = as_images if half is ENCODER else as_latents
        y = execution.run(self.model, half, check(x, self.model.config, self.model.ops), tiling)
        return np.array(self.model.ops.to_numpy(y))


@dataclass(frozen=True)
class Subject:
    """Whom the question is about. `make` loads the weights; `ops` are a backend's, None for a model of others.

    `planned_by` are the ops whose plan says how much memory a run takes.
    """

    name: str
    version: str
    device: str
    dtype: str
    precision: str | None
    on_host: bool
    make: Callable[[], Side]
    planned_by: ReferenceOps
    ops: ReferenceOps | None = None

    def load(self) -> Side:
        """The model with its weights on the device. Raises BackendError, or InputError for a lack of memory."""
        try:
            return self.make()
        except VaespecError:
            raise
        except Exception as error:  # a framework can raise anything
            if out_of_memory(error):
                raise MemoryLimitError(f"{self.device} has too little memory for the weights.") from error
            reason = " ".join(str(error).split()).rstrip(".")
            raise BackendError(f"{self.name} cannot load the weights on {self.device} ({reason}).") from error

    @property
    def place(self) -> str:
        """The subject in words."""
        precision = f", precision {self.precision}" if self.precision == "highest" else ""
        return f"{self.name} on {self.device}, {self.dtype}{precision}"


def ask(side: Side, half: Half, x: np.ndarray, tiling: Tiling = WHOLE) -> Result:
    """Runs a side that may be wrong: what it raises is an answer, but for a lack of memory, which is an InputError."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            y = side.run(half, x, tiling)
        except NonFiniteError as error:
            return Result(None, "NaN or infinity", error.culprit)
        except VaespecError:
            raise
        except Exception as error:  # a framework can raise anything
            if out_of_memory(error):
                raise _too_large(half, x) from error
            return Result(None, f"raised {type(error).__name__}: {' '.join(str(error).split())}"[:300])
    note = next((str(w.message) for w in seen if issubclass(w.category, Float16OverflowWarning)), "")
    bad = np.count_nonzero(~np.isfinite(np.asarray(y, np.float32)))
    return Result(y, f"NaN or infinity in {bad} of {y.size} numbers" if bad else "", note=note)


def out_of_memory(error: Exception) -> bool:
    """Whether a framework's error says that the device has too little memory."""
    words = str(error).lower()
    named = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return named or "out of memory" in words or "resource_exhausted" in words


def _too_large(half: Half, x: np.ndarray) -> InputError:
    *_, height, width = x.shape
    return MemoryLimitError(
        f"the device has too little memory to {half.verb} {half.source} of {height} x {width} as a whole: choose a "
        "smaller --size."
    )
