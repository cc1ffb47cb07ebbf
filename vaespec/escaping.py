"""Text from outside (names in files, names of files, messages of libraries) in a form that is safe to show."""

from __future__ import annotations

import re
import unicodedata

MAX_SHOWN = 300  # characters of foreign text in an error
JSON_CONTROLS = re.compile(r"[^\x20-\x7e\n]")  # what may need an escape sequence in a JSON document


def escaped(text: str) -> str:
    r"""Replaces each character that is not shown by its escape sequence: ESC by \x1b, a newline by \n.

    They are control characters, which a terminal obeys; marks that change the direction of text; and surrogates, which
    stand for bytes of a file name and cannot be printed. Spaces of all kinds stay. Escaping twice changes nothing more.
    """
    if text.isprintable():
        return text
    return "".join(c if _is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def shown(text: str) -> str:
    """Foreign text as an error shows it: at most MAX_SHOWN characters, escaped."""
    return escaped(text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}...")


def escaped_json(document: str) -> str:
    r"""Does the same in a JSON document, with the escape sequences of JSON: ESC is \u001b."""
    return JSON_CONTROLS.sub(lambda match: match[0] if _is_shown(match[0]) else _json_sequence(match[0]), document)


def _is_shown(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Zs"


def _json_sequence(character: str) -> str:
    """One sequence for each unit of 16 bits: JSON has no longer ones."""
    units = character.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"\\u{units[i : i + 4]}" for i in range(0, len(units), 4))
