"""What the user sees when a command fails: one line on stderr, and an exit code."""

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


class CommandGroup(TyperGroup):
    """A group of commands that reports every failure in one line; `--debug` adds the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Exits with 1 and a line on stderr after an error, silently with 130 after Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise  # Typer's own: usage errors and exits; or the reader of our output has closed the pipe
            if ctx.params["debug"]:
                traceback.print_exc()
            print(f"vaespec: error: {in_words(error)}", file=sys.stderr)
            raise typer.Exit(1) from None


def in_words(error: Exception) -> str:
    """Describes an error to a reader who does not know the code."""
    if isinstance(error, VaespecError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return f"{place}{(error.strerror or str(error)).lower()}."
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        own = str(error).startswith("not enough memory to read")  # ours: it names a file of weights
        return str(error) if own else "not enough memory: try a smaller picture."
    message = " ".join(str(error).split())
    return f"unexpected {type(error).__name__}: {message} (`vaespec --debug ...` shows where)"


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Puts the file's name before the message of a VaespecError, unless the message has it."""
    try:
        yield
    except VaespecError as error:
        if str(path) in str(error):
            raise
        raise type(error)(f"{path}: {error}") from error
