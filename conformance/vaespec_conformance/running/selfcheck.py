"""Is the suite awake? Known mistakes are put into a subject that passes, and each must be seen by the check it is for.

What is only done differently, by another algorithm or in another layout, must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vaespec_conformance.judging.registry import CHECKS, DTYPES
from vaespec_conformance.mutants import BENIGN, MUTANTS
from vaespec_conformance.running.agenda import Item, Selection, plan
from vaespec_conformance.running.examination import examine
from vaespec_conformance.subjects.errors import ConformanceError
from vaespec_conformance.subjects.subjects import BackendSubject, Subject

OF_VARIANTS = ("L1", "L2", "L3")
"""Where another way to compute could show."""


@dataclass(frozen=True)
class Trial:
    """A change of a subject, a check in one dtype, and what came of it."""

    change: str
    item: str
    failed: bool
    should_fail: bool

    @property
    def good(self) -> bool:
        """Whether the suite is right."""
        return self.failed == self.should_fail


@dataclass(frozen=True)
class SelfCheck:
    """All trials; and mistakes that change less than rounding in a dtype, which are not tried, with the reason."""

    trials: tuple[Trial, ...]
    equivalent: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 if all is as it should be."""
        return 0 if self.trials and all(trial.good for trial in self.trials) else 1

    def lines(self) -> Iterator[str]:
        """What is not as it should be, then the counts."""
        for trial in self.trials:
            if not trial.good:
                yield f"{'not seen' if trial.should_fail else 'wrongly seen'}: {trial.change}, by {trial.item}"
        for should_fail, what in ((True, "mistakes"), (False, "correct variants")):
            tried = [trial for trial in self.trials if trial.should_fail is should_fail]
            good = sum(trial.good for trial in tried)
            told = "seen by their checks" if should_fail else "passed"
            yield f"{len({trial.change for trial in tried})} {what}, {len(tried)} with dtypes: {good} {told}"
        yield f"not tried: {len(self.equivalent)} that change less than rounding in their dtype"


def self_check(
    subject: BackendSubject, dtypes: Sequence[str] = (), progress: Callable[[], None] = lambda: None
) -> SelfCheck:
    """Try every mistake and every variant on a backend, in the dtypes it claims, or in those of them that are named."""
    asked = [dtype for dtype in subject.capabilities.dtypes if dtype in (dtypes or DTYPES)]
    trials: list[Trial] = []
    equivalent: dict[str, str] = {}

    def attempt(name: str, changed: Subject, item: Item, *, should_fail: bool) -> None:
        trials.append(Trial(name, item.id, _fails(changed, item), should_fail))
        progress()

    for dtype in asked:
        for name, mutant in MUTANTS.items():
            if dtype in mutant.equivalent_in:
                equivalent[f"{name}, in {dtype}"] = mutant.equivalent_in[dtype]
            elif CHECKS[mutant.owner].concerns(subject, dtype):
                attempt(name, mutant.wrap(subject), Item(CHECKS[mutant.owner], dtype, None, None), should_fail=True)
        for name, variant in BENIGN.items():
            if dtype in variant.dtypes:
                for item in plan(subject, Selection(dtypes=(dtype,), levels=OF_VARIANTS)):
                    attempt(name, variant.wrap(subject), item, should_fail=False)
    return SelfCheck(tuple(trials), equivalent)


def _fails(subject: Subject, item: Item) -> bool:
    """Whether the check sees something; what else it raises is a mistake of the suite, and is raised."""
    failure = examine(subject, item, profile="quick", seed=0, shrink=False).failure
    if failure and not isinstance(failure[1], ConformanceError):
        raise failure[1]
    return failure is not None
