"""The parent's side of a worker process: starts it, sends it a request, and receives its messages."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

from vaespec_conformance.running.request import Request

SHUTDOWN = 10.0
"""Seconds that a process may take to exit after its last message."""
SHOWN = 4000
"""Bytes of what a subject has printed that are shown, the last ones."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""A few pixels are computed before a second thread wakes up, above all on busy cores. The user's setting has priority.
"""


class Process:
    """A worker process: loads the subject of a request, reports the agenda, and runs the items it is sent."""

    def __init__(self, request: Request, messages: SimpleQueue[Message]) -> None:
        self.log = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the process is stopped)
        with _interrupts_blocked():
            self.process = subprocess.Popen(
                [sys.executable, "-m", "vaespec_conformance.running.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self.log,
                text=True,
                encoding="utf-8",
                env=THREADS | os.environ,
            )
        self.seen = 0
        self._send(request.to_json())
        self.reader = threading.Thread(target=self._read, args=(messages,), daemon=True)
        self.reader.start()

    def begin(self, numbers: Iterable[int]) -> None:
        """Runs the items with these numbers in the agenda, in this order."""
        self._send(json.dumps(list(numbers)))

    def _send(self, line: str) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # the reader reports that the process has ended
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _read(self, messages: SimpleQueue[Message]) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            for line in stdout:
                messages.put((self, json.loads(line)))
        messages.put((self, None))

    def ending(self) -> str:
        """How a process that has closed its output ended, in words."""
        try:
            code = self.process.wait(SHUTDOWN)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def printed(self) -> str:
        """The end of what the process has printed since the last call."""
        start, end = self.seen, os.fstat(self.log.fileno()).st_size
        self.seen = end
        if hasattr(os, "pread"):
            text = os.pread(self.log.fileno(), min(SHOWN, end - start), max(start, end - SHOWN))
        else:  # Windows, on which the process shares the position in the file
            text = b""
        return text.decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """Kills the process if it still runs."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.log.close()


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Blocks SIGINT, also in processes that are started meanwhile: after Ctrl-C this process ends them quietly."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


Message: TypeAlias = tuple[Process, dict[str, Any] | None]
"""The sender and its message; None after the process has closed its output."""
