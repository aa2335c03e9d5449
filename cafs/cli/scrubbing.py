"""One run of ``cafs scrub``: from the store's directory to a report.

Invariant: what was read is noted before the command ends, however it ends, so that the next
one goes on there; and what was found damaged is marked before anything is made of it, because
finding out which files have it may fail.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from cafs.cli.looking import commit_first
from cafs.cli.output import json_name, note, say, show_json_name, warn
from cafs.cli.progress import progress
from cafs.errors import CafsError, UsageError
from cafs.operate import check_engines, scrub, scrub_aged
from cafs.operate.condemn import by_daemon, condemn
from cafs.operate.paths import paths_of_blobs
from cafs.operate.readable import Unreadable
from cafs.types import BlobNo
from cafs.units import human_duration, human_size
from cafs.view import View

T = TypeVar("T")
Paths = dict[BlobNo, list[bytes]]

NOT_CLEAN: Final = (
    "damaged_chunks_count",
    "not_rebuilt_count",
    "engines_lacking_count",
    "unreadable_records_count",
    "unclear_count",
)
"""Counts of the report; one of them that is not 0 is exit code 8."""
SHOWN: Final = 10
"""Records that cannot be read, of which it is said what is wrong."""


def run(
    path: Path, rate: float | None, *, resume: bool, restart: bool, mode: str
) -> dict[str, Any]:
    """Scrub the store at *path*; the report.

    Raises UsageError, StoreBusyError, IndexDamagedError and kin.
    """
    with scrub.alone(path), _ended_by_sigterm():
        return _Run(path, rate, mode).report(resume=resume, restart=restart)


class _Run:
    """One run, and what is known so far."""

    def __init__(self, path: Path, rate: float | None, mode: str) -> None:
        self._path = path
        self._rate = rate
        self._mode = mode
        self._told: set[int] = set()
        """Damaged chunks that a daemon has marked already."""
        self._unclear: list[str] = []
        """Why a part of the report is missing."""
        self._unreadable: Unreadable = {}

    def report(self, *, resume: bool, restart: bool) -> dict[str, Any]:
        state, resumed = self._begin(resume=resume, restart=restart)
        commit_first(self._path)
        began = time.monotonic()
        reached: scrub.State | None = None
        work: scrub.Scrub | None = None
        try:
            with View(self._path) as view:
                work = scrub.Scrub(view, self._rate, time.sleep)
                with progress(self._mode, "scrub", "bytes", work.total_bytes) as advance:
                    for _ in work.run(state, advance, self._save):
                        pass
            reached = work.reached or state
            self._unreadable |= work.unreadable
            found = self._mark(reached)
            report = {
                "store": str(self._path),
                "read_bytes": work.read_bytes,
                "read_chunks_count": work.read_chunks,
                "took_s": round(time.monotonic() - began, 3),
                "resumed": resumed,
                "started_ns": state.started_ns,
            }
            report |= self._consequences(found)
        except BaseException:
            if work is not None and work.reached is not None:
                self._save(work.reached)
                if reached is None:
                    # If that fails the next run does it.
                    with suppress(CafsError):
                        self._mark(work.reached)
            raise
        try:
            scrub.save_state(self._path, None)
        except CafsError as error:
            warn(f"{error}; the next scrub goes on behind the end of this one: say --restart then")
        return report

    def _begin(self, *, resume: bool, restart: bool) -> tuple[scrub.State, bool]:
        """Where to begin, and whether that is where another scrub stopped."""
        before = scrub.load_state(self._path)
        now_ns = time.time_ns()
        if resume and before is None:
            raise UsageError(f"{self._path}: no scrub was interrupted", advice="leave out --resume")
        if before is None or restart:
            return scrub.anew(now_ns, before), False
        since = _moment(before.started_ns)
        if scrub.is_recent(before, now_ns):
            note(f"going on where the scrub of {since} stopped (--restart begins anew)")
            return before, True
        days = round(scrub.AGE_MAX_S / 86400)
        if resume:
            raise UsageError(
                f"{self._path}: the scrub that was interrupted began on {since}: not within "
                f"{days} days",
                advice="leave out --resume",
            )
        note(f"beginning anew: the scrub that was interrupted began on {since}")
        return scrub.anew(now_ns, before), False

    def _save(self, reached: scrub.State) -> None:
        try:
            scrub.save_state(self._path, reached)
        except CafsError as error:
            # A full or read-only disk can be scrubbed all the same; only not resumed.
            warn(f"{error}; an interruption would begin anew")
        fresh = set(reached.damaged) - self._told
        if fresh:
            try:
                # Now, and not hours later: what is marked is not shared with new content.
                by_daemon(self._path, fresh)
                self._told |= fresh
            except CafsError:
                # At the end once more.
                pass

    def _mark(self, reached: scrub.State) -> list[scrub.Damage]:
        """Mark what is damaged, and take the mark from what is not; what is damaged."""
        found, sound = scrub.look_again(self._path, reached)
        try:
            if found:
                condemn(self._path, {damage.chunk for damage in found})
            if sound:
                condemn(self._path, sound, damaged=False)
        except CafsError as error:
            warn(f"what is damaged could not be marked: {error}")
        return found

    def _consequences(self, found: list[scrub.Damage]) -> dict[str, Any]:
        """What the damage means for files, and what else may be wrong; fields of the report."""
        blobs: dict[int, list[dict[str, Any]]] = {}
        proven = scrub_aged.Proven(0, 0, 0, [])
        not_rebuilt: list[dict[str, Any]] = []
        lacking: list[check_engines.Lacking] = []
        try:
            with View(self._path) as view:
                blobs = self._tried(partial(self._blobs, view, found), blobs)
                proven = self._tried(partial(self._prove, view), proven)
                not_rebuilt = self._not_rebuilt(view, proven)
                lacking = self._tried(partial(check_engines.lacking, view), lacking)
        except CafsError as error:
            self._unclear.append(str(error))
        return {
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
            "aged_count": proven.aged_count,
            "rebuilt_count": proven.rebuilt_count,
            "rebuilt_bytes": proven.rebuilt_bytes,
            "not_rebuilt_count": len(proven.failed),
            "not_rebuilt": not_rebuilt,
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
            "unreadable_records_count": len(self._unreadable),
            "unclear_count": len(self._unclear),
            "unclear": [*self._unclear, *list(self._unreadable.values())[:SHOWN]],
        }

    def _tried(self, work: Callable[[], T], otherwise: T) -> T:
        """What *work* returns; what was found so far must not be lost if it fails."""
        try:
            return work()
        except CafsError as error:
            self._unclear.append(str(error))
            return otherwise

    def _prove(self, view: View) -> scrub_aged.Proven:
        """Some archives that were taken apart, made again."""
        with progress(self._mode, "making archives again", "archives") as advance:
            return scrub_aged.prove_some(view, random.Random(), advance, self._unreadable)

    def _not_rebuilt(self, view: View, proven: scrub_aged.Proven) -> list[dict[str, Any]]:
        failed = [each.blob for each in proven.failed]
        nowhere: Paths = {}
        paths = self._tried(partial(paths_of_blobs, view, failed), nowhere)
        return [
            {
                "sha256": each.sha256.hex(),
                "why": each.why,
                "advice": each.advice,
                "paths": [json_name("path", name) for name in paths.get(each.blob, [])],
            }
            for each in proven.failed
        ]

    def _blobs(self, view: View, found: list[scrub.Damage]) -> dict[int, list[dict[str, Any]]]:
        users = scrub.blobs_with(view, (damage.chunk for damage in found), self._unreadable)

        def look() -> Paths:
            records = 2 * view.counters.inodes
            with progress(self._mode, "finding the files", "records", records) as advance:
                return paths_of_blobs(view, list(users), advance) if users else {}

        nowhere: Paths = {}
        paths = self._tried(look, nowhere)
        answer: dict[int, list[dict[str, Any]]] = {}
        for blob, chunks in sorted(users.items()):
            sha256 = self._tried(partial(_sha256, view, blob), b"")
            said = {
                "sha256": sha256.hex() if any(sha256) else "",
                "paths": [json_name("path", name) for name in paths.get(blob, [])],
            }
            for chunk in chunks:
                answer.setdefault(chunk, []).append(said)
        return answer


def _sha256(view: View, blob: BlobNo) -> bytes:
    return view.blobs.get(blob).sha256


def _moment(time_ns: int) -> str:
    try:
        return f"{datetime.fromtimestamp(time_ns / 1e9):%Y-%m-%d %H:%M}"
    except (OverflowError, ValueError, OSError):
        return "an impossible day"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """SIGTERM, as systemd sends it, interrupts as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def say_report(path: Path, report: dict[str, Any]) -> None:
    """A report of run(), for people."""
    unclear = report["unclear"]
    for each in report["damaged"]:
        say(f"damaged: {each['why']}")
        say(f"    chunk SHA-256 {each['sha256']}")
        for blob in each["blobs"]:
            say(f"    blob {blob['sha256'] or 'still without its SHA-256'}")
            for name in blob["paths"]:
                say(f"        {show_json_name(name)}")
        if not each["blobs"]:
            say("    which files have it cannot be told" if unclear else "    no file has it")
    for each in report["not_rebuilt"]:
        say(f"cannot be made again: blob {each['sha256']}: {each['why']}")
        if each["advice"]:
            say(f"    what to do: {each['advice']}")
        for name in each["paths"]:
            say(f"    {show_json_name(name)}")
    for each in report["engines_lacking"]:
        say(f"not kept: {each['why']}")
        say(f"    what to do: {each['advice']}")
    for why in unclear:
        say(f"unclear: {why}")
    if unclear:
        say(f"    what to do: cafs check {path}")
    read, seconds = human_size(report["read_bytes"]), human_duration(report["took_s"])
    said = f"{report['read_chunks_count']} chunks, {read} in {seconds}"
    if report["resumed"]:
        said = f"{said}, begun on {_moment(report['started_ns'])} and interrupted"
    if report["rebuilt_count"]:
        said += f"; {report['rebuilt_count']} of {report['aged_count']} archives made again"
    if report["damaged_chunks_count"]:
        say(f"{path}: {report['damaged_chunks_count']} chunks are damaged ({said})")
        say("  what to do: copy the files that are named into the mount again; or delete them")
    elif report["unreadable_records_count"]:
        say(f"{path}: all chunks whose records can be read are as they were written ({said})")
    elif report["not_rebuilt_count"] or report["engines_lacking_count"] or unclear:
        say(f"{path}: all chunks are as they were written ({said})")
    else:
        say(f"{path}: all content is as it was written ({said})")
    if report["unreadable_records_count"]:
        say(f"  {report['unreadable_records_count']} records of the index cannot be read")
    if report["not_rebuilt_count"]:
        say(f"  {report['not_rebuilt_count']} archives cannot be made again: see above")
