"""Opening files without waiting, and writing them so that each appears whole or not at all.

Nothing but a regular file is ever replaced.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LABEL = 100  # bytes of a file's name in the name of the folder that its parts are in; a name may have 255, or 143
REFUSED = {
    stat.S_IFDIR: (errno.EISDIR, "it is a folder"),
    stat.S_IFSOCK: (errno.ENXIO, "it is a socket: name a file"),
    stat.S_IFBLK: (errno.EPERM, "it is a block device: name a file"),
}
UNREAD = "it is a pipe that nobody reads: start its reader first"


def open_at_once(path: str, flags: int) -> int:
    """An `opener` of `open` for which a pipe that nobody writes to does not block."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path whose content goes to `path` at the end, whole, or after an error not at all.

    A regular file is replaced, and keeps its mode, and its owner where the system allows it; other hard links to it
    keep the old content. Through a symbolic link its target is replaced, or created. A pipe, a character device such as
    /dev/null, and whatever is stdout or stderr are written to. Raises OSError for anything else (see
    `require_writable`), for a pipe that nobody reads, and if the folder cannot be written to.
    """
    if _is_stream(require_writable(path)):
        with tempfile.TemporaryDirectory(prefix="vaespec-") as temporary:
            part = Path(temporary, path.name)
            yield part
            _pour(part, path)
        return
    target = Path(os.path.realpath(path))
    try:
        folder, lock = _workplace(target)
    except OSError as error:  # name the requested file, not the temporary one
        raise type(error)(error.errno, error.strerror, str(path)) from None
    part = folder / target.name
    try:
        part.touch()
        usual = part.stat()
        yield part
        replaced = require_writable(target) or usual
        if not stat.S_ISREG(replaced.st_mode):
            raise OSError(errno.EEXIST, "a pipe or a device has taken its place", str(path))
        _take_over(part, replaced)
        os.replace(part, target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


@contextmanager
def folder_made(folder: Path) -> Iterator[None]:
    """Creates the folder, with its parents. After an error in the block, those that it created and are empty go again.

    Raises OSError if one cannot be created.
    """
    made: list[Path] = []
    try:
        for place in (*reversed(folder.parents), folder):
            if not os.path.lexists(place):
                with suppress(FileExistsError):  # another process was faster, and the folder is not ours
                    place.mkdir()
                    made.append(place)
        folder.mkdir(exist_ok=True)  # raises FileExistsError if it is no folder
        yield
    except BaseException:
        for place in reversed(made):
            with suppress(OSError):  # it is not empty
                place.rmdir()
        raise


def require_writable(path: Path) -> os.stat_result | None:
    """Returns the state of what is at `path`, None if nothing is.

    Raises OSError for a folder, a socket, a block device and a circle of links, without opening anything.
    """
    try:
        state = path.stat()
    except FileNotFoundError:  # or a link that leads nowhere
        return None
    if refusal := REFUSED.get(stat.S_IFMT(state.st_mode)):
        raise OSError(*refusal, str(path))
    return state


def _is_stream(state: os.stat_result | None) -> bool:
    """Whether this is written to and not replaced: no regular file, or one that is stdout or stderr."""
    return state is not None and (not stat.S_ISREG(state.st_mode) or _standard_stream(state) is not None)


def _standard_stream(state: os.stat_result) -> int | None:
    """The number of the standard stream, 1 or 2, that goes to this file; None if neither does."""
    for number in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.fstat(number), state):
                return number
    return None


def _pour(part: Path, path: Path) -> None:
    """Writes the content of a file to what is at `path`. Raises OSError, and waits for nobody to open a pipe."""
    number = _standard_stream(path.stat())
    if number is not None:  # opened anew, a file would be written from its beginning
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
        target = os.dup(number)
    else:
        try:
            target = os.open(path, os.O_WRONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0))
        except OSError as error:
            raise OSError(error.errno, UNREAD if error.errno == errno.ENXIO else error.strerror, str(path)) from None
        os.set_blocking(target, True)
    with part.open("rb") as source, open(target, "wb") as sink:
        shutil.copyfileobj(source, sink)


def _take_over(part: Path, state: os.stat_result) -> None:
    """Gives a file the owner, as far as the system allows, and the mode of the one that it replaces."""
    if hasattr(os, "chown"):
        for owner in ((state.st_uid, state.st_gid), (-1, state.st_gid)):
            with suppress(OSError):
                os.chown(part, *owner)
                break
    part.chmod(stat.S_IMODE(state.st_mode))  # after chown, which resets some bits


def _workplace(target: Path) -> tuple[Path, int | None]:
    """An empty folder beside the target that this process alone writes to, and its lock, which ends with the process.

    A folder that a killed process has left is emptied and used again.
    """
    label = os.fsencode(target.name)[:LABEL].decode(sys.getfilesystemencoding(), "ignore")  # no half of a character
    number = 0
    while True:
        folder = target.with_name(f".{label}.{number}.part")
        try:
            folder.mkdir(0o700)
            made = True
        except FileExistsError:
            made = False
        if fcntl is None and made:
            return folder, None
        if fcntl is not None and (lock := _locked(folder, made)) is not None:
            for left in folder.iterdir():
                left.unlink()
            return folder, lock
        number += 1  # another process writes to this one


def _locked(folder: Path, made: bool) -> int | None:
    """Locks a folder of this user; returns the lock, None if another process has it. `made`: just made by this process.

    A file system without locks counts as locked by others, but for a folder that was just made.
    """
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        if made:
            raise
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(lock)
        own = state.st_uid == os.geteuid() and os.path.samestat(state, os.stat(folder))  # and not removed since
    except (BlockingIOError, FileNotFoundError):
        own = False
    except OSError:
        own = made
    if own:
        return lock
    os.close(lock)
    return None
