"""A run in processes of its own: a subject that hangs or crashes loses one check, and the others go on."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from vaespec.errors import VaespecError
from vaespec_conformance.report import Place, Report, Result
from vaespec_conformance.request import Request
from vaespec_conformance.tally import BEFORE, Tally
from vaespec_conformance.timing import TIME_LIMITS

LOADING = 300.0
"""Seconds until a subject must be imported; a framework on a cold disk takes some."""
ENDING = 10.0
"""Seconds that a process takes to end, after its last word."""
THREADS = {"OMP_NUM_THREADS": "1"}
"""A few pixels are computed sooner than a second thread wakes up, above all on busy cores. The user's own setting
goes before."""

Progress = Callable[[Place, int], None]


class RefusedError(VaespecError):
    """A request that cannot be served: no such subject, or one that cannot be imported; no such check."""


class SilenceError(Exception):
    """A process that said nothing for too long."""


class Worker:
    """A process that runs the items of a request from one on."""

    def __init__(self, request: Request, first: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "vaespec_conformance.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
            env=THREADS | os.environ,
        )
        assert self.process.stdin
        self.process.stdin.write(json.dumps({"request": request.to_json(), "first": first}) + "\n")
        self.process.stdin.close()
        self.lines: queue.Queue[str | None] = queue.Queue()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stdout:
            for line in stdout:
                self.lines.put(line)
        self.lines.put(None)

    def listen(self, seconds: float) -> dict[str, Any] | None:
        """The next message, None where the process has ended; SilenceError if there is none in time."""
        try:
            line = self.lines.get(timeout=seconds)
        except queue.Empty:
            raise SilenceError from None
        return None if line is None else json.loads(line)

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


def run_isolated(request: Request, progress: Progress = lambda place, total: None) -> Report:
    """Examine a subject; `progress` is called before each check. RefusedError if it cannot be begun."""
    run = _Run(request, progress)
    while not run.done:
        run.resume()
    assert run.tally
    return run.tally.report()


class _Run:
    """What is known of a run, over the processes that it takes."""

    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.limit = request.time_limit or TIME_LIMITS[request.profile]
        self.tally: Tally | None = None
        self.places: list[Place] = []
        self.number: int | None = None  # of the item that was begun
        self.next = BEFORE
        self.done = False

    def resume(self) -> None:
        """One process, until it ends, crashes or hangs."""
        worker = Worker(self.request, self.next)
        self.number = None
        try:
            while (message := worker.listen(LOADING if self.number is None else self.limit)) is not None:
                self._hear(message)
                if self.done:
                    return
            how = worker.ended()
            self._lose(f"the process {how} during this check.", f"importing the subject: the process {how}.")
        except SilenceError:
            slow = f"it did not end within {self.limit:g} s."
            self._lose(slow, f"importing the subject did not end within {LOADING:g} s.")
        finally:
            worker.stop()

    def _hear(self, message: dict[str, Any]) -> None:
        event = message["event"]
        if event == "refused":
            raise RefusedError(message["message"])
        if event == "ready" and self.tally is None:
            self.tally = Tally(message["about"])
            self.places = [Place(*place) for place in message["places"]]
        elif event == "begin":
            self.number = message["number"]
            if self.number != BEFORE:
                self.progress(self.places[self.number], len(self.places))
        elif event == "known":
            assert self.tally
            self.tally.about |= message["facts"]
        elif event == "result":
            assert self.tally
            self.tally.add(Result.from_dict(message["result"]), message["seconds"])
            self.next = message["number"] + 1
        elif event == "end":
            self.done = True

    def _lose(self, during: str, before: str) -> None:
        """Go on behind the item that did not end; RefusedError if there was none yet."""
        if self.number is None or self.tally is None:
            raise RefusedError(before)
        self.tally.lose(self.places[self.number] if self.number != BEFORE else None, during)
        self.next = self.number + 1
        if not self.tally.patient:
            self.tally.give_up(self.places[self.next :])
            self.next = len(self.places)
        self.done = self.next >= len(self.places)
