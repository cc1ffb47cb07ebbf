"""Is the suite awake? Known mistakes are put into a subject that passes, and each must be seen by the check it is for.

What is only done differently, by another algorithm or in another layout, must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from vaespec_conformance.errors import ConformanceError
from vaespec_conformance.examination import examine
from vaespec_conformance.mutants import BENIGN, MUTANTS, Mutant
from vaespec_conformance.plan import Item
from vaespec_conformance.registry import CHECKS, DTYPES
from vaespec_conformance.subjects import Subject

MODELS = ("model.encode", "model.decode")
"""Where a variant of an operation could show as well."""


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


def self_check(subject: Subject, dtypes: Sequence[str] = (), progress: Callable[[], None] = lambda: None) -> SelfCheck:
    """Try every mistake and every variant on a subject, in the dtypes it claims, or in those of them that are named."""
    asked = [dtype for dtype in DTYPES if dtype in subject.capabilities.dtypes and dtype in (dtypes or DTYPES)]
    trials: list[Trial] = []
    equivalent: dict[str, str] = {}
    for changes, should_fail in ((MUTANTS, True), (BENIGN, False)):
        for mutant in changes.values():
            for dtype in asked:
                for check in _checks(mutant, dtype, subject):
                    id = f"{check}[{dtype}]"
                    if dtype in mutant.equivalent_in:
                        equivalent[f"{mutant.name} {id}"] = mutant.equivalent_in[dtype]
                        continue
                    trials.append(Trial(mutant.name, id, _fails(mutant.wrap(subject), check, dtype), should_fail))
                    progress()
    return SelfCheck(tuple(trials), equivalent)


def _checks(mutant: Mutant, dtype: str, subject: Subject) -> tuple[str, ...]:
    """The one that must see a mistake; of a variant, those that would."""
    own = mutant.owner if subject.kind == "backend" else mutant.seen_in_ports
    names = [own, *(MODELS if mutant.name in BENIGN else ())]
    return tuple(name for name in names if name and CHECKS[name].concerns(subject, dtype))


def _fails(subject: Subject, check: str, dtype: str) -> bool:
    """Whether the check sees something; what else it raises is a mistake of the suite, and is raised."""
    item = Item(CHECKS[check], dtype, None, None)
    failure = examine(subject, item, profile="default", seed=0, shrink=False).failure
    if failure and not isinstance(failure[1], ConformanceError):
        raise failure[1]
    return failure is not None
