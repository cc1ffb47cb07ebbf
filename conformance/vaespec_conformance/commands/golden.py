"""`vaespec golden`: writes a model, inputs, and what each layer makes of them, for ports in any language."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from vaespec import families
from vaespec.cli import options, text
from vaespec.cli.console import print_facts, progress
from vaespec.dtypes import STORAGE_DTYPES
from vaespec_conformance.commands.conformance import usage_errors

Out = Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write: a new one, or an empty one.")]
Family = Annotated[str, typer.Option("--family", metavar="NAME", help=f"Whose layers: {', '.join(families.names())}.")]
Size = Annotated[str, typer.Option("--size", metavar="HxW", help="Size of the image in px; odd sizes show more.")]
Dtype = Annotated[
    str, typer.Option("--dtype", metavar="NAME", help=f"Of weights, inputs and budgets: {', '.join(STORAGE_DTYPES)}.")
]
PerLayer = Annotated[bool, typer.Option("--per-layer", help="Add the output of every layer.")]
FullWidth = Annotated[bool, typer.Option("--full-width", help="The family's own widths: about 335 MB for sd1.")]
Groups = Annotated[
    int | None,
    typer.Option("--groups", metavar="N", help="Groups of a narrow model's norms; by default the most that 8 MB hold."),
]
Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Other weights and inputs.", min=0)]


def register(app: typer.Typer) -> None:
    """Adds the command to vaespec's; the entry point in the group `vaespec.commands` names this function."""
    app.command(epilog=options.example("vaespec golden sd1-pack --family sd1 --size 33x47 --per-layer"))(golden)


@usage_errors()
def golden(
    out: Out,
    family: Family,
    size: Size = "33x47",
    dtype: Dtype = "float32",
    per_layer: PerLayer = False,
    full_width: FullWidth = False,
    groups: Groups = None,
    seed: Seed = 0,
) -> None:
    """Write a golden pack: weights, inputs, the specification's outputs, and how far an answer may be from them.

    The files are safetensors, named as diffusers names them, and a manifest. A narrow model has the family's levels and
    layers with fewer channels. examples/golden/ has checkers of 60 lines in C and in Python.
    """
    from vaespec_conformance.golden_packs.pack import Request, write_pack

    chosen: dict[str, Any] = {"per_layer": per_layer, "full_width": full_width, "groups": groups, "seed": seed}
    request = Request(family=family, size=options.image_size(size), dtype=dtype, **chosen)
    with progress(f"computing {family} at {size}"):
        manifest = write_pack(out, request)
    config, files = manifest["config"], manifest["files"]
    print_facts(
        {
            "written": str(out),
            "channels": f"{', '.join(map(str, config['block_out_channels']))} in {config['norm_num_groups']} groups",
            "outputs": str(len(manifest["outputs"])),
            "size": text.size(sum(file["bytes"] for file in files.values())),
        }
    )
