"""The packages of this repository, by folder."""

from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDERS = (ROOT / "vaespec", *ROOT.glob("*/vaespec_*"))
PACKAGES = sorted(folder.name for folder in FOLDERS if (folder / "__init__.py").exists())
