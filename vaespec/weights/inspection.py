"""What a file is, before anything in it is used: the figures of `vaespec info`."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from vaespec import families
from vaespec.architecture import parameters
from vaespec.config import AutoencoderConfig
from vaespec.errors import ConfigError, WeightMapError
from vaespec.weights.containers import TensorFile
from vaespec.weights.containers.tensor_file import numpy_dtype
from vaespec.weights.folders import choose
from vaespec.weights.inference import infer_config, infer_structure, shown
from vaespec.weights.load import Reading, misfits, open_vae, own_config, unexpected
from vaespec.weights.located import Located


@dataclass(frozen=True)
class Inspection:
    """Headers only are read. `tensors` are the model's; `ignored` are those beside them that training left.

    `families` are those of this structure, each with the reason; `others` counts the rest of a full checkpoint.
    `config` is None where none can be made out, and `problems` say why it, or the file, would be refused.
    """

    path: Path
    container: str
    prefix: str
    dialect: str
    layout: str
    halves: tuple[str, ...]
    tensors: int
    bytes: int
    dtypes: dict[str, int]
    families: dict[str, str]
    config: AutoencoderConfig | None
    ignored: tuple[str, ...]
    others: int
    problems: tuple[str, ...]


def inspect(path: Path, family: str | None = None, **how: Unpack[Reading]) -> Inspection:
    """A file or a folder. WeightFileError if it cannot be opened, WeightMapError if there is no VAE in it."""
    file, config_path = (path, None) if not path.is_dir() else ((files := choose(path)).weights, files.config)
    here = open_vae(file, **how)
    problems: list[str] = []
    config: AutoencoderConfig | None = None
    try:
        config = AutoencoderConfig.from_json(config_path) if config_path else own_config(here)
        config = config if config and family is None else infer_config(here, family)
    except (ConfigError, WeightMapError) as error:
        problems = [str(error)]
    table = {} if config is None else parameters(config, here.halves)
    names = [name for name in map(here.stored, table) if name in here.file]
    if config is not None:
        problems = [*misfits(here, config), *(f"unexpected  {key}" for key in unexpected(here, config))]
    dtypes = _dtypes(here.file, names)
    return Inspection(
        path=file,
        container=here.file.kind,
        prefix=here.prefix,
        dialect=here.dialect.name,
        layout=here.layout.conv_layout,
        halves=here.halves,
        tensors=len(names),
        bytes=sum(count * numpy_dtype(dtype).itemsize for dtype, count in dtypes.items()),
        dtypes=dtypes,
        families=_families(here),
        config=config,
        ignored=tuple(here.ignored()),
        others=sum(not key.startswith(here.prefix) for key in here.file),
        problems=tuple(problems),
    )


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
