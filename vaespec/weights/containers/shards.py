"""A model in several files, and the JSON index that maps each tensor to its file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from vaespec import strict_json
from vaespec.weights.containers.safetensors import HEADER_LIMIT
from vaespec.weights.containers.strangers import not_an_index
from vaespec.weights.containers.tensor_file import TensorFile, damaged, opened

KIND = "shard index"
MAX_SHARDS = 1000


class Shards(TensorFile):
    """All tensors of `shards` (file name -> file) as one file.

    Raises WeightFileError if `index` (tensor -> file name) and the shards disagree.
    """

    def __init__(self, path: Path, index: Mapping[str, str], shards: Mapping[str, TensorFile]) -> None:
        kinds = " and ".join(sorted({shard.kind for shard in shards.values()}))
        self.path, self.kind = path, f"{kinds} in {len(shards)} shards"
        self.metadata = {key: value for shard in shards.values() for key, value in shard.metadata.items()}
        self._home = {name: shards[file] for name, file in index.items()}
        for name, file in index.items():
            if name not in shards[file]:
                raise damaged(path, KIND, f"tensor {name} is not in {file}, as it says")
        for file, shard in shards.items():
            if stray := next((name for name in shard if index.get(name) != file), None):
                place = f"in {index[stray]}" if stray in index else "nowhere"
                raise damaged(path, KIND, f"tensor {stray} is in {file}, it says {place}")

    def shape(self, name: str) -> tuple[int, ...]:
        """From the shard's header."""
        return self._home[name].shape(name)

    def dtype(self, name: str) -> str:
        """From the shard's header."""
        return self._home[name].dtype(name)

    def __getitem__(self, name: str) -> np.ndarray:
        return self._home[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._home)

    def __len__(self) -> int:
        return len(self._home)


def read_index(path: Path) -> dict[str, str]:
    """Maps each tensor to the name of a file beside the index. Raises WeightFileError for any other JSON."""
    with opened(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > HEADER_LIMIT:
            raise damaged(path, KIND, f"it has {size:,} bytes, the limit is {HEADER_LIMIT:,}")
        content = file.read(size)
    try:
        index = strict_json.parse(content, HEADER_LIMIT)
        if isinstance(index, dict) and isinstance(index.get("weight_map"), dict):
            "".join(index["weight_map"]).encode()  # half of a surrogate pair cannot be printed
    except ValueError as error:
        raise damaged(path, KIND, error) from None
    names: Any = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(file, str) for file in names.values()):
        raise not_an_index(path, index, content.decode())
    if (count := len(set(names.values()))) > MAX_SHARDS:
        raise damaged(path, KIND, f"it names {count:,} shards, the limit is {MAX_SHARDS:,}")
    for file in sorted(set(names.values())):
        if not _is_beside(file):
            raise damaged(path, KIND, f"the shard {file[:100]!r} is not a plain file name")
    return names


def _is_beside(file: str) -> bool:
    """Whether this is a file name without a folder, on every system."""
    plain = PurePosixPath(file).name == PureWindowsPath(file).name == file
    return plain and file not in ("", "..") and file.isprintable() and len(os.fsencode(file)) <= 255
