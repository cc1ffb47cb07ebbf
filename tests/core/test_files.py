"""Files appear whole or not at all."""

from __future__ import annotations

import pytest

from vaespec.files import written_whole


def test_a_file_that_cannot_be_created_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError) as raised, written_whole(tmp_path / "nowhere" / "report.json"):
        pass
    assert raised.value.filename == str(tmp_path / "nowhere" / "report.json")


def test_a_file_whose_writing_fails_stays_as_it_was(tmp_path):
    def fail(path):
        with written_whole(path) as part:
            part.write_text("half")
            raise InterruptedError

    path = tmp_path / "report.json"
    path.write_text("before")
    with pytest.raises(InterruptedError):
        fail(path)
    assert [(each.name, each.read_text()) for each in tmp_path.iterdir()] == [("report.json", "before")]
