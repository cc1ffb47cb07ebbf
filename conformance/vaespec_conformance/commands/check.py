"""`vaespec check`: is it my machine?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaespec import __version__
from vaespec.architecture import HALVES, Half, half_of, halves_among
from vaespec.cli import options
from vaespec.cli.console import Steps, print_json, print_lines, print_table, progress
from vaespec.cli.loading import open_weights
from vaespec.cli.options import example
from vaespec.config import AutoencoderConfig
from vaespec.errors import MemoryLimitError
from vaespec.machine import host_memory
from vaespec.tiling import planner
from vaespec_conformance.commands.conformance import usage_errors

if TYPE_CHECKING:
    from vaespec_conformance.machine_check.findings import Finding
    from vaespec_conformance.machine_check.settings import CheckSettings
    from vaespec_conformance.machine_check.setups import Setup
    from vaespec_conformance.machine_check.sides import Weights

SCHEMA = "vaespec-check/1"
DIRECTIONS = [half.verb for half in HALVES.values()]


def register(app: typer.Typer) -> None:
    """Adds the command to vaespec's; the entry point in the group `vaespec.commands` names this function."""
    app.command(epilog=example("vaespec check sdxl_vae.safetensors --device mps --dtype float16"))(check)


def _half(word: str | None) -> str | None:
    if word is not None and word not in DIRECTIONS:
        raise typer.BadParameter(f"{word!r}: choose {' or '.join(DIRECTIONS)}.")
    return word


@usage_errors()
def check(
    source: options.Source,
    size: Annotated[str, typer.Option("--size", metavar="N|HxW", help="Size of the picture in px.")] = "1024",
    half: Annotated[
        str | None, typer.Option("--half", metavar="encode|decode", callback=_half, help="Only this half.")
    ] = None,
    family: options.Family = None,
    strict: options.Strict = True,
    backend: options.BackendName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    precision: options.Precision = "default",
    diffusers: Annotated[
        bool, typer.Option("--diffusers", help="Check diffusers' own model on that device, not a backend of vaespec.")
    ] = False,
    max_memory: options.MaxMemory = None,
    as_json: options.Json = False,
) -> None:
    """Check that this machine computes your own VAE right: on your backend, device and dtype, at your size.

    One picture is encoded, and latents are decoded, as a whole, and compared with vaespec's NumPy engine in exact bands
    of rows, within the error that the rounding of the dtype makes with these weights. If they differ, the size from
    which on they do, the place and the likely cause are searched for.

    Exit codes: 0 right; 1 wrong; 2 the request is invalid, or the memory is too little.
    """
    from vaespec_conformance.machine_check import setups

    sides = options.image_size(size)
    config, weights = open_weights(source, family, strict)
    halves = _halves(half, config, weights)
    with progress("check") as step:
        make = setups.diffusers_setup if diffusers else setups.backend_setup
        setup = make(config, weights, backend, device, dtype, precision)
        settings = _settings(config, weights, setup, halves, sides, max_memory, step)
        findings = _findings(settings)
    _report(source, settings, findings, as_json)
    raise typer.Exit(0 if all(finding.right for finding in findings) else 1)


def _halves(direction: str | None, config: AutoencoderConfig, weights: Weights) -> list[Half]:
    """The halves to check: those that the weights have, or the one that was asked for."""
    present = [HALVES[name] for name in halves_among(weights, config)]
    if direction is None:
        return present
    if (half := half_of(direction)) not in present:
        raise half.absent()
    return [half]


def _settings(
    config: AutoencoderConfig,
    weights: Weights,
    setup: Setup,
    halves: Sequence[Half],
    sides: tuple[int, int],
    max_memory: str | None,
    step: Steps,
) -> CheckSettings:
    from vaespec_conformance.machine_check.settings import CheckSettings
    from vaespec_conformance.machine_check.setups import reference_ops

    memory = host_memory()
    most = int(planner.SHARE * memory.free) + memory.used if max_memory is None else planner.as_bytes(max_memory)
    return CheckSettings(
        config=config,
        weights=weights,
        setup=setup,
        reference_ops=reference_ops(setup.dtype),
        halves=halves,
        height=sides[0],
        width=sides[1],
        max_memory=most,
        tell=step.say,
        progress=step.part,
    )


def _findings(settings: CheckSettings) -> list[Finding]:
    """Runs the check. Raises MemoryLimitError if it runs out of memory: that is no verdict."""
    from vaespec_conformance.machine_check.check import MachineCheck

    try:
        return MachineCheck(settings).run()
    except MemoryError as error:
        size = f"{settings.height} x {settings.width} px"
        raise MemoryLimitError(f"not enough memory to check {size}: give a smaller --size.") from error


def _report(source: str, settings: CheckSettings, findings: list[Finding], as_json: bool) -> None:
    """Prints a table and sentences, or one JSON document."""
    from vaespec_conformance.machine_check.findings_text import sentences

    lines = [line for finding in findings for line in sentences(finding)]
    right = all(finding.right for finding in findings)
    if as_json:
        return print_json(_document(source, settings, findings, lines))
    rows = [
        [f.half, f.dtype, _number(f.error), _number(f.budget), _number(f.share), _verdict(f.right)] for f in findings
    ]
    print_table(("half", "dtype", "error", "budget", "of the budget", "verdict"), rows, numbers=(2, 3, 4))
    size = f"{settings.height} x {settings.width} px"
    print_lines(*lines, f"{source}: {_verdict(right)} at {size}. {settings.setup.words}; vaespec {__version__}.")


def _number(x: float) -> str:
    return f"{x:.2g}" if math.isfinite(x) else "-"


def _verdict(right: bool) -> str:
    return "right" if right else "wrong"


def _document(source: str, settings: CheckSettings, findings: list[Finding], lines: list[str]) -> dict[str, Any]:
    setup = settings.setup
    return {
        "schema": SCHEMA,
        "vaespec": __version__,
        "weights": source,
        "setup": {
            "name": setup.name,
            "version": setup.version or None,
            "device": setup.device,
            "dtype": setup.dtype,
            "precision": setup.precision,
        },
        "size": [settings.height, settings.width],
        "verdict": _verdict(all(finding.right for finding in findings)),
        "halves": [finding.document() for finding in findings],
        "sentences": lines,
    }
