"""The two sides that are compared: models with their weights on a device, and what they compute."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from vaespec.architecture import ENCODER, Half
from vaespec.config import AutoencoderConfig
from vaespec.errors import Float16OverflowWarning, InputError, MemoryLimitError, NonFiniteError, VaespecError
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


class Computed(NamedTuple):
    """What a side computed: an array; or None, and why there is none. `note` is a remark about a right result."""

    array: np.ndarray | None
    problem: str = ""
    culprit: str = ""
    note: str = ""


@dataclass(frozen=True)
class LoadedModel:
    """A model of vaespec with its weights on the device of some ops."""

    model: Model

    @classmethod
    def of(cls, config: AutoencoderConfig, weights: Weights, ops: ReferenceOps) -> LoadedModel:
        """Reads the weights to the device of the ops."""
        return cls(Model.place(config, weights, ops))

    def run(self, half: Half, x: np.ndarray, tiling: Tiling = WHOLE) -> np.ndarray:
        """Runs a half, whole or in the parts that `tiling` names."""
        check = as_images if half is ENCODER else as_latents
        y = execution.run(self.model, half, check(x, self.model.config, self.model.ops), tiling)
        return np.array(self.model.ops.to_numpy(y))


def computed_by(side: Side, half: Half, x: np.ndarray, tiling: Tiling = WHOLE) -> Computed:
    """Runs a side that may be wrong: what it raises is a result, but for a lack of memory, which is an InputError."""
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        try:
            y = side.run(half, x, tiling)
        except NonFiniteError as error:
            return Computed(None, "NaN or infinity", error.culprit)
        except VaespecError:
            raise
        except Exception as error:  # a framework can raise anything
            if out_of_memory(error):
                raise _too_large(half, x) from error
            return Computed(None, f"raised {type(error).__name__}: {' '.join(str(error).split())}"[:300])
    note = next((str(w.message) for w in seen if issubclass(w.category, Float16OverflowWarning)), "")
    bad = np.count_nonzero(~np.isfinite(np.asarray(y, np.float32)))
    return Computed(y, f"NaN or infinity in {bad} of {y.size} numbers" if bad else "", note=note)


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
