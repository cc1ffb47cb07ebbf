"""Writing files so that each appears whole or not at all."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renames it to `path` at the end, and removes it after an error.

    An existing file is unchanged until then. Raises OSError if the folder cannot be written to.
    """
    part = path.with_name(f".{path.name[:200]}.{secrets.token_hex(4)}.part")
    try:
        part.touch(exist_ok=False)
    except OSError as error:  # name the requested file, not the temporary one
        raise type(error)(error.errno, error.strerror, str(path)) from None
    mode = part.stat().st_mode
    try:
        yield part
        part.chmod(mode)  # some writers replace it with a private file of their own
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
