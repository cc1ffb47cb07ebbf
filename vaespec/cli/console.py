"""Printing: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from io import StringIO
from threading import Timer
from typing import Any, TextIO

from vaespec.escaping import escaped, escaped_json

PATIENCE = 1.0  # seconds before a bar appears: work that takes longer is likely to take more than two
UNLIMITED = 1000  # columns of a table that goes to a file or a pipe, so that no line is wrapped


def print_json(document: Any) -> None:
    """Prints one JSON document, whose text is ASCII if stdout cannot take all of it."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        text = json.dumps(document, indent=2, allow_nan=False)
    print(escaped_json(text))


def print_lines(*lines: str, file: TextIO | None = None) -> None:
    """Prints each line on a line of its own, whatever characters it contains; on stdout by default."""
    print(*map(escaped, lines), sep="\n", file=file)


def print_facts(facts: dict[str, str]) -> None:
    """Prints a table of names and values."""
    print_table([], [[name, value] for name, value in facts.items()])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Prints columns without lines between them; the columns in `numbers` are aligned right."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=bool(header), header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for i in range(len(rows[0])):
        table.add_column(
            header[i] if header else "",
            justify="right" if i in numbers else "left",
            style="cyan" if i == 0 and not header else None,
            overflow="fold",
        )
    for row in rows:
        table.add_row(*(Text(escaped(cell)) for cell in row))  # Text: a file name may look like markup
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    text = StringIO()
    Console(file=text, highlight=False, color_system=None, width=UNLIMITED).print(table)
    print("\n".join(line.rstrip() for line in text.getvalue().split("\n")[:-1]))


class Steps:
    """Counts the steps of some work: call it after each step, and `part` within a step; `say` prints a line once."""

    def __init__(
        self, show: Callable[[float], object] = lambda steps: None, tell: Callable[[str], object] = lambda line: None
    ) -> None:
        self.show, self.tell, self.done = show, tell, 0
        self.told: set[str] = set()

    def __call__(self) -> None:
        """Counts one more step as done."""
        self.done += 1
        self.show(self.done)

    def part(self, done: int, total: int) -> None:
        """Shows that `done` of `total` parts of the current step are done."""
        self.show(self.done + done / total)

    def say(self, line: str) -> None:
        """Prints a line about the work, unless it was printed before."""
        if line not in self.told:
            self.told.add(line)
            self.tell(line)


@contextmanager
def progress(task: str, total: int | None = None) -> Iterator[Steps]:
    """Yields a counter of `total` steps, and shows a bar on the terminal if they take long."""
    if not sys.stderr.isatty():
        yield Steps(tell=lambda line: print(f"{task}: {line}", file=sys.stderr))
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

    columns = () if total is None else (BarColumn(), TaskProgressColumn())
    bar = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        *columns,
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,  # results must reach a pipe
        redirect_stderr=False,
    )
    bar_task = bar.add_task(escaped(task), total=total)
    timer = Timer(PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield Steps(
            lambda steps: bar.update(bar_task, completed=steps),
            lambda line: bar.console.print(f"{task}: {line}", markup=False, highlight=False, soft_wrap=True),
        )
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
