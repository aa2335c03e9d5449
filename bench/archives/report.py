"""Shows a result over archives: on the terminal, and as a section of docs/benchmarks.md.

Owns the words and the layout; every number comes from the result.
"""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from bench.archives.measures import MEASURES
from bench.archives.run import ArchivesResult
from bench.report import machine_rows, ratio_text, spread, table, target_text, verdict
from bench.work.base import Measure

_SIDES = ("ext4", "quiet", "cafs", "ageing")
_HEADINGS = ("measure", "ext4, or quiet", "cafs, or ageing", "ratio", "target", "")
_HOW = """\
The droplets are real ones: successive releases of apps from PyPI and npm, installed as the
buildpacks do it, in a directory with a random name, and packed by `tar -czf` as the stager does
(`bench/archives/`). So each staging has its own times, and each `.pyc` its own path and time
inside. A buildpack cache is what the Python buildpack keeps: pip's cache with the wheels of all
releases so far; the Node.js buildpack keeps next to nothing.

Six releases of each app, as Cloud Controller keeps them: a Flask app staged every two weeks and
wagtail's releases of five months, both each time with the newest of everything that they need; an
Express app of which two packages change, pushed with its node_modules; Node-RED. Node.js is in the
droplets, a newer one with every other release; Python is not.

- Types go into one store one after the other, each is aged before the next comes; so each line
  says what is in the store then. The store is closed, swept and compacted before it is counted;
  all that its directory takes counts, but for the cache of rebuilt content, which may be deleted
  at any time. ext4's bytes are the blocks of the files, without directories.
- Speeds a core are by the processor time of the daemon and the engines that it runs, serving,
  reading and writing included.
- *Nothing cached* means: daemon restarted, the kernel's caches dropped, the cache of rebuilt
  content deleted. Each byte that was read was compared with what had been put in.
- HEAD and GET are of small blobs over one TLS connection; rounds without and with ageing take
  turns, in an order that reverses every time; the ratio says how many times the quiet one it is.
"""


def terminal(result: ArchivesResult, console: Console) -> None:
    """Print the table of a result."""
    shown = Table(title="archives taken apart" + (", quick run" if result.quick else ""))
    for heading in _HEADINGS:
        shown.add_column(heading, justify="left" if heading == "measure" else "right")
    for row in _rows(result):
        shown.add_row(*row)
    console.print(shown)


def section(result: ArchivesResult, source: str) -> str:
    """The section about archives; *source* is the result's file name, as it is cited."""
    missing = [m.title for m in MEASURES.values() if m.target and m not in result.measured()]
    parts = [
        "## Archives taken apart",
        f"Written from `{source}`"
        + (", **a quick run: for a first look only**." if result.quick else "."),
        table(_HEADINGS, _rows(result)),
        *([f"Not measured in this run: {'; '.join(missing)}."] if missing else []),
        "### How it was measured on archives",
        _HOW.rstrip(),
        table(("", ""), machine_rows(result)),
        f"```\n{result.command}\n```",
    ]
    return "\n\n".join(parts) + "\n"


def _rows(result: ArchivesResult) -> list[tuple[str, ...]]:
    return [_row(result, measure) for measure in result.measured()]


def _row(result: ArchivesResult, measure: Measure) -> tuple[str, ...]:
    shown = {side: spread(result.spread(measure, side), measure.unit) for side in _SIDES}
    return (
        measure.title,
        shown["ext4"] or shown["quiet"],
        shown["cafs"] or shown["ageing"],
        ratio_text(result.ratio(measure)),
        target_text(measure),
        verdict(result, measure),
    )
