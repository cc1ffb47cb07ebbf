"""Fetching a VAE from a hub of models: only the files that are needed, into the cache of huggingface_hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from vaespec.errors import WeightFileError
from vaespec.weights.folders import FolderFiles, choose_among

# Messages for errors of huggingface_hub, by class name; the first class that fits is used.
REMEDIES = {
    "HFValidationError": "{repo!r} is no repository: write owner/name, or the path of a folder that exists.",
    "GatedRepoError": "{repo} is gated: accept its terms on its page, then give token= or log in with `hf auth login`.",
    "RepositoryNotFoundError": "no repository {repo} at {endpoint} that you may see: check the name; if it is private, "
    "give token= or log in with `hf auth login`.",
    "RevisionNotFoundError": "{repo} has no revision {revision!r}: give a branch, a tag or a full commit that it has.",
    "LocalTokenNotFoundError": "token=True, but nobody has logged in here: run `hf auth login`, or give the token.",
    "LocalEntryNotFoundError": "{folder} is not in the cache {cache}: fetch it once with a network, without "
    "local_files_only and HF_HUB_OFFLINE.",
    "EntryNotFoundError": "{folder} has no such file: check its name on the page of the repository.",
}


@dataclass(frozen=True)
class HubFolder:
    """A folder of a repository at a revision; `hub` is the library huggingface_hub."""

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
        """The current commit of the revision, and the names in the folder, from the hub."""
        timeout = self.hub.constants.HF_HUB_ETAG_TIMEOUT
        info = self.hub.HfApi(token=self.token).model_info(self.repo, revision=self.revision, timeout=timeout)
        return info.sha, self._inside({file.rfilename for file in info.siblings or ()})

    def download(self, name: str, revision: str | None) -> Path:
        """Download a file of the folder unless it is cached, resuming if interrupted; returns its path in the cache."""
        subfolder = self.subfolder or None
        path: str = self.hub.hf_hub_download(
            self.repo, name, subfolder=subfolder, revision=revision, token=self.token, cache_dir=self.cache_dir
        )
        return Path(path)

    def cached(self) -> tuple[Path, set[str]]:
        """The folder in the cache, and the names in it; sends no request."""
        snapshot = Path(
            self.hub.snapshot_download(
                self.repo,
                revision=self.revision,
                cache_dir=self.cache_dir,
                local_files_only=True,
                allow_patterns=[],  # matches no file: this only finds the folder of the revision
            )
        )
        # A link whose file has been removed from the cache counts: other files are not taken in its place.
        names = {path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if not path.is_dir()}
        return snapshot / self.subfolder, self._inside(names)

    def explain(self, error: Exception) -> WeightFileError | MemoryError:
        """The library's error as one sentence that says what to do; an error of ours, or of memory, unchanged."""
        if isinstance(error, (WeightFileError, MemoryError)):
            return error
        if isinstance(error, self.hub.errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
            error = error.__cause__  # the reason for searching the cache
        constants = self.hub.constants
        facts = {"repo": self.repo, "folder": self, "revision": self.revision, "endpoint": constants.ENDPOINT}
        cache = self.cache_dir or constants.HF_HUB_CACHE
        for name, message in REMEDIES.items():
            if isinstance(error, getattr(self.hub.errors, name)):
                return WeightFileError(message.format(**facts, cache=cache))
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
            remedy = f"choose {', '.join(folders)}" if folders else "it has none, leave subfolder= out"
            raise WeightFileError(f"{self.repo} has no folder {self.subfolder!r}: {remedy}.")
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

    Fetches only the files that `choose_among` chooses. `token` defaults to HF_TOKEN or the login's token. If the hub
    does not answer, the copy in the cache is used, with a warning; with `local_files_only` or HF_HUB_OFFLINE no request
    is sent. In the cache a variant counts as the only one if no other was fetched. Raises WeightFileError.
    """
    cache = Path(cache_dir).expanduser() if cache_dir else None
    source = HubFolder(_library(repo), repo, subfolder.strip("/"), revision, token, cache)
    if local_files_only or source.hub.constants.HF_HUB_OFFLINE:
        return _from_cache(source, variant)
    try:
        commit, names = source.online()
    except (WeightFileError, MemoryError):
        raise
    except Exception as error:  # the library, its HTTP client or a broken server raise anything
        return _cached_instead(source, variant, error)
    chosen = choose_among(names, str(source), variant)
    try:
        return _downloaded(source, chosen, commit, names)
    except MemoryError:
        raise
    except Exception as error:
        raise source.explain(error) from None


def fetch_file(repo: str, path: str, revision: str | None = None) -> Path:
    """The local copy of one file of a repository, from the cache if the hub does not answer. Raises WeightFileError."""
    folder, _, name = path.rpartition("/")
    source = HubFolder(_library(repo), repo, folder, revision, None, None)
    errors = source.hub.errors
    try:
        if not source.hub.constants.HF_HUB_OFFLINE:
            source.online()  # fails at once if the hub does not answer, where a download would try for long
        return source.download(name, revision)
    except (errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise source.explain(error) from None
    except Exception as error:  # as in `fetch`
        message, cached = source.explain(error), source.hub.try_to_load_from_cache(repo, path, revision=revision)
    if not isinstance(cached, str):
        raise message
    _warn_of_cache(message)
    return Path(cached)


def _downloaded(source: HubFolder, chosen: FolderFiles, commit: str, names: Collection[str]) -> Path:
    """Download every chosen file of this commit; returns the folder in the cache."""
    # The first file is fetched by the revision's name, so that the cache knows its commit for later use offline.
    head, *rest = [file.name for file in chosen.first]
    folder = source.download(head, source.revision).parent
    moved = [name for name in rest if source.download(name, commit).parent != folder]
    shards = [file.name for file in chosen.under(folder).shards()] if not moved else []
    _require(shards, names, f"{source} lacks", "its weights are incomplete there, choose another variant or revision")
    moved += [name for name in shards if source.download(name, commit).parent != folder]
    if moved:
        raise WeightFileError(f"{source} changed while it was fetched: call again.")
    return folder


def _from_cache(source: HubFolder, variant: str | None) -> Path:
    """The folder in the cache, if it has all files of its VAE."""
    try:
        folder, names = source.cached()
    except MemoryError:
        raise
    except Exception as error:
        raise source.explain(error) from None
    part = f"the part of {source} that is in the cache"
    shards = choose_among(names, part, variant).under(folder).shards()
    _require([file.name for file in shards], names, f"{part} lacks", "fetch the rest with a network")
    return folder


def _cached_instead(source: HubFolder, variant: str | None, failure: Exception) -> Path:
    """The folder in the cache if the hub fails. Raises the hub's error if the revision does not exist."""
    message = source.explain(failure)
    if isinstance(failure, source.hub.errors.RevisionNotFoundError):
        raise message from None
    try:
        folder = _from_cache(source, variant)
    except WeightFileError:
        raise message from None
    _warn_of_cache(message)
    return folder


def _warn_of_cache(failure: Exception) -> None:
    logging.getLogger("vaespec").warning("%s Its copy in the cache is used.", failure)


def _require(needed: Collection[str], names: Collection[str], subject: str, remedy: str) -> None:
    missing = [name for name in needed if name not in names]
    if missing:
        raise WeightFileError(f"{subject} {len(missing)} of the files it needs, {missing[0]} first: {remedy}.")


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
