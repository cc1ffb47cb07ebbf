"""How long a check may take, and how to go on where one does not end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

TIME_LIMITS = {"quick": 30.0, "default": 120.0, "thorough": 1200.0}
"""Seconds for one check in one dtype; what is correct needs a tenth of it on two cores."""

T = TypeVar("T")


class HungError(Exception):
    """A call that did not end in time."""


def within(seconds: float, call: Callable[[], T]) -> T:
    """call(), in a thread that is left behind if it takes longer: then HungError is raised.

    This cannot help against a call that never gives back the interpreter's lock; a process of its own can.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise HungError
    if errors:
        raise errors[0]
    return results[0]
