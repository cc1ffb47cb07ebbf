"""Time limits of checks, and a call that is abandoned if it does not end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

TIME_LIMITS = {"quick": 60.0, "default": 120.0, "thorough": 1200.0}
"""Seconds for one check in one dtype. On two cores a correct backend needs a tenth of them, or a third if it compiles
for each shape.
"""

T = TypeVar("T")


class HungError(Exception):
    """A call that did not end in time."""


def call_within(seconds: float, call: Callable[[], T]) -> T:
    """Runs call() in a thread. If it takes longer than `seconds`, abandons the thread and raises HungError.

    A call that never releases the interpreter's lock blocks this one too; only a separate process helps there.
    """
    worker = _idle.__dict__.pop("worker", None) or _Worker()
    future = worker.call(call)
    if not wait([future], seconds).done:
        worker.leave()
        raise HungError
    _idle.worker = worker
    result: T = future.result()
    return result


class _Worker:
    """A thread that runs one call after another, since Hypothesis collects all garbage in each new thread."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def call(self, call: Callable[[], Any]) -> Future[Any]:
        """Starts a call; the future gets its result or its exception."""
        future: Future[Any] = Future()
        self.calls.put((call, future))
        return future

    def leave(self) -> None:
        """Lets the thread end after its current call."""
        self.calls.put(None)

    def _serve(self) -> None:
        while order := self.calls.get():
            call, future = order
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del order, call, future  # they may hold a model


_idle = threading.local()
"""The worker that a thread uses again for its next call."""
