"""`vaespec info`: what a weight file holds, and what it costs to run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from vaespec import autoencoder, families
from vaespec.analysis.convolutions import PlannedConvolution, planned
from vaespec.analysis.cost import Cost, cost
from vaespec.architecture import HALVES, count_parameters
from vaespec.cli import options, text
from vaespec.cli.console import print_facts, print_json, print_lines, print_table, progress
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.reference import ReferenceOps
from vaespec.registry import choose_backend, make_ops
from vaespec.weights.inspect import Inspection, inspect_weights

MAX_PROBLEMS = 20  # problems that are printed; --json has them all
MAX_VALUE = 40  # characters of a metadata value that is printed
PADDING_UNKNOWN = (
    "not shown by weights: zeros, unless they were trained with another; then give --padding reflect, or set_padding"
)

Plans = dict[str, list[PlannedConvolution]]


def info(
    source: options.Source = "tiny",
    size: Annotated[
        str, typer.Option("--size", metavar="N|HxW", help="Image size in px that the cost is computed for.")
    ] = "512",
    family: options.Family = None,
    prefix: options.Prefix = None,
    dialect: options.Dialect = None,
    ema: options.Ema = False,
    strict: options.Strict = True,
    check: Annotated[bool, typer.Option("--check", help="Read every tensor, and look for NaN and infinity.")] = False,
    digest: Annotated[
        bool, typer.Option("--digest/--no-digest", help="Read every tensor, and show the SHA-256 of the weights.")
    ] = True,
    plan: Annotated[bool, typer.Option("--plan", help="Show how the backend computes each convolution.")] = False,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    as_json: options.Json = False,
) -> None:
    """Describe weights: format, config, SHA-256, problems, and the cost of encode and decode.

    The SHA-256 is the same for the same numbers in any format and dtype. The exit code is 1 if the weights cannot be
    loaded; the problems are listed.
    """
    image, path = options.image_size(size), autoencoder.locate(source)
    with progress(f"inspecting {source}"):
        inspection = inspect_weights(
            path, family, check=check, hashed=digest, prefix=prefix, dialect=dialect, use_ema=ema, strict=strict
        )
    costs: dict[str, Cost] = {}
    plans: Plans = {}
    if (config := inspection.config) is not None:
        costs = _costs(config, image, source)
        if plan:
            plans = _plans(config, image, make_ops(choose_backend(backend), device, dtype, precision))
    if as_json:
        print_json(_document(source, inspection, image, costs, plans))
    else:
        _print(source, inspection, image, costs, plans, strict)
    if inspection.problems:
        raise typer.Exit(1)


def _costs(config: AutoencoderConfig, image: tuple[int, int], source: str) -> dict[str, Cost]:
    f = config.downsampling_factor
    if min(image) < f:
        raise InputError(f"--size {image[0]}x{image[1]} is too small: {source} needs at least {f} x {f} px.")
    return {half.verb: cost(config, half.verb, half.input_shape(config, 1, *image)[2:]) for half in HALVES.values()}


def _plans(config: AutoencoderConfig, image: tuple[int, int], ops: ReferenceOps) -> Plans:
    """The convolutions of encoding and decoding one image, in the order in which they run."""
    return {
        half.verb: planned(half.build(config), half.input_shape(config, 1, *image), ops) for half in HALVES.values()
    }


def _document(
    source: str, inspection: Inspection, image: tuple[int, int], costs: dict[str, Cost], plans: Plans
) -> dict[str, Any]:
    """The content of --json."""
    config = inspection.config
    described = {} if config is None else {"config": config.to_dict(), "f": config.downsampling_factor}
    forms = {name: list(map(dataclasses.asdict, convolutions)) for name, convolutions in plans.items()}
    return {
        **dataclasses.asdict(dataclasses.replace(inspection, config=None)),
        **described,
        "padding": None if config is None else PADDING_UNKNOWN,
        "source": source,
        "path": str(inspection.path),
        "parameters": None if config is None else count_parameters(config),
        "image_size": list(image),
        "cost": {name: {**dataclasses.asdict(c), "flops": c.flops} for name, c in costs.items()},
        **({"plan": forms} if forms else {}),
    }


def _print(
    source: str, inspection: Inspection, image: tuple[int, int], costs: dict[str, Cost], plans: Plans, strict: bool
) -> None:
    config_facts = {} if inspection.config is None else _config_facts(inspection.config)
    print_facts(_file_facts(source, inspection) | config_facts)
    if costs:
        print(f"\nCost at {image[0]} x {image[1]} px (height x width), one image, float32:")
        print_table(("", *costs), [list(row) for row in _cost_rows(costs)], numbers=(1, 2))
    for name, convolutions in plans.items():
        print(f"\nConvolutions of {name}:")
        header = ("layer", "input", "kernel", "form", "of the direct cost")
        print_table(header, list(map(_plan_row, convolutions)), numbers=(4,))
    if inspection.problems:
        spare = strict and all(problem.startswith("unexpected") for problem in inspection.problems)
        remedy = "; --no-strict leaves these out, but for attention inside the model" if spare else ""
        print_lines("", f"It cannot be loaded{remedy}:", *text.shortened(inspection.problems, MAX_PROBLEMS))


def _file_facts(source: str, inspection: Inspection) -> dict[str, str]:
    facts = {"source": source, "container": inspection.container}
    if inspection.metadata:
        facts["metadata"] = ", ".join(_metadata(inspection.metadata))
    if inspection.dialect is not None:
        dtypes = ", ".join(f"{count:,} x {dtype}" for dtype, count in inspection.dtypes.items())
        facts |= {
            "dialect": f"{inspection.dialect}, kernels {inspection.layout}",
            "prefix": inspection.prefix or "none",
            "halves": " and ".join(inspection.halves) + " (bare names)" * inspection.bare,
            "tensors": str(inspection.tensors or "unknown"),
            "stored": f"{dtypes} ({text.size(inspection.bytes)})" if dtypes else "unknown",
            "families": "; ".join(_families(inspection.families)) or "none of the published ones",
        }
    if inspection.sha256 is not None:
        facts["sha256"] = inspection.sha256
    if ignored := text.ignored(inspection.ignored, inspection.others):
        facts["ignored"] = ignored
    if inspection.checked and not inspection.problems:
        facts["values"] = "all finite"
    return facts


def _metadata(metadata: Mapping[str, str]) -> Iterator[str]:
    """Formats each entry; an entry with a long value by its name only."""
    for key, value in metadata.items():
        yield f"{key}={value}" if len(value) <= MAX_VALUE and value.isprintable() else key


def _families(reasons: Mapping[str, str]) -> Iterator[str]:
    """Formats families, grouped by the reason."""
    for reason in dict.fromkeys(reasons.values()):
        yield f"{', '.join(name for name, its_reason in reasons.items() if its_reason == reason)} ({reason})"


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
        "padding": PADDING_UNKNOWN,
        "parameters": f"{count_parameters(config):,}",
    }


def _attention(config: AutoencoderConfig) -> str:
    places = ["middle"] if config.mid_block_add_attention else []
    places += [f"encoder level {i}" for i, name in enumerate(config.down_block_types) if name.startswith("Attn")]
    places += [f"decoder level {i}" for i, name in enumerate(config.up_block_types) if name.startswith("Attn")]
    return ", ".join(places) or "none"


def _scaling(config: AutoencoderConfig) -> str:
    """Describes how latents are normalized."""
    if config.patch_size is not None:
        return f"{text.shape(config.patch_size)} patches, batch-norm"
    if config.scaling_factor is None:
        return f"scale unknown ({families.scaling_candidates(config)})"
    if config.latents_mean is not None:
        return f"mean and std per channel, scale {config.scaling_factor}"
    shifted = f"(z - {config.shift_factor})" if config.shift_factor else "z"
    return f"{shifted} x {config.scaling_factor}"


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


def _plan_row(one: PlannedConvolution) -> list[str]:
    """The cost of the chosen form is a share of the cost of the formula as it is written, if the backend knows it."""
    (_, C, H, W), (O, _, kh, kw) = one.x, one.kernel
    shape = text.shape((C, H, W)) + (", doubled" if one.doubled else "")
    share = f"{one.costs[one.form] / one.direct:.0%}" if one.direct else ""
    return [one.name, shape, text.shape((O, kh, kw)), one.form, share]


def _yes(flag: bool) -> str:
    return "yes" if flag else "no"
