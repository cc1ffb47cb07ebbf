"""Runs the suite in worker processes: a subject that hangs or crashes loses one check, and the others are run."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from vaespec.errors import VaespecError
from vaespec_conformance.reports.report import Report
from vaespec_conformance.reports.result import Place, Result
from vaespec_conformance.running.process import Message, Process
from vaespec_conformance.running.request import LOADING, Request
from vaespec_conformance.running.tally import PRELIMINARIES, Tally, hung

JOBS = 2
"""Processes on the CPU, however many cores there are, since each imports the framework. An accelerator gets one, since
one process may take all of its memory.
"""

IMPORTING, TRYING = "importing the subject", "trying the subject for the first time"
"""What a process does before it is ready, as a message names it."""

Progress = Callable[[Place, int], None]


class RefusedError(VaespecError):
    """A request cannot be served: there is no such subject or check, or the subject cannot be imported.

    `trace` is the traceback in the process of the subject.
    """

    def __init__(self, reason: str, trace: str = "") -> None:
        super().__init__(reason)
        self.trace = trace


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
        self.loading = IMPORTING
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
        self.limit = request.limit
        self.probes: dict[int, str] = {}  # the items that are not claimed, and what is not
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
                self._lose(first, hung(self.limit), f"{first.loading} did not end within {LOADING:g} s.")
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
                said = "" if lane.ready else lane.process.printed()[-200:]
                last = f", after it printed {said!r}" if said else ""
                self._lose(lane, f"{ending} during this check.", f"{lane.loading}: {ending}{last}.")
            case {"refused": reason, "trace": trace}:
                raise RefusedError(reason, trace)
            case {"imported": _}:
                lane.loading = TRYING
                lane.allow(LOADING)
            case {"facts": facts, "places": places, "probes": probes, "order": order, "limit": limit}:
                if self.tally is None:
                    self.places, self.tally = [Place(*place) for place in places], Tally(facts)
                    self.probes, self.limit = {int(number): text for number, text in probes.items()}, limit
                    self._divide(facts["subject"]["device"], order)
                lane.process.printed()  # while the subject was loaded
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
                self.tally.add(Result.from_dict(result), seconds, lane.process.printed())
                lane.remaining.popleft()
                self._go_on(lane)

    def _divide(self, device: str | None, order: list[int]) -> None:
        """Divides the items among lanes, the dtypes of a check together, so that it does not depend on their speed."""
        checks = list(dict.fromkeys(place.check for place in self.places))
        jobs = max(1, min(self.request.jobs or (JOBS if device == "cpu" else 1), len(checks)))
        self.lanes += [_Lane(self.request, self.messages) for _ in range(jobs - 1)]
        self.lanes[0].remaining.append(PRELIMINARIES)
        for number in order:
            self.lanes[checks.index(self.places[number].check) % jobs].remaining.append(number)

    def _go_on(self, lane: _Lane) -> None:
        """Lets a lane run its next item, or stops it if there is none or too many checks were lost."""
        assert self.tally
        if not self.tally.patient:
            own = [number for number in lane.remaining if number != PRELIMINARIES]
            self.tally.give_up(self.places[number] for number in own if number not in self.probes)
            self._skip_probes(lane, own)
            lane.remaining.clear()
        if not lane.remaining:
            lane.stop()
            return
        lane.allow(self.limit)
        if lane.remaining[0] != PRELIMINARIES:
            self.progress(self.places[lane.remaining[0]], len(self.places))

    def _skip_probes(self, lane: _Lane, numbers: list[int]) -> None:
        """Does not begin the probes among these items: another one in their dtype did not end."""
        assert self.tally
        for number in numbers:
            if number in self.probes:
                self.tally.skip_probe(self.places[number], self.probes[number])
                lane.remaining.remove(number)

    def _lose(self, lane: _Lane, reason: str, reason_if_loading: str) -> None:
        """Records the item that did not end and goes on behind it; raises RefusedError while the subject is loading."""
        if self.tally is None or not lane.ready:
            raise RefusedError(reason_if_loading)
        number = lane.remaining.popleft()
        if number in self.probes:
            place = self.places[number]
            self.tally.lose_probe(place, self.probes[number])
            self._skip_probes(lane, [n for n in lane.remaining if self.places[n].dtype == place.dtype])
        else:
            place_or_none = None if number == PRELIMINARIES else self.places[number]
            self.tally.lose(place_or_none, reason, lane.process.printed())
        lane.stop()
        if lane.remaining and self.tally.patient:
            lane.start()
        else:
            self._go_on(lane)
