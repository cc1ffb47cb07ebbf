"""safetensors: eight bytes of length, a JSON table, and the tensors, which must fill the rest of the file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vaespec import strict_json
from vaespec.errors import WeightFileError
from vaespec.weights.containers.container import Container
from vaespec.weights.containers.tensor_file import Stored, StoredTensors, damaged, opened, tensor_in_errors

KIND = "safetensors"
HEADER_LIMIT = 4 << 20  # bytes, which Python takes 30 times to list; a full checkpoint's header has under 1 MB
DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "U16": "uint16",
    "I16": "int16",
    "U32": "uint32",
    "I32": "int32",
    "U64": "uint64",
    "I64": "int64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
}


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file. Raises OSError if the system refuses."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:  # a full disk, for one
        raise OSError(str(error)) from None


def begins_safetensors(start: bytes) -> bool:
    """Whether a file's first bytes are a length below 4 GiB and a JSON table."""
    return start[4:9] == b"\0\0\0\0{"


def open_safetensors(path: Path) -> StoredTensors:
    """Read the header, which must account for every byte of the file. Raises WeightFileError if it does not."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        data = 8 + int.from_bytes(file.read(8), "little")
        if data > HEADER_LIMIT:
            raise damaged(path, KIND, f"its header would have {data:,} bytes, the limit is {HEADER_LIMIT:,}")
        if size < data:
            raise WeightFileError(f"{path} ends inside its header, at {size} bytes: the download is incomplete.")
        header = file.read(data - 8)
    try:
        table = strict_json.parse(header, HEADER_LIMIT)
        metadata = _strings(table.pop("__metadata__", {}))
        "".join((*table, *metadata, *metadata.values())).encode()  # half of a surrogate pair cannot be printed
        rows = {name: _row(name, fields, data) for name, fields in table.items()}
    except ValueError as error:
        raise damaged(path, KIND, error) from None
    _require_tiling(path, rows, data, size)
    return StoredTensors(path, KIND, rows, metadata)


def _strings(metadata: Any) -> dict[str, str]:
    """The metadata; MLX writes null if it has none."""
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("its metadata are not strings")
    return metadata


def _row(name: str, fields: Any, data: int) -> Stored:
    """One entry of the table. Offsets are counted from the byte `data`."""
    if not isinstance(fields, dict) or fields.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"tensor {name} has other fields than dtype, shape and data_offsets")
    dtype, shape, offsets = fields["dtype"], fields["shape"], fields["data_offsets"]
    if not (isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2):
        raise ValueError(f"tensor {name} has no list of sizes or no two offsets")
    if not all(type(n) is int and 0 <= n < 2**63 for n in offsets) or offsets[0] > offsets[1]:
        raise ValueError(f"tensor {name} has the impossible offsets {offsets}")
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {name} has the unknown dtype {dtype!r}")
    with tensor_in_errors(name):
        return Stored(DTYPES[dtype], tuple(shape), ((data + offsets[0], offsets[1] - offsets[0]),))


def _require_tiling(path: Path, rows: Mapping[str, Stored], data: int, size: int) -> None:
    """Raises WeightFileError if there is a hole or an overlap between tensors, or anything after the last one."""
    end = data
    for (first, count), name in sorted((row.runs[0], name) for name, row in rows.items()):
        if first != end:
            raise damaged(path, KIND, f"tensor {name} begins at byte {first:,}, the one before ends at {end:,}")
        end = first + count
    if size < end:
        raise WeightFileError(f"{path} is incomplete: it has {size:,} of {end:,} bytes; download it again.")
    if size > end:
        raise damaged(path, KIND, f"{size - end:,} bytes follow its last tensor")


SAFETENSORS = Container(KIND, begins_safetensors, open_safetensors, (".safetensors", ".sft"), write_safetensors)
