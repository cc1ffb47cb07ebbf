"""The model: `encoder(config)` and `decoder(config)`, two lists of layers that read like the paper's table.

The only description of the topology in the project. Names are diffusers' state-dict names. Rombach et al. 2022,
arXiv:2112.10752, appendix G; widths, block types and options as in AutoencoderKL of diffusers 0.42.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from vaespec.attention import Attention
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.layers import Conv, Downsample, GroupNorm, NormAct, Resnet, Sequential, Upsample, pointwise
from vaespec.ops import Layer
from vaespec.parameter import Parameter


def encoder(config: AutoencoderConfig) -> Sequential:
    """Images (B, in_channels, H, W) -> moments (B, 2 · latent_channels, H // f, W // f): mean, then log-variance."""
    widths, moments = config.block_out_channels, 2 * config.latent_channels
    layers: list[Layer] = [Conv("encoder.conv_in", config.in_channels, widths[0])]
    before = widths[0]
    for level, (width, block_type) in enumerate(zip(widths, config.down_block_types, strict=True)):
        block = f"encoder.down_blocks.{level}"
        layers += _stage(config, block, before, width, config.layers_per_block, block_type.startswith("Attn"))
        if level < config.levels - 1:
            layers += [Downsample(f"{block}.downsamplers.0", width)]
        before = width
    layers += _middle(config, "encoder.mid_block", widths[-1])
    layers += _head(config, "encoder", widths[-1], moments)
    if config.use_quant_conv:
        layers += [pointwise("quant_conv", moments, moments)]
    return Sequential(tuple(layers))


def decoder(config: AutoencoderConfig) -> Sequential:
    """Latents (B, latent_channels, h, w) -> images (B, out_channels, f · h, f · w)."""
    widths, latent = config.decoder_widths[::-1], config.latent_channels
    layers: list[Layer] = [pointwise("post_quant_conv", latent, latent)] if config.use_post_quant_conv else []
    layers += [Conv("decoder.conv_in", latent, widths[0])]
    layers += _middle(config, "decoder.mid_block", widths[0])
    before = widths[0]
    for level, (width, block_type) in enumerate(zip(widths, config.up_block_types, strict=True)):
        block = f"decoder.up_blocks.{level}"
        layers += _stage(config, block, before, width, config.layers_per_block + 1, block_type.startswith("Attn"))
        if level < config.levels - 1:
            layers += [Upsample(f"{block}.upsamplers.0", width)]
        before = width
    layers += _head(config, "decoder", widths[-1], config.out_channels)
    return Sequential(tuple(layers))


@dataclass(frozen=True)
class Half:
    """The encoder or the decoder: its name, the verb for running it, what it reads, what it makes, what builds it."""

    name: str
    verb: Literal["encode", "decode"]
    source: str
    result: str
    build: Callable[[AutoencoderConfig], Sequential]

    def in_channels(self, config: AutoencoderConfig) -> int:
        """How many channels its input has."""
        return config.in_channels if self.source == "images" else config.latent_channels

    def input_shape(self, config: AutoencoderConfig, batch: int, height: int, width: int) -> tuple[int, int, int, int]:
        """The shape of its input for a batch of images of height × width px."""
        f = 1 if self.source == "images" else config.downsampling_factor
        return batch, self.in_channels(config), height // f, width // f

    def absent(self) -> InputError:
        """The error for a model without the weights of this half."""
        return InputError(f"these weights have no {self.name}: load them from a file that has one.")


ENCODER = Half("encoder", "encode", "images", "moments", encoder)
DECODER = Half("decoder", "decode", "latents", "images", decoder)
HALVES = {half.name: half for half in (ENCODER, DECODER)}


def half_of(direction: str) -> Half:
    """The half that computes a direction, "encode" or "decode". Raises InputError for any other."""
    if direction not in (halves := {half.verb: half for half in HALVES.values()}):
        raise InputError(f"direction={direction!r}: expected encode or decode.")
    return halves[direction]


def parameters(config: AutoencoderConfig, halves: Iterable[str] = tuple(HALVES)) -> dict[str, Parameter]:
    """Every tensor of the model, or of the halves named: name -> shape, role. Names are those of diffusers' state_dict.

    FLUX.2's statistics belong to either half.
    """
    layers = [row for half in halves for row in HALVES[half].build(config).parameters()]
    return dict([*layers, *_latent_statistics(config)])


def halves_among(names: Container[str], config: AutoencoderConfig) -> tuple[str, ...]:
    """The names of the halves that have a parameter in `names`; both if neither has one."""
    present = (name for name, half in HALVES.items() if any(row in names for row, _ in half.build(config).parameters()))
    return tuple(present) or tuple(HALVES)


def parameters_among(
    names: Container[str], config: AutoencoderConfig, halves: tuple[str, ...] | None = None
) -> dict[str, Parameter]:
    """The parameters of the halves, by default of those that have one in `names`; both if there are none.

    A half alone may lack FLUX.2's statistics: then they are none of its parameters.
    """
    halves = halves or halves_among(names, config)
    table, statistics = parameters(config, halves), dict(_latent_statistics(config))
    if len(halves) == len(HALVES) or any(name in names for name in statistics):
        return table
    return {name: row for name, row in table.items() if name not in statistics}


def count_parameters(config: AutoencoderConfig) -> int:
    """The number of trained numbers; FLUX.2's batch-norm statistics are not among them."""
    table = parameters(config).values()
    return sum(math.prod(parameter.shape) for parameter in table if parameter.trained)


def _stage(config: AutoencoderConfig, block: str, before: int, width: int, resnets: int, attend: bool) -> list[Layer]:
    """The residual blocks of one resolution, each followed by attention if `attend`."""
    layers: list[Layer] = []
    for i in range(resnets):
        layers += [_resnet(config, f"{block}.resnets.{i}", before if i == 0 else width, width)]
        if attend:
            layers += [Attention(f"{block}.attentions.{i}", width, config.norm_num_groups)]
    return layers


def _middle(config: AutoencoderConfig, block: str, width: int) -> list[Layer]:
    """Resnet, attention, resnet at the lowest resolution."""
    attention: list[Layer] = [Attention(f"{block}.attentions.0", width, config.norm_num_groups)]
    return [
        _resnet(config, f"{block}.resnets.0", width, width),
        *(attention if config.mid_block_add_attention else []),
        _resnet(config, f"{block}.resnets.1", width, width),
    ]


def _head(config: AutoencoderConfig, half: str, width: int, out_channels: int) -> list[Layer]:
    """Norm, activation, convolution. The activation is SiLU whatever act_fn says (as in diffusers 0.42)."""
    norm = GroupNorm(f"{half}.conv_norm_out", width, config.norm_num_groups)
    return [NormAct(norm, "silu", f"{half}.conv_act"), Conv(f"{half}.conv_out", width, out_channels)]


def _resnet(config: AutoencoderConfig, name: str, in_channels: int, out_channels: int) -> Resnet:
    return Resnet(name, in_channels, out_channels, config.norm_num_groups, config.activation)


def _latent_statistics(config: AutoencoderConfig) -> Iterator[tuple[str, Parameter]]:
    """FLUX.2's batch-norm statistics of patchified latents: stored with the weights, used by vaespec.latents."""
    if config.patch_size is not None:
        channels = config.latent_channels * config.patch_size[0] * config.patch_size[1]
        yield "bn.running_mean", Parameter((channels,), "statistic")
        yield "bn.running_var", Parameter((channels,), "statistic")
        yield "bn.num_batches_tracked", Parameter((), "counter")
