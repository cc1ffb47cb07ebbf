"""Checkpoints in and out: container -> prefix -> dialect -> canonical weights (diffusers' names, OIHW, NumPy)."""

from vaespec.weights.load import load, load_file, load_folder, require_complete
from vaespec.weights.save import save_file, save_folder

__all__ = ["load", "load_file", "load_folder", "require_complete", "save_file", "save_folder"]
