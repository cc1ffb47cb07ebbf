"""The facts of a run: which subject was examined, by which suite, on which machine."""

from __future__ import annotations

import hashlib
import os
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from vaespec import backends
from vaespec.ops import KERNELS
from vaespec_conformance.running.agenda import REQUIRED
from vaespec_conformance.running.labels import published
from vaespec_conformance.subjects.program import ProgramSubject
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject, Subject

SUITE = "1.0"
DISTRIBUTIONS = ("numpy", "hypothesis", "vaespec")
"""Packages whose versions every report names."""
FOLDER = Path(__file__).parents[1]
DECISIVE = (
    "subjects/**/*.py",
    "cases/*.py",
    "cases/goldens.npz",
    "judging/*.py",
    "checks/*.py",
    "running/agenda.py",
    "running/examination.py",
    "running/case_selection.py",
    "running/labels.py",
)
"""Files of the suite that decide which cases are run and whether a result passes."""


def run_facts(subject: Subject, *, profile: str, selection: dict[str, list[str]], seed: int) -> dict[str, Any]:
    """The part of a report beside the results; the preliminaries add canary and precision."""
    ops = provenance(subject)
    return {
        "suite": {"version": SUITE, "checks_hash": checks_hash()},
        "subject": {
            "kind": subject.kind,
            "name": subject.name,
            "distribution": distribution(subject),
            "device": _device(subject),
            "label": _label(ops),
        },
        "run": {"profile": profile, "seed": seed, "selection": selection},
        "environment": dict(environment(subject)),
        "claims": {
            "dtypes": list(subject.capabilities.dtypes),
            "features": sorted(subject.capabilities.features),
            "required": list(REQUIRED),
            "families": list(published()),
            "lacks": sorted(subject.capabilities.lacks),
        },
        "precision": {},
        "ops": ops,
        "canary": {"status": "not run", "mutant": None, "check": None},
    }


def checks_hash() -> str:
    """SHA-256 of the files that decide a verdict; two runs with equal hashes ran the same checks."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in DECISIVE for path in FOLDER.glob(pattern)):
        digest.update(f"{path.relative_to(FOLDER).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def provenance(subject: Subject) -> dict[str, str]:
    """Operation -> "native" or "fallback"; empty for a port, and for a backend that cannot create its operations."""
    if not isinstance(subject, BackendSubject):
        return {}
    try:
        ops = subject.raw_ops(REQUIRED[0])
        return {op: ops.provenance(op) for op in KERNELS}
    except Exception:  # the checks report it
        return {}


def _label(ops: dict[str, str]) -> str | None:
    if not ops:
        return None
    return "native" if "native" in ops.values() else "array-api-only"


def _device(subject: Subject) -> str | None:
    if not isinstance(subject, BackendSubject):
        return None
    return subject.device or next(iter(subject.capabilities.devices), None)


def distribution(subject: Subject) -> str | None:
    """The installed package of a backend, or that a port names, with its version; the name that a program gives itself.

    None if there is none.
    """
    if isinstance(subject, ProgramSubject):
        return subject.maker.own_name
    if isinstance(subject, BackendSubject):
        named = [info.distribution for info in backends() if info.name == subject.name]
    else:
        named = [_declared(subject, "distribution")]
    versions = [(name, _version(name)) for name in named if name]
    return next((f"{name} {version}" for name, version in versions if version), None)


def _declared(subject: Subject, name: str) -> Any:
    """What a backend, or a port, says of itself under a name; None if it says nothing."""
    if isinstance(subject, PortSubject):
        return subject.declared.given(name)
    return getattr(getattr(subject, "backend", None), name, None)


def _frameworks(subject: Subject) -> tuple[str, ...]:
    """The framework that a subject names, or the packages of the objects that a port builds and returns."""
    named = [_declared(subject, name) for name in ("framework", "distribution")]
    seen = sorted(getattr(subject, "seen", {}).get("packages", ()))
    return tuple(name for name in named if name) or tuple(name for name in seen if _version(name)) or ("numpy",)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except (metadata.PackageNotFoundError, ValueError):
        return None


def environment(subject: Subject) -> Iterator[tuple[str, str]]:
    """Versions, machine, and the environment variables that change a backend's results."""
    yield "python", platform.python_version()
    yield "machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    for distribution in dict.fromkeys((*DISTRIBUTIONS, *_frameworks(subject))):
        yield distribution, _version(distribution) or "not installed as a package"
    for name, unset in {"OMP_NUM_THREADS": "not set", **(_declared(subject, "switches") or {})}.items():
        yield name, os.environ.get(name, unset)
