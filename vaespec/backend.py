"""Backends: what one is, which are installed, and which one to use.

A backend is an object found under the entry-point group `vaespec.backends` (ours are registered exactly as a
stranger's would be) or registered at run time. Listing them imports no framework; choosing one imports that one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from typing import Any, Protocol, runtime_checkable

from vaespec.errors import BackendError
from vaespec.ops import KERNELS, ReferenceOps

GROUP = "vaespec.backends"
PRECISIONS = ("default", "highest")
PREFERENCE = ("cuda", "tpu", "gpu", "mps")
"""Kinds of accelerators, best first: CUDA is PyTorch's name, so it comes before JAX on NVIDIA's GPUs ("gpu"), and MLX's
Metal ("gpu") before PyTorch's ("mps")."""


@runtime_checkable
class Backend(Protocol):
    """What an entry point of `vaespec.backends` names. Importing it must not import the framework."""

    name: str
    framework: str  # the distribution it needs
    dtypes: tuple[str, ...]

    def devices(self) -> tuple[str, ...]:
        """The devices at hand, best first; imports the framework."""

    def ops(self, device: str, dtype: str, precision: str) -> ReferenceOps:
        """The operations on that device, storing that dtype; imports the framework.

        `precision` is "default" (what the framework does with float32: on some devices, TF32 or bfloat16 products) or
        "highest" (true float32, or BackendError).
        """

    # Optional members, which a backend may leave out:
    #
    # native: tuple[str, ...]                 the operations of ops.KERNELS it has kernels of its own for
    # switches: dict[str, str]                environment variables that change its numbers, and what happens unset
    # accelerators() -> tuple[str, ...]       devices other than the CPU, seen without importing the framework
    # module(config, encoder, decoder, params, ops)      the model as the framework's own module class


@dataclass(frozen=True)
class BackendInfo:
    """A row of `vaespec.backends()`.

    `version` is the framework's, None where it is not installed; `devices` those that seem to be there; `ops` tells
    "native" from "fallback"; `switches` are environment variables that change numbers, with their values here.
    """

    name: str
    framework: str
    version: str | None
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    ops: dict[str, str]
    switches: dict[str, str]
    distribution: str
    problem: str | None = None

    @property
    def available(self) -> bool:
        """Whether it can be asked for."""
        return self.version is not None and self.problem is None

    @property
    def remedy(self) -> str:
        """What installs its framework: an extra of ours, or the framework itself."""
        return (
            f'pip install "vaespec[{self.name}]"' if self.distribution == "vaespec" else f"pip install {self.framework}"
        )


_registered: dict[str, Backend] = {}


def register_backend(backend: Backend) -> None:
    """Make a backend known to this process, for tests and notebooks; an installed one of that name is hidden."""
    _registered[backend.name] = backend


def backends() -> list[BackendInfo]:
    """Every backend known here, numpy first, whether or not its framework is installed."""
    names = sorted({*_entry_points(), *_registered}, key=lambda name: (name != "numpy", name))
    return [_describe(name) for name in names]


def get_backend(name: str) -> Backend:
    """The backend of that name. BackendError for an unknown name, a missing framework or a broken plugin."""
    if name in _registered:
        return _registered[name]
    points = _entry_points().get(name, ())
    if not points:
        raise BackendError(f"no backend named {name!r}: known are {', '.join(info.name for info in backends())}.")
    if len(points) > 1:
        owners = " and ".join(sorted(_owner(point) for point in points))
        raise BackendError(f"backend {name!r} is provided by {owners}: uninstall one of them.")
    try:
        backend = points[0].load()
    except Exception as error:
        raise BackendError(f"backend {name!r} of {_owner(points[0])} cannot be loaded ({error!r}).") from error
    if not isinstance(backend, Backend):
        raise BackendError(f"backend {name!r} of {_owner(points[0])} has not the members of vaespec.backend.Backend.")
    return backend


def choose_backend(name: str | None = None) -> Backend:
    """`name`, else the environment's VAESPEC_BACKEND, else the one of the best accelerator here, else numpy."""
    chosen = name or os.environ.get("VAESPEC_BACKEND") or _accelerated() or "numpy"
    backend = get_backend(chosen)
    if _framework_version(backend.framework) is None:
        raise BackendError(
            f"backend {chosen!r} needs {backend.framework}, which is not installed: {_describe(chosen).remedy}."
        )
    return backend


def make_ops(backend: Backend, device: str | None, dtype: str, precision: str) -> ReferenceOps:
    """The backend's operations; BackendError names the device, dtype or precision it does not have."""
    if dtype not in backend.dtypes:
        raise BackendError(f"backend {backend.name!r} has no dtype {dtype!r}: choose {', '.join(backend.dtypes)}.")
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: choose {' or '.join(PRECISIONS)}.")
    devices = _devices(backend)
    if device is not None and device not in {*devices, *(d.split(":")[0] for d in devices)}:
        raise BackendError(f"backend {backend.name!r} has no device {device!r} here: choose {', '.join(devices)}.")
    return backend.ops(device or devices[0], dtype, precision)


def _devices(backend: Backend) -> tuple[str, ...]:
    try:
        return backend.devices()
    except Exception as error:  # a framework that is installed but broken raises anything
        raise BackendError(
            f"backend {backend.name!r} cannot start ({error!r}): repair {backend.framework}, or choose another backend."
        ) from error


def _accelerated() -> str | None:
    """The backend whose accelerator comes first in PREFERENCE, if it works: only those are imported."""

    def rank(info: BackendInfo) -> int:
        kind = info.devices[0].split(":")[0]
        return PREFERENCE.index(kind) if kind in PREFERENCE else len(PREFERENCE)

    for info in sorted((info for info in backends() if info.available and info.devices[0] != "cpu"), key=rank):
        with suppress(BackendError):  # a broken one is told to whoever asks for it by name
            if _devices(get_backend(info.name))[0] != "cpu":
                return info.name
    return None


@cache
def _entry_points() -> dict[str, list[metadata.EntryPoint]]:
    found: dict[str, list[metadata.EntryPoint]] = {}
    for point in metadata.entry_points(group=GROUP):
        found.setdefault(point.name, []).append(point)
    return found


def _describe(name: str) -> BackendInfo:
    owner = ", ".join(_owner(point) for point in _entry_points().get(name, ())) or "this process"
    try:
        backend = get_backend(name)
        version, native = _framework_version(backend.framework), getattr(backend, "native", ())
        devices = (*getattr(backend, "accelerators", tuple)(), "cpu") if version else ()
    except Exception as error:  # what a stranger's package raises is told, not raised: the other rows are good
        return BackendInfo(name, "", None, (), (), {}, {}, owner, problem=str(error))
    ops = {op: "native" if op in native else "fallback" for op in KERNELS}
    switches = {key: os.environ.get(key, unset) for key, unset in getattr(backend, "switches", {}).items()}
    return BackendInfo(name, backend.framework, version, devices, backend.dtypes, ops, switches, owner)


def _framework_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _owner(point: metadata.EntryPoint) -> Any:
    return point.dist.name if point.dist else point.value
