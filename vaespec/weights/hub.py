"""Fetching a VAE from a hub of models: the files that are needed, no others, into the cache of huggingface_hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from vaespec.errors import WeightFileError
from vaespec.weights.folders import FolderFiles, choose_among

# What to say for the library's errors, by their names; the first that fits.
REMEDIES = (
    (
        "HFValidationError",
        "{repo!r} is no repository: write owner/name, or the path of a folder that exists.",
    ),
    (
        "GatedRepoError",
        "{repo} is gated: accept its terms on its page, then give token= or log in with `hf auth login`.",
    ),
    (
        "RepositoryNotFoundError",
        "no repository {repo} at {endpoint} that you may see: check the name; if it is private, give token= or log in "
        "with `hf auth login`.",
    ),
    (
        "RevisionNotFoundError",
        "{repo} has no revision {revision!r}: give a branch, a tag or a full commit that it has.",
    ),
    (
        "LocalTokenNotFoundError",
        "token=True, but nobody has logged in here: run `hf auth login`, or give the token itself.",
    ),
    (
        "LocalEntryNotFoundError",
        "{where} is not in the cache {cache}: fetch it once with a network, without local_files_only and "
        "HF_HUB_OFFLINE.",
    ),
)


@dataclass(frozen=True)
class Source:
    """A folder of a repository at a revision, through the library `hub`."""

    hub: ModuleType
    repo: str
    subfolder: str
    revision: str | None
    token: str | bool | None = field(repr=False)
    cache_dir: Path | None

    def __str__(self) -> str:
        inside = f"/{self.subfolder}" if self.subfolder else ""
        return f"{self.repo}{inside}" + (f" at {self.revision}" if self.revision else "")

    def online(self) -> tuple[str, set[str]]:
        """The commit that the revision stands for now, and the names in the folder, as the hub tells them."""
        timeout = self.hub.constants.HF_HUB_ETAG_TIMEOUT
        info = self.hub.HfApi(token=self.token).model_info(self.repo, revision=self.revision, timeout=timeout)
        return info.sha, self._inside({file.rfilename for file in info.siblings or ()})

    def download(self, name: str, revision: str | None) -> Path:
        """Where a file of the folder is in the cache, after fetching it unless it is there; resumes when cut off."""
        subfolder = self.subfolder or None
        path: str = self.hub.hf_hub_download(
            self.repo, name, subfolder=subfolder, revision=revision, token=self.token, cache_dir=self.cache_dir
        )
        return Path(path)

    def cached(self) -> tuple[Path, set[str]]:
        """The folder in the cache and the names in it, without any request."""
        snapshot = Path(
            self.hub.snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=True,
                allow_patterns=[],  # wanting nothing, it only looks up where the revision is
            )
        )
        names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()}
        return snapshot / self.subfolder, self._inside(names)

    def told(self, error: Exception) -> WeightFileError:
        """The library's error in one sentence that says what to do."""
        if isinstance(error, self.hub.errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # why it was looked for in the cache
        constants = self.hub.constants
        facts = {"repo": self.repo, "where": self, "revision": self.revision, "endpoint": constants.ENDPOINT}
        cache = self.cache_dir or constants.HF_HUB_CACHE
        for name, words in REMEDIES:
            if isinstance(error, getattr(self.hub.errors, name)):
                return WeightFileError(words.format(**facts, cache=cache))
        if isinstance(error, OSError) and error.errno is not None:
            return WeightFileError(
                f"cannot write {self} to the cache {cache}: {error.strerror}; give another cache_dir=."
            )
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = f"HTTP status {status}" if status else f"{type(error).__name__}: {error}".splitlines()[0].rstrip(":. ")
        remedy = "check token=" if status in (401, 403) else "check the network and HF_ENDPOINT, and call again"
        return WeightFileError(f"{self} could not be fetched from {constants.ENDPOINT} ({reason}): {remedy}.")

    def _inside(self, names: Collection[str]) -> set[str]:
        prefix = f"{self.subfolder}/" if self.subfolder else ""
        inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
        if not inside and prefix:
            folders = sorted({name.rpartition("/")[0] for name in names if "/" in name})
            there = f"choose {', '.join(folders)}" if folders else "it has none, leave subfolder= out"
            raise WeightFileError(f"{self.repo} has no folder {self.subfolder!r}: {there}.")
        return inside


def fetch(
    repo: str,
    *,
    subfolder: str = "",
    revision: str | None = None,
    variant: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
) -> Path:
    """The local folder that holds the VAE of a repository: its config.json, if it has one, and its weights.

    Only what `choose_among` picks is fetched; `token` is by default HF_TOKEN or that of the login. Where the hub does
    not answer, the copy in the cache serves, with a warning; with `local_files_only` or HF_HUB_OFFLINE it is not asked.
    In the cache a variant counts as the only one if no other was fetched. Raises WeightFileError.
    """
    cache = Path(cache_dir).expanduser() if cache_dir else None
    source = Source(_library(repo), repo, subfolder.strip("/"), revision, token, cache)
    if local_files_only or source.hub.constants.HF_HUB_OFFLINE:
        return _from_cache(source, variant)
    try:
        commit, names = source.online()
    except WeightFileError:
        raise
    except Exception as error:  # those of the library, of its HTTP client, and of a server that speaks nonsense
        return _instead(source, variant, error)
    chosen = choose_among(names, str(source), variant)
    try:
        return _downloaded(source, chosen, commit, names)
    except WeightFileError:
        raise
    except Exception as error:
        raise source.told(error) from None


def _downloaded(source: Source, chosen: FolderFiles, commit: str, names: Collection[str]) -> Path:
    """The folder in the cache, once every chosen file of this commit is there."""
    # The first by the revision's own name: the cache then knows which commit that is, for later use without a network.
    head, *rest = [file.name for file in chosen.first]
    folder = source.download(head, source.revision).parent
    moved = [name for name in rest if source.download(name, commit).parent != folder]
    shards = [file.name for file in chosen.under(folder).shards()] if not moved else []
    _require(shards, names, f"{source} lacks", "its weights are incomplete there, choose another variant or revision")
    moved += [name for name in shards if source.download(name, commit).parent != folder]
    if moved:
        raise WeightFileError(f"{source} changed while it was fetched: call again.")
    return folder


def _from_cache(source: Source, variant: str | None) -> Path:
    """The folder in the cache, if the files of its VAE are all there."""
    try:
        folder, names = source.cached()
    except WeightFileError:
        raise
    except Exception as error:
        raise source.told(error) from None
    here = f"the part of {source} that is in the cache"
    shards = choose_among(names, here, variant).under(folder).shards()
    _require([file.name for file in shards], names, f"{here} lacks", "fetch the rest with a network")
    return folder


def _instead(source: Source, variant: str | None, failure: Exception) -> Path:
    """The folder in the cache, because the hub failed; not if it says that the revision is gone."""
    told = source.told(failure)
    if isinstance(failure, source.hub.errors.RevisionNotFoundError):
        raise told from None
    try:
        folder = _from_cache(source, variant)
    except WeightFileError:
        raise told from None
    logging.getLogger("vaespec").warning("%s Its copy in the cache is used.", told)
    return folder


def _require(wanted: Collection[str], names: Collection[str], who_lacks: str, remedy: str) -> None:
    missing = [name for name in wanted if name not in names]
    if missing:
        raise WeightFileError(f"{who_lacks} {len(missing)} of the files it needs, {missing[0]} first: {remedy}.")


def _library(repo: str) -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants  # neither is loaded by the package itself
        import huggingface_hub.errors
    except ImportError:
        raise WeightFileError(
            f'fetching {repo} needs huggingface_hub, which is not installed: pip install "vaespec[hub]".'
        ) from None
    return huggingface_hub
