"""How long a check may take, and how to go on where one does not end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from queue import SimpleQueue
from typing import Any, TypeVar

TIME_LIMITS = {"quick": 60.0, "default": 120.0, "thorough": 1200.0}
"""Seconds for one check in one dtype. On two cores, what is correct needs a tenth of it; a third, where each shape is
compiled.
"""

T = TypeVar("T")


class HungError(Exception):
    """A call that did not end in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """call(), in a thread that is left behind if it takes longer: then HungError is raised.

    This cannot help against a call that never gives back the interpreter's lock; a process of its own can.
    """
    worker = _kept.__dict__.pop("worker", None) or _Worker()
    future = worker.call(call)
    if not wait([future], seconds).done:
        worker.leave()
        raise HungError
    _kept.worker = worker
    result: T = future.result()
    return result


class _Worker:
    """A thread that makes one call after another: in each that it first meets, Hypothesis collects all garbage."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        threading.Thread(target=self._serve, daemon=True).start()

    def call(self, call: Callable[[], Any]) -> Future[Any]:
        """What will have its result, or what it raises."""
        future: Future[Any] = Future()
        self.calls.put((call, future))
        return future

    def leave(self) -> None:
        """It ends with the call that it is at."""
        self.calls.put(None)

    def _serve(self) -> None:
        while order := self.calls.get():
            call, future = order
            try:
                future.set_result(call())
            except BaseException as error:
                future.set_exception(error)
            del order, call, future  # which may hold a model


_kept = threading.local()
"""The worker of a thread, between its calls."""
