"""What users name as weights: a path, a repository of the hub, or an address there; found, and fetched if necessary."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from vaespec.config_checks import brief
from vaespec.errors import PipelineError, WeightFileError
from vaespec.weights.containers import suffixes
from vaespec.weights.folders import PIPELINE_VAE, choose_among, listing
from vaespec.weights.hub import fetch, fetch_file

AnyPath = str | os.PathLike[str]

HOSTS = ("huggingface.co", "www.huggingface.co", "hf.co")
REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
FILES = ("blob", "resolve")  # what follows owner/name in the address of a file; "tree" in that of a folder


@dataclass(frozen=True)
class Place:
    """A place on the hub: a repository, a revision (None: its main branch), and a path in it ("": all of it)."""

    repo: str
    revision: str | None = None
    path: str = ""

    @property
    def is_file(self) -> bool:
        """Whether the path is a weight file's."""
        return self.path.lower().endswith(suffixes())


def as_path(path: AnyPath) -> Path:
    """The path that a user gives. Raises WeightFileError for what no file can have: no text, or a null character."""
    text = os.fspath(path) if isinstance(path, str | os.PathLike) else None
    if not isinstance(text, str):
        raise WeightFileError(f"{brief(path)} is no path: give text or a pathlib.Path.")
    if not text or "\0" in text:
        raise WeightFileError(
            f"{text!r} is no path, since it {'has a null character' if text else 'is empty'}: check it."
        )
    return Path(path)


def find(source: AnyPath) -> Path:
    """The file or folder on this disk for a path, "owner/name", or an address on the hub; fetches the last two.

    What is on the disk comes first. A pipeline's folder stands for its VAE. Raises WeightFileError if there is none.
    """
    path = as_path(source)
    if os.path.lexists(path):
        return _vae_of(path)
    place = place_of(source)
    if place is None:
        raise WeightFileError(f"no file or folder {path}: download the weights, or name tiny, the embedded model.")
    if place.is_file:
        return fetch_file(place.repo, place.path, place.revision)
    try:
        return fetch_named(source, subfolder=place.path, revision=place.revision)
    except PipelineError:
        return fetch(place.repo, subfolder=f"{place.path}/{PIPELINE_VAE}", revision=place.revision)


def fetch_named(
    source: AnyPath,
    *,
    subfolder: str = "",
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: AnyPath | None = None,
    local_files_only: bool = False,
) -> Path:
    """`fetch` for what is no folder on this disk, which the error says too; an address may name the revision."""
    place = place_of(source) or Place(str(source))
    if place.is_file:
        raise WeightFileError(f"{source} is the address of a file: give it to from_single_file.")
    try:
        return fetch(
            place.repo,
            subfolder=subfolder or place.path,
            revision=revision or place.revision,
            variant=variant,
            token=token,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except PipelineError:
        raise
    except WeightFileError as error:
        if "://" in str(source):
            raise
        raise WeightFileError(f"no file or folder {source}, and {error}") from None


def single_file(source: AnyPath) -> Path:
    """The file on this disk for a path or an address. Raises WeightFileError for a folder or a repository."""
    path = as_path(source)
    if os.path.isdir(path):
        raise WeightFileError(f"{path} is a folder: give it to from_pretrained, or name the file in it.")
    place = None if os.path.lexists(path) else place_of(source)
    if place is None:
        return path
    if not place.is_file:
        raise WeightFileError(f"no file {source}: a repository or a folder of the hub is for from_pretrained.")
    return fetch_file(place.repo, place.path, place.revision)


def place_of(source: AnyPath) -> Place | None:
    """The place on the hub that a text names; None if it can only be a path.

    Raises WeightFileError for the address of anything else.
    """
    text = str(source)
    scheme, mark, rest = text.partition("://")
    if not mark and not text.startswith(tuple(f"{host}/" for host in HOSTS)):
        name = text.rstrip("/")
        return Place(name) if REPOSITORY.fullmatch(name) and not name.lower().endswith(suffixes()) else None
    place = None
    if scheme == "hf":
        place = _in_file_system(rest)
    elif not mark or (scheme in ("http", "https") and _host(rest) in (*HOSTS, _endpoint())):
        place = _on_page(rest or text)
    if place is None:
        raise WeightFileError(
            f"{text} is not the address of a VAE on the hub: give owner/name, or download the file and give its path."
        )
    return place


def _host(address: str) -> str:
    return address.split("/")[0].lower()


def _endpoint() -> str:
    """The host of another hub, where the environment names one."""
    return _host(os.environ.get("HF_ENDPOINT", "").partition("://")[2])


def _on_page(address: str) -> Place | None:
    """The place of host/owner/name, host/owner/name/tree/revision/folder or host/owner/name/blob/revision/file."""
    _, *parts = map(unquote, re.split(r"[?#]", address)[0].strip("/").split("/"))
    kind, revision = parts[2:3], parts[3] if len(parts) > 3 else None
    place = Place("/".join(parts[:2]), revision, "/".join(parts[4:]))
    known = not kind or (kind == ["tree"] and place.revision) or (kind[0] in FILES and place.is_file)
    return place if known and REPOSITORY.fullmatch(place.repo) else None


def _in_file_system(address: str) -> Place | None:
    """The place of owner/name[@revision][/path], as huggingface_hub's file system writes it after hf://."""
    match = re.fullmatch(r"([^/@]+/[^/@]+)(?:@([^/]+))?/?(.*)", address)
    if match is None or not REPOSITORY.fullmatch(match[1]):
        return None
    return Place(match[1], match[2] and unquote(match[2]), match[3].strip("/"))


def _vae_of(path: Path) -> Path:
    """The folder of a pipeline's VAE, or the path itself; what is wrong with it is said when it is opened."""
    if path.is_dir():
        try:
            choose_among(listing(path), str(path))
        except PipelineError:
            return path / PIPELINE_VAE
        except WeightFileError:
            return path
    return path
