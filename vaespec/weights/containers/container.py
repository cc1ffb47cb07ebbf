"""Container: one kind of file that holds named tensors, as a row of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vaespec.weights.containers.tensor_file import TensorFile

Write = Callable[[Path, Mapping[str, np.ndarray], Mapping[str, str]], None]


@dataclass(frozen=True)
class Container:
    """How files of one kind are recognized, opened, named and written.

    `begins` decides by the first 512 bytes, `open` reads the header, `suffixes` are the names' ends. `write` takes a
    path, tensors and metadata; it is None if such files are only read. `CONTAINERS` lists the rows of the core; a
    backend offers the files of its framework in an attribute `containers`.
    """

    name: str
    begins: Callable[[bytes], bool]
    open: Callable[[Path], TensorFile]
    suffixes: tuple[str, ...]
    write: Write | None = None
