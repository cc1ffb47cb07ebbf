"""Counts false alarms of the conformance suite: the default or another profile on correct backends, for many seeds.

    python benchmarks/false_alarms.py numpy torch mlx reference --seeds 0 200
    python benchmarks/false_alarms.py jax --seeds 0 20 --level L1
    python benchmarks/false_alarms.py numpy torch --seeds 0 20 --level L5 --profile quick

Prints every alarm, then for each backend its greatest margins (1 is the whole budget). Every check runs on all backends
with the same drawn cases, so that the specification's results are computed once. The large pinned cases of sizes run
too, each seed with other weights and inputs.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import defaultdict
from itertools import product

import vaespec_conformance.checks  # noqa: F401  (registers)
from vaespec.registry import get_backend
from vaespec_conformance.cases.cases import Case
from vaespec_conformance.cases.drawing import run_drawn
from vaespec_conformance.judging.registry import CHECKS, DTYPES, PROFILES, Check
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.oracle import ReferenceBackend
from vaespec_conformance.subjects.subjects import BackendSubject


class Margins:
    """The number of cases of a subject so far, and the greatest margin of each check."""

    def __init__(self, subject: BackendSubject) -> None:
        self.subject, self.cases, self.alarms = subject, 0, 0
        self.greatest: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))

    def add(self, check: Check, dtype: str, case: Case) -> None:
        """Runs a case; prints an alarm if it fails."""
        try:
            margin = max(check.run(self.subject, case, dtype))
        except NotSupportedError:  # too little memory is free
            return
        except ConformanceError as error:
            self.alarms += 1
            margin = max(error.eta2, error.etainf)
            print(f"ALARM {self.subject.name} {check.id}[{dtype}] {case.to_json()} {error}", flush=True)
        self.cases += 1
        self.greatest[f"{check.id}[{dtype}]"] = max(self.greatest[f"{check.id}[{dtype}]"], (margin, case.to_json()))

    def run(self, check: Check, dtype: str, seed: int, profile: str) -> None:
        """Runs the large cases of a profile, and those that it draws for a seed."""
        for case in check.pinned_in(dtype, profile)[len(check.pinned) :]:
            self.add(check, dtype, Case.of(**{**dict(case.items), "seed": seed}))
        if not (drawn := check.examples[PROFILES.index(profile)]):
            return
        run_drawn(
            lambda case: self.add(check, dtype, case),
            check.cases,
            examples=drawn,
            seed=zlib.crc32(f"{seed} {check.id}[{dtype}]".encode()),
            shrink=False,
        )

    def show(self) -> None:
        """Prints the ten greatest margins."""
        print(f"{self.subject.name}: {self.alarms} alarms in {self.cases} cases")
        for name, (margin, case) in sorted(self.greatest.items(), key=lambda item: -item[1][0])[:10]:
            print(f"{margin:.2f}  {name}  {case}")


def main() -> None:
    """Runs the checks on the backends that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="+", metavar="BACKEND")
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 10))
    parser.add_argument("--level", action="append", default=[])
    parser.add_argument("--profile", choices=PROFILES, default="default")
    arguments = parser.parse_args()
    backends = [ReferenceBackend() if name == "reference" else get_backend(name) for name in arguments.backends]
    all_margins, start = [Margins(BackendSubject(backend)) for backend in backends], time.perf_counter()
    checks = [check for check in CHECKS.values() if check.level in (arguments.level or [check.level])]
    for seed, check, dtype in product(range(*arguments.seeds), checks, DTYPES):
        for margins in all_margins:
            if dtype in margins.subject.capabilities.dtypes and check.concerns(margins.subject, dtype):
                margins.run(check, dtype, seed, arguments.profile)
    print(f"{(time.perf_counter() - start) / max(1, len(range(*arguments.seeds))):.1f} s a seed")
    for margins in all_margins:
        margins.show()


if __name__ == "__main__":
    main()
