"""The registry of backends: which are installed, and which one a model runs on.

A backend is an object with an entry point in the group `vaespec.backends` (ours are registered like anybody else's), or
one that is registered at run time, or any namespace of the Array API, as an object or by its import path; NumPy's has
the name "reference". Listing backends imports no framework; choosing one imports only its own.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any

import numpy as np

from vaespec.backend import MEMBERS, PRECISIONS, Backend
from vaespec.copying import Call
from vaespec.errors import BackendError
from vaespec.namespace import NamespaceBackend, device_name, imported_namespace
from vaespec.ops import KERNELS
from vaespec.reference import ReferenceOps

GROUP = "vaespec.backends"
REFERENCE = NamespaceBackend(np, "reference")
"""The specification itself."""

PREFERENCE = ("cuda", "tpu", "gpu", "mps")
"""Kinds of accelerators, best first. On NVIDIA's GPUs, PyTorch ("cuda") comes before JAX ("gpu"); on a Mac, MLX ("gpu")
comes before PyTorch ("mps")."""


@dataclass(frozen=True)
class Switch:
    """An environment variable that changes results: its value, None if unset, and `default`, what happens then."""

    value: str | None
    default: str


@dataclass(frozen=True)
class BackendInfo:
    """A row of `vaespec.backends()`.

    `version` is the framework's, None if it is not installed. `devices` are the reported ones; a framework may fail to
    use one. `ops` maps each operation to "native" or "fallback". `problem` is None, or says why the backend cannot be
    used and what to do.
    """

    name: str
    framework: str
    version: str | None
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    ops: dict[str, str]
    switches: dict[str, Switch]
    distribution: str
    problem: str | None = None

    @property
    def available(self) -> bool:
        """Whether the backend can be used."""
        return self.problem is None


_registered: dict[str, Backend] = {}


# -- listing -----------------------------------------------------------------------------------------------------------


def register_backend(backend: Backend) -> None:
    """Makes a backend known to this process, for tests and notebooks; it hides an installed one of the same name."""
    if missing := _missing_members(backend):
        raise BackendError(f"a backend to register lacks {missing}: see vaespec.backend.Backend.")
    _registered[backend.name] = backend


def backends() -> list[BackendInfo]:
    """Every known backend, numpy first, whether its framework is installed or not."""
    names = sorted({*_entry_points(), *_registered, REFERENCE.name}, key=lambda name: (name != "numpy", name))
    return [_row(name) for name in names]


def _row(name: str) -> BackendInfo:
    """The row of a backend; a broken one has the reason in `problem`, so that the other rows can be listed."""
    providers = _providers(name)
    try:
        return _info(name, get_backend(name), providers)
    except BackendError as error:
        problem = str(error)
    except MemoryError:
        raise
    except Exception as error:  # somebody's package can raise anything
        problem = f"backend {name!r} of {providers} is broken ({error!r}): repair or remove it."
    return BackendInfo(name, "", None, (), (), {}, {}, providers, problem)


def _info(name: str, backend: Backend, providers: str) -> BackendInfo:
    version, native = _framework_version(backend.framework), getattr(backend, "native", ())
    declared: dict[str, str] = getattr(backend, "switches", {})
    return BackendInfo(
        name,
        backend.framework,
        version,
        devices=(*getattr(backend, "accelerators", tuple)(), "cpu") if version else (),
        dtypes=tuple(backend.dtypes),
        ops={op: "native" if op in native else "fallback" for op in KERNELS},
        switches={variable: Switch(os.environ.get(variable), default) for variable, default in declared.items()},
        distribution=providers,
        problem=None if version else _not_installed(name, backend.framework),
    )


# -- choosing ----------------------------------------------------------------------------------------------------------


def choose_backend(backend: Any = None) -> Backend:
    """The backend of that name, else that of VAESPEC_BACKEND, else that of the best accelerator, else numpy.

    `backend` may also be a namespace of the Array API, or its import path if no backend has that name. Raises
    BackendError if there is no such backend, or if it lacks what the specification needs.
    """
    if backend is not None and not isinstance(backend, str):
        return NamespaceBackend(backend)
    if backend:
        return _installed_backend(backend)
    variable = os.environ.get("VAESPEC_BACKEND")
    if not variable:
        return _installed_backend(_best_accelerated() or "numpy")
    try:
        return _installed_backend(variable)
    except BackendError as error:
        raise BackendError(f"VAESPEC_BACKEND: {error}") from error


def get_backend(name: str) -> Backend:
    """The backend `name`, even if its framework is missing; BackendError if it is unknown or cannot be loaded."""
    if name in _registered:
        return _registered[name]
    if name == REFERENCE.name:
        return REFERENCE
    points = _entry_points().get(name, ())
    if not points:
        if namespace := imported_namespace(name):
            return namespace
        known = ", ".join(info.name for info in backends())
        raise BackendError(f"no backend named {name!r}: choose {known}, or the import path of an Array API namespace.")
    if len(points) > 1:
        raise BackendError(f"backend {name!r} is provided by {_providers(name)}: uninstall one of them.")
    provider = _distribution(points[0])
    try:
        backend: Backend = points[0].load()
        missing = _missing_members(backend)
    except MemoryError:
        raise
    except Exception as error:  # somebody's package can raise anything
        raise BackendError(
            f"backend {name!r} of {provider} cannot be loaded ({error!r}): repair or uninstall {provider}."
        ) from error
    if missing:
        raise BackendError(f"backend {name!r} of {provider} lacks {missing}: see vaespec.backend.Backend.")
    return backend


def as_portable(backend: Backend) -> Any:
    """What is pickled in place of a backend: a choice by name, or if it was registered by this process, itself."""
    installed = backend.name in _entry_points() and backend.name not in _registered
    return Call(choose_backend, backend.name) if installed else backend


def default_dtype(backend: Backend, otherwise: str = "float32") -> str:
    """The dtype of a model for which none is requested: float64 for the reference, `otherwise` for most backends."""
    return str(getattr(backend, "default_dtype", otherwise))


def make_ops(
    backend: Backend, device: Any, dtype: str | None, precision: str, *, compile: bool = False
) -> ReferenceOps:
    """The backend's operations; BackendError if it lacks the device, the dtype, the precision or a compiler.

    `device` is a name, or an object of the framework; None is the best device, as for a dtype it is `default_dtype`.
    """
    device, dtype = device_name(device), dtype or default_dtype(backend)
    if dtype not in backend.dtypes:
        raise BackendError(f"backend {backend.name!r} has no dtype {dtype!r}: choose {', '.join(backend.dtypes)}.")
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: choose {' or '.join(PRECISIONS)}.")
    devices = _devices(backend)
    if device is not None and device not in {*devices, *(d.split(":")[0] for d in devices)}:
        raise BackendError(
            f"backend {backend.name!r} has no device {device!r} here: choose {', '.join(devices)}, or another backend."
        )
    ops = backend.ops(device or devices[0], dtype, precision)
    try:
        return ops.with_compiler() if compile else ops
    except NotImplementedError:
        raise BackendError(f"backend {backend.name!r} has no compiler: leave out compile=True.") from None


def _installed_backend(name: str) -> Backend:
    """The backend `name`; BackendError if its framework is missing."""
    backend = get_backend(name)
    if isinstance(backend, NamespaceBackend):
        return backend
    if _framework_version(backend.framework) is None:
        raise BackendError(_not_installed(name, backend.framework))
    return backend


def _best_accelerated() -> str | None:
    """The backend whose accelerator comes first in PREFERENCE and works; imports frameworks only until one does."""

    def rank(info: BackendInfo) -> int:
        kind = info.devices[0].split(":")[0]
        return PREFERENCE.index(kind) if kind in PREFERENCE else len(PREFERENCE)

    for info in sorted((info for info in backends() if info.available and info.devices[0] != "cpu"), key=rank):
        with suppress(BackendError):  # a broken backend raises when it is requested by name
            if _devices(get_backend(info.name))[0] != "cpu":
                return info.name
    return None


def _devices(backend: Backend) -> tuple[str, ...]:
    try:
        return backend.devices()
    except MemoryError:
        raise
    except Exception as error:  # a broken framework can raise anything
        raise BackendError(
            f"backend {backend.name!r} cannot start ({error!r}): repair {backend.framework} "
            f"({_install_command(backend.name, backend.framework)}), or choose another backend."
        ) from error


# -- what is installed -------------------------------------------------------------------------------------------------


@cache
def _entry_points() -> dict[str, list[metadata.EntryPoint]]:
    points: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        points.setdefault(point.name, []).append(point)
    return points


def _missing_members(backend: Backend) -> str:
    return ", ".join(member for member in MEMBERS if not hasattr(backend, member))


def _framework_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _not_installed(name: str, framework: str) -> str:
    return f"backend {name!r} needs {framework}, which is not installed: {_install_command(name, framework)}."


def _install_command(name: str, framework: str) -> str:
    """The command that installs the framework: by an extra of vaespec, or by its own name."""
    return f'pip install "vaespec[{name}]"' if _providers(name) == "vaespec" else f"pip install {framework}"


def _providers(name: str) -> str:
    """The distributions that provide a backend: one, unless two use the same name."""
    if name in _registered:
        return "this process"
    if name == REFERENCE.name:
        return "vaespec"
    return " and ".join(sorted(map(_distribution, _entry_points().get(name, ()))))


def _distribution(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
