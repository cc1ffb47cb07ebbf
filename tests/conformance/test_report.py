"""A report follows its schema, is restored from its JSON unchanged, and contains the same in every format."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from support.made_reports import ABOUT, ALL, BAD, ERROR, EXACT, FAIL, GAP, GOOD, HALF, PASS, UNDECLARED, VACUOUS, XPASS
from support.made_reports import report as made

from vaespec_conformance.reports.html import to_html
from vaespec_conformance.reports.markdown import matrix, to_markdown
from vaespec_conformance.reports.picture import LARGEST, error_picture
from vaespec_conformance.reports.report import SCHEMA_FILE, Report
from vaespec_conformance.reports.result import STATUSES, Failure, Result, rounded
from vaespec_conformance.reports.text import failure_lines, margin
from vaespec_conformance.running.facts import DECISIVE, FOLDER

SCHEMA = json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))
each_report = pytest.mark.parametrize("report", ALL.values(), ids=ALL)


def test_no_format_contains_characters_that_a_terminal_or_a_browser_obeys():
    hostile = "\x1b]0;title\x07 \x9b31m \u202e \u2066 \x7f"
    failure = Failure(hostile, hostile, hostile, {hostile: 1}, f"{hostile}\nprint()\n", hostile)
    report = made(
        replace(FAIL, failure=failure),
        replace(GAP, reason=hostile, url=hostile),
        replace(UNDECLARED, reason=hostile),
        subject={**ABOUT["subject"], "name": hostile, "distribution": hostile},
        environment={hostile: hostile},
        ops={hostile: hostile},
    )
    for text in (to_html(report), to_markdown(report), matrix([report]), report.to_json()):
        assert text.replace("\n", "").isprintable()
    assert "".join(failure_lines(report.results[0])).isprintable()
    assert Report.from_json(report.to_json()) == report


# -- JSON --------------------------------------------------------------------------------------------------------


@each_report
def test_the_json_follows_the_schema(report):
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(json.loads(report.to_json()), SCHEMA)


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("canary"),
        lambda d: d.update(date="today"),
        lambda d: d["checks"][0].update(status="skipped"),
        lambda d: d["checks"][0].update(status="undeclared"),
        lambda d: d["checks"][3].pop("failure"),
        lambda d: d["checks"][3].update(grade="A"),
        lambda d: d["summary"].update(exit_code=2),
        lambda d: d["suite"].update(checks_hash="new"),
        lambda d: d["ops"].update(conv2d="fast"),
    ],
)
def test_the_schema_refuses_a_document_that_is_no_report(change):
    document = json.loads(BAD.to_json())
    change(document)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)


@each_report
def test_a_report_is_restored_from_its_json(report):
    again = Report.from_json(report.to_json())
    assert (again.about, again.results) == (report.about, report.results)
    assert again.to_json() == report.to_json()


def test_the_hash_covers_every_module_that_decides_a_verdict():
    run = (
        "import sys, vaespec_conformance.checks, vaespec_conformance.running.examination\n"
        "print(*(m.__file__ for name, m in sys.modules.items() if name.startswith('vaespec_conformance')))"
    )
    files = subprocess.run([sys.executable, "-c", run], capture_output=True, text=True, check=True).stdout.split()
    loaded = {Path(file).relative_to(FOLDER).as_posix() for file in files}
    decisive = {path.relative_to(FOLDER).as_posix() for pattern in DECISIVE for path in FOLDER.glob(pattern)}
    only_text = {"__init__.py", "running/__init__.py", "reports/__init__.py", "reports/result.py", "running/timing.py"}
    assert loaded - decisive == only_text
    assert "cases/goldens.npz" in decisive


def test_seconds_are_left_out_unless_requested():
    report = replace(GOOD, seconds={PASS.id: 0.25})
    assert report.to_json() == GOOD.to_json()
    document = json.loads(report.to_json(seconds=True))
    jsonschema.validate(document, SCHEMA)
    assert document["seconds"] == {"ops.conv2d[float32]": 0.25}
    assert Report.from_dict(document).seconds == {"ops.conv2d[float32]": 0.25}


def test_a_report_of_another_version_is_refused():
    with pytest.raises(ValueError, match=r"schema 'vaespec-conformance/1': a report of 'vaespec-conformance/2' is"):
        Report.from_dict({"schema": "vaespec-conformance/1"})


@given(st.floats(0, allow_nan=False))
def test_numbers_are_rounded_to_three_digits_and_stay_json(number):
    assert rounded(number) == pytest.approx(min(number, 1e308), rel=6e-3, abs=1e-320)
    assert json.loads(json.dumps(rounded(number), allow_nan=False)) == rounded(number)


# -- the verdict -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "verdict", "code"),
    [
        ([PASS, HALF, EXACT], "conformant", 0),
        ([PASS, GAP, UNDECLARED], "conformant", 0),
        ([PASS, FAIL], "failed", 1),
        ([PASS, XPASS], "failed", 1),
        ([PASS, Result("a", "L1", "float32", "error", failure=Failure("x"))], "failed", 1),
        ([], "vacuous", 3),
        ([UNDECLARED], "vacuous", 3),
        ([PASS, replace(PASS, check="b", examples=29)], "vacuous", 3),
    ],
)
def test_the_verdict_and_the_exit_code(results, verdict, code):
    report = made(*results)
    assert (report.verdict, report.exit_code) == (verdict, code)


@pytest.mark.parametrize(
    ("report", "headline"),
    [
        (GOOD, "mine: conformant. All 4 checks passed, but for 1 declared gaps."),
        (BAD, "mine: failed. 3 of 7 checks did not pass, but for 1 declared gaps."),
        (VACUOUS, "mine: vacuous. No check was run."),
        (made(replace(PASS, examples=2)), "mine: vacuous. Ops.conv2d[float32] ran 2 of 30 examples."),
        (
            made(PASS, run={**ABOUT["run"], "selection": {"levels": ["L1"]}}),
            "mine: partial. 1 of 1 checks passed, which is not the whole suite.",
        ),
    ],
)
def test_the_headline(report, headline):
    assert report.headline == headline


def test_each_dtype_has_a_grade_and_a_failure_has_none():
    assert (PASS.grade, HALF.grade, FAIL.grade) == ("A", "B", None)
    assert {dtype: BAD.grade(dtype) for dtype in BAD.dtypes} == {"float32": None, "bfloat16": None}
    assert {dtype: GOOD.grade(dtype) for dtype in GOOD.dtypes} == {"float32": "A", "bfloat16": "B"}
    assert GOOD.worst == HALF


@pytest.mark.parametrize(
    ("used", "text"),
    [(0.0514, "0.051"), (0.999, "1"), (1.04, "1"), (3.21, "3.2"), (570.4, "570"), (36600.0, "36600"), (2e6, "2e6")],
)
def test_margins_are_short(used, text):
    assert margin(used) == text


# -- the page ----------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The tags of a page, which must be closed in order, its text, and its links."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.links = [], [], "", []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("href", "src")]
        assert not [name for name, _ in attributes if name.startswith("on")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] != ["style"]:
            self.text += data


@each_report
def test_the_page_needs_no_network_and_runs_nothing(report):
    text = to_html(report)
    page = Page(text)
    assert not {"script", "link", "iframe", "object", "base"} & set(page.tags)
    assert all(link.startswith(("data:image/png;base64,", "https://example.org/")) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text


def test_the_page_shows_hostile_names_as_text():
    page = Page(to_html(ALL["hostile"]))
    assert '<script>alert("1")</script> & | `x`' in page.text
    assert page.links == []


@pytest.mark.parametrize("write", [to_html, to_markdown])
def test_a_failure_is_reported_with_all_that_helps(write):
    document = write(BAD)
    text = Page(document).text if write is to_html else document
    for part in (FAIL.id, "failed", FAIL.failure.message, FAIL.failure.where, FAIL.failure.hint, FAIL.failure.command):
        assert part in text
    assert '{"shape": [1, 2, 3, 4], "seed": 1}' in text
    assert "import numpy as np\nprint(np.zeros(3))" in text
    assert "570 times the budget" in text
    for part in (
        "0.41",
        "bug: its tail",
        "https://example.org/1",
        "float64 not claimed",
        "python",
        "native",
        "highest",
    ):
        assert part in text


def test_the_page_has_a_picture_of_the_error_and_a_bar_for_each_margin():
    page = to_html(BAD)
    assert FAIL.failure.picture in page
    assert re.findall(r"width:(\d+)%", page) == ["41", "70", "100"]


# -- the picture -------------------------------------------------------------------------------------------------


def pixels(uri):
    head, data = uri.split(",", 1)
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        return np.asarray(image.convert("RGB"), int)


def test_the_picture_is_red_where_the_error_is_and_light_elsewhere():
    image = pixels(error_picture(ERROR))
    assert image.shape == (108, 144, 3)  # 3 x 4 pixels, 36 times as large
    red = image[..., 0] - image[..., 2] > 100
    assert red[72:, 108:].all()
    assert red.sum() == 36 * 36


@given(st.lists(st.integers(1, 5), min_size=0, max_size=4), st.sampled_from([0.0, 0.5, 1.0, 7.0, 1e9, np.inf, np.nan]))
def test_errors_of_any_shape_and_size_have_a_picture(shape, value):
    image = pixels(error_picture(np.full(shape, value)))
    assert max(image.shape) <= LARGEST
    colours = {tuple(pixel) for row in image for pixel in row}
    assert len(colours) == 1
    red, _, blue = colours.pop()
    assert (red == blue == 0) if not np.isfinite(value) else (red > blue) == (value > 1)


def test_a_large_map_shows_the_worst_of_each_block():
    error = np.zeros((1, 1, 1000, 700))
    error[0, 0, 999, 699] = 9.0
    image = pixels(error_picture(error))
    assert max(image.shape) <= LARGEST
    assert (image[-1, -1, 0] - image[-1, -1, 2]) > 100
    assert (image[..., 0] - image[..., 2] > 100).sum() == 1


# -- Markdown ----------------------------------------------------------------------------------------------------


@each_report
def test_every_table_has_as_many_cells_in_each_row_as_in_its_head(report):
    text = matrix([report, GOOD]) + to_markdown(report)
    tables = re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(counts) == 1


def test_the_matrix_has_a_row_for_each_subject_and_a_column_for_each_in_the_checks():
    text = matrix([GOOD, replace(BAD, about={**ABOUT, "subject": {**ABOUT["subject"], "name": "theirs"}})])
    assert (
        "| **mine** | ✅ conformant | A 0.41 | B 0.7 | highest: float32 | 1 of 2 | 0.7 (`ops.conv2d[bfloat16]`) |"
        in text
    )
    assert "| **theirs** | ❌ failed | ❌ | ❌ |" in text
    assert "| L1 | `ops.conv2d` | 0.7 | 0.7 |" in text
    assert "| L1 | `ops.group_norm` |  | ❌ |" in text
    assert "| L1 | `structure.add` | exact | exact |" in text


def test_a_hostile_name_stays_in_its_line():
    heading, *_ = to_markdown(ALL["hostile"]).splitlines()
    assert "not a heading" in heading


def test_every_status_is_explained():
    assert {result.status for result in BAD.results} == set(STATUSES)
