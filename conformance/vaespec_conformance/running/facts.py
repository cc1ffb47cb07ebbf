"""The facts of a run: who was examined, by which suite, where."""

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
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

SUITE = "1.0"
HERE = Path(__file__).parents[1]
OURS = ("numpy", "hypothesis", "vaespec")


def about(subject: Subject, *, profile: str, selection: dict[str, list[str]], seed: int) -> dict[str, Any]:
    """What stands in a report beside the results; canary and precision come later."""
    ops = provenance(subject)
    return {
        "suite": {"version": SUITE, "checks_hash": checks_hash()},
        "subject": {
            "kind": subject.kind,
            "name": subject.name,
            "distribution": _distribution(subject),
            "device": _device(subject),
            "label": _label(ops),
        },
        "run": {"profile": profile, "seed": seed, "selection": selection},
        "environment": dict(_environment(subject)),
        "claims": {
            "dtypes": list(subject.capabilities.dtypes),
            "features": sorted(subject.capabilities.features),
            "required": list(REQUIRED),
        },
        "precision": {},
        "ops": ops,
        "canary": {"status": "not run", "mutant": None, "check": None},
    }


def checks_hash() -> str:
    """SHA-256 of the sources that decide a verdict; two runs of equal hash asked the same questions."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in DECISIVE for path in HERE.glob(pattern)):
        digest.update(f"{path.relative_to(HERE).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


DECISIVE = ("checks/*.py", "judging/*.py", "cases/*.py", "cases/goldens.npz", "subjects/*.py")


def provenance(subject: Subject) -> dict[str, str]:
    """Operation -> "native" or "fallback"; nothing for a port, and for a backend whose operations cannot be made."""
    if not isinstance(subject, BackendSubject):
        return {}
    try:
        ops = subject.raw_ops(REQUIRED[0])
        return {op: ops.provenance(op) for op in KERNELS}
    except Exception:  # the checks tell what it raises
        return {}


def _label(ops: dict[str, str]) -> str | None:
    if not ops:
        return None
    return "native" if "native" in ops.values() else "array-api-only"


def _device(subject: Subject) -> str | None:
    if not isinstance(subject, BackendSubject):
        return None
    return subject.device or next(iter(subject.capabilities.devices), None)


def _distribution(subject: Subject) -> str | None:
    """The package that brings a backend, with its version; None for what is not installed as one."""
    for info in backends():
        if isinstance(subject, BackendSubject) and info.name == subject.name:
            return _versioned(info.distribution)
    return None


def _versioned(distribution: str) -> str | None:
    version = _version(distribution)
    return f"{distribution} {version}" if version else None


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _environment(subject: Subject) -> Iterator[tuple[str, str]]:
    """Versions, machine, and the variables that change a backend's numbers, where they are set."""
    declaring: Any = subject.backend if isinstance(subject, BackendSubject) else getattr(subject, "maker", None)
    yield "python", platform.python_version()
    yield "machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    for distribution in dict.fromkeys((*OURS, getattr(declaring, "framework", "numpy"))):
        yield distribution, _version(distribution) or "not installed as a package"
    for name, unset in {"OMP_NUM_THREADS": "not set", **getattr(declaring, "switches", {})}.items():
        yield name, os.environ.get(name, unset)
