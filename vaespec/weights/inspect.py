"""What a file is, before anything in it is used: the figures of `vaespec info`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Unpack

from vaespec import families
from vaespec.architecture import parameters
from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError, InputError, NonFiniteError, WeightFileError, WeightMapError
from vaespec.weights.config_from_weights import infer_config, infer_structure, shown
from vaespec.weights.containers import TensorFile, open_tensors, require_plain
from vaespec.weights.containers.tensor_file import numpy_dtype
from vaespec.weights.folders import FolderFiles, choose
from vaespec.weights.load import CanonicalWeights, Reading, misfits, open_vae, own_config, unexpected
from vaespec.weights.locate import Located


@dataclass(frozen=True)
class Inspection:
    """`tensors`, `bytes` and `dtypes` (how many numbers of each) are the model's; `metadata` is the file's.

    `ignored` are the names under the prefix that loading leaves aside, `others` counts the rest of a full checkpoint.
    `families` are those of this structure, each with the reason. `problems` say why the file would be refused: then
    what cannot be made out is None or empty. `checked` tells that every tensor was read.
    """

    path: Path
    container: str
    metadata: dict[str, str]
    prefix: str | None = None
    dialect: str | None = None
    layout: str | None = None
    halves: tuple[str, ...] = ()
    tensors: int = 0
    bytes: int = 0
    dtypes: dict[str, int] = field(default_factory=dict)
    families: dict[str, str] = field(default_factory=dict)
    config: AutoencoderConfig | None = None
    ignored: tuple[str, ...] = ()
    others: int = 0
    problems: tuple[str, ...] = ()
    checked: bool = False


def inspect(path: Path, family: str | None = None, *, check: bool = False, **how: Unpack[Reading]) -> Inspection:
    """A file or a folder, by its headers; with `check` every tensor is read, if there are no other problems.

    WeightFileError if it cannot be opened; ConfigError and InputError for a family or a dialect that cannot be asked
    for, whatever the file.
    """
    files = choose(path) if path.is_dir() else FolderFiles(path, None, None)
    if family is not None:
        families.config(family)
        if files.config is not None:
            raise InputError(f"family={family!r} is for weights alone: {path} has its own config.json.")
    try:
        here = open_vae(files.weights, **how)
    except WeightMapError as error:
        file = open_tensors(files.weights)
        return Inspection(file.path, file.kind, dict(file.metadata), others=len(file), problems=(str(error),))
    try:
        config = _config(here, files.config, family)
    except (ConfigError, WeightMapError, WeightFileError) as error:
        return _inspected(here, None, [str(error)])
    problems = _problems(here, config)
    if check and not problems:
        return _inspected(here, config, _unsound(here, config), checked=True)
    return _inspected(here, config, problems)


def left_aside(here: Located, read: Collection[str]) -> tuple[list[str], list[str]]:
    """The names of the file that are not `read`: under the VAE's prefix, and in the rest of a full checkpoint."""
    names = set(read)
    left = [key for key in here.file if key not in names]
    own = [key for key in left if key.startswith(here.prefix)]
    return own, [key for key in left if not key.startswith(here.prefix)]


def _config(here: Located, config_path: Path | None, family: str | None) -> AutoencoderConfig:
    """The one that loading takes: the folder's, the file's own unless a family is given, or what the file shows."""
    if config_path is not None:
        return AutoencoderConfig.from_json(config_path)
    return (own_config(here) if family is None else None) or infer_config(here, family)


def _problems(here: Located, config: AutoencoderConfig) -> list[str]:
    """What loading would refuse, by the headers."""
    try:
        require_plain(here.file, _present(here, config))
    except WeightFileError as error:
        return [str(error)]
    return [*misfits(here, config), *(f"unexpected  {key}" for key in unexpected(here, config))]


def _unsound(here: Located, config: AutoencoderConfig) -> list[str]:
    """What loading would refuse once it reads the tensors."""
    weights = CanonicalWeights(here, config, allow_nonfinite=False)
    try:
        for name in weights:
            weights[name]
    except (NonFiniteError, WeightMapError) as error:
        return [str(error)]
    return []


def _inspected(
    here: Located, config: AutoencoderConfig | None, problems: list[str], checked: bool = False
) -> Inspection:
    names = [] if config is None else _present(here, config)
    strays = set() if config is None else set(unexpected(here, config))
    own, others = left_aside(here, names)
    dtypes = _dtypes(here.file, names)
    return Inspection(
        path=here.file.path,
        container=here.file.kind,
        metadata=dict(here.file.metadata),
        prefix=here.prefix,
        dialect=here.dialect.name,
        layout=here.layout.conv,
        halves=here.halves,
        tensors=len(names),
        bytes=sum(count * numpy_dtype(dtype).itemsize for dtype, count in dtypes.items()),
        dtypes=dtypes,
        families=_families(here),
        config=config,
        ignored=() if config is None else tuple(key for key in own if key not in strays),
        others=len(others),
        problems=tuple(problems),
        checked=checked,
    )


def _present(here: Located, config: AutoencoderConfig) -> list[str]:
    """The model's names, of those in the file."""
    return [name for name in map(here.stored, parameters(config, here.halves)) if name in here.file]


def _dtypes(file: TensorFile, names: list[str]) -> dict[str, int]:
    """How many numbers there are of each dtype, most frequent first."""
    counts: Counter[str] = Counter()
    for name in names:
        counts[file.dtype(name)] += math.prod(file.shape(name))
    return dict(counts.most_common())


def _families(here: Located) -> dict[str, str]:
    """Family -> why it may be this one."""
    try:
        found = families.matching(infer_structure(here), here.file, shown(here))
    except WeightMapError:
        return {}
    evidence = {name: families.evidence(name, here.file) for name in found}
    return {name: f"it has {', '.join(markers)}" if markers else "its shapes" for name, markers in evidence.items()}
