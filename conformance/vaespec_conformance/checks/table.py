"""Checks that differ in one value, as rows of a table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from vaespec_conformance.judging.registry import Margin, check


def check_rows(prefix: str, rows: Mapping[str, str], run: Callable[..., Margin], **options: Any) -> None:
    """Register run(name, subject, case, dtype) as "prefix.name" for each row {name: what `--explain` prints}."""
    for name, explain in rows.items():
        run_row = partial(run, name)
        run_row.__doc__ = explain
        check(f"{prefix}.{name}", **options)(run_row)
