"""What the user sees when something goes wrong: one line on stderr, and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperGroup

from vaespec.errors import VaespecError


class Guarded(TyperGroup):
    """The commands, with every failure told in words; `--debug` adds the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command; exit 1 with a line on stderr for an error, 130 without a word for Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise  # Typer's own: usage errors, exits, a reader of our output that went away
            if ctx.params["debug"]:
                traceback.print_exc()
            print(f"vaespec: error: {in_words(error)}", file=sys.stderr)
            raise typer.Exit(1) from None


def in_words(error: Exception) -> str:
    """What went wrong, for somebody who does not know the code."""
    if isinstance(error, VaespecError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{(error.strerror or str(error)).lower()}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        return "not enough memory: try a smaller picture."
    about = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {about} (`vaespec --debug ...` shows where)"


@contextmanager
def about(path: Path) -> Iterator[None]:
    """Put the file's name before what vaespec says against its content."""
    try:
        yield
    except VaespecError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
