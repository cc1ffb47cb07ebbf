"""The report of a run: a value that is written as JSON and read from it. `markdown` and `html` write pages from it.

Nothing in it depends on the time, place or speed of the run: the same subject, suite and seed give the same bytes.
Seconds are kept beside it, and written only on request.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from vaespec import strict_json
from vaespec.errors import VaespecError
from vaespec.escaping import escaped_json
from vaespec_conformance.judging import budgets
from vaespec_conformance.reports.result import STATUSES, Result

OPERATION_LEVELS = ("L0", "L1")
"""Levels with a budget for one operation; every other level has a budget for the rounding of a whole model."""
SCHEMA = "vaespec-conformance/2"
LIMIT = 64 << 20  # bytes; a failure has a picture
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")

NOTHING = "no check was run"
HALVES = ("model.encode", "model.decode", "goldens.encode", "goldens.decode")
"""The checks of encode and decode."""
NOT_RUN = ("undeclared", "not_asked")
"""Statuses of results that count for nothing."""
BAD = ("fail", "error", "xpass")
BUILD = "build"
"""The stage of a failure in which the subject was not yet built."""
NAMED = 3
"""Refusals that the headline names; the report has them all."""
EXIT_CODES = {"conformant": 0, "partial": 0, "failed": 1, "vacuous": 3}
"""2 is for an invalid request, which has no report."""


@dataclass(frozen=True)
class Report:
    """All results of a run.

    `about` says what was examined and how (subject, suite, run, environment, claims, precision, ops, canary), with the
    keys of the JSON; `results` are in the order of the registry; `seconds` maps the id of a result to its time, and
    `printed` the id of a failure to what the subject printed meanwhile, which no document contains.
    """

    about: dict[str, Any]
    results: tuple[Result, ...]
    seconds: Mapping[str, float] = field(default_factory=dict, compare=False)
    printed: Mapping[str, str] = field(default_factory=dict, compare=False)

    # -- the verdict ---------------------------------------------------------------------------------------

    @cached_property
    def counts(self) -> dict[str, int]:
        """How many results have each status."""
        counter = Counter(result.status for result in self.results)
        return {status: counter[status] for status in STATUSES}

    @cached_property
    def bad(self) -> tuple[Result, ...]:
        """The results because of which the subject is not conformant."""
        return tuple(result for result in self.results if result.status in BAD)

    @cached_property
    def unseen(self) -> tuple[str, ...]:
        """Why a pass would mean nothing: what the run had to examine and did not."""
        reasons = [
            f"{result.id} ran {result.examples} of {result.required} examples"
            for result in self.results
            if result.status in ("pass", "xpass") and result.examples < result.required
        ]
        if not any(result.status in ("pass", "fail", "error", "gap", "xpass") for result in self.results):
            reasons.append(NOTHING)
        canary = self.about["canary"]
        if canary["status"] != "caught":
            passed = f": {canary['mutant']} passed {canary['check']}" if canary["status"] == "survived" else ""
            reasons.append(f"the canary was not caught{passed}")
        claims = self.about["claims"]
        reasons += [f"{dtype} is not claimed" for dtype in claims["required"] if dtype not in claims["dtypes"]]
        if self.untaken:
            reasons = [self.untaken, *(reason for reason in reasons if reason != NOTHING)]
        return tuple(reasons)

    @cached_property
    def taken(self) -> tuple[str, ...]:
        """The labels of the configs for which encode or decode has passed."""
        return tuple(dict.fromkeys(label for result in self._halves for label in result.passed or ()))

    @cached_property
    def left_out(self) -> dict[str, str]:
        """What was not asked of the subject in the dtypes that it claims, and why."""
        refused = [row for result in reversed(self.results) for row in (result.not_asked or {}).items()]
        return {f"{what} in some cases" if what in self.taken else what: why for what, why in refused}

    @property
    def _halves(self) -> list[Result]:
        """The results of the checks of which one has to pass in a published family."""
        return [result for result in self.results if result.check in HALVES and result.status != "undeclared"]

    @property
    def _families(self) -> tuple[str, ...]:
        """The labels of the published families."""
        return tuple(self.about["claims"].get("families", ()))

    @cached_property
    def untaken(self) -> str | None:
        """Why the subject was not examined in any published family; None if it was, or need not be.

        A subject that is wrong in a family, or does not end, was examined in it. One case that is run again may be in
        any config.
        """
        exempt = self.about["subject"]["kind"] == "backend" or "case" in self.about["run"]["selection"]
        if exempt or not self._halves or any(label in self._families for label in self.taken) or self._was_wrong:
            return None
        if self.taken:
            return self._relatives_only
        failures = [f for result in self._halves if result.failure for f in (result.failure, *result.failure.others)]
        if any(failure.stage != BUILD for failure in failures):
            return None  # it was built, and failed
        if failures:
            return f"no config that was asked could be built: {failures[0].message.removesuffix('.')}"
        if any(result.status == "not_asked" for result in self._halves):
            reasons = "; ".join(dict.fromkeys(why for r in self._halves for why in (r.not_asked or {}).values()))
            return f"nothing was taken, every config or half was refused ({reasons:.200}): name a config that is taken"
        return None

    @property
    def _was_wrong(self) -> bool:
        """Whether encode or decode was wrong in a published family, or did not end in a config that nobody knows."""
        lost = any(result.failure.case is None for result in self._halves if result.failure)
        return lost or any(label in self._families for result in self._halves for label in result.failed or ())

    @property
    def _relatives_only(self) -> str | None:
        """Says that every published family was refused; None if none was asked, as in a selection of 16 bits."""
        refused = {label for result in self._halves for label in result.not_asked or ()}
        if not refused.intersection(self._families):
            return None
        return f"no published family was taken, only {', '.join(self.taken)}"

    @property
    def verdict(self) -> str:
        """ "conformant"; "partial" if only some checks were selected, and passed; "failed"; or "vacuous".

        A subject that cannot be built in any config has not been examined, whatever was raised.
        """
        if self.bad and not self.untaken:
            return "failed"
        if self.unseen:
            return "vacuous"
        return "partial" if self.about["run"]["selection"] else "conformant"

    @property
    def exit_code(self) -> int:
        """The exit code of the command line: 0, 1 or 3."""
        return EXIT_CODES[self.verdict]

    # -- in summary ----------------------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """The name of the subject."""
        return str(self.about["subject"]["name"])

    @cached_property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the results that were run, in order."""
        return tuple(dict.fromkeys(result.dtype for result in self.results if result.status not in NOT_RUN))

    @cached_property
    def worst(self) -> Result | None:
        """The passing result that used the largest share of its budget."""
        passing = [result for result in self.results if result.status == "pass" and result.margin is not None]
        return max(passing, key=lambda result: result.margin or 0.0, default=None)

    def grade(self, dtype: str) -> str | None:
        """The worst grade of a dtype's results; None if one of them is bad, or none has a grade."""
        own = [result for result in self.results if result.dtype == dtype]
        grades = [result.grade for result in own if result.grade]
        return None if not grades or any(result in self.bad for result in own) else max(grades)

    def used(self, dtype: str) -> float:
        """The largest share of a budget that a passing check of the dtype used."""
        return max((r.margin or 0.0 for r in self.results if r.dtype == dtype and r.status == "pass"), default=0.0)

    def times_rounding(self, dtype: str) -> float:
        """The largest error of a block or model that passed, as a multiple of what rounding must cause."""
        models = (
            r for r in self.results if r.dtype == dtype and r.status == "pass" and r.level not in OPERATION_LEVELS
        )
        return max((budgets.times_rounding(dtype, r.eta2 or 0.0) for r in models), default=0.0)

    @property
    def headline(self) -> str:
        """The verdict in a sentence."""
        ran = sum(self.counts[status] for status in self.counts if status not in NOT_RUN)
        bad = self.counts["fail"] + self.counts["error"] + self.counts["xpass"]
        reason = {
            "conformant": f"all {ran} checks passed",
            "partial": f"{ran} of {ran} checks passed, which is not the whole suite",
            "failed": f"{bad} of {ran} checks did not pass",
            "vacuous": "; ".join(self.unseen),
        }[self.verdict]
        gaps = f", but for {self.counts['gap']} declared gaps" if self.counts["gap"] and not self.unseen else ""
        return f"{self.name}: {self.verdict}{self._extent}. {reason[0].upper()}{reason[1:]}{gaps}."

    @property
    def _extent(self) -> str:
        """ " for SD 1, FLUX.1; not asked: Mish; 5 more": for what a subject passes that does not take everything."""
        if not self.left_out or self.verdict not in ("conformant", "partial"):
            return ""
        taken = [label for label in self.taken if label in self._families]
        of = f" for {', '.join(taken)}" if taken else ""
        named, more = list(self.left_out)[:NAMED], len(self.left_out) - NAMED
        return f"{of}; not asked: {'; '.join((*named, *([f'{more} more'] if more > 0 else [])))}"

    # -- as a document -------------------------------------------------------------------------------------

    def to_dict(self, *, seconds: bool = False) -> dict[str, Any]:
        """The JSON document; see report.schema.json."""
        return {
            "schema": SCHEMA,
            **self.about,
            "checks": [result.to_dict() for result in self.results],
            "summary": {
                "verdict": self.verdict,
                "exit_code": self.exit_code,
                "headline": self.headline,
                "unseen": list(self.unseen),
                "counts": self.counts,
                "grades": {dtype: self.grade(dtype) for dtype in self.dtypes},
                "worst": None if self.worst is None else {"id": self.worst.id, "margin": self.worst.margin},
            },
            **({"seconds": dict(self.seconds)} if seconds else {}),
        }

    def to_json(self, *, seconds: bool = False) -> str:
        """One JSON document, ending with a newline."""
        document = json.dumps(self.to_dict(seconds=seconds), indent=2, ensure_ascii=False, allow_nan=False)
        return escaped_json(document) + "\n"

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """The inverse of `to_dict`; raises ValueError for a document that is no report of this version."""
        schema = document.get("schema") if isinstance(document, Mapping) else None
        if schema != SCHEMA:
            raise ValueError(f"schema {schema!r:.40}: a report of {SCHEMA!r} is expected; write it again.")
        about = {name: part for name, part in document.items() if name not in _COMPUTED}
        results = tuple(Result.from_dict(row) for row in document["checks"])
        return cls(about, results, document.get("seconds", {}))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of `to_json`; raises ValueError as `from_dict`, and for a text that is no JSON."""
        return cls.from_dict(strict_json.parse(text, LIMIT))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The report in a file. Raises VaespecError if it is none."""
        try:
            return cls.from_dict(strict_json.read(path, LIMIT))
        except OSError as error:
            raise VaespecError(f"{path} cannot be read ({error.strerror}): check the file and its disk.") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise VaespecError(f"{path} is no report of this suite: {error}") from error


_COMPUTED = ("schema", "checks", "summary", "seconds")


def by_check(results: Sequence[Result]) -> dict[tuple[str, str], dict[str, Result]]:
    """(level, check) -> dtype -> result: the rows of a table."""
    rows: dict[tuple[str, str], dict[str, Result]] = {}
    for result in results:
        rows.setdefault((result.level, result.check), {})[result.dtype] = result
    return rows


def by_level(report: Report) -> dict[str, dict[str, list[Result]]]:
    """Level -> dtype -> the results that were run: the rows of the overview."""
    rows: dict[str, dict[str, list[Result]]] = {}
    for result in report.results:
        if result.status not in NOT_RUN:
            rows.setdefault(result.level, {}).setdefault(result.dtype, []).append(result)
    return rows
