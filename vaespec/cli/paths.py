"""Where results go, checked before any work is done."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vaespec.errors import InputError
from vaespec.files import written_whole


def require_folder(folder: Path) -> None:
    """InputError unless files can be written to the folder, or it can be made."""
    there = folder
    while not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        raise InputError(f"cannot write to {folder}: {there} is a file, not a folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {folder}: no permission in {there}.")


def require_file(path: Path, suffix: str) -> None:
    """InputError unless a file of that kind can be written at `path`."""
    if path.is_dir():
        raise InputError(f"cannot write {path}: it is a folder; name a {suffix} file.")
    if path.suffix.lower() != suffix:
        raise InputError(f"cannot write {path}: the result is a {suffix} file; name it {path.with_suffix(suffix)}.")
    require_folder(path.parent)


def require_apart(inputs: Sequence[Path], outputs: Iterable[Path]) -> None:
    """InputError where an output would replace an input."""
    for output in filter(Path.exists, outputs):
        for source in inputs:
            if source.exists() and output.samefile(source):
                raise InputError(f"{output} would replace the input {source}: choose another --output.")


def targets(folder: Path, sources: Sequence[Path]) -> list[Path]:
    """NAME-vae.png in the folder for every source; InputError where two would have the same name."""
    require_folder(folder)
    outputs = [folder / f"{source.stem}-vae.png" for source in sources]
    owners = defaultdict(list)
    for source, output in zip(sources, outputs, strict=True):
        owners[str(output).casefold()].append(source)  # some file systems do not tell a from A
    for shared in owners.values():
        if len(set(shared)) < len(shared):
            raise InputError(f"{shared[0]} is given twice.")
        if len(shared) > 1:
            both, output = " and ".join(map(str, shared)), folder / f"{shared[0].stem}-vae.png"
            raise InputError(f"{both} would both be written to {output}: give them one at a time, to other folders.")
    require_apart(sources, outputs)
    return outputs


@contextmanager
def written(path: Path) -> Iterator[Path]:
    """As `written_whole`, in a folder that is made if need be, with an OSError told as InputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as part:
            yield part
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror or error}).") from error
