"""Runs a program on a request: started for each one, or kept as a process that reads requests from stdin.

Whatever the program does (hangs, dies, prints without end) becomes an `Ending`. It is killed with all that it started,
but for what it has put into another session.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import IO, NamedTuple

from vaespec import strict_json
from vaespec.errors import VaespecError
from vaespec_conformance.subjects.programs.folders import Exchange

REQUEST, ANSWER = "{request}", "{answer}"
TAIL = 2000
"""Characters of a program's output that are kept, to show its end."""
SHOWN = 300
"""Characters of them that a message shows."""
OUTPUT_LIMIT = 64 << 20
"""Bytes that a program may print during one request."""
LINE_LIMIT = 1 << 16
"""Bytes of a line on the stdout of a program that serves."""
GOODBYE = 5.0
"""Seconds that a program which serves may take to end after its stdin was closed."""
READING = 1.0
"""Seconds for reading the rest of what a killed program has printed; one that it left behind may hold the streams."""
SIGNALS = {number.value: number.name for number in signal.Signals}
POLL = 0.02
"""Seconds between two looks at a running program."""


class ProgramError(VaespecError):
    """A command line that cannot be run."""


class Ending(NamedTuple):
    """How a request ended, in words after "the program"; `hung` if it was killed since its time was over."""

    words: str
    good: bool = False
    hung: bool = False


def command_words(command: str, *, serves: bool) -> list[str]:
    """The words of a command line, as a shell splits them. Raises ProgramError if it cannot be run."""
    option = "--program-serve" if serves else "--program"
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise ProgramError(f"{option} {command!r} cannot be split into words ({error}): close its quotes.") from None
    if not words:
        raise ProgramError(f"{option} is empty: give the program and its arguments.")
    present = [place for place in (REQUEST, ANSWER) if place in command]
    if serves and present:
        raise ProgramError(
            f"{option} {command!r} has {present[0]}: a program that serves reads both folders from stdin."
        )
    if not serves and len(present) < 2:
        missing = " and ".join(place for place in (REQUEST, ANSWER) if place not in present)
        raise ProgramError(f'{option} {command!r} lacks {missing}: write it like "./my_vae {REQUEST} {ANSWER}".')
    if shutil.which(words[0]) is None:
        raise ProgramError(
            f"{option} {command!r}: no program {words[0]!r} that may be run: check its path and its mode."
        )
    return words


class Child:
    """A process of a program, in a session of its own, whose output is read and of which the end is kept."""

    def __init__(self, words: list[str], *, serves: bool) -> None:
        self.lines: SimpleQueue[bytes | None] = SimpleQueue()
        self.tails = {"stdout": b"", "stderr": b""}
        self.printed = 0
        with _termination_delayed():
            self.process = _start(words, serves)
            self.finalizer = weakref.finalize(self, _kill, self.process)
        self.readers = [
            Thread(target=read, args=arguments, daemon=True)
            for read, arguments in (
                (self._read_lines if serves else self._read, ("stdout", self.process.stdout)),
                (self._read, ("stderr", self.process.stderr)),
            )
        ]
        for reader in self.readers:
            reader.start()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        """Keeps the last bytes of a stream, so that a program that prints much is not blocked and fills no memory."""
        while part := os.read(stream.fileno(), 1 << 16):
            self._keep(name, part)

    def _read_lines(self, name: str, stream: IO[bytes]) -> None:
        while line := stream.readline(LINE_LIMIT):
            self._keep(name, line)
            if self.printed <= OUTPUT_LIMIT:
                self.lines.put(line)
        self.lines.put(None)

    def _keep(self, name: str, part: bytes) -> None:
        self.tails[name] = (self.tails[name] + part)[-TAIL:]
        self.printed += len(part)

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return self.process.poll() is not None

    def kill(self) -> None:
        """Kills the process and all that it started in its session, and closes its streams."""
        self.finalizer()
        end = time.monotonic() + READING
        for reader in self.readers:
            reader.join(max(0.0, end - time.monotonic()))
        if any(reader.is_alive() for reader in self.readers):
            return  # a process in another session has the streams: closing them would wait for it
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with suppress(OSError):
                if stream:
                    stream.close()

    def leave(self) -> None:
        """Closes stdin, and kills the process if it does not end then."""
        assert self.process.stdin
        with suppress(OSError):
            self.process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(GOODBYE)
        self.kill()

    def last_words(self) -> str:
        """The end of what the process printed, for a message."""
        for name in ("stderr", "stdout"):
            if text := self.tails[name].decode("utf-8", "replace").strip():
                return f"; the end of its {name}: {text[-SHOWN:]}"
        return ""

    def how_it_ended(self) -> str:
        """The exit code or the signal of a process that has ended, in words."""
        code = self.process.wait()
        return f"exited with code {code}" if code >= 0 else f"was ended by {SIGNALS.get(-code, f'signal {-code}')}"


