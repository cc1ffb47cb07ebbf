"""`vaespec convert`: a VAE's weights in the names, layout and container of another world."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vaespec import autoencoder, weights
from vaespec.architecture import parameters
from vaespec.cli import options, words
from vaespec.cli.console import print_facts, print_json, progress
from vaespec.cli.model import require_scale
from vaespec.errors import InputError
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, known_dialect
from vaespec.weights.save import SUFFIX


def convert(
    source: Annotated[
        str, typer.Argument(metavar="SRC", help="tiny, a folder, or a weight file of any kind.", show_default=False)
    ],
    target: Annotated[
        Path,
        typer.Argument(
            metavar="DST", help="The file to write; with --to diffusers also a folder, for from_pretrained."
        ),
    ],
    to: Annotated[
        str, typer.Option("--to", metavar="DIALECT", help=f"One of {', '.join(DIALECTS)}.", show_default=False)
    ],
    dtype: Annotated[
        str | None, typer.Option("--dtype", metavar="NAME", help="Dtype to store; by default the source's.")
    ] = None,
    prefix: Annotated[
        str, typer.Option("--prefix", metavar="TEXT", help="Put before every name, e.g. first_stage_model.")
    ] = "",
    bits: Annotated[
        int | None, typer.Option("--bits", metavar="4|8", help="Quantise the attention's linear maps, for mflux.")
    ] = None,
    family: options.Family = None,
    source_prefix: options.SourcePrefix = None,
    source_dialect: options.SourceDialect = None,
    ema: options.Ema = False,
    force: Annotated[bool, typer.Option("--force", help="Replace what is at DST.")] = False,
    as_json: options.Json = False,
) -> None:
    """Write a VAE's weights in another dialect, with the layout and container it is stored in."""
    path, dialect = autoencoder.locate(source), known_dialect(to)
    folder = dialect == DIFFUSERS and (target.is_dir() or not target.suffix)
    if folder and (prefix or bits):
        raise typer.BadParameter("not for a folder for diffusers: name a .safetensors.", param_hint="--prefix, --bits")
    _require_free(target, path, folder, force)
    if not folder and target.suffix != SUFFIX[dialect.container]:
        raise InputError(f"cannot write {target}: in {to} names it is a {SUFFIX[dialect.container]}; name it so.")
    with progress(f"converting {source}"):
        config, arrays = weights.load(path, family, prefix=source_prefix, dialect=source_dialect, use_ema=ema)
        if folder:
            require_scale(config, source, ", or name a .safetensors: in a folder diffusers would take 0.18215")
            if lacking := parameters(config).keys() - arrays.keys():
                raise InputError(f"{source} is half a VAE, without {min(lacking)}: diffusers reads whole ones only.")
            weights.save_folder(target, config, arrays, dtype)
        else:
            weights.save_file(target, config, arrays, dialect=to, prefix=prefix, dtype=dtype, bits=bits)
    written = target / "diffusion_pytorch_model.safetensors" if folder else target
    document = {"source": source, "written": str(target), "dialect": to, "tensors": len(arrays)}
    size = written.stat().st_size
    if as_json:
        print_json({**document, "bytes": size, "config": config.to_dict()})
    else:
        print_facts({**{name: str(value) for name, value in document.items()}, "size": words.size(size)})


def _require_free(target: Path, source: Path, folder: bool, force: bool) -> None:
    """InputError where something would be lost."""
    taken = [target / "config.json", target / "diffusion_pytorch_model.safetensors"] if folder else [target]
    there = [path for path in taken if path.exists()]
    read = [source] if source.is_file() else list(source.iterdir())
    if any(path.samefile(one) for path in there for one in read):
        raise InputError(f"{target} is what is to be converted: name another DST.")
    if there and not force:
        raise InputError(f"{there[0]} is there already: name another DST, or replace it with --force.")
