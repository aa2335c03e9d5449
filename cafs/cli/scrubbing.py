"""One run of ``cafs scrub``: from the store's directory to a report.

Invariant: what was read is noted before the command ends, however it ends, so that the next
one goes on there.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from cafs.cli.looking import commit_first
from cafs.cli.output import json_name, note, say, show_json_name, warn
from cafs.cli.progress import progress
from cafs.errors import CafsError, UsageError
from cafs.operate import check_engines, scrub, scrub_aged
from cafs.operate.condemn import condemn
from cafs.operate.paths import paths_of_blobs
from cafs.units import human_duration, human_size
from cafs.view import View


def run(
    path: Path, rate: float | None, *, resume: bool, restart: bool, mode: str
) -> dict[str, Any]:
    """Scrub the store at *path*; the report.  Raises UsageError, IndexDamagedError and kin."""
    state = None if restart else scrub.load_state(path)
    if resume and state is None:
        raise UsageError(f"{path}: no scrub was interrupted", advice="leave out --resume")
    if state is not None:
        note("going on where the last scrub stopped (--restart begins anew)")
    commit_first(path)
    began = time.monotonic()
    with ExitStack() as noted:
        with View(path) as view:
            work = scrub.Scrub(view, rate, time.sleep)
            noted.enter_context(_noted(path, work))
            found = _run(path, work, state, mode)
            damaged = {damage.chunk for damage in found}
            if state is not None:
                found += _again(view, work, set(state.damaged) - damaged)
            blobs = _blobs(view, found, mode)
            proven = _prove(view, mode)
            lacking = check_engines.lacking(view)
            report = {
                "store": str(path),
                "read_bytes": work.read_bytes,
                "read_chunks_count": work.read_chunks,
                "took_s": round(time.monotonic() - began, 3),
                "resumed": state is not None,
                "damaged_chunks_count": len(found),
                "damaged": [
                    {
                        "chunk": damage.chunk,
                        "sha256": damage.sha256.hex(),
                        "pack": f"{damage.pack:08x}",
                        "offset": damage.offset,
                        "stored_bytes": damage.stored_length,
                        "why": damage.why,
                        "blobs": blobs.get(damage.chunk, []),
                    }
                    for damage in found
                ],
                **proven,
                "engines_lacking_count": len(lacking),
                "engines_lacking": [
                    {
                        "engine": each.number,
                        "version": each.record.version,
                        "why": str(each),
                        "advice": check_engines.ADVICE,
                    }
                    for each in lacking
                ],
            }
            sound = set(work.sound_again)
        if found or sound:
            try:
                condemn(path, {damage.chunk for damage in found})
                condemn(path, sound, damaged=False)
            except CafsError as error:
                warn(f"what is damaged could not be marked: {error}")
    try:
        scrub.save_state(path, None)
    except CafsError as error:
        warn(f"{error}; the next scrub goes on behind the end of this one: say --restart then")
    return report


def say_report(path: Path, report: dict[str, Any]) -> None:
    """A report of run(), for people."""
    for each in report["damaged"]:
        say(f"damaged: {each['why']}")
        say(f"    chunk SHA-256 {each['sha256']}")
        for blob in each["blobs"]:
            say(f"    blob {blob['sha256'] or 'still without its SHA-256'}")
            for name in blob["paths"]:
                say(f"        {show_json_name(name)}")
        if not each["blobs"]:
            say("    no file has it")
    for each in report["not_rebuilt"]:
        say(f"cannot be made again: blob {each['sha256']}: {each['why']}")
        if each["advice"]:
            say(f"    what to do: {each['advice']}")
        for name in each["paths"]:
            say(f"    {show_json_name(name)}")
    for each in report["engines_lacking"]:
        say(f"not kept: {each['why']}")
        say(f"    what to do: {each['advice']}")
    read, seconds = human_size(report["read_bytes"]), human_duration(report["took_s"])
    said = f"{report['read_chunks_count']} chunks, {read} in {seconds}"
    if report["rebuilt_count"]:
        said += f"; {report['rebuilt_count']} of {report['aged_count']} archives made again"
    if not report["damaged_chunks_count"]:
        if report["not_rebuilt_count"] or report["engines_lacking_count"]:
            say(f"{path}: all chunks are as they were written ({said})")
            if report["not_rebuilt_count"]:
                say(f"  {report['not_rebuilt_count']} archives cannot be made again: see above")
            return
        say(f"{path}: all content is as it was written ({said})")
        return
    say(f"{path}: {report['damaged_chunks_count']} chunks are damaged ({said})")
    if report["damaged"]:
        say("  what to do: copy the files that are named into the mount again; or delete them")


def _run(path: Path, work: scrub.Scrub, state: scrub.State | None, mode: str) -> list[scrub.Damage]:
    with progress(mode, "scrub", "bytes", work.total_bytes) as advance:
        return list(work.run(state, advance, partial(_save, path)))


def _save(path: Path, reached: scrub.State) -> None:
    try:
        scrub.save_state(path, reached)
    except CafsError as error:
        # A full or read-only disk can be scrubbed all the same; only not resumed.
        warn(f"{error}; an interruption would begin anew")


@contextmanager
def _noted(path: Path, work: scrub.Scrub) -> Iterator[None]:
    """Note how far the scrub is if it is ended by an error, Ctrl-C, or SIGTERM, as systemd does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except BaseException:
        if work.reached is not None:
            _save(path, work.reached)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _prove(view: View, mode: str) -> dict[str, Any]:
    """Some archives that were taken apart, made again; fields of the report."""
    with progress(mode, "making archives again", "archives") as advance:
        proven = scrub_aged.prove_some(view, random.Random(), advance)
    paths = paths_of_blobs(view, [each.blob for each in proven.failed], lambda _count: None)
    return {
        "aged_count": proven.aged_count,
        "rebuilt_count": proven.rebuilt_count,
        "rebuilt_bytes": proven.rebuilt_bytes,
        "not_rebuilt_count": len(proven.failed),
        "not_rebuilt": [
            {
                "sha256": each.sha256.hex(),
                "why": each.why,
                "advice": each.advice,
                "paths": [json_name("path", name) for name in paths.get(each.blob, [])],
            }
            for each in proven.failed
        ],
    }


def _again(view: View, work: scrub.Scrub, numbers: set[int]) -> list[scrub.Damage]:
    """What an earlier part of this scrub found damaged, if it still is."""
    return [damage for number in sorted(numbers) if (damage := work.look(number)) is not None]


def _blobs(view: View, found: list[scrub.Damage], mode: str) -> dict[int, list[dict[str, Any]]]:
    users = scrub.blobs_with(view, (damage.chunk for damage in found))
    with progress(mode, "finding the files", "records", 2 * view.counters.inodes) as advance:
        paths = paths_of_blobs(view, list(users), advance) if users else {}
    answer: dict[int, list[dict[str, Any]]] = {}
    for blob, chunks in sorted(users.items()):
        record = view.blobs.get(blob)
        said = {
            "sha256": record.sha256.hex() if any(record.sha256) else "",
            "paths": [json_name("path", name) for name in paths.get(blob, [])],
        }
        for chunk in chunks:
            answer.setdefault(chunk, []).append(said)
    return answer
