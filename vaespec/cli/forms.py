"""`vaespec info --plan`: the form that each convolution takes."""

from __future__ import annotations

import dataclasses
from typing import Any

from vaespec.analysis.convolutions import PlannedConvolution, planned
from vaespec.architecture import decoder, encoder
from vaespec.cli import text
from vaespec.cli.console import print_table
from vaespec.config import AutoencoderConfig
from vaespec.reference import ReferenceOps

Plans = dict[str, list[PlannedConvolution]]


def plans(config: AutoencoderConfig, size: tuple[int, int], ops: ReferenceOps) -> Plans:
    """Of encoding and decoding one image of that size, px."""
    f = config.downsampling_factor
    latents = (1, config.latent_channels, *(side // f for side in size))
    return {
        "encode": planned(encoder(config), (1, config.in_channels, *size), ops),
        "decode": planned(decoder(config), latents, ops),
    }


def document(plans: Plans) -> dict[str, Any]:
    """For --json."""
    if not plans:
        return {}
    return {"plan": {direction: [dataclasses.asdict(one) for one in found] for direction, found in plans.items()}}


def show(plans: Plans) -> None:
    """A row for each convolution; what its form costs is compared with that of the sum as it is written."""
    for direction, found in plans.items():
        print(f"\nConvolutions of {direction}:")
        print_table(("layer", "map", "kernel", "form", "of the products"), list(map(_row, found)), numbers=(4,))


def _row(one: PlannedConvolution) -> tuple[str, ...]:
    (_, C, H, W), (O, _, kh, kw) = one.x, one.kernel
    shape = text.shape((C, H, W)) + (", doubled" if one.doubled else "")
    share = f"{one.costs[one.form] / one.direct:.0%}" if one.direct else ""
    return one.name, shape, text.shape((O, kh, kw)), one.form, share
