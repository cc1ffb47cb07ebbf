"""Checkpoints in and out: container -> prefix -> dialect -> layout -> canonical weights.

Canonical are diffusers' names, OIHW, NumPy.
"""

from vaespec.weights.hub import fetch
from vaespec.weights.load import Reading, load, load_file, load_folder, require_complete
from vaespec.weights.save import save_file, save_folder

__all__ = ["Reading", "fetch", "load", "load_file", "load_folder", "require_complete", "save_file", "save_folder"]
