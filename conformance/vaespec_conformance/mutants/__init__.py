"""Known mistakes: each one makes a subject wrong, and names the check that must catch it.

`--self-check` examines the suite with them, and a failure's likely cause is the mistake that comes nearest to it.
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
    topology,
)
from vaespec_conformance.mutants.benign import BENIGN
from vaespec_conformance.mutants.models import decode_returns_images_from_0_to_1
from vaespec_conformance.mutants.mutant import MUTANTS, Mutant
from vaespec_conformance.mutants.products import conv2d_without_bias
from vaespec_conformance.subjects.subjects import Subject

__all__ = ["BENIGN", "MUTANTS", "Mutant", "canary", "owned_by"]


def canary(subject: Subject) -> Mutant:
    """The mistake that any run must catch before it begins."""
    function = conv2d_without_bias if subject.kind == "backend" else decode_returns_images_from_0_to_1
    return MUTANTS[function.__name__]


def owned_by(check: str) -> list[Mutant]:
    """The mistakes that a check must catch."""
    return [mutant for mutant in MUTANTS.values() if mutant.owner == check]
