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
    sizes,
    tiling,
    topology,
)
from vaespec_conformance.mutants.benign import BENIGN
from vaespec_conformance.mutants.models import decode_returns_images_from_0_to_1, encode_expects_images_from_0_to_1
from vaespec_conformance.mutants.mutant import MUTANTS, Mutant
from vaespec_conformance.mutants.products import conv2d_without_bias
from vaespec_conformance.subjects.subjects import Subject

__all__ = ["BENIGN", "MUTANTS", "Mutant", "canaries", "owned_by"]


def canaries(subject: Subject) -> list[Mutant]:
    """The mistakes of which a run must catch one before it begins: the second is for a subject without a decoder."""
    halves = (decode_returns_images_from_0_to_1, encode_expects_images_from_0_to_1)
    functions = (conv2d_without_bias,) if subject.kind == "backend" else halves
    return [MUTANTS[function.__name__] for function in functions]


def owned_by(check: str) -> list[Mutant]:
    """The mistakes that a check must catch."""
    return [mutant for mutant in MUTANTS.values() if mutant.owner == check]
