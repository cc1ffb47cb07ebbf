"""A process in which a subject runs, and what is heard from it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, TypeAlias

from vaespec_conformance.running.request import Request

ENDING = 10.0
"""Seconds that a process takes to end, after its last word."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""A few pixels are computed sooner than a second thread wakes up, above all on busy cores. The user's own setting
goes before."""


class Process:
    """Loads the subject of a request, tells what there is to run, and runs what it is told to."""

    def __init__(self, request: Request, heard: SimpleQueue[Heard]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vaespec_conformance.running.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=THREADS | os.environ,
        )
        self._say(request.to_json())
        self.reader = threading.Thread(target=self._read, args=(heard,), daemon=True)
        self.reader.start()

    def begin(self, numbers: Iterable[int]) -> None:
        """Run these items of the plan, in this order."""
        self._say(json.dumps(list(numbers)))

    def _say(self, line: str) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):  # one that has ended is heard to have
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _read(self, heard: SimpleQueue[Heard]) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            for line in stdout:
                heard.put((self, json.loads(line)))
        heard.put((self, None))

    def ended(self) -> str:
        """How it ended, in words; of one that has nothing more to say."""
        try:
            code = self.process.wait(ENDING)
        except subprocess.TimeoutExpired:
            return "stopped answering"
        return f"was ended by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"

    def stop(self) -> None:
        """End it, if it still runs."""
        self.process.kill()
        self.process.wait()
        self.reader.join()
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()


Heard: TypeAlias = tuple[Process, dict[str, Any] | None]
"""A message and who sent it; None for the end of the process."""
