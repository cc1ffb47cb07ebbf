"""Which files of a folder are the VAE, decided by their names alone: for a disk's listing and a hub's alike."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from vaespec.errors import WeightFileError
from vaespec.weights.containers import read_index

CONFIG = "config.json"
PIPELINE_VAE = "vae"  # where a diffusers pipeline keeps its VAE
SHOWN = 10  # names that an error lists

VARIANT = r"(?:\.(?P<variant>[^.]+))?"  # "", ".fp16", ".non_ema", ...
KNOWN = tuple(  # in order of preference: safetensors, pickles, msgpack; whole before sharded
    re.compile(pattern)
    for pattern in (
        rf"diffusion_pytorch_model{VARIANT}\.safetensors",
        rf"diffusion_pytorch_model\.safetensors\.index{VARIANT}\.json",
        r"model\.safetensors\.index\.json",  # mflux: 0.safetensors, 1.safetensors, ...
        rf"diffusion_pytorch_model{VARIANT}\.bin",
        rf"diffusion_pytorch_model\.bin\.index{VARIANT}\.json",
        r"diffusion_flax_model\.msgpack",
        r"flax_model\.msgpack",
    )
)
SHARD = re.compile(r"-\d{5}-of-\d{5}\b")
WEIGHTS = (".safetensors", ".sft", ".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".gguf")


@dataclass(frozen=True)
class FolderFiles:
    """The files of one VAE. `weights` is what to open: where it is an index, it tells the shards once it is there."""

    weights: Path
    config: Path | None
    variant: str | None

    @property
    def sharded(self) -> bool:
        """Whether `weights` is an index of shards."""
        return self.weights.suffix == ".json"

    @property
    def first(self) -> tuple[Path, ...]:
        """What is needed before anything is read."""
        return (self.weights,) if self.config is None else (self.config, self.weights)

    def shards(self) -> tuple[Path, ...]:
        """What else is needed. Reads the index, if there is one; WeightFileError if it cannot be trusted."""
        names = dict.fromkeys(read_index(self.weights).values()) if self.sharded else ()
        return tuple(self.weights.with_name(name) for name in names)

    def under(self, folder: Path) -> FolderFiles:
        """The same files, where this folder is theirs."""
        return replace(self, weights=folder / self.weights, config=self.config and folder / self.config)


def choose(folder: Path, variant: str | None = None) -> FolderFiles:
    """`choose_among` the files of a folder on this disk; a variant that was not asked for is logged as a warning."""
    chosen = choose_among(listing(folder), str(folder), variant)
    if chosen.variant != (variant or None):
        logging.getLogger("vaespec").warning(
            "%s has its weights only as variant %r, which is taken.", folder, chosen.variant
        )
    return chosen.under(folder)


def listing(folder: Path) -> set[str]:
    """The names of the folder's files, and of those in its `vae/`. Raises WeightFileError where it cannot be listed."""
    try:
        inside = [*folder.iterdir(), *(folder / PIPELINE_VAE).glob("*")]
        return {path.relative_to(folder).as_posix() for path in inside if path.is_file()}
    except FileNotFoundError:
        raise WeightFileError(f"no folder {folder}: check the path.") from None
    except OSError as error:
        raise WeightFileError(f"cannot list {folder}: {error.strerror}.") from error


def choose_among(names: Collection[str], where: str, variant: str | None = None) -> FolderFiles:
    """The VAE among the files of a folder, given and returned by their paths in it; `where` is the folder, in words.

    A `variant` (fp16, ema, ...) that is asked for must be there. If none is asked for, the plain weights are taken, or
    else the only variant; a folder without any known name may hold one weight file of any name. Raises WeightFileError.
    """
    here = sorted(name for name in names if "/" not in name and not SHARD.search(name))
    found = _known(here)
    if not found and any(name.startswith(f"{PIPELINE_VAE}/") for name in names):
        raise WeightFileError(f"{where} is not a VAE's folder: its VAE is in {PIPELINE_VAE}/, name that folder.")
    if not found:
        found = {"": _only(here, names, where)}
    taken = next(iter(found)) if not variant and len(found) == 1 else variant or ""
    if taken not in found:
        wanted = f"variant {variant!r}" if variant else "plain weights"
        raise WeightFileError(f"no {wanted} in {where}: {_offered(found)}.")
    return FolderFiles(Path(found[taken]), Path(CONFIG) if CONFIG in names else None, taken or None)


def _known(names: Collection[str]) -> dict[str, str]:
    """Variant -> its preferred file, among names that are known; the variant of plain weights is ""."""
    found: dict[str, str] = {}
    for pattern in KNOWN:
        for match in filter(None, map(pattern.fullmatch, names)):
            found.setdefault(match.groupdict().get("variant") or "", match[0])
    return found


def _only(here: Collection[str], names: Collection[str], where: str) -> str:
    """The weight file of a folder that has exactly one, whatever its name."""
    files = [name for name in here if name.lower().endswith(WEIGHTS)]
    if len(files) == 1:
        return files[0]
    if files:
        raise WeightFileError(f"{where} has {len(files)} weight files, {_listed(files)}: name the one that is meant.")
    if any(map(SHARD.search, names)):
        raise WeightFileError(f"{where} has shards without their index, {_listed(names)}: get the index too.")
    there = f"only {_listed(names)}" if names else "nothing at all"
    raise WeightFileError(f"no weights in {where}: it has {there}; name a folder with a VAE's weights in it.")


def _offered(found: Collection[str]) -> str:
    """The variants that are there, as the end of an error."""
    variants = [repr(variant) for variant in sorted(found) if variant]
    if not variants:
        return "its weights have no variants, leave variant= out"
    plain = ", or leave it out for the plain weights" if "" in found else ""
    return f"choose variant={' or '.join(variants)}{plain}"


def _listed(names: Collection[str]) -> str:
    first = sorted(names)[:SHOWN]
    return ", ".join(first) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
