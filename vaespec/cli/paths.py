"""The places that results are written to, checked before any work is done."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vaespec.errors import InputError
from vaespec.files import folder_made, require_writable, written_whole


def require_folder(folder: Path) -> None:
    """Raises InputError unless files can be written to the folder, which need not exist yet."""
    existing = folder
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        raise InputError(f"cannot write to {folder}: {existing} is a file, not a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission to write in {existing}.")


def require_file(path: Path, suffix: str) -> None:
    """Raises InputError unless a file with that suffix can be written at `path`."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a {suffix} file.")
    try:
        require_writable(path)
    except NotADirectoryError:
        pass  # for the words of `require_folder`
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}).") from None
    if path.suffix.lower() != suffix:
        raise InputError(f"cannot write {path}: the result is a {suffix} file; name it {path.with_suffix(suffix)}.")
    require_folder(path.parent)


def require_apart(inputs: Sequence[Path], outputs: Iterable[Path]) -> None:
    """Raises InputError if an output would replace an input."""
    for output in filter(Path.exists, outputs):
        for source in inputs:
            if source.exists() and output.samefile(source):
                raise InputError(f"{output} would replace the input {source}: choose another --output.")


def picture_outputs(folder: Path, sources: Sequence[Path], suffix: str = ".png") -> list[Path]:
    """Returns folder/NAME-vae and the suffix for every source. Raises InputError if two sources have one output."""
    require_folder(folder)
    outputs = [folder / f"{source.stem}-vae{suffix}" for source in sources]
    owners = defaultdict(list)
    for source, output in zip(sources, outputs, strict=True):
        owners[str(output).casefold()].append(source)  # in some file systems, a and A are one name
    for shared in owners.values():
        if len(set(shared)) < len(shared):
            raise InputError(f"{shared[0]} is given twice: name each picture once.")
        if len(shared) > 1:
            names, output = " and ".join(map(str, shared)), folder / f"{shared[0].stem}-vae{suffix}"
            raise InputError(f"{names} would be written to one file, {output}: run them apart, with other folders.")
    require_apart(sources, outputs)
    return outputs


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """Works as `written_whole`, creates the folder, and raises an OSError as InputError."""
    try:
        with folder_made(path.parent), written_whole(path) as part:
            yield part
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}).") from error
