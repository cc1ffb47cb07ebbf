"""The setup that the options choose: a backend of vaespec, one in a file, or diffusers' own model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module, metadata
from importlib.util import find_spec

import numpy as np

from vaespec.backend import Backend
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import dtype_name, storage_dtype
from vaespec.errors import BackendError, InputError, MemoryLimitError, VaespecError
from vaespec.reference import ReferenceOps
from vaespec.registry import choose_backend, get_backend, make_ops
from vaespec.tiling import planner
from vaespec_conformance.machine_check.sides import LoadedModel, Side, Weights, out_of_memory
from vaespec_conformance.subjects.loading import load_backend

INTEGRATION = "vaespec_diffusers.unchanged"
DIFFUSERS_MARGIN = 1.6
"""How many times the memory of the reference's plan a run of diffusers' model may take.

1.36 were measured at 384 and 512 px; and the pages of the weights' file count as memory of the process too.
"""


@dataclass(frozen=True)
class Setup:
    """What is checked: a backend or diffusers, on a device, in a dtype. `make` loads the weights.

    `ops` are a backend's, None for a model of others. A run takes at most `margin` times the memory that the plan of
    `planned_by` says.
    """

    name: str
    version: str
    device: str
    dtype: str
    precision: str | None
    on_host: bool
    make: Callable[[], Side]
    planned_by: ReferenceOps
    margin: float = planner.MARGIN
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
    def words(self) -> str:
        """The setup in words."""
        precision = f", precision {self.precision}" if self.precision == "highest" else ""
        return f"{self.name} on {self.device}, {self.dtype}{precision}"


def backend_setup(
    config: AutoencoderConfig,
    weights: Weights,
    name: str | None,
    device: str | None,
    dtype: str | None,
    precision: str,
) -> Setup:
    """A backend, installed or at "file.py:object"; raises BackendError if it lacks the device or the dtype."""
    backend: Backend = load_backend(name).backend if name and ":" in name else choose_backend(name)
    ops = make_ops(backend, device, dtype_name(dtype or "float32"), precision)
    ops.from_numpy(np.zeros(1, np.float32))  # with its first array a framework takes memory, which plans have to count
    return Setup(
        name=backend.name,
        version=_version(backend.framework),
        device=str(ops.device or device or backend.devices()[0]),
        dtype=ops.dtype,
        precision=precision,
        on_host=ops.on_host,
        make=lambda: LoadedModel.of(config, weights, ops),
        planned_by=ops,
        ops=ops,
    )


def diffusers_setup(
    config: AutoencoderConfig,
    weights: Weights,
    name: str | None,
    device: str | None,
    dtype: str | None,
    precision: str,
) -> Setup:
    """diffusers' model as it is. Raises InputError for a backend or a precision, which it does not have."""
    if name is not None or precision != "default":
        raise InputError("--diffusers is diffusers' own model: leave out --backend and --precision.")
    if missing := [package for package in ("torch", "diffusers") if find_spec(package) is None]:
        raise BackendError(f'--diffusers needs {missing[0]}, which is not installed: pip install "vaespec[diffusers]".')
    dtype = dtype_name(dtype or "float32")
    storage_dtype(dtype)  # raises InputError for any other
    integration = import_module(INTEGRATION)
    device = integration.device_of(device)
    return Setup(
        name="diffusers",
        version=_version("diffusers"),
        device=device,
        dtype=dtype,
        precision=None,
        on_host=device == "cpu",
        make=partial(integration.Unchanged, config, weights, device, dtype),
        planned_by=ReferenceOps(np, "float64" if dtype == "float64" else "float32"),
        margin=DIFFUSERS_MARGIN,
    )


def reference_ops(dtype: str) -> ReferenceOps:
    """The NumPy engine, in float32, or in float64 for a setup in float64."""
    return make_ops(get_backend("numpy"), None, "float64" if dtype == "float64" else "float32", "default")


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:  # of a user's own backend
        return ""
