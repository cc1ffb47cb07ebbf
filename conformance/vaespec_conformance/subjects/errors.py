"""The error of a failed check. Any other error that a check raises is a mistake of the suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np


class ConformanceError(Exception):
    """The subject is wrong. `where` is the place in the array, `difference` is actual - expected in float64.

    `eta2` and `etainf` are the ratios to the budget, as in a Margin; infinite if nothing can be measured.
    `evidence` is (compute, case, dtype, actual, expected) of the computation that failed, from which
    `vaespec_conformance.mutants.hints` finds the likely cause; None if nothing was computed.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        difference: np.ndarray | None = None,
        eta2: float = float("inf"),
        etainf: float = float("inf"),
    ) -> None:
        super().__init__(message)
        self.where, self.difference = where, difference
        self.eta2, self.etainf = eta2, etainf
        self.evidence: tuple[Any, ...] | None = None


class UnansweredError(ConformanceError):
    """A program crashed, hung, or answered in another way than its protocol says: it computed and refused nothing."""


class NotSupportedError(Exception):
    """The subject does not take this config, size, dtype or half; `reason` says why, in its own words."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@contextmanager
def blamed(call: str) -> Iterator[None]:
    """Turns any exception of the subject into a ConformanceError that names the call."""
    try:
        yield
    except (ConformanceError, NotSupportedError):
        raise
    except Exception as error:
        raise ConformanceError(f"{call} raised {type(error).__name__}: {error}") from error
