"""Writing the files of a report: every one that can be written, before an error about another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vaespec.cli.paths import written
from vaespec.errors import InputError


def write_texts(texts: Mapping[Path, str]) -> None:
    """Writes each text to its file, whole or not at all. Raises the first InputError after it has tried all."""
    errors = []
    for path, text in texts.items():
        try:
            with written(path) as part:
                part.write_text(text, encoding="utf-8")
        except InputError as error:
            errors.append(error)
    if errors:
        raise errors[0]
