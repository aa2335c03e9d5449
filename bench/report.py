"""Shows a result: as a table on the terminal, and as docs/benchmarks.md.

Owns the words and the layout; every number comes from the result.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from bench.result import Result, Spread
from bench.work import MEASURES
from bench.work.base import Measure, Target, Unit

_FLOOR_LIMIT = 1.5
"""How many times the empty pyfuse3 filesystem's time cafs may take."""

_HOW = """\
cafs and plain ext4 take turns within each repetition, in an order that reverses every time; the
store lies on the same ext4. Numbers are medians, with the quartiles in parentheses; ratios are
medians over the pairs of one repetition. A ratio of speeds says how fast cafs is beside ext4
(1: as fast, 2: twice as fast); a ratio of bytes says how much of ext4's space it takes.

- *Cold* means: everything synced, the kernel's caches dropped, and the cafs daemon stopped before
  and started after that, so that neither side remembers anything. *Warm* or *again* means the
  same once more right after.
- Who asks is a C program that times its own loop of system calls (`bench/client.c`), or the
  system's own `cp -a`, `find` and `rm -rf`. Copies go out to memory, and large files come from
  there.
- A sync is `syncfs` and then an `fsync` of the directory, since the kernel does not pass
  the former on to a FUSE daemon.
- *Floor*, or *empty pyfuse3*, is a pyfuse3 filesystem in memory that does nothing
  (`bench/floor.py`), in the same run.
- Memory and CPU time are the daemon's with its children, from `/proc`.
"""


def number(value: float, unit: Unit) -> str:
    """A value with its unit, in three figures or so."""
    if unit == "s":
        return f"{value:.2f} s" if value >= 0.1 else f"{value * 1000:.1f} ms"
    if unit == "us":
        return f"{value:,.0f} us" if value < 1e5 else f"{value / 1e6:,.2f} s"
    if unit == "B/blob":
        return f"{value:,.0f} B"
    if unit in ("1/s", "files"):
        return f"{value:,.0f}{'/s' if unit == '1/s' else ''}"
    if unit == "B":
        return f"{value / 1e6:,.1f} MB"
    if unit == "share":
        return f"{value:.2f}"
    return f"{value:,.0f} {unit}"


def spread(given: Spread | None, unit: Unit) -> str:
    """Median (lower quartile to upper quartile)."""
    if given is None:
        return ""
    if given.low == given.high:
        return number(given.median, unit)
    low, high = number(given.low, unit).split()[0].removesuffix("/s"), number(given.high, unit)
    return f"{number(given.median, unit)} ({low} to {high})"


def _short(given: Spread | None, unit: Unit) -> str:
    if given is None:
        return ""
    half = (given.high - given.low) / 2 / given.median if given.median else 0
    return number(given.median, unit) + (f" ±{half:.0%}" if given.high > given.low else "")


def terminal(result: Result, console: Console) -> None:
    """Print the table of a result."""
    table = Table(title="cafs and ext4" + (", quick run" if result.quick else ""))
    for heading in ("measure", "ext4", "cafs", "cafs/ext4", "floor", "cafs/floor", "target", ""):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    for measure in result.measured():
        table.add_row(
            measure.title,
            *(_short(result.spread(measure, side), measure.unit) for side in ("ext4", "cafs")),
            ratio_text(result.ratio(measure)),
            _short(result.spread(measure, "floor"), measure.unit),
            ratio_text(result.ratio(measure, "floor")),
            target_text(measure),
            verdict(result, measure),
        )
    console.print(table)


def markdown(result: Result, source: str, plot: str = "", more: str = "") -> str:
    """The text of docs/benchmarks.md; *more* is what follows, sections about other runs.

    *source* is the result's file name, as it is cited; *plot* that of its picture, if there is
    one, relative to the text.
    """
    parts = [
        "# Benchmarks",
        f"Written by `python -m bench report` from `{source}`; do not edit.",
        *(["**A quick run: small input, few repetitions. For a first look only.**"] * result.quick),
        "## Targets",
        _targets(result),
        "## Measured on",
        _machine(result),
        "## How",
        _HOW.rstrip(),
        "## All measures",
        *([f"![cafs beside ext4]({plot})"] if plot else []),
        _measures(result),
        "## pyfuse3's floor",
        _floor(result),
        "## The daemon's CPU and memory",
        _daemon(result),
        "## Again",
        "```\n"
        "python -m bench corpus /var/tmp/cafs-bench/corpus   # once: fetches packages\n"
        f"{result.command}\n"
        f"python -m bench report {source}\n"
        "```",
    ]
    return "\n\n".join(parts) + "\n" + (f"\n{more}" if more else "")


