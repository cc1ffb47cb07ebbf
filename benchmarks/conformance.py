"""How long the conformance suite takes on each backend, and how much of its budgets they use.

    python benchmarks/conformance.py [--profile quick|default] [--seeds N] [BACKEND ...]

Each run is a `vaespec conformance` of its own, from its start to its last report. With more seeds than one, a run that
is not conformant is a false alarm, if the backend is right: each is printed.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

from vaespec_conformance.isolated import run_isolated
from vaespec_conformance.report import Report
from vaespec_conformance.request import Request

BACKENDS = ("numpy", "torch", "jax", "mlx")


def timed(request: Request) -> tuple[float, Report]:
    """Seconds, and what was found."""
    start = time.perf_counter()
    report = run_isolated(request)
    return time.perf_counter() - start, report


def main() -> None:
    """A line for each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=BACKENDS, metavar="BACKEND")
    parser.add_argument("--profile", default="default", choices=("quick", "default", "thorough"))
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    print(f"{machine}; {arguments.profile} profile; the worst of {arguments.seeds} seeds")
    print(f"{'backend':10}{'seconds':>8}{'margin':>8}  used by")
    for backend in arguments.backends:
        runs = [timed(Request(backend, profile=arguments.profile, seed=seed)) for seed in range(arguments.seeds)]
        worst = max((r.worst for _, r in runs if r.worst), key=lambda result: result.margin or 0, default=None)
        used = f"{worst.margin:8.2f}  {worst.id}" if worst else f"{'':8}  nothing"
        print(f"{backend:10}{max(seconds for seconds, _ in runs):8.1f}{used}")
        for report in (report for _, report in runs if report.exit_code):
            failed = [result.id for result in report.bad]
            print(f"  seed {report.about['run']['seed']}: {report.headline} {failed}")


if __name__ == "__main__":
    main()
