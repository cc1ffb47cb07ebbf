"""The options and arguments that several commands share, each defined once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from vaespec.backend import PRECISIONS
from vaespec.cli.picture_files import FORMATS, Pad
from vaespec.cli.picture_writing import Depth
from vaespec.config_checks import brief
from vaespec.errors import InputError
from vaespec.tiling import planner
from vaespec.tiling.padding import PADDINGS
from vaespec.tiling.settings import Tiling

_MODEL, _POSTERIOR = "Model", "Posterior"


def _max_memory(size: str | None) -> str | None:
    """Raises a usage error for a text that is not a size in bytes."""
    if size is not None:
        try:
            planner.as_bytes(size)
        except InputError as error:
            raise typer.BadParameter(str(error)) from None
    return size


def _padding(words: str) -> str:
    """Raises a usage error for words that name no padding."""
    try:
        Tiling(padding=padding_of(words))
    except InputError as error:
        raise typer.BadParameter(str(error)) from None
    return words


def padding_of(words: str) -> str | list[str]:
    """Splits the words of --padding: one, or two for (height, width)."""
    parts = [word.strip() for word in words.split(",")]
    return parts if len(parts) > 1 else parts[0]


def image_size(size: str) -> tuple[int, int]:
    """(height, width) of "768" or "768x1024", in px; raises a usage error for any other text."""
    match = re.fullmatch(r"(\d{1,9})(?:[x×](\d{1,9}))?", size)
    if match is None or 0 in (sides := [int(side) for side in match.groups() if side]):
        raise typer.BadParameter(
            f"{brief(size)}: give one number, or HEIGHTxWIDTH such as 768x1024.", param_hint="--size"
        )
    return sides[0], sides[-1]


def _folder(folder: Path | None) -> Path | None:
    """Raises a usage error for a path that is no folder."""
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"there is no folder {folder}: create it first.")
    return folder


Pictures = Annotated[
    list[Path],
    typer.Argument(metavar="PICTURES", help=f"Picture files of any size: {', '.join(FORMATS)}.", show_default=False),
]
_SOURCES = "tiny (embedded), a diffusers folder, a weight file in any known format, or owner/name on the hub."
Source = Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCES)]

OutputFile = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")]
OutputFolder = Annotated[
    Path, typer.Option("--output", "-o", metavar="DIR", help="The folder to write to; created if it does not exist.")
]
OutputDepth = Annotated[
    Depth,
    typer.Option(
        "--depth",
        help="Depth of the pictures that are written. 8, 16: PNG of so many bits per channel. float: TIFF of 32-bit "
        "floats in which 0 is black and 1 white, not clipped.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

Weights = Annotated[str, typer.Option("--weights", "-w", metavar="SOURCE", help=_SOURCES, rich_help_panel=_MODEL)]
Family = Annotated[
    str | None,
    typer.Option("--family", metavar="NAME", help="Family of a single weight file, e.g. sdxl.", rich_help_panel=_MODEL),
]
_PREFIX = "Prefix of the VAE to read, if a file has several."
_DIALECT = "Dialect of the file, if its names fit several."
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
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="Refuse tensors that are not the model's, or leave them out with a warning.",
        rich_help_panel=_MODEL,
    ),
]
Ema = Annotated[
    bool, typer.Option("--ema", help="Read the moving average (EMA) of the weights.", rich_help_panel=_MODEL)
]
BackendName = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        metavar="NAME",
        help="A backend that `vaespec backends` lists, or the import path of an Array API namespace, e.g. "
        "array_api_strict; by default the best one of this machine.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME",
        help="A device, as the backend names it, e.g. cuda:1; by default the backend's best one.",
        rich_help_panel=_MODEL,
    ),
]
Dtype = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="NAME",
        help="Dtype of the weights and results; by default float32, for reference and namespaces float64.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]
Precision = Annotated[
    str,
    typer.Option(
        "--precision",
        metavar="|".join(PRECISIONS),
        help="How float32 numbers are multiplied. default: as the backend does it, on some devices in TF32 or "
        "bfloat16. highest: in float32.",
        rich_help_panel=_MODEL,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        callback=_max_memory,
        help="Memory that the device (on a CPU: the process) may use at one time, e.g. 2GiB. Pictures that need more "
        "are computed in bands of rows, with the same result. By default most of the free memory.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]

PaddingMode = Annotated[
    str,
    typer.Option(
        "--padding",
        metavar="WORD[,WORD]",
        callback=_padding,
        help=f"How feature maps continue beyond their borders: {', '.join(PADDINGS[:-1])} or {PADDINGS[-1]}, or two of "
        "them for height,width. Weights do not show with which padding they were trained.",
        rich_help_panel=_MODEL,
    ),
]

OffloadFolder = Annotated[
    Path | None,
    typer.Option(
        "--offload-folder",
        metavar="DIR",
        callback=_folder,
        help="Folder for temporary files with the bands that memory cannot hold; by default TMPDIR, or /tmp. In a "
        "folder that is memory itself (tmpfs), they count as memory.",
        rich_help_panel=_MODEL,
        show_default=False,
    ),
]

Padding = Annotated[
    Pad,
    typer.Option(
        "--pad",
        help="What to do with a side that is not a multiple of f, the VAE's downsampling factor. floor: drop the last "
        "rows and columns, as diffusers does. edge: repeat the last row and column up to a multiple, and crop after "
        "decoding.",
    ),
]
Sample = Annotated[
    bool,
    typer.Option("--sample/--mode", help="Take a sample of the posterior, or its mode.", rich_help_panel=_POSTERIOR),
]
SeedNumber = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        max=2**64 - 1,
        help="Seed of --sample; picture i gets N + i, with the same noise on every backend. 0 if not given.",
        rich_help_panel=_POSTERIOR,
        show_default=False,
    ),
]


def seeds(count: int, sample: bool, seed: int | None) -> Sequence[int | None]:
    """Returns a seed for each picture, or None for the mode."""
    if seed is not None and not sample:
        raise typer.BadParameter("it needs --sample, because the mode has no seed.", param_hint="--seed")
    if (seed or 0) + count > 2**64:
        raise typer.BadParameter(
            f"{seed} + {count - 1} is over 2**64 - 1: choose a smaller seed for {count} pictures.", param_hint="--seed"
        )
    return [(seed or 0) + i if sample else None for i in range(count)]


def example(command: str) -> str:
    """Formats the last line of a help text."""
    return f"Example: [bold]{command}[/bold]"
