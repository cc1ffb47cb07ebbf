"""Damaged inputs and killed work in large numbers: `python benchmarks/attacks.py [--count N] [--kills N] [KIND ...]`.

tests/test_damage.py asks the same of fewer inputs; tests/support/damage.py and kills.py say what must hold. Prints a
line for each kind, and ends with 1 if one failed; the last lines of its errors name the input, which can be made again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))

from support.kills import WORKS  # noqa: E402
from support.weight_files import WRITERS  # noqa: E402

MODELS = [f"model:{container}" for container in WRITERS if container != "shards"]
KINDS = ("pictures", "configs", *WRITERS, *MODELS)


def attack(module: str, kind: str, count: int, first: int) -> bool:
    """Runs one kind, and prints its tally or its error; returns whether it held."""
    start, paths = time.perf_counter(), os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", f"support.{module}", kind, str(count), str(first)]
    run = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}, check=False)
    result = run.stdout.strip() if run.returncode == 0 else f"FAILED\n{run.stderr[-2000:]}"
    print(f"{kind:20} {count:7,} in {time.perf_counter() - start:6.0f} s  {result}", flush=True)
    return run.returncode == 0


def main() -> int:
    """Runs the chosen kinds; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kinds", nargs="*", choices=[*KINDS, *WORKS, []], help="by default all")
    parser.add_argument("--count", type=int, default=100_000, help="inputs of each kind")
    parser.add_argument("--kills", type=int, default=300, help="kills of each work")
    parser.add_argument("--first", type=int, default=0, help="number of the first input, or seed of the kills")
    options = parser.parse_args()
    kinds = options.kinds or [*KINDS, *WORKS]
    damage = [attack("damage", kind, options.count, options.first) for kind in kinds if kind in KINDS]
    kills = [attack("kills", kind, options.kills, options.first) for kind in kinds if kind in WORKS]
    return 0 if all(damage + kills) else 1


if __name__ == "__main__":
    sys.exit(main())
