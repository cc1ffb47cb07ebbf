"""`vaespec conformance` gives every kind of subject the right verdict and exit code, in worker processes."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import jsonschema
import pytest
import typer
from typer.testing import CliRunner

from vaespec.cli.app import add_extensions, app
from vaespec.cli.failures import CommandGroup
from vaespec.errors import VaespecError
from vaespec_conformance.mutants import BENIGN, MUTANTS
from vaespec_conformance.reports.report import SCHEMA, SCHEMA_FILE

SUBJECTS = Path(__file__).parents[1] / "support" / "subjects_of_all_kinds.py"
LIMIT = 15
"""Seconds for checks of which one hangs: many times what the others need, so that a busy machine changes nothing."""


def run(*arguments, code=0):
    result = CliRunner().invoke(app, ["conformance", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def document_of(name, *arguments, code=0):
    """The JSON of a run on one of the subjects, whose exit code must be `code`."""
    result = run("--backend", f"{SUBJECTS}:{name}", "--profile", "quick", *arguments, "--json", code=code)
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
    assert document["summary"]["exit_code"] == code
    return document


def statuses(document):
    return {f"{row['check']}[{row['dtype']}]": row["status"] for row in document["checks"]}


# -- subjects, good and bad --------------------------------------------------------------------------------------


def test_a_good_backend_is_partially_conformant_if_only_some_checks_are_selected():
    document = document_of("Good", "--level", "L1", "--dtype", "float32")
    assert document["summary"]["verdict"] == "partial"
    assert set(statuses(document).values()) <= {"pass", "undeclared"}
    assert document["canary"]["status"] == "caught"
    assert document["precision"]["highest"]["class"] == "float32"
    assert document["ops"]["conv2d"] == "native"


def test_a_wrong_backend_fails_the_right_check_with_its_likely_cause():
    document = document_of("Wrong", "--check", "ops.group_norm", "--check", "ops.silu", "--dtype", "float16", code=1)
    assert statuses(document) == {"ops.group_norm[float16]": "fail", "ops.silu[float16]": "pass"}
    (failure,) = (row["failure"] for row in document["checks"] if "failure" in row)
    assert "1e-5" in failure["hint"]
    command = shlex.split(failure["command"])
    assert command[:2] == ["vaespec", "conformance"]
    again = run(*command[2:], "--json", code=1)
    (row,) = json.loads(again.stdout)["checks"]
    assert (row["failure"]["message"], row["failure"]["case"]) == (failure["message"], failure["case"])


def test_the_snippet_of_a_failure_is_short_and_is_python():
    document = document_of("Wrong", "--check", "ops.group_norm[float32]", code=1)
    snippet = document["checks"][0]["failure"]["snippet"]
    assert len(snippet.splitlines()) <= 15
    compile(snippet, "snippet", "exec")


def test_an_empty_backend_is_vacuous():
    document = document_of("Empty", code=3)
    assert document["summary"]["verdict"] == "vacuous"
    assert "no check was run" in document["summary"]["unseen"]


def test_a_backend_that_returns_its_input_fails():
    document = document_of("Identity", "--level", "L1", "--dtype", "float32", code=1)
    by_check = statuses(document)
    assert by_check["structure.conv2d[float32]"] == by_check["ops.silu[float32]"] == "fail"
    assert document["summary"]["counts"]["error"] == 0


def test_a_backend_that_raises_not_implemented_everywhere_fails_everywhere():
    document = document_of("Unfinished", "--level", "L1,L3", "--dtype", "float32", code=1)
    rows = [row for row in document["checks"] if row["status"] != "undeclared"]
    assert {row["status"] for row in rows} == {"fail"}
    assert len(rows) >= 15
    messages = [row["failure"]["message"] for row in rows]
    assert all("NotImplementedError" in message for message in messages)


def test_a_backend_that_hangs_loses_one_check_and_the_others_go_on():
    names = ("ops.silu", "ops.mish", "ops.gelu", "ops.relu")  # two in either process
    checks = [word for name in names for word in ("--check", name)]
    document = document_of("Hangs", *checks, "--dtype", "float32", "--time-limit", LIMIT, code=1)
    assert list(statuses(document).items()) == [
        ("ops.silu[float32]", "error"),
        *((f"{name}[float32]", "pass") for name in names[1:]),
    ]
    assert (
        document["checks"][0]["failure"]["message"] == f"it did not end within {LIMIT} s; --time-limit gives it more."
    )


def test_after_three_checks_that_hang_the_others_are_not_begun():
    document = document_of("Stuck", "--level", "L1", "--dtype", "float32", "--time-limit", 2, code=1)
    rows = [row for row in document["checks"] if row["status"] != "undeclared"]
    assert {row["status"] for row in rows} == {"error"}
    messages = [row["failure"]["message"] for row in rows]
    assert 2 <= messages.count("it did not end within 2 s; --time-limit gives it more.") <= 4
    assert messages[-1] == "it was not begun, since 3 checks before it did not end."


def test_a_backend_that_crashes_its_process_loses_one_check_and_the_others_go_on():
    document = document_of("Crashes", "--check", "ops.silu", "--check", "ops.mish", "--dtype", "float32", code=1)
    assert statuses(document) == {"ops.silu[float32]": "error", "ops.mish[float32]": "pass"}
    assert document["checks"][0]["failure"]["message"] == "the process was ended by SIGABRT during this check."


def test_a_report_does_not_depend_on_the_number_of_processes():
    arguments = "--backend", f"{SUBJECTS}:Wrong", "--profile", "quick", "--level", "L0-L1", "--json"
    alone, shared = (run(*arguments, "--jobs", jobs, code=1).stdout for jobs in (1, 3))
    assert alone == shared
    assert '"fail"' in alone


def test_a_backend_that_prints_and_reads_does_not_disturb_the_messages_of_the_suite():
    document = document_of("Talks", "--check", "ops.silu[float32]")
    assert statuses(document) == {"ops.silu[float32]": "pass"}


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise RuntimeError('no device')", "cannot be imported (RuntimeError: no device)."),
        ("import sys; sys.exit('no licence')", "cannot be imported (SystemExit: no licence)."),
        ("import os; os.abort()", "importing the subject: the process was ended by SIGABRT."),
        ("class Backend: pass", "lacks name, framework, dtypes, devices, ops: see vaespec.backend.Backend."),
        ("", "has no 'Backend': name an object that it defines."),
    ],
)
def test_a_backend_that_cannot_be_imported_has_exit_code_2(code, message, tmp_path):
    file = tmp_path / "broken.py"
    file.write_text(code)
    result = run("--backend", f"{file}:Backend", code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("vaespec: error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("body", "code", "message"),
    [
        (
            "os._exit(3)",
            2,
            "trying the subject for the first time: the process exited with code 3, after it printed 'b'.",
        ),
        ("sys.exit(3)", 3, "no config that was asked could be built: build raised SystemExit: 3"),
    ],
)
def test_a_port_that_ends_the_process_while_it_is_built_is_not_blamed_for_its_import(body, code, message, tmp_path):
    file = tmp_path / "ends.py"
    file.write_text(f"import os, sys\ndef build(config, weights):\n    os.write(2, b'b')\n    {body}\n")
    result = run("--port", f"{file}:build", "--profile", "quick", "--check", "model.decode[float32]", code=code)
    assert message in " ".join(result.output.split()).replace("No config", "no config")


def test_declared_gaps_are_reported_and_pass():
    document = document_of("Declares", "--check", "ops.gelu")
    assert statuses(document)["ops.gelu[float16]"] == "gap"
    (row,) = (row for row in document["checks"] if row["status"] == "gap")
    assert (row["reason"], row["url"]) == ("bug: the tail is rounded (until 2.0)", "https://example.org/1")


def test_a_declared_gap_that_passes_fails_the_run():
    assert statuses(document_of("DeclaresTooMuch", "--check", "ops.gelu", code=1))["ops.gelu[float16]"] == "xpass"


def test_a_gap_does_not_excuse_a_required_check():
    document = document_of("DeclaresTheCore", "--check", "ops.group_norm[float32]", code=1)
    assert "A gap cannot be declared" in document["checks"][0]["failure"]["message"]


def test_a_claim_that_is_too_large_fails():
    by_check = statuses(document_of("OverClaims", "--level", "L0", code=1))
    assert by_check["interop.round_trip[float32]"] == "pass"
    assert by_check["interop.round_trip[bfloat16]"] == "fail"


def test_an_unclaimed_dtype_is_tried_and_reported_as_working():
    document = document_of("UnderClaims", "--check", "ops.silu", "--check", "model.decode")
    rows = [row for row in document["checks"] if row["dtype"] == "float16"]
    assert [(row["status"], row["works"]) for row in rows] == [("undeclared", True)] * 2


def test_a_backend_without_kernels_of_its_own_is_labelled():
    assert document_of("Plain", "--check", "ops.silu[float32]")["subject"]["label"] == "array-api-only"
    assert document_of("Good", "--check", "ops.silu[float32]")["subject"]["label"] == "native"


@pytest.mark.parametrize(("maker", "code", "status"), [("port", 0, "pass"), ("BrightPort", 1, "fail")])
def test_a_port_is_examined_as_a_whole(maker, code, status):
    result = run("--port", f"{SUBJECTS}:{maker}", "--profile", "quick", "--check", "model.decode", "--json", code=code)
    document = json.loads(result.stdout)
    assert document["subject"]["kind"] == "port"
    assert statuses(document)["model.decode[float32]"] == status


# -- what is written ---------------------------------------------------------------------------------------------


def test_the_reports_are_written_and_the_same_seed_gives_the_same_bytes(tmp_path):
    written = []
    for run_number in ("1", "2"):
        folder = tmp_path / run_number
        folder.mkdir()
        files = {form: folder / f"report.{form}" for form in ("json", "md", "html")}
        options = ("--report", files["json"], "--markdown", files["md"], "--html", files["html"])
        output = run("--backend", "numpy", "--level", "L1", "--profile", "quick", "--seed", 7, *options).stdout
        assert "numpy: partial." in output.splitlines()[-1]
        written.append({form: path.read_bytes() for form, path in files.items()})
        assert {path.name for path in folder.iterdir()} == {"report.json", "report.md", "report.html"}
    assert written[0] == written[1]


def test_another_seed_draws_other_cases():
    margins = [
        [row.get("eta2") for row in document_of("Good", "--check", "ops.conv2d", "--seed", seed)["checks"]]
        for seed in (1, 2)
    ]
    assert margins[0] != margins[1]


def test_the_matrix_puts_reports_side_by_side(tmp_path):
    for name in ("Good", "Plain"):
        (tmp_path / name).write_text(json.dumps(document_of(name, "--check", "ops.silu")))
    text = run("--matrix", tmp_path / "Good", "--matrix", tmp_path / "Plain").stdout
    assert "| **good** |" in text
    assert "| **plain** |" in text


NO_REPORTS = ["{}", "[1]", "[" * 10**5, '{"schema": 1, "schema": 2}', f'{{"schema": "{SCHEMA}", "checks": [3]}}', "NaN"]


@pytest.mark.parametrize("text", NO_REPORTS)
def test_a_file_that_is_no_report_has_exit_code_2(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    assert "x.json is no report of this suite" in run("--matrix", tmp_path / "x.json", code=2).stderr


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ('{"shape": [1, 2, 3, 4]}', "it has the fields ['shape'], the check's cases have ["),
        ("{}", "it has the fields [], the check's cases have ["),
        ('{"shape": 5, "regime": "plain", "seed": 0}', "its shape is 5, a case has values such as ("),
        ('{"shape": [1, 2], "regime": "plain", "seed": "x"}', "its seed is 'x', a case has values such as 0"),
    ],
)
def test_a_case_that_the_check_cannot_have_is_refused_with_exit_code_2(case, words):
    options = ("--backend", "numpy", "--check", "ops.silu[float32]", "--case", case)
    assert words in " ".join(run(*options, code=2).stderr.split())


@pytest.mark.parametrize("case", ["[" * 10**5, '{"seed": 1, "seed": 2}', '{"seed": ' + "9" * 5000 + "}", "[7]"])
def test_a_case_that_is_none_has_exit_code_2(case):
    options = ("--backend", "numpy", "--check", "ops.silu[float32]", "--case", case)
    assert "error: --case" in run(*options, code=2).stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFO on Windows")
def test_a_report_that_is_no_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert "it is a pipe or a device" in run("--matrix", tmp_path / "pipe", code=2).stderr
    assert "cannot be read" in run("--matrix", tmp_path, code=2).stderr


def test_a_failure_is_printed_with_all_that_helps():
    options = ("--backend", f"{SUBJECTS}:Wrong", "--profile", "quick", "--check", "ops.group_norm[float16]")
    output = run(*options, code=1).stdout
    for part in (
        "✗ ops.group_norm[float16]: fail",
        "where:",
        "likely:",
        "case:",
        "again:  vaespec conformance --backend",
    ):
        assert part in output
    assert output.splitlines()[-1] == "wrong: failed. 1 of 1 checks did not pass."


# -- about the suite ---------------------------------------------------------------------------------------------


def test_the_checks_are_listed_level_by_level():
    rows = [line.split() for line in run("--list").stdout.splitlines()[1:]]
    assert len(rows) >= 40
    assert [row[0] for row in rows] == sorted(row[0] for row in rows)
    assert {row[0] for row in rows} == {f"L{i}" for i in range(10)}


def test_a_check_is_explained():
    text = run("--explain", "ops.group_norm").stdout
    assert text.startswith("ops.group_norm, L1 (operations), since 1.0\n\n")
    assert "eps 1e-6" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "name one of them"),
        (("--backend", "numpy", "--port", "x:y"), "name one of them"),
        (("--backend", "numpy", "--profile", "slow"), "choose quick, default,"),
        (("--port", "x:y", "--device", "cpu"), "a port chooses its device itself"),
        (("--backend", "nump"), "no backend named 'nump': choose numpy, "),
        (("--port", "nowhere"), "'nowhere': give package.module:object, or file.py:object."),
        (("--backend", "numpy", "--check", "ops.conv"), "no check called 'ops.conv': choose ops.conv2d"),
        (
            ("--backend", "numpy", "--level", "L3-L10"),
            "no level called 'L10': choose L1, L0.",
        ),
        (("--backend", "numpy", "--dtype", "fp16"), "no dtype called 'fp16': choose float16"),
        (("--backend", "numpy", "--case", "{}"), "--case goes with one check in one dtype, not with "),
        (
            ("--backend", "numpy", "--check", "ops.silu[float32]", "--case", "[1]"),
            "--case [1]: a case is a JSON object",
        ),
        (("--explain", "ops.silo"), "no check called 'ops.silo': choose ops.silu"),
    ],
)
def test_an_invalid_request_has_exit_code_2(arguments, message):
    assert message in " ".join(run(*arguments, code=2).stderr.replace("│", "").split())


def test_a_report_that_cannot_be_written_is_an_error_after_the_summary(tmp_path):
    (tmp_path / "file").touch()
    report = tmp_path / "file" / "report.json"
    done = run("--backend", "numpy", "--check", "ops.relu[float32]", "--report", report, code=2)
    assert "numpy: partial" in done.stdout
    assert f"cannot write {report} (" in done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no pipes")
def test_a_report_never_replaces_a_pipe_or_a_link_and_the_others_are_written(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("target")
    (tmp_path / "report.html").touch(0o600)
    names = {"--report": "pipe", "--markdown": "link", "--html": "report.html"}
    options = [word for option, name in names.items() for word in (option, tmp_path / name)]
    done = run("--backend", "numpy", "--check", "ops.relu[float32]", *options, code=2)
    assert f"cannot write {tmp_path / 'pipe'} (it is a pipe that nobody reads: start its reader first)." in done.stderr
    assert (tmp_path / "pipe").is_fifo()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text().startswith("# numpy: partial")
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")
    assert stat.S_IMODE((tmp_path / "report.html").stat().st_mode) == 0o600


@pytest.mark.skipif(sys.platform == "win32", reason="no signals to a group")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_command_and_its_processes_quietly(number):
    call = "killpg(0," if number == signal.SIGINT else "kill(os.getpid(),"  # Ctrl-C gets to the whole group
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from vaespec_conformance.running import process\n"
        "begin = process.Process.begin\n"
        "def begun(self, numbers):\n"
        "    begin(self, numbers)\n"
        f"    os.{call} {int(number)})\n"
        "process.Process.begin = begun\n"
        "from vaespec.cli import main; main()"
    )
    command = [sys.executable, "-c", code, "conformance", "--backend", "numpy", "--level", "L1"]
    done = subprocess.run(command, capture_output=True, timeout=120, start_new_session=True)
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")


@pytest.mark.skipif(sys.platform == "win32", reason="no shell of POSIX")
@pytest.mark.parametrize("shell", [">&-", "2>&-"])
def test_closed_and_ascii_streams_do_not_fail_the_command(shell):
    command = [sys.executable, "-c", "from vaespec.cli import main; main()", "conformance", "--backend", "numpy"]
    line = ["sh", "-c", f'"$@" {shell}', "sh", *command, "--check", "ops.relu[float32]"]
    environment = os.environ | {"PYTHONIOENCODING": "ascii", "COLUMNS": "0"}
    done = subprocess.run(line, capture_output=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (b"numpy: partial" in done.stdout) == (shell == "2>&-")


def test_without_hypothesis_the_command_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vaespec_conformance.find_spec", lambda name: None)
    assert 'pip install "vaespec[conformance]"' in run("--list", code=2).stderr


def test_without_hypothesis_an_import_says_what_to_install(monkeypatch):
    monkeypatch.setattr("vaespec_conformance.find_spec", lambda name: None)
    with pytest.raises(VaespecError, match=r'pip install "vaespec\[conformance\]"'):
        from vaespec_conformance import conformance_suite  # noqa: F401


@pytest.fixture
def few_mistakes(monkeypatch):
    """Some mistakes and one variant, in tables that a test may add to; test_mutants tries all of them."""
    mistakes = {name: mutant for name, mutant in MUTANTS.items() if mutant.owner in ("ops.silu", "structure.add")}
    variants = dict(list(BENIGN.items())[:1])
    monkeypatch.setattr("vaespec_conformance.running.selfcheck.MUTANTS", mistakes)
    monkeypatch.setattr("vaespec_conformance.running.selfcheck.BENIGN", variants)
    return mistakes, variants


def test_the_self_check_counts_what_is_seen_and_what_passes(few_mistakes):
    mistakes, _ = few_mistakes
    first, second, third = run("--self-check", "--dtype", "float32").stdout.splitlines()
    count = sum("float32" not in mutant.equivalent_in for mutant in mistakes.values())
    assert count >= 5
    assert first == f"{count} mistakes, {count} with dtypes: {count} seen by their checks"
    assert re.fullmatch(r"1 correct variants, (\d+) with dtypes: \1 passed", second)
    assert third == f"not tried: {len(mistakes) - count} that change less than rounding in their dtype"


def test_the_self_check_reports_a_missed_mistake_and_a_failing_variant(few_mistakes):
    mistakes, variants = few_mistakes
    mistake = next(iter(mistakes.values()))
    mistakes["none at all"] = replace(mistake, wrap=lambda subject: subject)
    variants["wrong"] = replace(next(iter(variants.values())), wrap=mistake.wrap)
    lines = run("--self-check", "--dtype", "float32", code=1).stdout.splitlines()
    assert f"not seen: none at all, by {mistake.owner}[float32]" in lines
    assert f"wrongly seen: wrong, by {mistake.owner}[float32]" in lines


def test_a_self_check_of_a_port_has_exit_code_2():
    assert "mistakes are put into a backend" in run("--self-check", "--port", "x:y", code=2).stderr


# -- tracebacks ---------------------------------------------------------------------------------------------------


def debugged(*arguments, code):
    result = CliRunner().invoke(app, ["--debug", "conformance", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_debug_shows_the_traceback_of_what_a_port_raised(tmp_path):
    (tmp_path / "mine.py").write_text("def build(config, weights):\n    return 1 / 0\n")
    options = ("--port", f"{tmp_path}/mine.py:build", "--check", "model.decode", "--profile", "quick")
    assert "return 1 / 0" in debugged(*options, code=3).stdout
    assert "return 1 / 0" not in run(*options, code=3).stdout


def test_debug_shows_the_traceback_of_a_request_that_is_refused(tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_module\n")
    options = ("--port", f"{tmp_path}/mine.py:build")
    assert "Traceback" in debugged(*options, code=2).stderr
    assert run(*options, code=2).stderr.startswith("vaespec: error: ")


# -- commands of other packages ----------------------------------------------------------------------------------


def test_a_broken_command_of_another_package_is_reported_when_it_is_called(monkeypatch):
    point = metadata.EntryPoint("magic", "no_such_module:register", "vaespec.commands")
    monkeypatch.setattr(metadata, "entry_points", lambda group: [point])
    own = typer.Typer(cls=CommandGroup)
    own.command("fine")(lambda: None)
    own.callback()(lambda debug=False: None)
    add_extensions(own)
    result = CliRunner().invoke(own, ["magic", "--now", "please"])
    assert result.exit_code == 1
    assert "command 'magic' of no_such_module:register cannot be loaded (ModuleNotFoundError" in result.stderr
    assert CliRunner().invoke(own, ["fine"]).exit_code == 0


def test_starting_the_command_line_does_not_import_hypothesis():
    import subprocess

    code = "import vaespec.cli.app, sys; print('hypothesis' in sys.modules, 'vaespec_conformance' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
