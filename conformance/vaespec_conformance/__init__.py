"""vaespec_conformance: checks whether a backend, a user's whole VAE, or a program computes AutoencoderKL.

`run_conformance` examines a subject and returns a Report; `conformance_suite` returns a class of tests that do the
same. The commands are `vaespec conformance`, `vaespec check` and `vaespec golden`. Names are imported on first use,
since every pytest session on a machine with vaespec imports this package.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaespec_conformance.pytest_suite import conformance_suite
    from vaespec_conformance.reports.report import Report
    from vaespec_conformance.running.agenda import Selection
    from vaespec_conformance.running.runner import run_conformance
    from vaespec_conformance.subjects.capabilities import Capabilities, Gap
    from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
    from vaespec_conformance.subjects.program import ProgramSubject
    from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject

__all__ = [
    "BackendSubject",
    "Capabilities",
    "ConformanceError",
    "Gap",
    "NotSupportedError",
    "PortSubject",
    "ProgramSubject",
    "Report",
    "Selection",
    "conformance_suite",
    "run_conformance",
]

_MODULES = {
    "BackendSubject": "subjects.subjects",
    "Capabilities": "subjects.capabilities",
    "ConformanceError": "subjects.errors",
    "Gap": "subjects.capabilities",
    "NotSupportedError": "subjects.errors",
    "PortSubject": "subjects.subjects",
    "ProgramSubject": "subjects.program",
    "Report": "reports.report",
    "Selection": "running.agenda",
    "conformance_suite": "pytest_suite",
    "run_conformance": "running.runner",
}


def require_hypothesis() -> None:
    """Raises VaespecError if hypothesis, an optional dependency of vaespec, is not installed."""
    from vaespec.errors import VaespecError

    if find_spec("hypothesis") is None:
        raise VaespecError(
            'the conformance suite needs hypothesis, which is not installed: pip install "vaespec[conformance]".'
        )


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    require_hypothesis()
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
