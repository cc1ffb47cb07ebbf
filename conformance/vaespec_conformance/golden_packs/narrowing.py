"""Narrow models of a family: the same levels, layers and block types with fewer channels, so that a pack is small."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

from vaespec import AutoencoderConfig

Widths = tuple[int, ...]


def narrowings(config: AutoencoderConfig) -> Iterator[AutoencoderConfig]:
    """Narrow configs of a family's, widest first.

    The first has the family's groups, since many ports have their number fixed: the family's least width becomes one
    channel per group, every other two. The others divide the widths by 16 and 32, in as many groups as leave two
    channels in each.
    """
    groups = config.norm_num_groups
    least = min(*config.block_out_channels, *config.decoder_widths)
    yield _changed(config, groups, lambda width: groups if width == least else 2 * groups)
    for divisor in (16, 32):
        yield _divided(config, divisor)


def _divided(config: AutoencoderConfig, divisor: int) -> AutoencoderConfig:
    widths = [width // divisor for width in (*config.block_out_channels, *config.decoder_widths)]
    common = math.gcd(*widths)
    groups = max(n for n in range(1, common + 1) if common % n == 0 and (2 * n <= min(widths) or n == 1))
    return _changed(config, groups, lambda width: width // divisor)


def _changed(config: AutoencoderConfig, groups: int, narrow: Callable[[int], int]) -> AutoencoderConfig:
    def each(widths: Widths | None) -> Widths | None:
        return None if widths is None else tuple(map(narrow, widths))

    return config.replace(
        norm_num_groups=groups,
        block_out_channels=each(config.block_out_channels),
        decoder_block_out_channels=each(config.decoder_block_out_channels),
    )
