"""Foreign text is shown without the characters that a terminal, a browser or an editor would obey."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

import vaespec
from vaespec.escaping import escaped, escaped_json, shown

HOSTILE = "\x1b]0;title\x07 \x9b31m \u202e \u2066 \u200b \n\r\x7f \x00 \udce9 \u2028 \U000e0041"


def test_control_characters_and_marks_of_direction_are_shown_as_escape_sequences():
    assert escaped(HOSTILE).isprintable()
    assert escaped("a\x1b[31m\n\u202eb") == r"a\x1b[31m\n\u202eb"


@pytest.mark.parametrize("text", ["photo.png", "漢字 ü 😀", "wide\u3000space\u00a0kept", r"back\slash"])
def test_other_text_stays(text):
    assert escaped(text) == text


def test_a_long_name_is_shown_in_part():
    assert shown("n" * 300) == "n" * 300
    assert shown("\x1b" + "n" * 300) == r"\x1b" + "n" * 299 + "..."


def test_escaping_twice_changes_nothing_more():
    assert escaped(escaped(HOSTILE)) == escaped(HOSTILE)


def test_a_json_document_keeps_its_content():
    document = {HOSTILE: [HOSTILE, "ü"]}
    shown = escaped_json(json.dumps(document, indent=1, ensure_ascii=False))
    assert json.loads(shown) == document
    assert "ü" in shown
    assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("kind", [getattr(vaespec, name) for name in vaespec.__all__ if name.endswith("Error")])
def test_the_message_of_every_error_is_safe_to_print(kind):
    error = kind(f"no tensor {HOSTILE}: look.")
    assert str(error).isprintable()
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_the_further_lines_of_an_error_are_lines_of_their_own_and_no_name_adds_one():
    error = vaespec.WeightMapError("it does not fit:", "missing a", "missing b\nvaespec: all is well")
    assert str(error).split("\n") == ["it does not fit:", "  missing a", r"  missing b\nvaespec: all is well"]


@pytest.mark.parametrize("weight", [None, np.zeros(1, np.float32)], ids=["no array", "unknown"])
def test_names_in_the_errors_of_the_python_api_are_escaped(weight):
    config = vaespec.AutoencoderConfig(block_out_channels=(4,), norm_num_groups=2)
    with pytest.raises(vaespec.VaespecError) as raised:
        vaespec.AutoencoderKL(config, {HOSTILE: weight}, backend="numpy")
    assert str(raised.value).replace("\n", "").isprintable()
