"""The SHA-256 of weights: one for the same numbers in any container, dialect, layout and dtype."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np


def digest(weights: Mapping[str, np.ndarray]) -> str:
    """The SHA-256 of canonical weights, as 64 hexadecimal digits; reads one tensor at a time.

    `weights` are those of a file, from `load_file`, or of a model, from `AutoencoderKL.weights`. For each tensor, in
    the order of the names, the hashed bytes are a line of text (name, dtype and shape), such as
    "encoder.conv_in.weight float32 128 3 3 3\\n", and the numbers in C order as little-endian float32; a tensor of
    float64 stays so if float32 would round it. Integers are left out: FLUX.2's count of batches, which nothing reads
    and some writers drop.
    """
    total = hashlib.sha256()
    for name in sorted(weights):
        stored = weights[name]
        if stored.dtype.kind not in "iu":
            numbers = _widened(stored)
            line = " ".join([name, numbers.dtype.name, *map(str, numbers.shape)])
            total.update(f"{line}\n".encode())
            total.update(np.ascontiguousarray(numbers, numbers.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def _widened(stored: np.ndarray) -> np.ndarray:
    """The tensor in float32 if that is exact, or else in float64."""
    with np.errstate(over="ignore", invalid="ignore"):
        single = stored.astype(np.float32, copy=False)
    return single if stored.dtype.itemsize < 8 or np.array_equal(single, stored, equal_nan=True) else stored
