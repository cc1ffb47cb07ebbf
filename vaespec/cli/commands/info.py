"""`vaespec info`: what is in a weight file, and what running it costs."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer

from vaespec import autoencoder, families
from vaespec.analysis.cost import Cost, cost
from vaespec.architecture import count_parameters
from vaespec.cli import forms, options, text
from vaespec.cli.console import print_facts, print_json, print_table, progress
from vaespec.cli.model import chosen_ops
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.weights.inspect import Inspection, inspect_weights

NAMES, LINES = 4, 20  # tensors that are named in a row, problems that are listed; --json has them all
VALUE = 40  # characters of metadata that are shown


def info(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="tiny, a diffusers folder, or a weight file of any kind.")
    ] = "tiny",
    size: Annotated[str, typer.Option("--size", metavar="N|HxW", help="Image size in px for the cost.")] = "512",
    family: options.Family = None,
    prefix: options.Prefix = None,
    dialect: options.Dialect = None,
    ema: options.Ema = False,
    check: Annotated[bool, typer.Option("--check", help="Read every tensor too, for NaN and infinity.")] = False,
    plan: Annotated[bool, typer.Option("--plan", help="How the backend computes each convolution, too.")] = False,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = "float32",
    precision: options.Precision = "default",
    as_json: options.Json = False,
) -> None:
    """Describe weights by their headers: where they are from, their config, what encode and decode cost at a size.

    Exit code 1 if they could not be loaded; the problems are listed.
    """
    height, width = _parse(size)
    path = autoencoder.locate(source)
    with progress(f"inspecting {source}"):
        found = inspect_weights(path, family, check=check, prefix=prefix, dialect=dialect, use_ema=ema)
    costs = {} if found.config is None else _costs(found.config, height, width, source)
    plans = {}
    if plan and found.config is not None:
        plans = forms.plans(found.config, (height, width), chosen_ops(backend, device, dtype, precision))
    if as_json:
        print_json(_document(source, found, (height, width), costs) | forms.document(plans))
    else:
        print_facts(_file_facts(source, found) | ({} if found.config is None else _config_facts(found.config)))
        if costs:
            print(f"\nCost at {height} x {width} px (height x width), one image, float32:")
            print_table(("", *costs), [list(row) for row in _cost_rows(costs)], numbers=(1, 2))
        forms.show(plans)
        if found.problems:
            print("\n".join(["\nIt cannot be loaded:", *_shortened(found.problems)]))
    if found.problems:
        raise typer.Exit(1)


def _costs(config: AutoencoderConfig, height: int, width: int, source: str) -> dict[str, Cost]:
    f = config.downsampling_factor
    if min(height, width) < f:
        raise InputError(f"--size {height}x{width}: {source} needs {f} x {f} px at least.")
    return {
        "encode": cost(config, "encode", (height, width)),
        "decode": cost(config, "decode", (height // f, width // f)),
    }


def _parse(size: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)(?:[x×](\d+))?", size)
    if match is None or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise typer.BadParameter(f"{size!r}: give one number, or HEIGHTxWIDTH such as 768x1024.", param_hint="--size")
    return sides[0], sides[-1]


def _document(source: str, found: Inspection, size: tuple[int, int], costs: dict[str, Cost]) -> dict[str, Any]:
    config = found.config
    described = {} if config is None else {"config": config.to_dict(), "f": config.downsampling_factor}
    fields = dataclasses.asdict(dataclasses.replace(found, config=None))
    return {
        **fields,
        **described,
        "source": source,
        "path": str(found.path),
        "parameters": None if config is None else count_parameters(config),
        "image_size": list(size),
        "cost": {side: {**dataclasses.asdict(c), "flops": c.flops} for side, c in costs.items()},
    }


def _file_facts(source: str, found: Inspection) -> dict[str, str]:
    facts = {"source": source, "container": found.container}
    if found.metadata:
        facts["metadata"] = ", ".join(_metadata(found.metadata))
    if found.dialect is not None:
        dtypes = ", ".join(f"{count:,} x {dtype}" for dtype, count in found.dtypes.items())
        facts |= {
            "dialect": f"{found.dialect}, kernels {found.layout}",
            "prefix": found.prefix or "none",
            "halves": " and ".join(found.halves),
            "tensors": str(found.tensors or "unknown"),
            "stored": f"{dtypes} ({text.size(found.bytes)})" if dtypes else "unknown",
            "families": "; ".join(_families(found.families)) or "none of the published ones",
        }
    if aside := beside(found.ignored, found.others):
        facts["left aside"] = aside
    if found.checked and not found.problems:
        facts["values"] = "all finite"
    return facts


def beside(ignored: Sequence[str], others: int) -> str:
    """What is in a file beside the model, in words; empty if there is nothing."""
    named = [", ".join(_shortened(ignored, NAMES))] if ignored else []
    return "; ".join([*named, f"{others} outside the VAE"] if others else named)


def _shortened(lines: Sequence[str], most: int = LINES) -> list[str]:
    return list(lines) if len(lines) <= most else [*lines[:most], f"and {len(lines) - most} more"]


def _metadata(metadata: Mapping[str, str]) -> Iterator[str]:
    """Each entry; long ones by their names."""
    for key, value in metadata.items():
        yield f"{key}={value}" if len(value) <= VALUE and value.isprintable() else key


def _families(found: Mapping[str, str]) -> Iterator[str]:
    """Those of one reason together."""
    for why in dict.fromkeys(found.values()):
        yield f"{', '.join(name for name, reason in found.items() if reason == why)} ({why})"


def _config_facts(config: AutoencoderConfig) -> dict[str, str]:
    decoder_widths = f", decoder {text.shape(config.decoder_widths)}" if config.decoder_block_out_channels else ""
    return {
        "class": config.class_name,
        "channels": f"{config.in_channels} -> {config.latent_channels} latent -> {config.out_channels}",
        "f": f"{config.downsampling_factor} px per latent, along each side",
        "widths": f"{text.shape(config.block_out_channels)}{decoder_widths}",
        "resnets": f"{config.layers_per_block} per level, {config.layers_per_block + 1} in the decoder",
        "attention": _attention(config),
        "quant convs": f"{_yes(config.use_quant_conv)}, post {_yes(config.use_post_quant_conv)}",
        "norm, act": f"{config.norm_num_groups} groups, {config.activation}",
        "latents": _scaling(config),
        "parameters": f"{count_parameters(config):,}",
    }


def _attention(config: AutoencoderConfig) -> str:
    places = ["middle"] if config.mid_block_add_attention else []
    places += [f"encoder level {i}" for i, name in enumerate(config.down_block_types) if name.startswith("Attn")]
    places += [f"decoder level {i}" for i, name in enumerate(config.up_block_types) if name.startswith("Attn")]
    return ", ".join(places) or "none"


def _scaling(config: AutoencoderConfig) -> str:
    """How latents are normalised, in text."""
    if config.patch_size is not None:
        return f"{text.shape(config.patch_size)} patches, batch-norm"
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
        ("result (moments, image)", *(text.shape(c.output_shape[1:]) for c in both)),
        ("arithmetic", *(text.arithmetic(c.flops) for c in both)),
        ("  convolutions", *(text.arithmetic(c.conv_flops) for c in both)),
        ("  attention", *(text.arithmetic(c.attention_flops) for c in both)),
        ("peak activations", *(text.size(c.peak_bytes) for c in both)),
        ("weights", *(text.size(c.weight_bytes) for c in both)),
    ]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
