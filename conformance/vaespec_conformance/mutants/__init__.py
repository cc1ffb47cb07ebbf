"""Known mistakes, each as a wrapper that makes a subject wrong, and each with the check that must catch it."""

from __future__ import annotations

from typing import Any

from vaespec_conformance.mutants.mutant import Mutant
from vaespec_conformance.subjects import Subject

MUTANTS: dict[str, Mutant] = {}


def canary(subject: Subject) -> Subject:
    """The subject with a mistake that any run must catch: of a backend, a convolution without its bias; else, an image
    that is a little too bright."""
    return subject
