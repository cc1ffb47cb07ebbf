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
WIDTHS = ("block_out_channels", "decoder_widths", "norm_num_groups")
"""The fields in which a narrow relative of a family may differ from it."""


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
    """The labels of the published families.

    The config "plain" is of none: nobody publishes two levels. A subject that refuses every family but takes "plain"
    has not shown more than one model of a few layers.
    """
    spoken = [_spoken(name) + width for name in families.names() for width in ("", FULL)]
    return tuple(dict.fromkeys((*(models.LABELS[name] for name in models.FAMILIES), *spoken)))


def _spoken(name: str) -> str:
    return SPOKEN.get(name, name)


def _family(config: AutoencoderConfig) -> str:
    """The family whose layers are the same but for their widths and groups, and that the config stands for."""
    for name in families.names():
        family = families.config(name)
        if not _same_topology(config, family):
            continue
        if all(getattr(config, field) == getattr(family, field) for field in WIDTHS):
            return _spoken(name) + FULL
        if _has_groups(config):
            return _spoken(name)
    return OWN


def _same_topology(config: AutoencoderConfig, family: AutoencoderConfig) -> bool:
    """Whether two configs differ in widths, groups and conventions only."""
    if len(config.block_out_channels) != len(family.block_out_channels):
        return False
    fields = [field for field in families.STRUCTURE if field not in WIDTHS]
    return config.act_fn == family.act_fn and all(getattr(config, f) == getattr(family, f) for f in fields)


def _has_groups(config: AutoencoderConfig) -> bool:
    """Whether a norm has groups, of several channels: with one group, or one channel in each, it is another layer.

    A narrow relative of a family without them does not show whether a subject computes the family.
    """
    return 1 < config.norm_num_groups < max(config.block_out_channels)
