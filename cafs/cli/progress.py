"""Progress of long work, on stderr: a bar on a terminal, JSON lines on request, else nothing.

Invariant: at most ten updates a second leave here, however often the work reports.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

import click

from cafs.cli.output import tell
from cafs.clock import Clock, SystemClock

MODES: Final = ("auto", "json", "none")
INTERVAL_S: Final = 0.1

progress_option: Callable[[Any], Any] = click.option(
    "--progress",
    type=click.Choice(MODES),
    default="auto",
    show_default=True,
    help="On stderr: a bar when that is a terminal, JSON lines, or nothing.",
)
"""For commands that work long; gives the function an argument ``progress``."""


class Advance(Protocol):
    """Tells how far the work is."""

    def __call__(self, done: float, total: float | None = None) -> None:
        """*done* of *total*, in the unit that :func:`progress` was given; None: as before."""
        ...


@contextmanager
def progress(
    mode: str, what: str, unit: str, total: float | None = None, clock: Clock | None = None
) -> Iterator[Advance]:
    """Show progress of *what* while the block runs; *unit* is ``bytes`` or a plural noun."""
    if mode == "json":
        yield _json_lines(what, unit, total, clock or SystemClock())
    elif mode == "auto" and sys.stderr.isatty():
        with _bar(what, unit, total) as advance:
            yield advance
    else:
        yield lambda done, total=None: None


def _json_lines(what: str, unit: str, total: float | None, clock: Clock) -> Advance:
    last = -INTERVAL_S
    whole = total

    def advance(done: float, total: float | None = None) -> None:
        nonlocal last, whole
        whole = whole if total is None else total
        now = clock.monotonic()
        if now - last < INTERVAL_S and done != whole:
            return
        last = now
        line = {"progress": what, "done": done, "total": whole, "unit": unit}
        tell(json.dumps(line) + "\n")

    return advance


@contextmanager
def _bar(what: str, unit: str, total: float | None) -> Iterator[Advance]:
    # Slow to import, and most commands need no bar.
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amount = (
        [DownloadColumn(binary_units=True), TransferSpeedColumn()]
        if unit == "bytes"
        else [MofNCompleteColumn(), TextColumn(unit)]
    )
    columns = [TextColumn("{task.description}"), BarColumn(), *amount, TimeRemainingColumn()]
    console = Console(file=sys.stderr)
    # Else rich would send what goes to stdout meanwhile to stderr.
    bars = Progress(
        *columns, console=console, refresh_per_second=10, transient=True, redirect_stdout=False
    )
    with bars as bar:
        task = bar.add_task(what, total=total)

        def advance(done: float, total: float | None = None) -> None:
            if total is None:
                bar.update(task, completed=done)
            else:
                bar.update(task, completed=done, total=total)

        yield advance
