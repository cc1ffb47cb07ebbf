"""The checks: one function each, registered here under a name; the runner, the plugin and the reports all read CHECKS.

A check is `(subject, case, dtype) -> Margin`. It raises ConformanceError where the subject is wrong. Its docstring is
what `--explain` prints.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from hypothesis.strategies import SearchStrategy

from vaespec_conformance.cases.cases import Case

if TYPE_CHECKING:
    from vaespec_conformance.subjects.subjects import Subject

LEVELS = {
    "L0": "interop",
    "L1": "operations",
    "L2": "blocks",
    "L3": "encode, decode, posterior",
    "L4": "tiling and slicing",
    "L5": "weights",
    "L6": "behaviour",
    "L7": "compilation and precision",
    "L8": "goldens",
}
DTYPES = ("float32", "bfloat16", "float16", "float64")
PROFILES = ("quick", "default", "thorough")


class Margin(NamedTuple):
    """How much of the budget was used: relative L2, and the worst element. 1 is all of it; an exact check uses 0."""

    eta2: float
    etainf: float


EXACT = Margin(0.0, 0.0)


class Examples(NamedTuple):
    """How many cases of a check are drawn, besides the pinned ones, in each profile."""

    quick: int
    default: int
    thorough: int


OPERATION, BLOCK, MODEL = Examples(5, 30, 300), Examples(1, 8, 50), Examples(1, 3, 10)

Run = Callable[["Subject", Case, str], Margin]


@dataclass(frozen=True)
class Check:
    """One property. `pinned` cases run in every profile, before what `cases` draws: they catch the known defects.

    `requires` names features of `Capabilities`; a check that requires none is core, and cannot be declared away.
    """

    id: str
    level: str
    run: Run
    cases: SearchStrategy[Case]
    pinned: tuple[Case, ...]
    subjects: tuple[str, ...]
    requires: tuple[str, ...]
    dtypes: tuple[str, ...]
    examples: Examples
    since: str

    @property
    def explain(self) -> str:
        """What is checked, and why."""
        return inspect.getdoc(self.run) or ""

    @property
    def core(self) -> bool:
        """Whether every subject must pass it."""
        return not self.requires

    def concerns(self, subject: Subject, dtype: str) -> bool:
        """Whether it can be asked of such a subject in this dtype, declared or not."""
        return subject.kind in self.subjects and dtype in self.dtypes


CHECKS: dict[str, Check] = {}


def check(
    id: str,
    *,
    level: str,
    cases: SearchStrategy[Case],
    pinned: tuple[Case, ...] = (),
    subjects: tuple[str, ...] = ("backend", "port"),
    requires: tuple[str, ...] = (),
    dtypes: tuple[str, ...] = DTYPES,
    examples: Examples = MODEL,
    since: str = "1.0",
) -> Callable[[Run], Run]:
    """Register the function below under a name of its own."""

    def register(run: Run) -> Run:
        if id in CHECKS:
            raise ValueError(f"two checks are called {id!r}: rename one.")
        CHECKS[id] = Check(id, level, run, cases, pinned, subjects, requires, dtypes, examples, since)
        return run

    return register
