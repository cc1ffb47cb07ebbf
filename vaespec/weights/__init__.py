"""Checkpoints in and out: container -> prefix -> dialect -> layout -> canonical weights.

Canonical weights are NumPy arrays under diffusers' names, with kernels in OIHW.
"""

from vaespec.weights.fit import require_complete
from vaespec.weights.hashing import digest
from vaespec.weights.load import load_file, load_folder, load_weights
from vaespec.weights.locate import Reading
from vaespec.weights.save import save_file, save_folder, stored
from vaespec.weights.sources import as_path, fetch_named, find, single_file

__all__ = [
    "Reading",
    "as_path",
    "digest",
    "fetch_named",
    "find",
    "load_file",
    "load_folder",
    "load_weights",
    "require_complete",
    "save_file",
    "save_folder",
    "single_file",
    "stored",
]
