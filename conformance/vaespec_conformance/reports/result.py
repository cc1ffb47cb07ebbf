"""The result of one check in one dtype, and of a failure everything that helps to understand it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

from vaespec_conformance.judging import budgets

STATUSES = {
    "pass": "within the budget",
    "fail": "differs from the specification",
    "error": "the check could not be done: it raised another exception, or did not end",
    "gap": "fails, as the subject declares",
    "xpass": "passes, though the subject declares a gap",
    "undeclared": "not claimed by the subject",
    "not_asked": "about something that the subject does not have or does not take",
}


@dataclass(frozen=True)
class Failure:
    """Why a check did not pass, and how to run it again. `picture` is a PNG of the error, as a data URI.

    `count` says how many cases failed of this cause, and `others` are the other causes. `stage` is the call that raised
    an exception, such as "build"; None if none did. `trace` is its traceback, if one was requested. `layers` is the
    first wrong layer and the strip: see `vaespec_conformance.layers`.
    """

    message: str
    where: str | None = None
    hint: str | None = None
    case: dict[str, Any] | None = None
    snippet: str | None = None
    command: str | None = None
    picture: str | None = None
    count: str | None = None
    stage: str | None = None
    trace: str | None = None
    layers: dict[str, Any] | None = None
    others: tuple[Failure, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, and the other causes if there are any."""
        others = {"others": [other.to_dict() for other in self.others]} if self.others else {}
        return {**_known(dataclasses.replace(self, others=())), **others}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        return cls(**{**document, "others": tuple(map(cls.from_dict, document.get("others", ())))})


class Place(NamedTuple):
    """The place of a result in a report: one check in one dtype."""

    check: str
    level: str
    dtype: str

    @property
    def id(self) -> str:
        """ "ops.conv2d[float32]"."""
        return f"{self.check}[{self.dtype}]"


@dataclass(frozen=True)
class Result:
    """The result of one check in one dtype. `eta2` and `etainf` are the greatest used shares of the budget.

    `works`, for an undeclared item, says whether the one case that was tried passed; None if it was not tried. `passed`
    are the labels of the configs of which a case passed, `failed` those of which one failed after it was built;
    `not_asked` maps what the subject does not take to the reason.
    """

    check: str
    level: str
    dtype: str
    status: str
    examples: int = 0
    required: int = 0
    eta2: float | None = None
    etainf: float | None = None
    reason: str | None = None
    url: str | None = None
    works: bool | None = None
    passed: tuple[str, ...] | None = None
    failed: tuple[str, ...] | None = None
    not_asked: Mapping[str, str] | None = None
    failure: Failure | None = None

    @property
    def id(self) -> str:
        """The check and the dtype: "ops.conv2d[float32]"."""
        return Place(self.check, self.level, self.dtype).id

    @property
    def margin(self) -> float | None:
        """The used share of the budget; more than 1 is a failure, None if nothing was measured."""
        measured = [m for m in (self.eta2, self.etainf) if m is not None]
        return max(measured) if measured else None

    @property
    def grade(self) -> str | None:
        """A, B or C by the used share of the budget; see budgets.grade. None if it did not pass."""
        return budgets.grade(self.margin) if self.status == "pass" and self.margin is not None else None

    def to_dict(self) -> dict[str, Any]:
        """The fields that are not None, and the grade."""
        nested = {"failure": self.failure.to_dict()} if self.failure else {}
        return {**_known(self), **nested, **({"grade": self.grade} if self.grade else {})}

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`."""
        failure = document.get("failure")
        fields = {name: value for name, value in document.items() if name != "grade"}
        labels = {name: tuple(document[name]) for name in ("passed", "failed") if document.get(name)}
        return cls(**{**fields, **labels, "failure": failure and Failure.from_dict(failure)})


def rounded(number: float | None) -> float | None:
    """Three significant digits, since two runs differ in the others. Infinity becomes 1e308."""
    return None if number is None else float(f"{min(number, 1e308):.3g}")


def _known(value: Any) -> dict[str, Any]:
    """The fields of a dataclass that are not None."""
    return {name: part for name, part in dataclasses.asdict(value).items() if part is not None and part != ()}
