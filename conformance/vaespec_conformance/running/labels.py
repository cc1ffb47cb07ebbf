"""What a report calls the config of a case: "SD 1", "Mish", or the published family that it is of."""

from __future__ import annotations

from functools import cache

from vaespec import AutoencoderConfig, families
from vaespec_conformance.cases import models
from vaespec_conformance.cases.cases import Case

FULL = " at full width"
OWN = "a config of its own"
SPOKEN = {"sd1": "SD 1", "sd2": "SD 1", "sdxl": "SD 1", "sd3": "FLUX.1", "flux1": "FLUX.1", "flux2": "FLUX.2"}
"""Families -> the label of their topology, which several share."""


def label_of(case: Case) -> str | None:
    """The label of a case's config; None if it has no config."""
    name = dict(case.items).get("config")
    if name is None:
        return None
    if name in models.CONFIGS:
        return models.LABELS[name]
    return label(models.config_of(case))


@cache
def label(config: AutoencoderConfig) -> str:
    """The label of a config that a subject brings: its published family, or OWN."""
    return next((models.LABELS[name] for name, other in models.CONFIGS.items() if other == config), None) or _family(
        config
    )


def published() -> tuple[str, ...]:
    """The labels of the published families."""
    spoken = [_spoken(name) + width for name in families.names() for width in ("", FULL)]
    return tuple(dict.fromkeys((*(models.LABELS[name] for name in models.FAMILIES), *spoken)))


def _spoken(name: str) -> str:
    return SPOKEN.get(name, name)


def _family(config: AutoencoderConfig) -> str:
    """The family whose layers are the same but for their widths and groups."""
    for name in families.names():
        family = families.config(name)
        if _same_topology(config, family):
            return _spoken(name) + (FULL if config.block_out_channels == family.block_out_channels else "")
    return OWN


def _same_topology(config: AutoencoderConfig, family: AutoencoderConfig) -> bool:
    """Whether two configs differ in widths, groups and conventions only."""
    if len(config.block_out_channels) != len(family.block_out_channels):
        return False
    fields = [field for field in families.STRUCTURE if field not in ("block_out_channels", "decoder_widths")]
    return config.act_fn == family.act_fn and all(getattr(config, f) == getattr(family, f) for f in fields)
