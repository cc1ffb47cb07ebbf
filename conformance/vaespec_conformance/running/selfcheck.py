"""The self-check: puts known mistakes into a subject that passes; the check that owns a mistake must detect it.

Correct variants, which use another algorithm or another layout, must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vaespec_conformance.judging.registry import CHECKS, DTYPES
from vaespec_conformance.mutants import BENIGN, MUTANTS
from vaespec_conformance.running.agenda import Item, Selection, agenda
from vaespec_conformance.running.examination import examine
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

VARIANT_LEVELS = ("L1", "L2", "L3")
"""Levels whose checks could notice another way to compute."""


@dataclass(frozen=True)
class Trial:
    """A changed subject, a check in one dtype, and whether the check failed."""

    change: str
    item: str
    failed: bool
    should_fail: bool

    @property
    def good(self) -> bool:
        """Whether the suite judged rightly."""
        return self.failed == self.should_fail


@dataclass(frozen=True)
class SelfCheck:
    """All trials; and the mistakes that change less than rounding in a dtype, which are not tried, with the reason."""

    trials: tuple[Trial, ...]
    equivalent: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 if the suite judged every trial rightly."""
        return 0 if self.trials and all(trial.good for trial in self.trials) else 1

    def lines(self) -> Iterator[str]:
        """The wrong judgements, then the counts."""
        for trial in self.trials:
            if not trial.good:
                yield f"{'not seen' if trial.should_fail else 'wrongly seen'}: {trial.change}, by {trial.item}"
        for should_fail, kind, judgement in (
            (True, "mistakes", "seen by their checks"),
            (False, "correct variants", "passed"),
        ):
            trials = [trial for trial in self.trials if trial.should_fail is should_fail]
            good = sum(trial.good for trial in trials)
            yield f"{len({trial.change for trial in trials})} {kind}, {len(trials)} with dtypes: {good} {judgement}"
        yield f"not tried: {len(self.equivalent)} that change less than rounding in their dtype"


def self_check(
    subject: BackendSubject, dtypes: Sequence[str] = (), progress: Callable[[], None] = lambda: None
) -> SelfCheck:
    """Tries every mistake and every variant on a backend, in the dtypes it claims; `dtypes` may select some of them."""
    claimed = [dtype for dtype in subject.capabilities.dtypes if dtype in (dtypes or DTYPES)]
    trials: list[Trial] = []
    equivalent: dict[str, str] = {}

    def attempt(name: str, changed: Subject, item: Item, *, should_fail: bool) -> None:
        trials.append(Trial(name, item.id, _fails(changed, item), should_fail))
        progress()

    for dtype in claimed:
        for name, mutant in MUTANTS.items():
            if dtype in mutant.equivalent_in:
                equivalent[f"{name}, in {dtype}"] = mutant.equivalent_in[dtype]
            elif CHECKS[mutant.owner].concerns(subject, dtype):
                attempt(name, mutant.wrap(subject), Item(CHECKS[mutant.owner], dtype), should_fail=True)
        for name, variant in BENIGN.items():
            if dtype in variant.dtypes:
                for item in agenda(subject, Selection(dtypes=(dtype,), levels=VARIANT_LEVELS)):
                    attempt(name, variant.wrap(subject), item, should_fail=False)
    return SelfCheck(tuple(trials), equivalent)


def _fails(subject: Subject, item: Item) -> bool:
    """Whether the check fails. Any exception but ConformanceError is a mistake of the suite, and is raised."""
    failure = examine(subject, item, profile="quick", seed=0, shrink=False).failure
    if failure and not isinstance(failure[1], ConformanceError):
        raise failure[1]
    return failure is not None
