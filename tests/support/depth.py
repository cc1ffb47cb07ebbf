"""Which parameters of a test are run by `pytest`, and which only by `pytest --thorough`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def first(count: int, values: Iterable[Any]) -> list[Any]:
    """Parameters of which `pytest` runs the first `count`, and `pytest --thorough` all."""
    quick, rest = list(values)[:count], list(values)[count:]
    sets = [value if isinstance(value, tuple) else (value,) for value in rest]
    return [*quick, *(pytest.param(*values, marks=pytest.mark.thorough) for values in sets)]
