"""One reader for every JSON text of somebody else: what is too much for it, or has two meanings, is refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaespec import strict_json
from vaespec.strict_json import MAX_DEPTH, MAX_DIGITS, parse

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_every_value_of_json_is_read_as_python_reads_it(value):
    text = json.dumps(value)
    assert parse(text) == parse(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "b": {"c": 1, "c": 1}}', "it has the key 'c' twice"),
        ("[NaN]", "it has NaN, which is no number in JSON"),
        ('{"a": -Infinity}', "it has -Infinity"),
        ("9" * (MAX_DIGITS + 1), "it has a number of 4,301 digits, the limit is 4,300"),
        ("[1." + "1" * MAX_DIGITS + "]", "it has a number of 4,302 digits"),
        ("[" * (MAX_DEPTH + 2) + "]" * (MAX_DEPTH + 2), "nested too deeply, a recursion of more than 64 levels"),
        ("[" * 200_000 + "]" * 200_000, "nested too deeply"),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, "nested too deeply"),
        (" " * (1 << 20) + "1", "it has 1,048,577 bytes, the limit is 1,048,576"),
        (b"\xff\xfe", "utf-8"),
        ("", "Expecting value"),
        ("{} {}", "Extra data"),
    ],
)
def test_what_has_two_meanings_or_is_too_much_is_refused_in_words(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        parse(text)
    assert len(str(caught.value)) < 200


def test_as_much_as_the_limits_is_read():
    assert parse("9" * MAX_DIGITS) == 10**MAX_DIGITS - 1
    assert parse("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    assert parse(" " * (1 << 20) + "1", limit=2 << 20) == 1


def test_a_file_is_not_read_beyond_the_limit(tmp_path):
    path = tmp_path / "x.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no space on the disk
    with pytest.raises(ValueError, match=r"it has 1,099,511,627,776 bytes"):
        strict_json.read(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on Windows")
def test_a_fifo_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name in ("pipe", "zero"):
        with pytest.raises(ValueError, match="it is a pipe or a device, not a file"):
            strict_json.read(tmp_path / name)


@pytest.mark.skipif(not Path("/proc/sys/kernel/pid_max").exists(), reason="no files of Linux's kernel")
def test_a_file_of_the_system_counts_as_empty_since_it_may_have_no_end():
    with pytest.raises(ValueError, match="Expecting value"):
        strict_json.read(Path("/proc/sys/kernel/pid_max"))  # which holds a number, a JSON text
