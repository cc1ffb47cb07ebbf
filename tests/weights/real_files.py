"""The listings of tests/keys as files to read, and the check that each is read right."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from wild import FORMATS, Arrays, Wild, assert_same, in_the_file, levels_in, listing, read, tagged

from vaespec import AutoencoderConfig
from vaespec.weights.located import locate


@dataclass(frozen=True)
class RealFile:
    """A listing of this family in a format; without `name`, what one would be by the format's grammar."""

    family: str
    dialect: str
    prefix: str = ""
    name: str | None = None

    @property
    def weights(self) -> Arrays:
        """What it means: canonical names, shapes and numbers. Some writers drop the count of batches."""
        weights = tagged(listing(f"{self.family}-diffusers"))
        if self.name == "flux2-mflux":
            weights["bn.num_batches_tracked"] = np.zeros((), np.int64)
        return weights


FILES = {
    name: RealFile(family, dialect, prefix, name)
    for name, family, dialect, prefix in (
        ("sd1-diffusers", "sd1", "diffusers", ""),
        ("sd1-diffusers-deprecated", "sd1", "diffusers-deprecated", ""),
        ("sd1-diffusers-deprecated-conv4d", "sd1", "diffusers-deprecated", ""),
        ("sd1-ldm-standalone", "sd1", "ldm", ""),
        ("sd1-ldm-full-prefix", "sd1", "ldm", "first_stage_model."),
        ("sd1-ldm-vae-prefix", "sd1", "ldm", "vae."),
        ("sd1-flax", "sd1", "flax", ""),
        ("sd1-mlx-examples", "sd1", "mlx", ""),
        ("sdxl-diffusers", "sdxl", "diffusers", ""),
        ("sdxl-ldm-full-prefix", "sdxl", "ldm", "first_stage_model."),
        ("sd3-diffusers", "sd3", "diffusers", ""),
        ("sd3-ldm-standalone", "sd3", "ldm", ""),
        ("sd3-ldm-full-prefix", "sd3", "ldm", "first_stage_model."),
        ("flux1-diffusers", "flux1", "diffusers", ""),
        ("flux1-bfl", "flux1", "ldm", ""),
        ("flux1-mlx-examples", "flux1", "mlx-flux", ""),
        ("flux1-mflux", "flux1", "mflux", ""),
        ("flux2-diffusers", "flux2", "diffusers", ""),
        ("flux2-bfl", "flux2", "bfl", ""),
        ("flux2-mflux", "flux2", "mflux-flux2", ""),
        ("ldm-kl-f4-diffusers", "ldm-kl-f4", "diffusers", ""),
        ("ldm-kl-f4-ldm", "ldm-kl-f4", "ldm", ""),
        ("ldm-kl-f8-diffusers", "ldm-kl-f8", "diffusers", ""),
        ("ldm-kl-f8-ldm", "ldm-kl-f8", "ldm", ""),
        ("ldm-kl-f32-diffusers", "ldm-kl-f32", "diffusers", ""),
        ("ldm-kl-f32-ldm", "ldm-kl-f32", "ldm", ""),
        ("sd-x4-upscaler-diffusers", "sd-x4-upscaler", "diffusers", ""),
    )
}

ONE_OF_EACH = ("sd1-diffusers", "sd1-diffusers-deprecated", "sd1-ldm-full-prefix", "sd1-flax", "sd1-mlx-examples")
ONE_OF_EACH += ("flux1-mlx-examples", "flux1-mflux", "flux2-bfl", "flux2-mflux")
"""A real file of every dialect that has one."""


def shapes_of(file: RealFile) -> dict[str, list[int]]:
    """The listing; by the grammar if there is none."""
    if file.name is not None:
        return listing(file.name)
    form, weights = FORMATS[file.dialect], file.weights
    stored = file_names(file)
    return {stored[name]: list(form.stored(a, form.rank(a)).shape) for name, a in weights.items()}
