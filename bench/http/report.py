"""Shows a result over HTTP: as a table on the terminal, and as a section of docs/benchmarks.md.

Owns the words and the layout; every number comes from the result.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.http.measures import MEASURES
from bench.http.run import HttpResult
from bench.report import machine_rows, ratio_text, spread, table, target_text, verdict
from bench.work.base import Measure

_HOW = """\
One nginx, with one worker, stands before a plain directory on ext4 (its own dav modules, temporary
files on another mount, as Cloud Foundry has it), another before a cafs store (`cafs serve`: the
module, the daemon and the mount). Both configurations come from the same generator. The two take
turns within each repetition, in an order that reverses every time. Numbers are medians, with the
quartiles in parentheses; ratios are medians over the pairs of one repetition, and say how fast cafs
is (1: as fast, 2: twice as fast).

- Who asks is a C program with one thread (`bench/http/load.c`), which ends the run when an answer
  is not what it should be. It shares the machine with the servers.
- *Cold* means: everything synced, the kernel's caches dropped, the servers started anew.
- Content is random, so that nothing is gained by compression. cafs commits to the disk before it
  answers an upload; nginx does not sync at all.
- Memory is what the kernel keeps (pages, names, inodes) and what the processes have grown by
  between a cold start and the last of one HEAD for each blob. With few blobs nearly each has two
  directories to itself, which costs ext4 most; at 1,000,000 there are fifteen to a directory.
"""


def terminal(result: HttpResult, console: Console) -> None:
    """Print the table of a result."""
    shown = Table(title="cafs and nginx on ext4" + (", quick run" if result.quick else ""))
    for heading in ("measure", "ext4", "cafs", "cafs/ext4", "target", ""):
        shown.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in _rows(result, result.measured()):
        shown.add_row(*row)
    console.print(shown)


def section(result: HttpResult, source: str, plot: str = "") -> str:
    """The section about HTTP; *source* is the result's file name, as it is cited."""
    measured = result.measured()
    main = [measure for measure in measured if "." not in measure.key]
    rest = [measure for measure in measured if "." in measure.key]
    headings = ("measure", "nginx on ext4", "cafs", "cafs/ext4", "target", "")
    number = result.corpus.get("keys", 0)
    missing = [m.title for m in MEASURES.values() if m.target and m not in measured]
    parts = [
        "## Over HTTP",
        f"Written from `{source}`, {number:,} blobs"
        + (", **a quick run: for a first look only**." if result.quick else "."),
        *([f"![cafs beside nginx on ext4]({plot})"] if plot else []),
        table(headings, _rows(result, main)),
        *([f"Not measured in this run: {'; '.join(missing)}."] if missing else []),
        "### How it was measured over HTTP",
        _HOW.rstrip(),
        table(("", ""), machine_rows(result)),
        "### Latency and processor time of single requests",
        table(headings[:4], [row[:4] for row in _rows(result, rest)]),
        f"```\n{result.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(result: HttpResult, measures: list[Measure]) -> list[tuple[str, ...]]:
    return [
        (
            measure.title,
            spread(result.spread(measure, "ext4"), measure.unit),
            spread(result.spread(measure, "cafs"), measure.unit),
            ratio_text(result.ratio(measure)),
            target_text(measure),
            verdict(result, measure),
        )
        for measure in measures
    ]
