"""Files appear whole or not at all, and nothing but a regular file is replaced."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from vaespec.files import folder_made, written_whole

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes, modes and links of POSIX")
AS_ROOT = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root")


def write(path: Path, text: str = "new") -> None:
    with written_whole(path) as part:
        part.write_text(text)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_file_that_cannot_be_created_is_named_in_the_error(tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        write(tmp_path / "nowhere" / "report.json")
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


# -- what is no regular file -------------------------------------------------------------------------------------


def test_a_pipe_with_a_reader_is_written_to_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write(pipe)
    assert os.read(reader, 100) == b"new"
    os.close(reader)
    assert stat.S_ISFIFO(pipe.lstat().st_mode)
    assert names(tmp_path) == {"pipe"}


def test_a_pipe_takes_more_than_it_holds_at_one_time(tmp_path):
    pipe, content = tmp_path / "pipe", []
    os.mkfifo(pipe)
    first = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)  # so that there is a reader before the thread runs
    reader = threading.Thread(target=lambda: content.append(pipe.read_text()), daemon=True)
    reader.start()
    write(pipe, "new" * 100_000)
    reader.join(60)
    os.close(first)
    assert content == ["new" * 100_000]


def test_a_pipe_that_nobody_reads_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="it is a pipe that nobody reads: start its reader first"):
        write(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_device_behind_a_link_is_written_to_and_the_link_stays(tmp_path):
    (tmp_path / "null").symlink_to(os.devnull)
    write(tmp_path / "null")
    assert (tmp_path / "null").readlink() == Path(os.devnull)
    assert stat.S_ISCHR((tmp_path / "null").stat().st_mode)


@AS_ROOT
def test_a_device_is_written_to_and_stays_a_device(tmp_path):
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        device.write_text("")
    except OSError:
        pytest.skip("no devices here")
    write(device)
    assert stat.S_ISCHR(device.lstat().st_mode)


def test_a_socket_a_folder_and_a_circle_of_links_are_refused_and_stay(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the name of a socket must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        Path("folder").mkdir()
        Path("one").symlink_to("other")
        Path("other").symlink_to("one")
        before = names(Path())
        for name, words in (("socket", "a socket"), ("folder", "a folder"), ("one", "symbolic links")):
            with pytest.raises(OSError, match=words):
                write(Path(name))
    assert names(Path()) == before


def test_a_pipe_that_takes_the_place_of_the_file_meanwhile_is_not_replaced(tmp_path):
    def swapped(path):
        with written_whole(path):
            os.mkfifo(path)

    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="a pipe"):
        swapped(tmp_path / "report.json")
    assert names(tmp_path) == {"pipe", "report.json"}
    assert stat.S_ISFIFO((tmp_path / "report.json").lstat().st_mode)


@pytest.mark.parametrize("name", ["/dev/stdout", "out.txt"])
def test_stdout_in_a_file_gets_the_content_after_what_was_printed(name, tmp_path):
    code = (
        "from pathlib import Path; from vaespec.files import written_whole\n"
        "print('before')\n"
        f"with written_whole(Path({name!r})) as part: part.write_text('new\\n')\n"
        "print('after')"
    )
    with (tmp_path / "out.txt").open("w") as out:
        subprocess.run([sys.executable, "-c", code], stdout=out, cwd=tmp_path, check=True)
    assert (tmp_path / "out.txt").read_text() == "before\nnew\nafter\n"


# -- what a replaced file keeps ----------------------------------------------------------------------------------


def test_the_target_of_a_link_is_replaced_and_the_link_stays(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("old")
    (tmp_path / "link").symlink_to("folder/file")
    write(tmp_path / "link")
    assert (tmp_path / "link").readlink() == Path("folder/file")
    assert (tmp_path / "folder" / "file").read_text() == "new"
    assert names(tmp_path) | names(tmp_path / "folder") == {"folder", "file", "link"}


def test_the_target_of_a_link_that_leads_nowhere_is_created(tmp_path):
    (tmp_path / "link").symlink_to("file")
    write(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_a_replaced_file_keeps_its_mode(mode, tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    path.chmod(mode)
    write(path)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_nobody_else_can_read_a_file_before_it_is_whole(tmp_path):
    with written_whole(tmp_path / "report.json") as part:
        assert stat.S_IMODE(part.parent.stat().st_mode) == 0o700


@AS_ROOT
def test_a_replaced_file_keeps_its_owner(tmp_path):
    path = tmp_path / "report.json"
    path.write_text("old")
    os.chown(path, 12345, 12346)
    write(path)
    assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


def test_a_new_file_has_the_usual_mode(tmp_path):
    (tmp_path / "usual").touch()
    write(tmp_path / "new")
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_another_hard_link_keeps_the_old_content(tmp_path):
    (tmp_path / "file").write_text("old")
    (tmp_path / "copy").hardlink_to(tmp_path / "file")
    write(tmp_path / "file")
    assert ((tmp_path / "file").read_text(), (tmp_path / "copy").read_text()) == ("new", "old")


@pytest.mark.parametrize("name", ["漢" * 80, "x" * 255])
def test_a_name_that_leaves_no_room_for_a_suffix_is_written(name, tmp_path):
    write(tmp_path / name)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {name: "new"}


# -- several processes -------------------------------------------------------------------------------------------


def test_what_a_killed_process_has_left_is_removed_by_the_next_one(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from vaespec.files import written_whole\n"
        "with written_whole(Path('report.json')) as part:\n"
        "    part.write_text('half')\n"
        f"    os.kill(os.getpid(), {int(signal.SIGKILL)})"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert len(names(tmp_path)) == 1  # the process could not remove it
    write(tmp_path / "report.json")
    assert names(tmp_path) == {"report.json"}


def test_two_writers_of_one_file_do_not_disturb_each_other(tmp_path):
    path = tmp_path / "report.json"
    with written_whole(path) as first:
        first.write_text("first")
        with written_whole(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert names(tmp_path) == {"report.json"}


def stopped_in(folder: Path) -> None:
    with folder_made(folder):
        assert folder.is_dir()
        if folder.parent.name == "kept":
            (folder.parent / "file").touch()
        raise KeyboardInterrupt


def test_only_folders_that_were_made_and_are_empty_are_removed_after_an_error(tmp_path):
    (tmp_path / "old").mkdir()
    for place in ("old", "old/new", "a/b", "kept/c"):
        with pytest.raises(KeyboardInterrupt):
            stopped_in(tmp_path / place)
    assert sorted(tmp_path.rglob("*")) == [tmp_path / name for name in ("kept", "kept/file", "old")]
    with folder_made(tmp_path / "a/b"):
        pass
    assert (tmp_path / "a/b").is_dir()


def test_a_folder_that_cannot_be_made_leaves_no_parents(tmp_path):
    with pytest.raises(OSError, match="File name too long"), folder_made(tmp_path / "a" / ("b" * 300)):
        pass
    assert list(tmp_path.iterdir()) == []
