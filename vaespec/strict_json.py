"""Strict JSON: one reader with limits, for every text that somebody else may have written."""

from __future__ import annotations

import json
import os
import stat
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaespec.files import open_at_once

LIMIT = 1 << 20  # bytes of a document; a config.json has about 1 kB
MAX_DEPTH = 64  # objects and lists inside one another; a report has 6
MAX_DIGITS = 4300  # characters of a number: Python's own limit for integers

_TOO_DEEP = f"its objects and lists are nested too deeply, a recursion of more than {MAX_DEPTH} levels"


def read(path: Path, limit: int = LIMIT) -> Any:
    """The content of a JSON file. Raises OSError if it cannot be read, ValueError if it is no file, and as `parse`."""
    with open(path, "rb", opener=open_at_once) as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise ValueError("it is a pipe or a device, not a file")
        if facts.st_size > limit:
            raise ValueError(_too_long(facts.st_size, limit))
        return parse(file.read(facts.st_size), limit)  # no more: a file of the system may have no end


def parse(content: str | bytes, limit: int = LIMIT) -> Any:
    """The value of a JSON text. Raises ValueError, with the reason in words, for anything else.

    A text beyond a limit (its length, the depth of its nesting, the digits of a number), a repeated key, and NaN or
    Infinity are refused too.
    """
    if len(content) > limit:
        raise ValueError(_too_long(len(content), limit))
    text = content if isinstance(content, str) else content.decode()
    try:
        value = json.loads(
            text,
            object_pairs_hook=unique,
            parse_int=_bounded(int),
            parse_float=_bounded(float),
            parse_constant=_no_number,
        )
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if not _is_shallow(value):
        raise ValueError(_TOO_DEEP)
    return value


def _too_long(size: int, limit: int) -> str:
    return f"it has {size:,} bytes, the limit is {limit:,}"


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict. Raises ValueError for a repeated key, since readers differ in which one they take."""
    table = dict(pairs)
    if len(table) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"it has the key {twice[:100]!r} twice")
    return table


def _bounded(number: Callable[[str], int | float]) -> Callable[[str], int | float]:
    """Reads numbers of MAX_DIGITS at most: the time that a long one takes grows with the square of its length."""

    def read(digits: str) -> int | float:
        if len(digits) > MAX_DIGITS:
            raise ValueError(f"it has a number of {len(digits):,} digits, the limit is {MAX_DIGITS:,}")
        return number(digits)

    return read


def _no_number(word: str) -> float:
    raise ValueError(f"it has {word}, which is no number in JSON")


def _is_shallow(value: Any) -> bool:
    """Whether there are MAX_DEPTH levels at most. Walks level by level, so that no depth is too much for it."""
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [inner for outer in level if isinstance(outer, dict | list) for inner in _content(outer)]
        if not level:
            return True
    return False


def _content(outer: dict[str, Any] | list[Any]) -> Any:
    return outer.values() if isinstance(outer, dict) else outer
