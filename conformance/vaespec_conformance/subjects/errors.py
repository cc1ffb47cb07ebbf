"""The errors of a check: the subject is wrong, or it does not take the case. Any other is a mistake of the suite."""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vaespec.errors import VaespecError

SUITE = Path(__file__).parents[1]


class NotSupportedError(Exception):
    """The subject does not take this config, size, dtype or half: the case is not asked, which is no failure.

    `reason` says why. `what` is the part that is not asked, such as "the encoder"; None for the config of the case.
    """

    def __init__(self, reason: str, what: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.what = reason, what


class ConformanceError(Exception):
    """The subject is wrong. `where` is the place in the array, `difference` is actual - expected in float64.

    `region` is the wrong part of a map, a `judging.places.WrongRegion`; None if the array is no map.
    `eta2` and `etainf` are the ratios to the budget, as in a Margin; infinite if nothing can be measured.
    `evidence` is (compute, case, dtype, actual, expected) of the computation that failed, from which
    `vaespec_conformance.mutants.hints` finds the likely cause; None if nothing was computed. `raised` is (call, type,
    place) of an exception of the subject, None if it raised none.
    """

    def __init__(
        self,
        message: str,
        *,
        where: str | None = None,
        region: Any = None,
        difference: np.ndarray | None = None,
        eta2: float = float("inf"),
        etainf: float = float("inf"),
        raised: tuple[str, str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.where, self.region, self.difference = where, region, difference
        self.eta2, self.etainf = eta2, etainf
        self.raised = raised
        self.evidence: tuple[Any, ...] | None = None


class LoadError(VaespecError, ImportError):
    """A subject cannot be found or imported, or declares what nobody understands."""


class UnansweredError(ConformanceError):
    """A program crashed, hung, or answered in another way than its protocol says: it computed and refused nothing."""


@contextmanager
def blamed(call: str, given: str = "") -> Iterator[None]:
    """Turns any exception of the subject into a ConformanceError that names the call, its arguments and the line.

    So is SystemExit: otherwise the worker process would end as if the suite had told it to.
    """
    try:
        yield
    except (ConformanceError, NotSupportedError):
        raise
    except (Exception, SystemExit) as error:
        kind, place = type(error).__name__, _place(error)
        details = ", ".join(part for part in (f"with {given}" if given else "", place) if part)
        message = f"{call} raised {kind}: {error}" + (f" ({details})" if details else "")
        raise ConformanceError(message, raised=(call, kind, place)) from error


def _place(error: BaseException) -> str:
    """ "at keras/ops.py:31, called from port.py:12": the last and the first line outside the suite; empty if none."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if SUITE not in Path(frame.filename).parents and not frame.filename.startswith("<")
    ]
    if not frames:
        return ""
    first, last = (f"{_shortened(frame.filename)}:{frame.lineno}" for frame in (frames[0], frames[-1]))
    return f"at {last}" if first == last else f"at {last}, called from {first}"


def _shortened(path: str) -> str:
    """A path without what is different on every machine: inside the packages, or its last two parts."""
    parts = Path(path).parts
    for root in ("site-packages", "dist-packages"):
        if root in parts:
            return "/".join(parts[parts.index(root) + 1 :])
    return "/".join(parts[-2:]) if len(parts) > 1 and parts[-1] == "__init__.py" else parts[-1]
