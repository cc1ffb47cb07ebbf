"""A run in processes of its own: a subject that hangs or crashes loses one check, and the others go on."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from vaespec.errors import VaespecError
from vaespec_conformance.reports.report import Place, Report, Result
from vaespec_conformance.running.process import Heard, Process
from vaespec_conformance.running.request import Request
from vaespec_conformance.running.tally import BEFORE, Tally
from vaespec_conformance.running.timing import TIME_LIMITS

LOADING = 300.0
"""Seconds until a subject must be imported; a framework on a cold disk takes some."""
JOBS = 2
"""Processes on the CPU. Not more where there are more cores: each imports the framework. Of an accelerator, one may
take all memory.
"""

Progress = Callable[[Place, int], None]


class RefusedError(VaespecError):
    """A request that cannot be served: no such subject, or one that cannot be imported; no such check."""


def run_isolated(request: Request, progress: Progress = lambda place, total: None) -> Report:
    """Examine a subject; `progress` is called before each check. RefusedError if it cannot be begun."""
    run = _Run(request, progress)
    try:
        return run.report()
    finally:
        run.stop()


class _Lane:
    """Items that are run one after the other, in one process until that is lost, then in another."""

    def __init__(self, request: Request, heard: SimpleQueue[Heard]) -> None:
        self.request, self.heard = request, heard
        self.left: deque[int] = deque()  # the first is being run, once the process is ready
        self.start()

    def start(self) -> None:
        """With a process that has not loaded the subject yet."""
        self.process, self.ready, self.done = Process(self.request, self.heard), False, False
        self.allow(LOADING)

    def allow(self, seconds: float) -> None:
        """So long until the next message."""
        self.until = time.monotonic() + seconds

    def stop(self) -> None:
        """Its process, whatever that does."""
        self.done = True
        self.process.stop()


class _Run:
    """What is known of a run, over the processes that it takes."""

    def __init__(self, request: Request, progress: Progress) -> None:
        self.request, self.progress = request, progress
        self.limit = request.time_limit or TIME_LIMITS[request.profile]
        self.places: list[Place] = []
        self.tally: Tally | None = None
        self.heard: SimpleQueue[Heard] = SimpleQueue()
        self.lanes = [_Lane(request, self.heard)]

    def report(self) -> Report:
        """Listen until all lanes are done."""
        while lanes := [lane for lane in self.lanes if not lane.done]:
            first = min(lanes, key=lambda lane: lane.until)
            try:
                process, message = self.heard.get(timeout=max(0.0, first.until - time.monotonic()))
            except Empty:
                slow = "did not end within {:g} s."
                self._lose(first, f"it {slow.format(self.limit)}", f"importing the subject {slow.format(LOADING)}")
                continue
            for lane in lanes:
                if lane.process is process:  # and none that was stopped meanwhile
                    self._hear(lane, message)
        assert self.tally
        return self.tally.report(self.places)

    def stop(self) -> None:
        """All processes."""
        for lane in self.lanes:
            lane.stop()

    def _hear(self, lane: _Lane, message: dict[str, Any] | None) -> None:
        match message:
            case None:
                how = lane.process.ended()
                self._lose(lane, f"the process {how} during this check.", f"importing the subject: the process {how}.")
            case {"refused": why}:
                raise RefusedError(why)
            case {"about": about, "places": places}:
                if self.tally is None:
                    self.places, self.tally = [Place(*place) for place in places], Tally(about)
                    self._divide(about["subject"]["device"])
                lane.ready = True
                lane.process.begin(lane.left)
                self._go_on(lane)
            case {"known": facts}:
                assert self.tally
                self.tally.about |= facts
                lane.left.popleft()
                self._go_on(lane)
            case {"result": result, "seconds": seconds}:
                assert self.tally
                self.tally.add(Result.from_dict(result), seconds)
                lane.left.popleft()
                self._go_on(lane)

    def _divide(self, device: str | None) -> None:
        """The items among lanes, the dtypes of a check together: the same, however fast each of them is."""
        checks = list(dict.fromkeys(place.check for place in self.places))
        jobs = max(1, min(self.request.jobs or (JOBS if device == "cpu" else 1), len(checks)))
        self.lanes += [_Lane(self.request, self.heard) for _ in range(jobs - 1)]
        self.lanes[0].left.append(BEFORE)
        for number, place in enumerate(self.places):
            self.lanes[checks.index(place.check) % jobs].left.append(number)

    def _go_on(self, lane: _Lane) -> None:
        """A lane to its next item, if another should be begun."""
        assert self.tally
        if not self.tally.patient:
            self.tally.give_up(self.places[number] for number in lane.left if number != BEFORE)
            lane.left.clear()
        if not lane.left:
            lane.stop()
            return
        lane.allow(self.limit)
        if lane.left[0] != BEFORE:
            self.progress(self.places[lane.left[0]], len(self.places))

    def _lose(self, lane: _Lane, during: str, before: str) -> None:
        """Go on behind the item that did not end; RefusedError if there was none yet."""
        if self.tally is None or not lane.ready:
            raise RefusedError(before)
        number = lane.left.popleft()
        self.tally.lose(None if number == BEFORE else self.places[number], during)
        lane.stop()
        if lane.left and self.tally.patient:
            lane.start()
        else:
            self._go_on(lane)
