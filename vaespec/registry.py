"""Backends: which are installed, and which one to use.

A backend is an object found under the entry-point group `vaespec.backends` (ours are registered exactly as a
stranger's would be) or registered at run time. Listing them imports no framework; choosing one imports that one.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import metadata

from vaespec.backend import MEMBERS, PRECISIONS, Backend
from vaespec.errors import BackendError
from vaespec.ops import KERNELS
from vaespec.reference import ReferenceOps

GROUP = "vaespec.backends"
PREFERENCE = ("cuda", "tpu", "gpu", "mps")
"""Kinds of accelerators, best first: CUDA is PyTorch's name, so it comes before JAX on NVIDIA's GPUs ("gpu"), and MLX's
Metal ("gpu") before PyTorch's ("mps")."""


@dataclass(frozen=True)
class Switch:
    """An environment variable that changes numbers: its value, None where it is not set, and what holds then."""

    value: str | None
    default: str


@dataclass(frozen=True)
class BackendInfo:
    """A row of `vaespec.backends()`.

    `version` is the framework's, None where it is not installed; `devices` those that seem to be there; `ops` tells
    "native" from "fallback"; `problem` says why it cannot be used and what to do, None where it can.
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
        """Whether it can be asked for."""
        return self.problem is None


_registered: dict[str, Backend] = {}


def register_backend(backend: Backend) -> None:
    """Make a backend known to this process, for tests and notebooks; an installed one of that name is hidden."""
    if lacking := _lacking(backend):
        raise BackendError(f"a backend to register lacks {lacking}: see vaespec.backend.Backend.")
    _registered[backend.name] = backend


def backends() -> list[BackendInfo]:
    """Every backend known here, numpy first, whether or not its framework is installed."""
    names = sorted({*_entry_points(), *_registered}, key=lambda name: (name != "numpy", name))
    return [_describe(name) for name in names]


def get_backend(name: str) -> Backend:
    """The backend of that name, its framework there or not. BackendError for an unknown name or a broken plugin."""
    if name in _registered:
        return _registered[name]
    points = _entry_points().get(name, ())
    if not points:
        raise BackendError(f"no backend named {name!r}: choose {', '.join(info.name for info in backends())}.")
    if len(points) > 1:
        raise BackendError(f"backend {name!r} is provided by {_owners(name)}: uninstall one of them.")
    owner = _owner(points[0])
    try:
        backend: Backend = points[0].load()
        lacking = _lacking(backend)
    except Exception as error:  # a stranger's package raises anything
        raise BackendError(
            f"backend {name!r} of {owner} cannot be loaded ({error!r}): repair or uninstall {owner}."
        ) from error
    if lacking:
        raise BackendError(f"backend {name!r} of {owner} lacks {lacking}: see vaespec.backend.Backend.")
    return backend


def _lacking(backend: Backend) -> str:
    return ", ".join(member for member in MEMBERS if not hasattr(backend, member))


def choose_backend(name: str | None = None) -> Backend:
    """`name`, else the environment's VAESPEC_BACKEND, else the one of the best accelerator here, else numpy."""
    if name:
        return _installed(name)
    named = os.environ.get("VAESPEC_BACKEND")
    if not named:
        return _installed(_accelerated() or "numpy")
    try:
        return _installed(named)
    except BackendError as error:
        raise BackendError(f"VAESPEC_BACKEND: {error}") from error


def _installed(name: str) -> Backend:
    """The backend of that name, BackendError if its framework is missing."""
    backend = get_backend(name)
    if _framework_version(backend.framework) is None:
        raise BackendError(_missing(name, backend.framework))
    return backend


def make_ops(
    backend: Backend, device: str | None, dtype: str, precision: str, *, compile: bool = False
) -> ReferenceOps:
    """The backend's operations; BackendError names what it does not have: the device, dtype, precision or compiler."""
    if dtype not in backend.dtypes:
        raise BackendError(f"backend {backend.name!r} has no dtype {dtype!r}: choose {', '.join(backend.dtypes)}.")
    if precision not in PRECISIONS:
        raise BackendError(f"precision {precision!r}: choose {' or '.join(PRECISIONS)}.")
    devices = _devices(backend)
    if device is not None and device not in {*devices, *(d.split(":")[0] for d in devices)}:
        at_hand = ", ".join(devices)
        raise BackendError(
            f"backend {backend.name!r} has no device {device!r} here: choose {at_hand}, or another backend."
        )
    ops = backend.ops(device or devices[0], dtype, precision)
    try:
        return ops.with_compiler() if compile else ops
    except NotImplementedError:
        raise BackendError(f"backend {backend.name!r} compiles nothing: leave out compile=True.") from None


def _devices(backend: Backend) -> tuple[str, ...]:
    try:
        return backend.devices()
    except Exception as error:  # a framework that is installed but broken raises anything
        raise BackendError(
            f"backend {backend.name!r} cannot start ({error!r}): repair {backend.framework} "
            f"({_remedy(backend.name, backend.framework)}), or choose another backend."
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
    owner = _owners(name)
    try:
        return _described(name, get_backend(name), owner)
    except Exception as error:  # what a stranger's package raises is told, not raised: the other rows are good
        told = str(error) if isinstance(error, BackendError) else f"backend {name!r} of {owner} is broken ({error!r})."
        return BackendInfo(name, "", None, (), (), {}, {}, owner, told)


def _described(name: str, backend: Backend, owner: str) -> BackendInfo:
    version, native = _framework_version(backend.framework), getattr(backend, "native", ())
    declared: dict[str, str] = getattr(backend, "switches", {})
    return BackendInfo(
        name,
        backend.framework,
        version,
        devices=(*getattr(backend, "accelerators", tuple)(), "cpu") if version else (),
        dtypes=tuple(backend.dtypes),
        ops={op: "native" if op in native else "fallback" for op in KERNELS},
        switches={key: Switch(os.environ.get(key), default) for key, default in declared.items()},
        distribution=owner,
        problem=None if version else _missing(name, backend.framework),
    )


def _framework_version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _missing(name: str, framework: str) -> str:
    return f"backend {name!r} needs {framework}, which is not installed: {_remedy(name, framework)}."


def _remedy(name: str, framework: str) -> str:
    """What installs the framework: an extra of ours, or the framework itself."""
    return f'pip install "vaespec[{name}]"' if _owners(name) == "vaespec" else f"pip install {framework}"


def _owners(name: str) -> str:
    """The distributions that a backend comes from: one, but where two have taken the same name."""
    return "this process" if name in _registered else " and ".join(sorted(map(_owner, _entry_points().get(name, ()))))


def _owner(point: metadata.EntryPoint) -> str:
    return point.dist.name if point.dist else point.value
