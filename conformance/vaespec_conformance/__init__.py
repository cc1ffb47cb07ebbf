"""vaespec_conformance: does a backend, or somebody's whole VAE, compute AutoencoderKL?

`run_conformance` examines a subject and gives a Report; `conformance_suite` is the same as a class of tests. On the
command line: `vaespec conformance`. Nothing is imported before it is used, since pytest imports this package wherever
vaespec is installed.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vaespec_conformance.reports.report import Report
    from vaespec_conformance.running.agenda import Selection
    from vaespec_conformance.running.runner import run_conformance
    from vaespec_conformance.subjects.errors import ConformanceError
    from vaespec_conformance.subjects.subjects import BackendSubject, Capabilities, Gap, PortSubject
    from vaespec_conformance.suite import conformance_suite

__all__ = [
    "BackendSubject",
    "Capabilities",
    "ConformanceError",
    "Gap",
    "PortSubject",
    "Report",
    "Selection",
    "conformance_suite",
    "run_conformance",
]

_MODULES = {
    "BackendSubject": "subjects.subjects",
    "Capabilities": "subjects.subjects",
    "ConformanceError": "subjects.errors",
    "Gap": "subjects.subjects",
    "PortSubject": "subjects.subjects",
    "Report": "reports.report",
    "Selection": "running.agenda",
    "conformance_suite": "suite",
    "run_conformance": "running.runner",
}


def require_hypothesis() -> None:
    """Raise VaespecError where it is missing: vaespec is installed without it."""
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
