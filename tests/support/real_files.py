"""The listings of tests/keys as files to read, and the check that each is read right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from support.wild import FORMATS, Arrays, Format, assert_same, in_the_file, levels_in, listing, read, tagged

from vaespec import AutoencoderConfig
from vaespec.families import SAMPLE_SIZE
from vaespec.weights.dialects import DIALECTS


@dataclass(frozen=True)
class RealFile:
    """A listing of this family in a format; without `name`, what one would be by the format's grammar."""

    family: str
    dialect: str
    prefix: str = ""
    name: str | None = None

    @property
    def weights(self) -> Arrays:
        """The expected canonical names, shapes and numbers. Some writers drop the count of batches."""
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


def shapes_of(file: RealFile, form: Format) -> Mapping[str, Sequence[int]]:
    """Those of the listing; where nobody has listed one, vaespec's names with the ranks of the format."""
    if file.name is not None:
        return listing(file.name)
    dialect, levels = DIALECTS[file.dialect], levels_in(file.weights)
    return {
        file.prefix + dialect.stored(name, levels): form.stored(a, form.rank(a)).shape
        for name, a in file.weights.items()
    }


def filled(file: RealFile, order: str | None = None) -> Arrays:
    """The tensors of the file; with `order`, around kernels of another world's axes."""
    form = FORMATS[file.dialect]
    if order is not None:
        form = replace(form, conv=order, dense="IO" if order == "HWIO" else "OI")
    return in_the_file(shapes_of(file, form), form, file.weights, file.prefix)


def with_prefix(arrays: Arrays, prefix: str) -> Arrays:
    return {prefix + name: a for name, a in arrays.items()}


def half_of(weights: Arrays, half: str) -> Arrays:
    """The canonical tensors of an encoder or a decoder; FLUX.2's statistics belong to either."""
    parts = {"encoder": ("encoder.", "quant_conv."), "decoder": ("decoder.", "post_quant_conv.")}[half]
    return {name: a for name, a in weights.items() if name.startswith((*parts, "bn."))}


def half_filled(file: RealFile, half: str) -> Arrays:
    """The tensors of a file that has only that half."""
    form, levels, own = FORMATS[file.dialect], levels_in(file.weights), half_of(file.weights, half)
    return {key: a for key, a in filled(file).items() if form.canonical(key.removeprefix(file.prefix), levels) in own}


def check(file: RealFile, arrays: Arrays | None = None, **options: str) -> None:
    """The file, with these tensors, is read as what it is: AssertionError, or vaespec's own error, if not."""
    config, weights = read(arrays or filled(file), **options)
    assert_same(weights, file.weights)
    assert_no_wrong_field(config, file.family)


UNKNOWN = {"scaling_factor": None, "shift_factor": None, "force_upcast": None, "sample_size": SAMPLE_SIZE}


def assert_no_wrong_field(config: AutoencoderConfig, family: str) -> None:
    """As in the family's config.json; what names and shapes do not show may be left open."""
    for field, wanted in listing(f"{family}.config").items():
        found = getattr(config, field)
        unknown = field in UNKNOWN and found == UNKNOWN[field]
        assert unknown or (list(found) if isinstance(found, tuple) else found) == wanted, field
