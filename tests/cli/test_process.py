"""The process of a command: its streams, and the signals that end it. Each test runs the script as users do."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.workplace import MODEL, files, picture

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and shells of POSIX")
MAIN = "from vaespec.cli import main; main()"
ASCII, LATIN = {"PYTHONIOENCODING": "ascii"}, {"PYTHONIOENCODING": "latin-1"}
HARMLESS = {"PYTHONIOENCODING": "utf-8"}


def script(*args: str | Path, code: str = MAIN, shell: str = "", env: dict[str, str] = HARMLESS):
    """Runs the script; `shell` is what follows the command in a shell, such as ">&-"."""
    command = ["sh", "-c", f'"$@" {shell}', "sh", sys.executable, "-c", code, *map(str, args)]
    return subprocess.run(command, capture_output=True, env=os.environ | env, timeout=120)


# -- streams -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [ASCII, LATIN])
def test_stdout_that_is_not_utf8_takes_any_name(env):
    picture("漢ü.png")
    done = script("roundtrip", "漢ü.png", *MODEL, env=env)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"\\u6f22" in done.stdout
    document = script("roundtrip", "漢ü.png", "--json", *MODEL, env=env).stdout
    assert json.loads(document.decode("ascii"))["pictures"][0]["picture"] == "漢ü.png"


def test_a_locale_of_ascii_names_files_as_they_are_named():
    picture("漢ü.png")
    done = script("roundtrip", "漢ü.png", *MODEL, env={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert files() == {"漢ü.png", "漢ü-vae.png"}


def test_a_file_name_that_is_no_text_is_printed():
    name = os.fsdecode(b"cat-\xe9.png")
    picture("cat.png").rename(name)
    done = script("roundtrip", name, *MODEL)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"cat-\\udce9.png" in done.stdout


@pytest.mark.parametrize(
    ("command", "shell"),
    [("info weights", ">&-"), ("encode cat.png", "2>&-"), ("roundtrip cat.png", "<&- >&- 2>&-")],
)
def test_closed_streams_do_not_fail_a_command_and_nothing_is_printed_into_files(command, shell):
    picture("cat.png")
    options = () if command.startswith("info") else MODEL
    whole = script(*command.split(), *options)
    content = {name: Path(name).stat().st_size for name in files()}  # the order of metadata is no content
    done = script(*command.split(), *options, shell=shell)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == (whole.stdout if shell == "2>&-" else b"")
    assert {name: Path(name).stat().st_size for name in files()} == content


@pytest.mark.parametrize("shell", [">&-", "2>&-"])
def test_an_error_is_on_stderr_or_nowhere(shell):
    done = script("info", "nowhere", shell=shell)
    assert (done.returncode, done.stdout) == (1, b"")
    assert (b"vaespec: error: no file" in done.stderr) == (shell == ">&-")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_output_that_finds_no_room_is_an_error():
    done = script("info", "weights", shell=">/dev/full")
    assert done.returncode == 1
    assert done.stderr.startswith(b"vaespec: error: ")
    assert (b"o space left on device" in done.stderr, done.stderr.count(b"\n")) == (True, 1)


def test_a_reader_that_has_seen_enough_is_no_error():
    done = script("info", "weights", "--plan", shell="| head -n 1")
    assert (done.stdout.count(b"\n"), done.stderr) == (1, b"")


@pytest.mark.parametrize("columns", ["0", "-3", "many"])
def test_a_strange_number_of_columns_does_not_empty_the_output(columns):
    done = script("--help", env={"COLUMNS": columns, "PYTHONIOENCODING": "utf-8"})
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"roundtrip" in done.stdout


# -- signals -----------------------------------------------------------------------------------------------------

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def at_import(module: str, number: int) -> str:
    """The script, which gets a signal while this module is imported."""
    return (
        "import os, signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "class Finder:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {module!r}: os.kill(os.getpid(), {number})\n"
        f"sys.meta_path.insert(0, Finder())\n{MAIN}"
    )


@pytest.mark.parametrize("module", ["vaespec.cli.app", "numpy", "numpy._core._multiarray_umath", "typer"])
def test_ctrl_c_during_the_imports_ends_quietly_with_130(module):
    done = script("info", "weights", code=at_import(module, signal.SIGINT))
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_a_file_is_written_leaves_no_part_of_it(number):
    code = (
        "import os, signal\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "replace = os.replace\n"
        f"def interrupted(*paths): os.kill(os.getpid(), {int(number)}); replace(*paths)\n"
        f"os.replace = interrupted\n{MAIN}"
    )
    done = script("convert", "weights", "out/x.safetensors", "--to", "ldm", code=f"import os; os.mkdir('out')\n{code}")
    assert (done.returncode, done.stdout, done.stderr) == (128 + number, b"", b"")
    assert list(Path("out").iterdir()) == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_that_is_caught_by_other_code_ends_the_process_nevertheless(number):
    code = (
        "import os, signal\nfrom vaespec.cli import loading\n"
        "signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"  # nohup ignores it
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def load(*args, **kwargs):\n"
        f"    try: os.kill(os.getpid(), {int(number)})\n"
        "    except BaseException: raise ImportError\n"
        f"loading.load_weights = load\n{MAIN}"
    )
    picture("cat.png")
    done = script("roundtrip", "cat.png", code=code)
    assert (done.returncode, done.stdout) == (128 + number, b"")


def test_a_signal_that_the_parent_has_switched_off_stays_so():
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)"  # as nohup does
    done = script("info", "weights", code=f"{ignored}\n{at_import('typer', signal.SIGHUP)}")
    assert done.returncode == 0
    assert b"safetensors" in done.stdout
