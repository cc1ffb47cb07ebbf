"""Runs the suite in worker processes: a subject that hangs or crashes loses one check, and the others are run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from vaespec.errors import VaespecError
from vaespec_conformance.reports.report import Place, Report, Result
from vaespec_conformance.running.process import Message, Process
from vaespec_conformance.running.request import LOADING, Request
from vaespec_conformance.running.tally import PRELIMINARIES, Tally

JOBS = 2
"""Processes on the CPU, however many cores there are, since each imports the framework. An accelerator gets one, since
one process may take all of its memory.
"""

Progress = Callable[[Place, int], None]


class RefusedError(VaespecError):
    """A request cannot be served: there is no such subject or check, or the subject cannot be imported."""


def run_isolated(request: Request, progress: Progress = lambda place, total: None) -> Report:
    """Examines a subject; `progress` is called before each check. Raises RefusedError if the run cannot begin."""
    run = _Run(request, progress)
    try:
        return run.report()
    finally:
        run.stop()


class _Lane:
    """Items that run one after another, in one process until it is lost, then in another."""

    def __init__(self, request: Request, messages: SimpleQueue[Message]) -> None:
        self.request, self.messages = request, messages
        self.remaining: deque[int] = deque()  # the first is running, once the process is ready
        self.start()

    def start(self) -> None:
        """Starts a process, which has to load the subject first."""
        self.process, self.ready, self.done = Process(self.request, self.messages), False, False
        self.allow(LOADING)

    def allow(self, seconds: float) -> None:
        """Sets the time until which the next message must arrive."""
        self.deadline = time.monotonic() + seconds

    def stop(self) -> None:
        """Kills the process."""
        self.done = True
        self.process.stop()


class _Run:
    """The state of a run over all its processes."""

    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.limit = request.allowance
        self.places: list[Place] = []
        self.tally: Tally | None = None
        self.messages: SimpleQueue[Message] = SimpleQueue()
        self.lanes = [_Lane(request, self.messages)]

    def report(self) -> Report:
        """Handles messages until all lanes are done."""
        while lanes := [lane for lane in self.lanes if not lane.done]:
            first = min(lanes, key=lambda lane: lane.deadline)
            try:
                process, message = self.messages.get(timeout=max(0.0, first.deadline - time.monotonic()))
            except Empty:
                slow = "did not end within {:g} s."
                self._lose(first, f"it {slow.format(self.limit)}", f"importing the subject {slow.format(LOADING)}")
                continue
            for lane in lanes:
                if lane.process is process:  # no lane has it if it was stopped meanwhile
                    self._handle(lane, message)
        assert self.tally
        return self.tally.report(self.places)

    def stop(self) -> None:
        """Kills all processes."""
        for lane in self.lanes:
            lane.stop()

    def _handle(self, lane: _Lane, message: dict[str, Any] | None) -> None:
        match message:
            case None:
                ending = f"the process {lane.process.ending()}"
                self._lose(lane, f"{ending} during this check.", f"importing the subject: {ending}.")
            case {"refused": reason}:
                raise RefusedError(reason)
            case {"facts": facts, "places": places}:
                if self.tally is None:
                    self.places, self.tally = [Place(*place) for place in places], Tally(facts)
                    self._divide(facts["subject"]["device"])
                lane.ready = True
                lane.process.begin(lane.remaining)
                self._go_on(lane)
            case {"preliminaries": facts}:
                assert self.tally
                self.tally.facts |= facts
                lane.remaining.popleft()
                self._go_on(lane)
            case {"result": result, "seconds": seconds}:
                assert self.tally
                self.tally.add(Result.from_dict(result), seconds)
                lane.remaining.popleft()
                self._go_on(lane)

    def _divide(self, device: str | None) -> None:
        """Divides the items among lanes, the dtypes of a check together, so that it does not depend on their speed."""
        checks = list(dict.fromkeys(place.check for place in self.places))
        jobs = max(1, min(self.request.jobs or (JOBS if device == "cpu" else 1), len(checks)))
        self.lanes += [_Lane(self.request, self.messages) for _ in range(jobs - 1)]
        self.lanes[0].remaining.append(PRELIMINARIES)
        for number, place in enumerate(self.places):
            self.lanes[checks.index(place.check) % jobs].remaining.append(number)

    def _go_on(self, lane: _Lane) -> None:
        """Lets a lane run its next item, or stops it if there is none or too many checks were lost."""
        assert self.tally
        if not self.tally.patient:
            self.tally.give_up(self.places[number] for number in lane.remaining if number != PRELIMINARIES)
            lane.remaining.clear()
        if not lane.remaining:
            lane.stop()
            return
        lane.allow(self.limit)
        if lane.remaining[0] != PRELIMINARIES:
            self.progress(self.places[lane.remaining[0]], len(self.places))

    def _lose(self, lane: _Lane, reason: str, reason_if_loading: str) -> None:
        """Records the item that did not end and goes on behind it; raises RefusedError while the subject is loading."""
        if self.tally is None or not lane.ready:
            raise RefusedError(reason_if_loading)
        number = lane.remaining.popleft()
        self.tally.lose(None if number == PRELIMINARIES else self.places[number], reason)
        lane.stop()
        if lane.remaining and self.tally.patient:
            lane.start()
        else:
            self._go_on(lane)
