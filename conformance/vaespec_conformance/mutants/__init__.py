"""Known mistakes, each as a wrapper that makes a subject wrong, and each with the check that must catch it.

They are what the suite is examined with (`--self-check`), and what hints are taken from.
"""

from __future__ import annotations

from vaespec_conformance.mutants import (  # noqa: F401  (registers)
    attention,
    behaviour,
    benign,
    interop,
    loading,
    models,
    norms,
    pointwise,
    products,
    tiling,
)
from vaespec_conformance.mutants.benign import BENIGN
from vaespec_conformance.mutants.mutant import MUTANTS, Mutant
from vaespec_conformance.subjects.subjects import Subject

__all__ = ["BENIGN", "MUTANTS", "Mutant", "canary", "owned_by"]


def canary(subject: Subject) -> Mutant:
    """The mistake that any run must catch before it begins: no bias in a backend's convolutions; images too grey."""
    return MUTANTS["conv2d: no bias" if subject.kind == "backend" else "decode: images from 0 to 1"]


def owned_by(check: str) -> list[Mutant]:
    """The mistakes that a check must catch."""
    return [mutant for mutant in MUTANTS.values() if mutant.owner == check]
