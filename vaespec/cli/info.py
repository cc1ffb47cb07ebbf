"""`vaespec info`: what is in a weight file, and what running it costs."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from typing import Annotated, Any

import numpy as np
import typer

from vaespec import autoencoder, families, weights
from vaespec.analysis.cost import Cost, cost
from vaespec.architecture import count_parameters
from vaespec.cli import options, words
from vaespec.cli.console import print_facts, print_json, print_table, progress
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError


def info(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="tiny, a diffusers folder, or a .safetensors file.")
    ] = "tiny",
    size: Annotated[str, typer.Option("--size", metavar="N|HxW", help="Image size in px for the cost.")] = "512",
    family: options.Family = None,
    as_json: options.Json = False,
) -> None:
    """Describe weights: config, families, parameters, bytes; and what encode and decode cost at a size."""
    height, width = _parse(size)
    with progress(f"reading {source}"):
        config, arrays = _read(source, family)
    if min(height, width) < (f := config.downsampling_factor):
        raise InputError(f"--size {size}: {source} needs {f} x {f} px at least.")
    costs = {
        "encode": cost(config, "encode", (height, width)),
        "decode": cost(config, "decode", (height // f, width // f)),
    }
    if as_json:
        print_json(_document(source, config, arrays, (height, width), costs))
        return
    print_facts(_facts(source, config, arrays))
    print(f"\nCost at {height} x {width} px (height x width), one image, float32:")
    print_table(("", *costs), [list(row) for row in _cost_rows(costs)], numbers=(1, 2))


def _parse(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", size)
    if match is None or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise typer.BadParameter(f"{size!r}: give one number, or HEIGHTxWIDTH such as 768x1024.", param_hint="--size")
    return sides[0], sides[-1]


def _read(source: str, family: str | None) -> tuple[AutoencoderConfig, Mapping[str, np.ndarray]]:
    """Config and weights, as `vaespec.load` would read them, in the dtypes of the file."""
    return weights.load(autoencoder.locate(source), family)


def _document(
    source: str,
    config: AutoencoderConfig,
    arrays: Mapping[str, np.ndarray],
    size: tuple[int, int],
    costs: dict[str, Cost],
) -> dict[str, Any]:
    return {
        "source": source,
        "config": config.to_dict(),
        "families": list(families.matching(config)),
        "f": config.downsampling_factor,
        "parameters": count_parameters(config),
        "dtypes": _dtypes(arrays),
        "bytes": sum(a.nbytes for a in arrays.values()),
        "image_size": list(size),
        "cost": {side: {**dataclasses.asdict(c), "flops": c.flops} for side, c in costs.items()},
    }


def _facts(source: str, config: AutoencoderConfig, arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    decoder_widths = f", decoder {words.shape(config.decoder_widths)}" if config.decoder_block_out_channels else ""
    return {
        "source": source,
        "class": config.class_name,
        "families": ", ".join(families.matching(config)) or "none of the published ones",
        "channels": f"{config.in_channels} -> {config.latent_channels} latent -> {config.out_channels}",
        "f": f"{config.downsampling_factor} px per latent, along each side",
        "widths": f"{words.shape(config.block_out_channels)}{decoder_widths}",
        "resnets": f"{config.layers_per_block} per level, {config.layers_per_block + 1} in the decoder",
        "attention": _attention(config),
        "quant convs": f"{_yes(config.use_quant_conv)}, post {_yes(config.use_post_quant_conv)}",
        "norm, act": f"{config.norm_num_groups} groups, {config.activation}",
        "latents": _scaling(config),
        "parameters": f"{count_parameters(config):,}",
        "stored": f"{words.size(sum(a.nbytes for a in arrays.values()))} of {', '.join(_dtypes(arrays))}",
    }


def _attention(config: AutoencoderConfig) -> str:
    places = ["middle"] if config.mid_block_add_attention else []
    places += [f"encoder level {i}" for i, name in enumerate(config.down_block_types) if name.startswith("Attn")]
    places += [f"decoder level {i}" for i, name in enumerate(config.up_block_types) if name.startswith("Attn")]
    return ", ".join(places) or "none"


def _scaling(config: AutoencoderConfig) -> str:
    """How latents are normalised, in words."""
    if config.patch_size is not None:
        return f"{words.shape(config.patch_size)} patches, batch-norm"
    if config.scaling_factor is None:
        return f"scale unknown ({families.scaling_candidates(config)})"
    if config.latents_mean is not None:
        return f"mean and std per channel, scale {config.scaling_factor}"
    return (
        f"(z - {config.shift_factor}) x {config.scaling_factor}"
        if config.shift_factor
        else f"z x {config.scaling_factor}"
    )


def _cost_rows(costs: dict[str, Cost]) -> list[tuple[str, ...]]:
    both = tuple(costs.values())
    return [
        ("result (moments, image)", *(words.shape(c.output_shape[1:]) for c in both)),
        ("arithmetic", *(words.arithmetic(c.flops) for c in both)),
        ("  convolutions", *(words.arithmetic(c.conv_flops) for c in both)),
        ("  attention", *(words.arithmetic(c.attention_flops) for c in both)),
        ("peak activations", *(words.size(c.peak_bytes) for c in both)),
        ("weights", *(words.size(c.weight_bytes) for c in both)),
    ]


def _dtypes(arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """How many numbers there are of each dtype, most frequent first."""
    counts: Counter[str] = Counter()
    for a in arrays.values():
        counts[a.dtype.name] += a.size
    return dict(counts.most_common())


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