def _targets(result: Result) -> str:
    rows = []
    for measure in MEASURES.values():
        target = measure.target
        if target is None:
            continue
        if target.of == "ratio":
            reached = ratio_text(result.ratio(measure))
            floor = ratio_text(result.ratio(measure, of="floor"))
        else:
            reached = spread(result.spread(measure, "cafs"), measure.unit)
            floor = spread(result.spread(measure, "floor"), measure.unit)
        rows.append((measure.title, target_text(measure), reached, verdict(result, measure), floor))
    notes = "".join(f"\n\n{note}" for note in (_memory_note(result), _empty_note(result)) if note)
    return table(("measure", "target", "reached", "", "empty pyfuse3"), rows) + notes


def _memory_note(result: Result) -> str:
    counts = [s.values["cafs"] for s in result.samples if s.measure == "idle_files"]
    if not counts or counts[0] >= 1_000_000:
        return ""
    return (
        f"Memory was measured with {counts[0]:,.0f} files, not with the 1,000,000 that the "
        "target speaks of; `--only idle --files 1000000` does that."
    )


def _empty_note(result: Result) -> str:
    empty = result.spread(MEASURES["empty_store"], "cafs")
    if empty is None:
        return ""
    return (
        "Stored bytes are all that the store's directory takes, the index included, and the "
        f"{number(empty.median, 'B')} that a store with nothing in it takes, mostly the reserve "
        "that lets deleting work on a full disk."
    )


def _machine(result: Result) -> str:
    return table(("", ""), machine_rows(result))


def machine_rows(result: Result) -> list[tuple[str, str]]:
    """What the result was measured on and with."""
    known = result.machine
    versions = ", ".join(f"{name} {v}" for name, v in result.versions.items() if v)
    parts = result.corpus.get("parts", {})
    corpus = "; ".join(
        f"{name} {part['files']:,} files, {part['bytes'] / 1e6:,.0f} MB"
        for name, part in parts.items()
    )
    rows = [
        ("when", result.started),
        ("processor", f"{known['cores']} x {known['cpu'] or 'unknown'}"),
        ("memory", f"{known['memory_bytes'] / (1 << 30):.0f} GiB"),
        ("disk", str(known["filesystem"])),
        ("load before, after", f"{known['load_before']:.2f}, {known.get('load_after', 0):.2f}"),
        ("system", f"{known['system']}, Linux {known['kernel']}"),
        ("versions", versions),
        ("commit", result.commit or "unknown"),
        *([("input", corpus)] if corpus else []),
        ("seed", str(result.seed)),
    ]
    return rows


def _measures(result: Result) -> str:
    rows = [
        (
            measure.title,
            spread(result.spread(measure, "ext4"), measure.unit),
            spread(result.spread(measure, "cafs"), measure.unit),
            ratio_text(result.ratio(measure)),
        )
        for measure in result.measured()
    ]
    return table(("measure", "ext4", "cafs", "cafs/ext4"), rows)


def _floor(result: Result) -> str:
    rows = []
    for measure in result.measured():
        speed = result.ratio(measure, "floor")
        if speed is None:
            continue
        times = 1 / speed
        verdict = "within" if times <= _FLOOR_LIMIT else "above"
        rows.append(
            (
                measure.title,
                spread(result.spread(measure, "floor"), measure.unit),
                spread(result.spread(measure, "cafs"), measure.unit),
                f"{times:.2f}",
                verdict,
            )
        )
    if not rows:
        return "Not measured in this run."
    return (
        "What the kernel's FUSE and pyfuse3 cost alone, without any storage behind them; cafs is "
        f"to stay within {_FLOOR_LIMIT} times of it where that is what limits it.\n\n"
        + table(("measure", "floor", "cafs", "cafs's time / floor's", ""), rows)
    )


def _daemon(result: Result) -> str:
    rows = []
    for measure in result.measured():
        taken = [sample.daemon for sample in result.of(measure) if sample.daemon]
        if not taken or measure.unit in ("B", "share", "files"):
            continue
        rows.append(
            (
                measure.title,
                f"{statistics.median(d.cpu_s for d in taken):.2f} s",
                f"{statistics.median(d.cpu_s / d.wall_s for d in taken):.2f}",
                f"{max(d.rss_bytes for d in taken) / (1 << 20):.0f} MiB",
                f"{max(d.pss_bytes for d in taken) / (1 << 20):.0f} MiB",
            )
        )
    if not rows:
        return "Not measured in this run."
    return table(("during", "CPU time", "cores", "VmRSS", "PSS"), rows)


def ratio_text(value: float | None) -> str:
    """A ratio in three figures or so."""
    return "" if value is None else f"{value:.3f}" if value < 0.1 else f"{value:.2f}"


def target_text(measure: Measure) -> str:
    """What is to be reached, if anything."""
    target: Target | None = measure.target
    if target is None:
        return ""
    sign = ">=" if target.bound == "at least" else "<="
    if target.of == "ratio":
        return f"{sign} {target.limit}"
    return f"{sign} {number(target.limit, measure.unit)}"


def verdict(result: Result, measure: Measure) -> str:
    """Whether it was reached."""
    if measure.target is None:
        return ""
    met = result.met(measure)
    return "not measured" if met is None else "met" if met else "missed"


def table(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
