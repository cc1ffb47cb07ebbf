"""Plants faults that begin at a size in a right port, and counts how many the level for size finds in each profile.

    python benchmarks/size_faults.py
    python benchmarks/size_faults.py --seed 3 --count 60

Thresholds are 33 to 150 latents. Prints a line for each fault: its kind, from how many latents on it shows, and for
each profile whether a check found it and whether the place it named is the fault's. In float32, on the NumPy backend as
a port, with pinned cases only.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import vaespec_conformance.checks  # noqa: F401  (registers)
from vaespec.registry import get_backend
from vaespec_conformance.judging.registry import CHECKS
from vaespec_conformance.subjects.errors import ConformanceError, NotSupportedError
from vaespec_conformance.subjects.subjects import BackendSubject, PortSubject

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from support import size_faults as faults
from support.size_faults import BEGINS, FACTOR, Planted

NUMPY = BackendSubject(get_backend("numpy"))
PROFILES = ("quick", "default")
Rng = np.random.Generator


def _half(rng: Rng) -> str:
    return str(rng.choice(["decode", "encode"]))


def _begins(rng: Rng, n: int) -> faults.From:
    return BEGINS[str(rng.choice(list(BEGINS)))](n)


KINDS: dict[str, Callable[[Rng, int], Planted]] = {
    "zeros": lambda rng, n: faults.in_results(_half(rng), _begins(rng, n), faults.zeros),
    "zeros from a row on": lambda rng, n: faults.in_results(
        _half(rng), _begins(rng, n), faults.zeros_from_row(rng.uniform(0.3, 0.9))
    ),
    "last rows of the result before": lambda rng, n: faults.in_results(
        _half(rng), _begins(rng, n), faults.stale_rows(int(rng.integers(1, 9)))
    ),
    "last rows repeat a row": lambda rng, n: faults.in_results(
        _half(rng), _begins(rng, n), faults.repeated_rows(int(rng.integers(1, 9)))
    ),
    "index wraps at 2^16": lambda rng, n: faults.in_results("decode", _begins(rng, n), faults.wrapped_index(1 << 16)),
    "index wraps at n x n latents": lambda rng, n: faults.in_results(
        "decode", _begins(rng, n), faults.wrapped_index((FACTOR * n) ** 2)
    ),
    "one tile of zeros": lambda rng, n: faults.in_results(
        _half(rng), _begins(rng, n), faults.missing_tile(rng.uniform(0.1, 0.9), rng.uniform(0.1, 0.9), 16)
    ),
    "item of a batch": lambda rng, n: faults.in_results(
        _half(rng), _begins(rng, n), faults.wrong_item(int(rng.integers(1, 3)))
    ),
    "keys beyond n x n": lambda rng, n: faults.dropped_keys(lambda tokens: n * n),
    "keys beyond n rows": lambda rng, n: faults.dropped_keys(lambda tokens: n * 35),
}


def planted(seed: int, count: int) -> list[tuple[str, int, Planted]]:
    """(kind, n, fault), each kind in turn, n spread evenly over 33 to 150."""
    rng = np.random.default_rng(seed)
    thresholds = rng.permutation(np.linspace(33, 150, count).astype(int))
    names = list(KINDS)
    return [
        (names[i % len(names)], int(n), KINDS[names[i % len(names)]](rng, int(n))) for i, n in enumerate(thresholds)
    ]


def found(fault: Planted, profile: str) -> tuple[bool, bool, str]:
    """Whether the level finds a fault, whether the place is right, and what was said."""
    port = PortSubject.of(fault.wrap(NUMPY))
    for check in CHECKS.values():
        for case in check.pinned_in("float32", profile) if check.level == "L5" else ():
            try:
                check.run(port, case, "float32")
            except NotSupportedError:
                continue
            except ConformanceError as error:
                return True, fault.told(error.where), f"{check.id} {case['size']}: {error.where}"
    return False, False, "not found"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=40)
    arguments = parser.parse_args()
    totals = dict.fromkeys(PROFILES, (0, 0))
    for kind, n, fault in planted(arguments.seed, arguments.count):
        words = []
        for profile in PROFILES:
            caught, told, said = found(fault, profile)
            totals[profile] = (totals[profile][0] + caught, totals[profile][1] + told)
            words.append(f"{profile}: {'found' if caught else 'not found'}{', place right' if told else ''}")
            if caught:  # a larger profile finds it in the same case
                for other in PROFILES[PROFILES.index(profile) + 1 :]:
                    totals[other] = (totals[other][0] + caught, totals[other][1] + told)
                break
        print(f"{kind:32}{n:5}  {'; '.join(words):40}  {said}", flush=True)
    for profile, (caught, told) in totals.items():
        print(f"{profile}: {caught} of {arguments.count} found, the place right in {told}")


if __name__ == "__main__":
    main()
