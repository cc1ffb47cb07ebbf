"""What the user sees when a command fails: lines on stderr, and an exit code."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import typer
from typer.core import TyperGroup

from vaespec.cli.console import print_lines
from vaespec.errors import VaespecError
from vaespec.escaping import escaped


class CommandGroup(TyperGroup):
    """A group of commands that reports every failure in one line; `--debug` adds the traceback."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        """Reads the arguments. A usage error quotes them in a form that is safe to print."""
        with _escaped_usage_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command. Exits with 1 and a line on stderr for each error, silently with 130 after Ctrl-C."""
        try:
            with _escaped_usage_errors():
                return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
        except SomeFailedError as failed:
            for failure in failed.failures:
                complain(failure.words, failure.trace if ctx.params["debug"] else "")
        except InvalidRequestError as invalid:
            complain(in_words(invalid.error), invalid.trace if ctx.params["debug"] else "")
            raise typer.Exit(2) from None
        except Exception as error:
            if hasattr(error, "exit_code") or isinstance(error, (typer.Abort, BrokenPipeError)):
                raise  # Typer's own: usage errors and exits; or the reader of our output has closed the pipe
            complain(in_words(error), traceback.format_exc() if ctx.params["debug"] else "")
        raise typer.Exit(1) from None


class InvalidRequestError(Exception):
    """A command cannot begin: exit code 2, where 1 says that what was examined has failed."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error
        self.trace = getattr(error, "trace", None) or "".join(traceback.format_exception(error))


def complain(words: str, trace: str = "") -> None:
    """Prints the line of an error on stderr, below the traceback if there is one."""
    print_lines(*trace.splitlines(), *f"vaespec: error: {words}".split("\n"), file=sys.stderr)


def in_words(error: Exception) -> str:
    """Describes an error to a reader who does not know the code, in characters that are safe to print."""
    if isinstance(error, VaespecError):
        return str(error)
    if isinstance(error, OSError):
        place = "" if error.filename is None else f"{error.filename}: "
        return escaped(f"{place}{(error.strerror or str(error)).lower()}.")
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":  # the latter is torch's
        own = str(error).startswith("not enough memory to read")  # ours: it names a file of weights
        return str(error) if own else "not enough memory: try a smaller picture."
    message = " ".join(str(error).split())
    return escaped(f"unexpected {type(error).__name__}: {message} (`vaespec --debug ...` shows where)")


@contextmanager
def name_in_errors(path: object) -> Iterator[None]:
    """Puts the file's name before the message of a VaespecError, unless the message has it."""
    try:
        yield
    except VaespecError as error:
        if escaped(str(path)) in str(error):
            raise
        sentence, *lines = error.args
        raise type(error)(f"{path}: {sentence}", *lines) from error


@dataclass(frozen=True)
class Failure:
    """Why one of many pictures failed: in words, and as a traceback. No frame is kept, which would keep its arrays."""

    name: str
    words: str
    trace: str


@dataclass(frozen=True)
class Failures:
    """The failures of single pictures, after which a command goes on with the others."""

    found: list[Failure] = field(default_factory=list)

    @contextmanager
    def caught(self, name: str) -> Iterator[None]:
        """Notes any error of this picture."""
        try:
            yield
        except Exception as error:
            words = in_words(error)
            named = words if escaped(name) in words else f"{escaped(name)}: {words}"
            self.found.append(Failure(name, named, traceback.format_exc()))

    def document(self) -> list[dict[str, str]]:
        """The failures for --json."""
        return [{"name": failure.name, "error": failure.words} for failure in self.found]

    def require_any(self, left: Sized) -> None:
        """Raises SomeFailedError if nothing is left of the work."""
        if not left:
            self.raise_any()

    def raise_any(self) -> None:
        """Raises SomeFailedError if there are failures; called after the rest has been reported."""
        if self.found:
            raise SomeFailedError(self.found)


class SomeFailedError(Exception):
    """A part of the work of a command failed."""

    def __init__(self, failures: list[Failure]) -> None:
        super().__init__(f"{len(failures)} failed")
        self.failures = failures


@contextmanager
def _escaped_usage_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if hasattr(error, "exit_code") and hasattr(error, "message"):
            error.message = escaped(error.message.removeprefix("Value error, "))  # pydantic's, which Typer uses
        raise
