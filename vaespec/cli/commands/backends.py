"""`vaespec backends`: which backends are installed, and what each of them offers."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec

from vaespec.cli.console import print_json, print_lines, print_table
from vaespec.cli.options import Json
from vaespec.registry import BackendInfo
from vaespec.registry import backends as known_backends

COLUMNS = 100  # width of the notes; the table of vaespec's own backends fits too


def backends(as_json: Json = False) -> None:
    """List the backends, whether they can be used, and their devices and dtypes. No framework is imported."""
    infos = known_backends()
    if as_json:
        print_json([{**dataclasses.asdict(info), "available": info.available} for info in infos])
        return
    print_table(("backend", "usable", "framework", "devices", "dtypes", "fallback ops"), [_row(info) for info in infos])
    print()
    for note in _notes(infos):
        wrapped = textwrap.wrap(note, COLUMNS, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        print_lines(*wrapped)


def _row(info: BackendInfo) -> list[str]:
    framework = f"{info.framework} {info.version or ''}".strip()
    fallback = [op for op, provenance in info.ops.items() if provenance == "fallback"]
    return [
        info.name,
        "yes" if info.available else "no",
        framework,
        _devices(info.devices),
        " ".join(info.dtypes),
        "all" if len(fallback) == len(info.ops) > 0 else " ".join(fallback) or ("none" if info.ops else ""),
    ]


def _devices(names: Sequence[str]) -> str:
    """ "8 x cuda, cpu" for cuda:0 to cuda:7 and cpu."""
    kinds = Counter(name.partition(":")[0] for name in names)
    return ", ".join(f"{count} x {kind}" if count > 1 else kind for kind, count in kinds.items())


def _notes(infos: Sequence[BackendInfo]) -> Iterator[str]:
    """Notes on problems, on variables of the environment, and on the packages that provide the backends."""
    yield from (info.problem for info in infos if info.problem)
    if chosen := os.environ.get("VAESPEC_BACKEND"):
        yield f"VAESPEC_BACKEND={chosen}: {_chosen(chosen, infos)}."
    for info in infos:
        for name, switch in info.switches.items():
            if switch.value is not None:
                yield f"{info.name}: {name}={switch.value} ({switch.default})."
    yield (
        "any other Array API namespace is a backend too, by its import path: --backend array_api_strict, or in Python "
        "backend=array_api_strict."
    )
    providers = defaultdict(list)
    for info in infos:
        providers[info.distribution].append(info.name)
    yield from (f"from {distribution}: {', '.join(names)}" for distribution, names in providers.items())


def _chosen(name: str, infos: Sequence[BackendInfo]) -> str:
    """What becomes of a name in VAESPEC_BACKEND, in words; of a dotted path, the packages around it are imported."""
    if name in (info.name for info in infos):
        return "used if no backend is named"
    with suppress(ImportError, ValueError):  # the parent of a path is imported, and may be missing
        if all(word.isidentifier() for word in name.split(".")) and find_spec(name):
            return "used if no backend is named, if this module is an Array API namespace"
    return "there is no such backend"