def _start(words: list[str], serves: bool) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            stdin=subprocess.PIPE if serves else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise ProgramError(f"{words[0]} cannot be started ({error.strerror}): check the file.") from None


@contextmanager
def _termination_delayed() -> Iterator[None]:
    """Delays SIGTERM until a process that is started is known, and so is killed too."""
    if current_thread() is not main_thread():  # no other thread handles signals
        yield
        return
    late: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: late.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
        for number in late:
            signal.raise_signal(number)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and its group, which may outlive it."""
    with suppress(OSError):  # there is no such process any more
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()
    process.wait()


class Started:
    """A program that is started for each request, with the folders as arguments."""

    def __init__(self, command: str) -> None:
        self.words = command_words(command, serves=False)

    def run(self, exchange: Exchange, seconds: float) -> Ending:
        """Runs the program on one request until it ends, or until the time is over."""
        folders = {REQUEST: str(exchange.request), ANSWER: str(exchange.answer)}
        child = Child([_filled(word, folders) for word in self.words], serves=False)
        try:
            return self._watch(child, time.monotonic() + seconds, seconds)
        finally:
            child.kill()

    def _watch(self, child: Child, deadline: float, seconds: float) -> Ending:
        pause = POLL / 20
        while not child.ended:
            if ending := _cut_short(child, deadline, seconds):
                return ending
            time.sleep(pause)
            pause = min(POLL, 1.5 * pause)
        child.kill()  # the readers have read all of its output then
        return Ending(child.how_it_ended() + child.last_words(), good=child.process.returncode == 0)

    def close(self) -> None:
        """Does nothing: no process is left after a request."""


class Served:
    """A program that stays: it reads a line of JSON for each request, and prints a line when it has answered."""

    def __init__(self, command: str) -> None:
        self.words = command_words(command, serves=True)
        self.child: Child | None = None

    def run(self, exchange: Exchange, seconds: float) -> Ending:
        """Sends one request and waits for the line after it. A program that did not do its part is started anew."""
        if self.child is None or self.child.ended or not self.child.lines.empty():
            self._restart()
        assert self.child
        child, child.printed = self.child, 0
        ending = self._ask(child, {"request": str(exchange.request), "answer": str(exchange.answer)}, seconds)
        if not ending.good:
            self.close(at_once=True)
        return ending

    def _restart(self) -> None:
        self.close(at_once=True)
        self.child = Child(self.words, serves=True)

    def _ask(self, child: Child, folders: dict[str, str], seconds: float) -> Ending:
        assert child.process.stdin
        deadline = time.monotonic() + seconds
        with suppress(BrokenPipeError):  # that it has ended is seen below
            child.process.stdin.write(json.dumps(folders).encode() + b"\n")
            child.process.stdin.flush()
        while True:
            with suppress(Empty):
                return self._understood(child, child.lines.get(timeout=POLL))
            if ending := _cut_short(child, deadline, seconds):
                return ending

    def _understood(self, child: Child, line: bytes | None) -> Ending:
        """What a line on stdout means; None stands for the end of the stream."""
        if line is None:
            if not _ends(child):
                return Ending("closed its stdout")
            child.kill()
            return Ending(child.how_it_ended() + child.last_words())
        try:
            done = strict_json.parse(line)
        except ValueError:
            done = None
        if isinstance(done, dict) and done.get("done") is True:
            return Ending('printed {"done": true}', good=True)
        text = line.decode("utf-8", "replace").strip()
        return Ending(f'printed {text[:80]!r} on stdout, expected {{"done": true}} and no other line')

    def close(self, *, at_once: bool = False) -> None:
        """Ends the process, if there is one."""
        child, self.child = self.child, None
        if child:
            child.kill() if at_once else child.leave()


def _filled(word: str, folders: dict[str, str]) -> str:
    for place, folder in folders.items():
        word = word.replace(place, folder)
    return word


def _ends(child: Child) -> bool:
    try:
        child.process.wait(GOODBYE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _cut_short(child: Child, deadline: float, seconds: float) -> Ending | None:
    """The ending of a program whose time is over, or that has printed too much; None if it may go on."""
    if time.monotonic() > deadline:
        return Ending(f"did not end within {seconds:g} s{child.last_words()}", hung=True)
    if child.printed > OUTPUT_LIMIT:
        return Ending(f"printed more than {OUTPUT_LIMIT >> 20} MiB{child.last_words()}", hung=True)
    return None
