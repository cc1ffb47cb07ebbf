"""`vaespec convert`: writes a VAE's weights in the names, layout and file format of another project."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vaespec import autoencoder, weights
from vaespec.architecture import parameters
from vaespec.cli import options, text
from vaespec.cli.console import print_facts, print_json, progress
from vaespec.cli.loading import require_scale
from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.dialects import DIALECTS, DIFFUSERS, Dialect, known_dialect
from vaespec.weights.folders import CONFIG, FolderFiles
from vaespec.weights.save import WEIGHTS

Target = Annotated[
    Path,
    typer.Argument(metavar="TARGET", help="The file to write; with --to diffusers also a folder, for from_pretrained."),
]
To = Annotated[
    str, typer.Option("--to", metavar="DIALECT", help=f"Dialect to write: {', '.join(DIALECTS)}.", show_default=False)
]
StoredDtype = Annotated[
    str | None, typer.Option("--dtype", metavar="NAME", help="Dtype to store; by default the source's.")
]
NewPrefix = Annotated[
    str, typer.Option("--prefix", metavar="TEXT", help="Text to put before every name, e.g. first_stage_model.")
]
Bits = Annotated[
    int | None, typer.Option("--bits", metavar="4|8", help="Quantize the attention's linear maps, for mflux.")
]
Force = Annotated[bool, typer.Option("--force", help="Replace an existing TARGET.")]


def convert(
    source: options.Source,
    target: Target,
    to: To,
    dtype: StoredDtype = None,
    prefix: NewPrefix = "",
    bits: Bits = None,
    family: options.Family = None,
    source_prefix: options.SourcePrefix = None,
    source_dialect: options.SourceDialect = None,
    ema: options.Ema = False,
    strict: options.Strict = True,
    force: Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a VAE's weights in another dialect, with its kernel layout and file format."""
    path, dialect = autoencoder.locate(source), known_dialect(to)
    folder = dialect == DIFFUSERS and (target.is_dir() or not target.suffix)
    if folder and (prefix or bits):
        raise typer.BadParameter(
            "a folder for diffusers takes neither; name a .safetensors file.", param_hint="--prefix, --bits"
        )
    if not folder:
        _require_name(target, dialect)
    with progress(f"converting {source}"):
        reading = weights.Reading(prefix=source_prefix, dialect=source_dialect, use_ema=ema, strict=strict)
        config, arrays = weights.load_weights(path, family, **reading)
        _require_free(target, (path, *_files(arrays)), folder, force)
        if folder:
            _require_whole(source, config, arrays)
            weights.save_folder(target, config, arrays, dtype)
            size = (target / WEIGHTS).stat().st_size
        else:
            size = weights.save_file(target, config, arrays, dialect=to, prefix=prefix, dtype=dtype, bits=bits)
    document = {"source": source, "written": str(target), "dialect": to, "tensors": len(arrays), "bytes": size}
    _report(document, arrays, config, as_json)


def _report(document: dict[str, Any], arrays: CanonicalWeights, config: AutoencoderConfig, as_json: bool) -> None:
    """Prints what was written, and which tensors of the source were not."""
    ignored, others = arrays.vae.unread(set(map(arrays.vae.stored, arrays)))
    if as_json:
        print_json({**document, "ignored": ignored, "others": len(others), "config": config.to_dict()})
        return
    facts = {name: str(value) for name, value in document.items()}
    facts["size"] = text.size(int(facts.pop("bytes")))
    if names := text.ignored(ignored, len(others)):
        facts["ignored"] = names
    print_facts(facts)


def _files(arrays: CanonicalWeights) -> tuple[Path, ...]:
    """The files that the weights are read from."""
    files = FolderFiles(arrays.vae.file.path, None, None)
    return *files.first, *files.shards()


def _require_name(target: Path, dialect: Dialect) -> None:
    """Raises InputError unless the target has the suffix of the dialect's files."""
    suffix = dialect.suffix
    if target.is_dir():
        raise InputError(f"cannot write {target}: it is a folder; name a {suffix} file for the dialect {dialect.name}.")
    if target.suffix != suffix:
        remedy = "change the name" + (", or create this folder first" if dialect == DIFFUSERS else "")
        raise InputError(f"cannot write {target}: a file in the dialect {dialect.name} ends in {suffix}; {remedy}.")


def _require_free(target: Path, read: Sequence[Path], folder: bool, force: bool) -> None:
    """Raises InputError if a file would be lost: one of the source, or with no `force` any other."""
    taken = [target / CONFIG, target / WEIGHTS] if folder else [target]
    existing = [path for path in taken if path.exists()]
    if any(path.samefile(one) for path in (target, *existing) if path.exists() for one in read):
        raise InputError(f"{target} is the source of this conversion: name another TARGET.")
    if (lost := [path for path in existing if path.is_file()]) and not force:  # nothing is lost in a pipe or a device
        raise InputError(f"{lost[0]} exists already: name another TARGET, or replace it with --force.")


def _require_whole(source: str, config: AutoencoderConfig, arrays: CanonicalWeights) -> None:
    """Raises InputError for weights that diffusers would read wrongly, or not at all, from a folder."""
    require_scale(config, source, "name a .safetensors file (in a folder, diffusers would take 0.18215)")
    if lacking := [name for name, row in parameters(config).items() if row.trained and name not in arrays]:
        raise InputError(
            f"{source} is half a VAE, without {min(lacking)}: a folder for diffusers needs both halves; "
            "name a .safetensors file."
        )
