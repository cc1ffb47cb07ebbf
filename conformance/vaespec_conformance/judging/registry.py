"""The registry of checks: one function each, under a name; the runner, the pytest plugin and the reports read CHECKS.

A check is `(subject, case, dtype) -> Margin`. It raises ConformanceError if the subject is wrong. `--explain` prints
its docstring.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vaespec_conformance.cases.cases import Case
from vaespec_conformance.subjects.capabilities import DTYPES as DTYPES
from vaespec_conformance.subjects.subjects import Subject

if TYPE_CHECKING:  # `vaespec check` runs without hypothesis
    from hypothesis.strategies import SearchStrategy

LEVELS = {
    "L0": "interop",
    "L1": "operations",
    "L2": "blocks",
    "L3": "encode, decode, posterior",
    "L4": "tiling and slicing",
    "L5": "sizes",
    "L6": "weights",
    "L7": "behaviour",
    "L8": "compilation and precision",
    "L9": "goldens",
}
PROFILES = ("quick", "default", "thorough")


class Margin(NamedTuple):
    """The used share of the budget: relative L2, and the worst element. 1 is the whole budget; exact checks use 0."""

    eta2: float
    etainf: float


EXACT = Margin(0.0, 0.0)


class Examples(NamedTuple):
    """The number of drawn cases of a check in each profile, besides the pinned ones."""

    quick: int
    default: int
    thorough: int


OPERATION, BLOCK, MODEL = Examples(5, 30, 300), Examples(1, 8, 50), Examples(1, 3, 10)

WHOLE = ("backend", "port", "program")
"""The kinds of subjects that a check of a whole VAE examines: a program is asked for encode and decode alone."""


class Limited(NamedTuple):
    """A pinned case that runs in these dtypes only, from a profile on: "default" means in thorough as well."""

    case: Case
    profile: str = "quick"
    dtypes: tuple[str, ...] = ("float32",)


Run = Callable[[Subject, Case, str], Margin]


@dataclass(frozen=True)
class Check:
    """One property. `pinned` cases run in every profile, before the drawn ones: they catch the known mistakes.

    `limited` cases are pinned as well, in some profiles and dtypes: see `pinned_in`.

    `requires` names features of `Capabilities`; a check that requires none is core, and no gap can excuse it. `needs`
    names things that a subject may lack (`Capabilities.lacks`): then the check is not asked.
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
    needs: tuple[str, ...] = ()
    limited: tuple[Limited, ...] = ()

    def pinned_in(self, dtype: str, profile: str = "quick") -> tuple[Case, ...]:
        """The pinned cases that run in a dtype and a profile."""
        begun = PROFILES[: PROFILES.index(profile) + 1]
        return (*self.pinned, *(case for case, first, dtypes in self.limited if first in begun and dtype in dtypes))

    @property
    def explain(self) -> str:
        """What the check examines, and why."""
        return inspect.getdoc(self.run) or ""

    @property
    def core(self) -> bool:
        """Whether every subject must pass the check."""
        return not self.requires

    def concerns(self, subject: Subject, dtype: str) -> bool:
        """Whether the check applies to subjects of this kind in this dtype, claimed or not."""
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
    needs: tuple[str, ...] = (),
    limited: tuple[Limited, ...] = (),
) -> Callable[[Run], Run]:
    """Registers the decorated function as a check."""

    def register(run: Run) -> Run:
        if id in CHECKS:
            raise ValueError(f"two checks are called {id!r}: rename one.")
        CHECKS[id] = Check(id, level, run, cases, pinned, subjects, requires, dtypes, examples, since, needs, limited)
        return run

    return register
