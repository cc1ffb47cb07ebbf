"""What is printed: results on stdout, progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import Any

PATIENCE = 1.0  # seconds; what is not done by then will rather take more than two
UNLIMITED = 1000  # columns of a table that no terminal shows, so that nothing is wrapped


def print_json(document: Any) -> None:
    """One JSON document."""
    print(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))


def print_facts(facts: dict[str, str]) -> None:
    """A table of names and values."""
    print_table([], [[name, value] for name, value in facts.items()])


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int] = ()) -> None:
    """Columns without lines between them; `numbers` are the columns set to the right."""
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
        table.add_row(*(Text(cell) for cell in row))  # Text: a file name may look like markup
    if sys.stdout.isatty():
        Console(highlight=False).print(table)
        return
    console = Console(highlight=False, color_system=None, width=UNLIMITED)
    with console.capture() as text:
        console.print(table)
    print("\n".join(line.rstrip() for line in text.get().splitlines()))


class Steps:
    """How far the work is: call it after each step, and `part` where it is known how much of a step is done."""

    def __init__(self, show: Callable[[float], object] = lambda steps: None) -> None:
        self.show, self.done = show, 0

    def __call__(self) -> None:
        """A step is done."""
        self.done += 1
        self.show(self.done)

    def part(self, done: int, total: int) -> None:
        """So many of so many pieces of the step at hand."""
        self.show(self.done + done / total)


@contextmanager
def progress(doing: str, total: int | None = None) -> Iterator[Steps]:
    """Yields what to tell of each of `total` steps; a bar on the terminal if they take long."""
    if not sys.stderr.isatty():
        yield Steps()
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
    task = bar.add_task(doing, total=total)
    timer = Timer(PATIENCE, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield Steps(lambda steps: bar.update(task, completed=steps))
    finally:
        timer.cancel()
        timer.join()
        bar.stop()
