"""`vaespec backends`: what is installed, and what is missing."""

from __future__ import annotations

import dataclasses

from vaespec.backend import BackendInfo
from vaespec.backend import backends as known_backends
from vaespec.cli.console import print_json, print_table
from vaespec.cli.options import Json


def backends(as_json: Json = False) -> None:
    """List the backends known here and whether they can be used."""
    found = known_backends()
    if as_json:
        print_json([{**dataclasses.asdict(info), "available": info.available} for info in found])
        return
    header = ("backend", "available", "framework", "dtypes", "from")
    print_table(header, [_row(info) for info in found])


def _row(info: BackendInfo) -> list[str]:
    state = "yes" if info.available else (info.problem or f"no: {info.remedy}")
    framework = f"{info.framework} {info.version or ''}".strip()
    return [info.name, state, framework, ", ".join(info.dtypes), info.distribution]
