"""Files that are either there whole or not there at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A temporary name beside `path` to write to; renamed to `path` at the end, removed if anything goes wrong.

    An existing file stays as it was until then. Raises OSError where the folder cannot be written to.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as error:  # of the file that was asked for, not of one that nobody knows
        raise type(error)(error.errno, error.strerror, str(path)) from None
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # some writers put a private file of their own in its place
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
