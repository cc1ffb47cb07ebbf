"""Measures how long the conformance suite takes on each backend, and which share of its budgets each uses.

    python benchmarks/conformance.py [--profile quick|default] [BACKEND ...]

Each run does the same as `vaespec conformance`, from the start of its processes to its report.
"""

from __future__ import annotations

import argparse
import os
import platform
import time

from vaespec import backends
from vaespec_conformance.running.isolated import run_isolated
from vaespec_conformance.running.request import Request


def main() -> None:
    """Prints a line for each backend."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backends", nargs="*", default=[info.name for info in backends()], metavar="BACKEND")
    parser.add_argument("--profile", default="default", choices=("quick", "default", "thorough"))
    arguments = parser.parse_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores; {arguments.profile} profile")
    print(f"{'backend':10}{'seconds':>8}{'margin':>8}  used by")
    for backend in arguments.backends:
        start = time.perf_counter()
        report = run_isolated(Request(backend, profile=arguments.profile))
        seconds = time.perf_counter() - start
        used = f"{report.worst.margin:8.2f}  {report.worst.id}" if report.worst else f"{'':8}  nothing"
        print(f"{backend:10}{seconds:8.1f}{used}  {'' if report.exit_code == 0 else report.headline}".rstrip())


if __name__ == "__main__":
    main()
