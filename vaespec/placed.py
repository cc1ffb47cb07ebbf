"""PlacedModel: a model on a backend: where it runs, its config and its weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any, Self, TypedDict

import numpy as np

from vaespec.config import AutoencoderConfig
from vaespec.copying import Portable
from vaespec.dtypes import STORAGE_DTYPES, dtype_name
from vaespec.errors import InputError
from vaespec.in_memory import canonical
from vaespec.model import Model
from vaespec.namespace import device_name
from vaespec.ops import Array
from vaespec.reference import ReferenceOps
from vaespec.registry import as_portable, choose_backend, default_dtype, make_ops
from vaespec.settings import RunSettings
from vaespec.tiling.settings import Tiling


class Placement(TypedDict, total=False):
    """Where a model runs: the backend (default: the best here), its device (its best), the dtype (float32).

    `backend` is a name that `vaespec.backends()` lists, or any namespace of the Array API, such as array_api_strict or
    cupy: the module, or its import path. "reference" and namespaces compute in their widest float, float64 for most.
    `precision`: "default" is what the framework makes of float32 (on some devices TF32 or bfloat16 products),
    "highest" is float32 throughout. `compile`: the framework compiles each half before its first run, PyTorch for a
    family of shapes (on CUDA as CUDA graphs), MLX for each shape; JAX always compiles. On a CPU it pays for gradients
    with PyTorch; results without gradients come from vaespec's engine, which is faster, unless the framework itself
    computes (precision="highest", float64). Raises BackendError if the backend has no compiler.
    """

    backend: Any
    device: Any
    dtype: Any
    precision: str
    compile: bool


RENAMED = {"torch_dtype": "dtype", "device_map": "device"}  # diffusers' name -> ours


def require_known(function: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Raises InputError for a keyword that neither the function nor Placement has."""
    for name in sorted(given.keys() - Placement.__annotations__.keys()):
        if name in RENAMED:
            raise InputError(f"{function.__name__} has no {name}=: give {RENAMED[name]}=.")
        names = [name for name, row in signature(function).parameters.items() if row.kind is not row.VAR_KEYWORD]
        known = ", ".join([*names, *Placement.__annotations__])
        raise InputError(f"{function.__name__} has no {name}=: it takes {known}.")


class PlacedModel(RunSettings, Portable):
    """A model with weights on a backend: where it runs, in which parts, with which padding and attention.

    `config` may be diffusers' own, or any mapping of its fields. `weights`, which are copied, are arrays of any
    framework, in any float, on any device, by diffusers' names, convolutions OIHW: diffusers' state_dict(). Raises
    WeightMapError if any is missing or of another shape, InputError if one cannot be read or has a LoRA beside it.
    """

    def __init__(
        self,
        config: AutoencoderConfig | Mapping[str, Any],
        weights: Mapping[str, Any],
        *,
        backend: Any = None,
        device: Any = None,
        dtype: Any = None,
        precision: str = "default",
        compile: bool = False,
    ) -> None:
        config = AutoencoderConfig.from_dict(config)
        named = canonical(weights, config)
        self.precision, self._compile = precision, compile
        self._backend, self._device = choose_backend(backend), device_name(device)
        self._tiling = Tiling()
        self._model = Model.place(config, named, self._ops(dtype))

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_backend": as_portable(self._backend)}

    # -- where it runs -------------------------------------------------------------------------------------

    @property
    def backend(self) -> str:
        """The backend's name."""
        return self._backend.name

    @property
    def device(self) -> Any:
        """The device, as the backend calls it."""
        return self._model.ops.device

    @property
    def dtype(self) -> str:
        """The dtype of weights and results."""
        return self._model.ops.dtype

    def to(self, *places: Any, device: Any = None, dtype: Any = None) -> Self:
        """Move this model to another device or dtype, as in `to("cuda", "float16")`; returns itself."""
        for place in places:
            if dtype_name(place) in STORAGE_DTYPES:
                dtype = place
            else:
                device = place
        self._device = self._device if device is None else device_name(device)
        self._model = self._model.move(self._ops(self.dtype if dtype is None else dtype))
        return self

    def with_backend(
        self,
        backend: Any,
        *,
        device: Any = None,
        dtype: Any = None,
        precision: str | None = None,
        compile: bool = False,
    ) -> Self:
        """A copy of this model on another backend, compiled only if `compile`; weights are converted one at a time.

        The dtype stays, but for the reference and namespaces, which compute in their widest float unless one is given.
        """
        moved = copy.copy(self)
        moved.precision, moved._compile = precision or self.precision, compile
        moved._backend, moved._device = choose_backend(backend), device_name(device)
        moved._model = self._model.move(
            moved._ops(default_dtype(moved._backend, self.dtype) if dtype is None else dtype)
        )
        return moved

    def _ops(self, dtype: Any) -> ReferenceOps:
        name = None if dtype is None else dtype_name(dtype)
        ops = make_ops(self._backend, self._device, name, self.precision, compile=self._compile)
        return self._tiling.padded(ops)

    # -- config and weights ----------------------------------------------------------------------------------

    def weights(self) -> dict[str, np.ndarray]:
        """Copies of the weights in canonical form: diffusers' names, convolutions OIHW, NumPy.

        Raises InputError if a LoRA has not been added to the weights (`fuse_lora`).
        """
        return self._model.weights()

    def num_parameters(self) -> int:
        """The number of trained numbers."""
        return sum(math.prod(row.shape) for row in self._model.table().values() if row.trained)

    def to_numpy(self, array: Array) -> np.ndarray:
        """A result of this model, an array of its backend, as NumPy; bfloat16 as ml_dtypes' type."""
        return self._model.ops.to_numpy(array)
