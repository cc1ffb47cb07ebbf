"""Which files of a folder are the VAE, decided by name alone, so that it works on a disk and on a hub."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from vaespec.config import AutoencoderConfig
from vaespec.errors import InputError, PipelineError, WeightFileError
from vaespec.escaping import escaped
from vaespec.weights.containers import read_index, strange_folder, suffixes
from vaespec.weights.listing import shortened

CONFIG = "config.json"
PIPELINE_VAE = "vae"  # the folder of the VAE in a diffusers pipeline

VARIANT = r"(?:\.(?P<variant>[^.]+))?"  # "", ".fp16", ".non_ema", ...
KNOWN = tuple(  # names that diffusers and mflux give, in order of preference; whole files before shards
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


@dataclass(frozen=True)
class FolderFiles:
    """The files of one VAE. `weights` is the file to open: the weights, or an index that names the shards."""

    weights: Path
    config: Path | None
    variant: str | None

    @property
    def sharded(self) -> bool:
        """Whether `weights` is an index of shards."""
        return self.weights.suffix == ".json"

    @property
    def first(self) -> tuple[Path, ...]:
        """The files that are needed before anything is read."""
        return (self.weights,) if self.config is None else (self.config, self.weights)

    def shards(self) -> tuple[Path, ...]:
        """The other files. Reads the index, if there is one; raises WeightFileError if it is damaged."""
        names = dict.fromkeys(read_index(self.weights).values()) if self.sharded else ()
        return tuple(self.weights.with_name(name) for name in names)

    def under(self, folder: Path) -> FolderFiles:
        """A copy whose paths begin with `folder`."""
        return replace(self, weights=folder / self.weights, config=self.config and folder / self.config)

    def read_config(self, family: str | None) -> AutoencoderConfig | None:
        """The config of config.json, None if there is no such file. Raises InputError if a family is given as well."""
        if self.config is None:
            return None
        if family is not None:
            raise InputError(f"family={family!r} is for weights alone: {self.config.parent} has its own config.json.")
        return AutoencoderConfig.from_json(self.config)


def choose(folder: Path, variant: str | None = None) -> FolderFiles:
    """Choose among the files of a folder on disk (see `choose_among`); warns if a variant is taken without request."""
    chosen = choose_among(listing(folder), str(folder), variant)
    if chosen.variant != (variant or None):
        logging.getLogger("vaespec").warning(
            "%s has its weights only as variant %r, which is used.", escaped(str(folder)), chosen.variant
        )
    return chosen.under(folder)


def listing(folder: Path) -> set[str]:
    """The names of the files in a folder and in its `vae/`. Raises WeightFileError if it cannot be listed.

    What has the name of a VAE's file counts even if it is no file, such as a link that leads nowhere: without a
    config.json a config would be inferred, and without the weights others would be read, which may differ.
    """
    try:
        inside = [*folder.iterdir(), *(folder / PIPELINE_VAE).glob("*")]
        return {path.relative_to(folder).as_posix() for path in inside if path.is_file() or _is_expected(path.name)}
    except FileNotFoundError:
        raise WeightFileError(f"no folder {folder}: check the path.") from None
    except OSError as error:
        raise WeightFileError(f"cannot list {folder} ({error.strerror}): give a folder that can be read.") from error
    except ValueError as error:
        raise WeightFileError(f"no folder {str(folder)!r} ({error}): check the path.") from None


def _is_expected(name: str) -> bool:
    return name == CONFIG or any(pattern.fullmatch(name) for pattern in KNOWN)


def choose_among(names: Collection[str], folder: str, variant: str | None = None) -> FolderFiles:
    """Choose the VAE among the files of a folder, by their paths in it; `folder` names it in errors.

    A requested `variant` (fp16, ema, ...) must be there. Without a request, the plain weights are used, or else the
    only variant; a folder without any known name may have one weight file of any name. Raises WeightFileError.
    """
    top = sorted(name for name in names if "/" not in name and not SHARD.search(name))
    files = _known(top)
    if not files and any(name.startswith(f"{PIPELINE_VAE}/") for name in names):
        raise PipelineError(
            f"{folder} is not a VAE's folder: its VAE is in {PIPELINE_VAE}/, name that folder, or give "
            f'subfolder="{PIPELINE_VAE}".'
        )
    if not files:
        files = {"": _only(top, names, folder)}
    choice = next(iter(files)) if not variant and len(files) == 1 else variant or ""
    if choice not in files:
        request = f"variant {variant!r}" if variant else "plain weights"
        raise WeightFileError(f"no {request} in {folder}: {_offered(files)}.")
    return FolderFiles(Path(files[choice]), Path(CONFIG) if CONFIG in names else None, choice or None)


def _known(names: Collection[str]) -> dict[str, str]:
    """Variant -> its preferred file, among the known names; the variant of plain weights is ""."""
    files: dict[str, str] = {}
    for pattern in KNOWN:
        for match in filter(None, map(pattern.fullmatch, names)):
            files.setdefault(match.groupdict().get("variant") or "", match[0])
    return files


def _only(top: Collection[str], names: Collection[str], folder: str) -> str:
    """The weight file of a folder that has exactly one, whatever its name."""
    files = [name for name in top if name.lower().endswith(suffixes())]
    if len(files) == 1:
        return files[0]
    if files:
        raise WeightFileError(f"{folder} has {len(files)} weight files, {_listed(files)}: give the path of one.")
    if any(map(SHARD.search, names)):
        raise WeightFileError(f"{folder} has shards without their index, {_listed(names)}: get the index too.")
    if words := strange_folder(names):
        raise WeightFileError(f"no weights in {folder}: it is {words}.")
    content = f"only {_listed(names)}" if names else "nothing at all"
    raise WeightFileError(f"no weights in {folder}: it has {content}; name a folder with a VAE's weights in it.")


def _offered(present: Collection[str]) -> str:
    """Which variants to choose from: the end of an error."""
    variants = [repr(variant) for variant in sorted(present) if variant]
    if not variants:
        return "its weights have no variants, leave variant= out"
    plain = ", or leave it out for the plain weights" if "" in present else ""
    return f"choose variant={' or '.join(variants)}{plain}"


def _listed(names: Collection[str]) -> str:
    return ", ".join(shortened(sorted(names)))
