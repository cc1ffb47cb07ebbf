"""The suite under pytest: collected with --pyargs, also under pytest-xdist, and as a class in a user's repository."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.depth import first
from typer.testing import CliRunner

from vaespec.cli.app import app
from vaespec_conformance import pytest_plugin

SUBJECTS = Path(__file__).parents[1] / "support" / "subjects_of_all_kinds.py"


def run_pytest(folder, *arguments, code=0):
    """The output of pytest in an empty folder."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def counts(output):
    """ "3 failed, 2 passed in 1.2s" -> {"failed": 3, "passed": 2}."""
    *_, last = output.strip().splitlines()
    return {word: int(number) for number, word in re.findall(r"(\d+) (\w+?)s?(?=,| in)", last)}


LIMIT = "15"
"""Seconds for checks of which one hangs: many times what the others need, so that a busy machine changes nothing."""
OF_SUITE = ("--pyargs", "vaespec_conformance", "--vaespec-profile", "quick")
ACTIVATIONS = [option for op in ("silu", "mish", "gelu") for option in ("--vaespec-check", f"ops.{op}")]


@pytest.mark.parametrize("processes", first(1, [["-n", "2"], []]))
def test_its_report_equals_the_command_line_s_byte_for_byte(tmp_path, processes):
    run_pytest(
        tmp_path, *OF_SUITE, *ACTIVATIONS, "--vaespec-backend", "numpy", "--vaespec-report", "a.json", *processes
    )
    checks = [option.replace("--vaespec", "-") for option in ACTIVATIONS]
    command = ["conformance", "--backend", "numpy", "--profile", "quick", *checks, "--report", str(tmp_path / "b.json")]
    assert CliRunner().invoke(app, command, env={"OMP_NUM_THREADS": None}).exit_code == 0
    by_pytest, by_command = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    for report in (by_pytest, by_command):
        report["environment"].pop("OMP_NUM_THREADS")  # the command line's processes have one thread
    assert by_pytest == by_command


def test_each_check_and_dtype_is_a_test_and_the_verdict_is_printed(tmp_path):
    output = run_pytest(tmp_path, *OF_SUITE, *ACTIVATIONS, "--vaespec-backend", "numpy", "-vv")
    assert counts(output)["passed"] == 3 * 4 + 2
    assert "test_conforms[ops.gelu[float16]] PASSED" in output
    assert "numpy: partial. 12 of 12 checks passed" in output
    assert list(tmp_path.iterdir()) == []


def test_a_failure_is_reported_without_a_traceback(tmp_path):
    wrong = ("--vaespec-backend", f"{SUBJECTS}:Wrong", "--vaespec-check", "ops.group_norm[float16]")
    output = run_pytest(tmp_path, *OF_SUITE, *wrong, code=1)
    assert counts(output) == {"failed": 1, "passed": 2}
    for part in ("group_norm is off by", "likely:", "again:  vaespec conformance --backend"):
        assert part in output
    assert "Traceback" not in output
    assert "def test_conforms" not in output


def test_gaps_are_expected_failures_and_unclaimed_items_are_skipped(tmp_path):
    options = ("--vaespec-backend", f"{SUBJECTS}:Declares", "--vaespec-check", "ops.gelu", "-rxs")
    output = run_pytest(tmp_path, *OF_SUITE, *options)
    assert counts(output) == {"passed": 3, "skipped": 2, "xfailed": 1}
    assert "bug: the tail is rounded (until 2.0)" in output
    assert "bfloat16 not claimed" in output


def test_a_declared_gap_that_passes_fails(tmp_path):
    options = ("--vaespec-backend", f"{SUBJECTS}:DeclaresTooMuch", "--vaespec-check", "ops.gelu[float16]")
    assert "passes, though" in run_pytest(tmp_path, *OF_SUITE, *options, code=1)


def test_a_backend_that_claims_nothing_does_not_pass(tmp_path):
    output = run_pytest(tmp_path, *OF_SUITE, "--vaespec-backend", f"{SUBJECTS}:Empty", "--vaespec-level", "L0", code=1)
    assert "float32 is not claimed" in output


