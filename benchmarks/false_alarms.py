"""Does the conformance suite cry wolf? The default profile on a backend that is right, seed after seed.

    python benchmarks/false_alarms.py numpy --seeds 0 200
    python benchmarks/false_alarms.py reference --seeds 0 20 --level L1

Prints every alarm, the greatest margins (1 is the whole budget), and the time of a seed.
"""

from __future__ import annotations

import argparse
import time
import zlib
from collections import defaultdict

import vaespec_conformance.checks  # noqa: F401  (registers)
from vaespec.backend import get_backend
from vaespec_conformance.cases import Case
from vaespec_conformance.drawing import run_drawn
from vaespec_conformance.errors import ConformanceError
from vaespec_conformance.oracle import ReferenceBackend
from vaespec_conformance.registry import CHECKS, Check
from vaespec_conformance.subjects import BackendSubject


class Margins:
    """The cases of every check so far, and the greatest margin of each."""

    def __init__(self, subject: BackendSubject) -> None:
        self.subject, self.cases, self.alarms = subject, 0, 0
        self.greatest: dict[str, tuple[float, str]] = defaultdict(lambda: (0.0, ""))

    def add(self, check: Check, dtype: str, case: Case) -> None:
        """Run a case; an alarm is printed, and the rest goes on."""
        self.cases += 1
        try:
            margin = max(check.run(self.subject, case, dtype))
        except ConformanceError as error:
            self.alarms += 1
            margin = max(error.eta2, error.etainf)
            print(f"ALARM {check.id}[{dtype}] {case.to_json()} {error}", flush=True)
        self.greatest[f"{check.id}[{dtype}]"] = max(self.greatest[f"{check.id}[{dtype}]"], (margin, case.to_json()))

    def run(self, seed: int, levels: list[str]) -> None:
        """What the default profile draws for that seed."""
        for check in CHECKS.values():
            for dtype in self.subject.capabilities.dtypes:
                if check.concerns(self.subject, dtype) and check.level in (levels or [check.level]):
                    run_drawn(
                        lambda case, check=check, dtype=dtype: self.add(check, dtype, case),
                        check.cases,
                        examples=check.examples.default,
                        seed=zlib.crc32(f"{seed} {check.id}[{dtype}]".encode()),
                        shrink=False,
                    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backend")
    parser.add_argument("--seeds", nargs=2, type=int, default=(0, 10))
    parser.add_argument("--level", action="append", default=[])
    asked = parser.parse_args()
    backend = ReferenceBackend() if asked.backend == "reference" else get_backend(asked.backend)
    margins, start = Margins(BackendSubject(backend)), time.perf_counter()
    for seed in range(*asked.seeds):
        margins.run(seed, asked.level)
    seconds = (time.perf_counter() - start) / max(1, len(range(*asked.seeds)))
    print(f"{asked.backend}: {margins.alarms} alarms in {margins.cases} cases, {seconds:.1f} s a seed")
    for name, (margin, case) in sorted(margins.greatest.items(), key=lambda item: -item[1][0])[:10]:
        print(f"{margin:.2f}  {name}  {case}")


if __name__ == "__main__":
    main()
