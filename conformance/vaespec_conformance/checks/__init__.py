"""The checks, a file for each level. Importing this registers them all, in the order of the levels."""

from vaespec_conformance.checks import (  # noqa: F401  (registers)
    behaviour,
    blocks,
    compiled,
    goldens,
    interop,
    model,
    operations,
    structure,
    tiling,
    weights,
)