@pytest.mark.thorough  # the command line is asked too, which runs the same code
def test_a_check_that_hangs_fails_and_the_others_go_on(tmp_path):
    options = ("--vaespec-backend", f"{SUBJECTS}:Hangs", *ACTIVATIONS, "--vaespec-dtype", "float32")
    output = run_pytest(tmp_path, *OF_SUITE, *options, "--vaespec-time-limit", LIMIT, code=1)
    assert counts(output) == {"failed": 1, "passed": 4}
    assert f"it did not end within {LIMIT} s; --time-limit gives it more." in output


def test_a_report_that_cannot_be_written_is_told_in_a_sentence(tmp_path):
    (tmp_path / "folder").mkdir()
    options = ("--vaespec-backend", "numpy", "--vaespec-check", "ops.relu", "--vaespec-report", "folder")
    output = run_pytest(tmp_path, *OF_SUITE, *options, "--vaespec-html", "report.html", code=4)
    assert "error: cannot write folder (it is a folder).\n" in output
    assert "INTERNALERROR" not in output
    assert (tmp_path / "report.html").exists()


def test_a_port_is_examined_too(tmp_path):
    options = ("--vaespec-port", f"{SUBJECTS}:port", "--vaespec-check", "model.decode[float32]")
    assert counts(run_pytest(tmp_path, *OF_SUITE, *options)) == {"passed": 3}


def test_without_a_subject_one_sentence_says_what_is_missing(tmp_path):
    output = run_pytest(tmp_path, "--pyargs", "vaespec_conformance", code=2)
    assert output.count("name the subject to examine: --vaespec-backend NAME, or --vaespec-port PLACE.") >= 1
    assert "fixture" not in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--vaespec-backend", "nump"), "no backend named 'nump'"),
        (("--vaespec-backend", "numpy", "--vaespec-check", "ops.silo"), "no check called 'ops.silo': choose ops.silu"),
        (("--vaespec-port", "nowhere:build"), "nowhere cannot be imported (ModuleNotFoundError"),
    ],
)
def test_invalid_options_are_a_usage_error(tmp_path, options, message):
    assert message in run_pytest(tmp_path, *OF_SUITE, *options, code=4)


def test_without_hypothesis_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vaespec_conformance.find_spec", lambda name: None)
    config = SimpleNamespace(getoption=lambda name: "numpy")
    with pytest.raises(pytest.UsageError, match=r'pip install "vaespec\[conformance\]"'):
        pytest_plugin.pytest_configure(config)


def test_in_other_sessions_the_plugin_does_nothing_and_imports_nothing(tmp_path):
    (tmp_path / "test_mine.py").write_text(
        "import sys\n"
        "def test_nothing_is_imported():\n"
        "    assert 'vaespec_conformance.pytest_plugin' in sys.modules\n"
        "    assert not {'vaespec', 'numpy', 'hypothesis', 'vaespec_conformance.judging.registry'} & set(sys.modules)\n"
    )
    output = run_pytest(tmp_path, "-p", "no:hypothesispytest", "-p", "no:xdist")
    assert counts(output) == {"passed": 1}
    assert "vaespec conformance" not in output


USER = """
import sys
sys.path.insert(0, {folder!r})
from subjects_of_all_kinds import Good, Wrong, BrightPort
from vaespec_conformance import Selection, conformance_suite

NORMS = Selection(checks=("ops.group_norm", "model.decode[float32]"))
TestGood = conformance_suite(Good, profile="quick", selection=NORMS)
TestInstance = conformance_suite(Good(), profile="quick", selection=NORMS)
TestWrong = conformance_suite(Wrong, profile="quick", selection=NORMS)
TestBright = conformance_suite(BrightPort, profile="quick", selection=NORMS)
"""


def test_it_is_a_class_of_tests_in_a_user_s_repository(tmp_path):
    (tmp_path / "test_mine.py").write_text(USER.format(folder=str(SUBJECTS.parent)))
    output = run_pytest(tmp_path, "-vv", "-p", "no:xdist", code=1)
    verdicts = dict(re.findall(r"::(Test\w+)::test_conforms\[model.decode\[float32\]\] (\w+)", output))
    assert verdicts == {"TestGood": "PASSED", "TestInstance": "PASSED", "TestWrong": "FAILED", "TestBright": "FAILED"}
    assert re.findall(r"::(Test\w+)::test_conforms\[ops.group_norm\[float16\]\] FAILED", output) == ["TestWrong"]
