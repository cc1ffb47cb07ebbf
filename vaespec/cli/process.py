"""The process of a command: its standard streams, and the signals that end it. Imports nothing that takes long."""

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def exit_at_signals() -> None:
    """Lets SIGINT, SIGTERM and SIGHUP end the process at once with 128 + n.

    The exception that Python raises for SIGINT would show a traceback, or be swallowed by a module that is imported.
    """
    _handle(lambda number, frame: os._exit(128 + number))


@contextmanager
def running() -> Iterator[Callable[[], None]]:
    """Prepares the process for a command, and yields what to call after the imports, before the command begins.

    From then on the signals raise SystemExit, so that unfinished files are removed.
    """
    _open_streams()
    if not os.environ.get("COLUMNS", "1").strip("0").isdigit():  # 0, or no number: Rich would print nothing
        del os.environ["COLUMNS"]
    ended: list[int] = []

    def end(number: int, frame: object) -> None:
        _handle(signal.SIG_IGN)  # a second signal must not stop the removal of files
        ended.append(number)
        raise SystemExit(128 + number)

    try:
        yield lambda: _handle(end)
    finally:
        if ended:  # whatever became of the exception
            sys.exit(128 + ended[0])
        _flush()
        exit_at_signals()  # nothing is left to remove


def _handle(handler: Callable[[int, object], object] | signal.Handlers) -> None:
    """Sets the handler of the signals, but for those that whoever started the process has switched off (nohup)."""
    for number in ENDING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            with suppress(ValueError):  # in another thread than the main one, which gets the signals
                signal.signal(number, handler)


def _open_streams() -> None:
    """Opens the null device in place of closed streams, whose numbers files would get, and prints any text.

    A character that stdout cannot take, such as ü in ASCII, is printed as an escape sequence.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _flush() -> None:
    """Writes what is still in the buffer of stdout. Exits with 1, and a line on stderr, if it cannot be written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter tries again when it ends
        if not isinstance(error, BrokenPipeError):  # whose reader has seen enough
            print(f"vaespec: error: cannot write to stdout ({error.strerror}).", file=sys.stderr)
        sys.exit(1)
