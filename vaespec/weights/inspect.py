"""Inspection: everything that the headers of a file say, before it is used; shown by `vaespec info`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Unpack

from vaespec import families
from vaespec.config import AutoencoderConfig
from vaespec.dtypes import numpy_dtype
from vaespec.errors import ConfigError, NonFiniteError, WeightFileError, WeightMapError
from vaespec.weights.canonical import CanonicalWeights
from vaespec.weights.config_from_weights import infer_structure, visible_fields
from vaespec.weights.containers import TensorFile, open_tensors
from vaespec.weights.fit import Fit, fit, refused_names
from vaespec.weights.folders import FolderFiles, choose
from vaespec.weights.hashing import digest
from vaespec.weights.locate import Reading, VaeInFile, locate_as


@dataclass(frozen=True)
class Inspection:
    """`tensors`, `bytes` and `dtypes` (how many numbers of each) are the model's; `metadata` is the file's.

    `halves` are "encoder" and "decoder", or one of them; `bare` is True if the names do not begin with it.

    `ignored` are the names under the prefix that loading leaves out, `others` counts the rest of a full checkpoint.
    `families` maps each family of this structure to the reason. `problems` say why loading would refuse the file: then
    fields that cannot be determined are None or empty. `checked` is True if NaN and infinity were looked for, and
    `sha256` is the weights' `digest`, if every tensor was read.
    """

    path: Path
    container: str
    metadata: dict[str, str]
    prefix: str | None = None
    dialect: str | None = None
    layout: str | None = None
    halves: tuple[str, ...] = ()
    bare: bool = False
    tensors: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    config: AutoencoderConfig | None = None
    ignored: tuple[str, ...] = ()
    others: int = 0
    problems: tuple[str, ...] = ()
    checked: bool = False
    sha256: str | None = None


def inspect_weights(
    path: Path,
    family: str | None = None,
    *,
    check: bool = False,
    hashed: bool = False,
    **options: Unpack[Reading],
) -> Inspection:
    """Inspect a file or a folder by its headers, and if there are no problems, by its tensors, one at a time.

    `check` looks for NaN and infinity in every tensor, `hashed` computes their SHA-256; without both none is read.

    Names that training left beside the model are ignored, and with `strict=False` unexpected ones too. Raises
    WeightFileError if it cannot be opened; ConfigError and InputError for a wrong family or dialect.
    """
    files = choose(path) if path.is_dir() else FolderFiles(path, None, None)
    if family is not None:  # a wrong argument raises: it is no problem of the file
        families.config(family)
        files.read_config(family)
    file = open_tensors(files.weights)
    try:
        vae = locate_as(file, options)
    except (WeightMapError, WeightFileError) as error:
        reasons = tuple(map(str, error.args))
        return Inspection(file.path, file.kind, dict(file.metadata), others=len(file), problems=reasons)
    try:
        fitted = fit(vae, files.read_config(family), family)
    except (ConfigError, WeightMapError, WeightFileError) as error:
        return _inspection(vae, None, list(map(str, error.args)))
    vae = fitted.vae
    refused = refused_names(vae, fitted, options.get("strict", True))
    problems = [fitted.not_plain] if fitted.not_plain is not None else [*fitted.misfits, *map(_unexpected, refused)]
    inspection = _inspection(vae, fitted, problems, refused)
    return _with_values(inspection, vae, fitted, check) if (check or hashed) and not problems else inspection


def _unexpected(name: str) -> str:
    return f"unexpected  {name}"


def _with_values(inspection: Inspection, vae: VaeInFile, fitted: Fit, check: bool) -> Inspection:
    weights = CanonicalWeights(vae, fitted.table, allow_nonfinite=not check)
    try:
        return replace(inspection, checked=check, sha256=digest(weights))
    except (NonFiniteError, WeightMapError, WeightFileError) as error:
        return replace(inspection, checked=check, problems=tuple(map(str, error.args)))


def _inspection(vae: VaeInFile, fitted: Fit | None, problems: list[str], refused: tuple[str, ...] = ()) -> Inspection:
    names = [] if fitted is None else [name for name in map(vae.stored, fitted.table) if name in vae.file]
    own, others = vae.unread(set(names))
    dtypes = _dtypes(vae.file, names)
    return Inspection(
        path=vae.file.path,
        container=vae.file.kind,
        metadata=dict(vae.file.metadata),
        prefix=vae.prefix,
        dialect=vae.dialect.name,
        layout=vae.layout.conv,
        halves=vae.halves,
        bare=vae.bare,
        tensors=len(names),
        bytes=sum(count * numpy_dtype(dtype).itemsize for dtype, count in dtypes.items()),
        dtypes=dtypes,
        families=_families(vae),
        config=None if fitted is None else fitted.config,
        ignored=() if fitted is None else tuple(name for name in own if name not in refused),
        others=len(others),
        problems=tuple(problems),
    )


def _dtypes(file: TensorFile, names: list[str]) -> dict[str, int]:
    """How many numbers there are of each dtype, most frequent first."""
    counts: Counter[str] = Counter()
    for name in names:
        counts[file.dtype(name)] += math.prod(file.shape(name))
    return dict(counts.most_common())


def _families(vae: VaeInFile) -> dict[str, str]:
    """Maps each family that the file may belong to, to the reason."""
    try:
        names = families.matching(infer_structure(vae), vae.file, visible_fields(vae))
    except WeightMapError:
        return {}
    evidence = {name: families.evidence(name, vae.file) for name in names}
    return {name: f"it has {', '.join(markers)}" if markers else "its shapes" for name, markers in evidence.items()}
