"""The checks, one file for each level. Importing this package registers all of them, level by level."""

from vaespec_conformance.checks import (  # noqa: F401  (registers)
    behaviour,
    blocks,
    compiled,
    goldens,
    interop,
    model,
    operations,
    sizes,
    structure,
    tiling,
    weights,
)
