"""The options that several commands share, each defined once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from vaespec.backend import PRECISIONS
from vaespec.cli.framing import Pad
from vaespec.errors import InputError
from vaespec.tiling import planner

_MODEL, _POSTERIOR = "Model", "Posterior"

Pictures = Annotated[
    list[Path], typer.Argument(metavar="PICTURES", help="Picture files of any size.", show_default=False)
]

Folder = Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Folder to write to, made if need be.")]

Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        "-w",
        metavar="SRC",
        help="tiny (embedded), a diffusers folder, or a weight file of any kind.",
        rich_help_panel=_MODEL,
    ),
]
Family = Annotated[
    str | None,
    typer.Option("--family", metavar="NAME", help="Family of a single weight file, e.g. sdxl.", rich_help_panel=_MODEL),
]
_PREFIX, _DIALECT = "Prefix of the VAE to take, where a file has several.", "Dialect of a file whose names do not tell."
Prefix = Annotated[
    str | None, typer.Option("--prefix", "--source-prefix", metavar="TEXT", help=_PREFIX, rich_help_panel=_MODEL)
]
Dialect = Annotated[
    str | None, typer.Option("--dialect", "--source-dialect", metavar="NAME", help=_DIALECT, rich_help_panel=_MODEL)
]
SourcePrefix = Annotated[
    str | None, typer.Option("--source-prefix", metavar="TEXT", help=_PREFIX, rich_help_panel=_MODEL)
]
SourceDialect = Annotated[
    str | None, typer.Option("--source-dialect", metavar="NAME", help=_DIALECT, rich_help_panel=_MODEL)
]
Ema = Annotated[bool, typer.Option("--ema", help="Take the moving average of the weights.", rich_help_panel=_MODEL)]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="NAME",
        help="See `vaespec backends`; by default the best one here.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="As the backend calls it, e.g. cuda:1; by default its best.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help="Dtype of the weights and results.", rich_help_panel=_MODEL)
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        help="default: products of float32 as the backend makes them, on some devices from TF32 or bfloat16. "
        "highest: from float32.",
        rich_help_panel=_MODEL,
    ),
]

MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        callback=lambda size: size if size is None else _checked(planner.as_bytes, size),
        help="What the device, or on a CPU the process, may hold at one time, e.g. 2GiB: large pictures are worked on "
        "in bands of rows, with the same results. By default most of what is free.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]

Padding = Annotated[
    Pad,
    typer.Option(
        "--pad",
        help="floor: drop what is left over from a multiple of f, as diffusers does. "
        "edge: repeat the border up to a multiple, and cut it off again after decoding.",
    ),
]
Sample = Annotated[
    bool,
    typer.Option("--sample/--mode", help="Draw from the posterior, or take its mode.", rich_help_panel=_POSTERIOR),
]
SeedNumber = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        max=2**64 - 1,
        help="Of --sample: picture i is drawn with seed + i, the same on every backend. 0 if not given.",
        rich_help_panel=_POSTERIOR,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]


def seeds(count: int, sample: bool, seed: int | None) -> Sequence[int | None]:
    """A seed per picture, None where the mode is taken."""
    if seed is not None and not sample:
        raise typer.BadParameter("goes with --sample; the mode has no seed.", param_hint="--seed")
    if (seed or 0) + count > 2**64:
        raise typer.BadParameter(f"{seed} + {count - 1} pictures goes beyond 2**64 - 1.", param_hint="--seed")
    return [(seed or 0) + i if sample else None for i in range(count)]


def _checked(read: Callable[[str], object], text: str) -> str:
    """The text, if that can be read; a usage error in its words if not."""
    try:
        read(text)
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return text


def example(command: str) -> str:
    """The last line of a help text."""
    return f"Example: [bold]{command}[/bold]"
