"""A file of named tensors, opened without reading them: shapes first, arrays when asked for."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.errors import WeightFileError

HEADER_LIMIT = 16 << 20  # bytes; a full checkpoint's header has under 1 MB

# What other files begin with, and what to do about them.
NOT_SAFETENSORS = {
    b"PK\x03\x04": "a zip archive (a PyTorch .ckpt or .bin): only .safetensors can be read so far",
    b"\x80\x02": "a Python pickle (an old PyTorch .ckpt): only .safetensors can be read so far",
    b"GGUF": "a GGUF file: only .safetensors can be read so far",
    b"version https://git-lfs": "a git-lfs pointer, not the file itself: run `git lfs pull`",
    b"<": "a web page: the download probably needs a login",
}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: dict[str, str]) -> None:
    """Write a safetensors file. OSError where the system does not let it."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata=metadata)
    except SafetensorError as error:  # a full disk, for one
        raise OSError(str(error)) from None


class SafetensorsFile(Mapping[str, np.ndarray]):
    """name -> array, read when asked for; `shape(name)` reads nothing. Raises WeightFileError for a bad file."""

    def __init__(self, path: Path) -> None:
        # Imported here: only who opens a file waits for them.
        import ml_dtypes  # noqa: F401  safetensors reads bfloat16 only once this has registered it with NumPy
        from safetensors import SafetensorError, safe_open

        self.path = path
        _sniff(path)
        try:
            self._file: Any = safe_open(path, framework="numpy")
            self.metadata: dict[str, str] = self._file.metadata() or {}  # type: ignore[no-untyped-call]
            self._names: tuple[str, ...] = tuple(self._file.keys())  # type: ignore[no-untyped-call]
        except (SafetensorError, OSError) as error:
            raise WeightFileError(f"{path} is damaged or not a whole safetensors file ({error}).") from None

    def shape(self, name: str) -> tuple[int, ...]:
        """The tensor's shape, from the header."""
        return tuple(self._file.get_slice(name).get_shape())

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._names:
            raise KeyError(name)
        try:
            array: np.ndarray = self._file.get_tensor(name)
        except (TypeError, AttributeError) as error:
            raise WeightFileError(f"{self.path}: tensor {name} has a dtype that cannot be read ({error}).") from None
        if array.dtype.kind in "iub" and array.ndim:  # a 0-d integer is a counter
            raise WeightFileError(f"{self.path}: tensor {name} holds integers ({array.dtype}): quantised weights?")
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def _sniff(path: Path) -> None:
    """Refuse, by its first bytes and its length, what is no whole safetensors file."""
    try:
        with path.open("rb") as file:
            start, size = file.read(32), path.stat().st_size
            file.seek(8)
            table = file.read(min(int.from_bytes(start[:8], "little"), HEADER_LIMIT))
    except FileNotFoundError:
        raise WeightFileError(f"no file {path}.") from None
    except OSError as error:
        raise WeightFileError(f"{path} cannot be read ({error.strerror}).") from None
    for magic, what in NOT_SAFETENSORS.items():
        if start.startswith(magic):
            raise WeightFileError(f"{path} is {what}.")
    header = int.from_bytes(start[:8], "little")
    if size < 8 or start[8:9] != b"{" or header > HEADER_LIMIT:
        raise WeightFileError(f"{path} ({size} bytes) does not begin like a safetensors file.")
    if size < 8 + header:
        raise WeightFileError(f"{path} ends inside its header, at {size} bytes: the download is incomplete.")
    if size < (whole := 8 + header + _data_bytes(table)):
        raise WeightFileError(f"{path} is incomplete: it has {size:,} of {whole:,} bytes; download it again.")


def _data_bytes(table: bytes) -> int:
    """Where the last tensor ends, by the header; 0 where the header is no table, which safetensors tells in detail."""
    try:
        return max(int(row["data_offsets"][1]) for name, row in json.loads(table).items() if name != "__metadata__")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return 0
