"""Long lists in errors and logs: the first few entries, and how many more there are."""

from __future__ import annotations

from collections.abc import Sequence

MAX_LISTED = 10


def shortened(lines: Sequence[str]) -> list[str]:
    """The first MAX_LISTED lines, and one more that counts the rest."""
    rest = len(lines) - MAX_LISTED
    return list(lines) if rest <= 0 else [*lines[:MAX_LISTED], f"... and {rest} more"]
