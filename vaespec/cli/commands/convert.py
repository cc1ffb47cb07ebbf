"""`vaespec convert`: a VAE's weights in the names, layout and container of another world."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vaespec import autoencoder, weights
from vaespec.architecture import parameters
from vaespec.cli import options, text
from vaespec.cli.commands.info import beside
from vaespec.cli.console import print_facts, print_json, progress
from vaespec.cli.model import require_scale
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, Dialect, known_dialect
from vaespec.weights.folders import CONFIG, FolderFiles
from vaespec.weights.save import WEIGHTS


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
    if not folder:
        _require_name(target, dialect)
    with progress(f"converting {source}"):
        config, arrays = weights.load_weights(path, family, prefix=source_prefix, dialect=source_dialect, use_ema=ema)
        _require_free(target, (path, *_files(arrays)), folder, force)
        if folder:
            require_scale(config, source, ", or name a .safetensors: in a folder diffusers would take 0.18215")
            if lacking := parameters(config).keys() - arrays.keys():
                raise InputError(f"{source} is half a VAE, without {min(lacking)}: diffusers reads whole ones only.")
            weights.save_folder(target, config, arrays, dtype)
        else:
            weights.save_file(target, config, arrays, dialect=to, prefix=prefix, dtype=dtype, bits=bits)
    size = (target / WEIGHTS if folder else target).stat().st_size
    document = {"source": source, "written": str(target), "dialect": to, "tensors": len(arrays), "bytes": size}
    _report(document, arrays, config, as_json)


def _report(document: dict[str, Any], arrays: CanonicalWeights, config: AutoencoderConfig, as_json: bool) -> None:
    """What was written, and what of the source was not."""
    ignored, others = arrays.vae.unread(set(map(arrays.vae.stored, arrays)))
    if as_json:
        print_json({**document, "ignored": ignored, "others": len(others), "config": config.to_dict()})
        return
    facts = {name: str(value) for name, value in document.items()}
    facts["size"] = text.size(int(facts.pop("bytes")))
    if left := beside(ignored, len(others)):
        facts["left behind"] = left
    print_facts(facts)


def _files(arrays: CanonicalWeights) -> tuple[Path, ...]:
    """The files that these weights are read from."""
    files = FolderFiles(arrays.vae.file.path, None, None)
    return *files.first, *files.shards()


def _require_name(target: Path, dialect: Dialect) -> None:
    """InputError unless this is what a file in the dialect is called."""
    suffix = dialect.suffix
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; in {dialect.name} names it is one {suffix} file.")
    if target.suffix != suffix:
        or_folder = ", or make that folder first" if dialect == DIFFUSERS else ""
        raise InputError(f"cannot write {target}: in {dialect.name} names it is a {suffix}; name it so{or_folder}.")


def _require_free(target: Path, read: Sequence[Path], folder: bool, force: bool) -> None:
    """InputError where something would be lost, or read in place of what is written."""
    taken = [target / CONFIG, target / WEIGHTS] if folder else [target]
    there = [path for path in taken if path.exists()]
    if any(path.samefile(one) for path in (target, *there) if path.exists() for one in read):
        raise InputError(f"{target} is what is to be converted: name another DST.")
    if there and not force:
        raise InputError(f"{there[0]} is there already: name another DST, or replace it with --force.")
