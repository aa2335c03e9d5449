"""``cafs age``: taking archives apart now, pausing that, and turning it back.

Only asks and prints: the work is done in :mod:`cafs.operate.ageing`, by the daemon where one runs.
Invariant: ``--dry-run`` changes nothing.

Imports that are slow lie within the functions that need them: help is to come at once.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cafs.cli.frame import PATH_TYPE, Frame, command, resolve_path, resolve_store, store_argument
from cafs.cli.output import json_name, note, say, say_json, show_name, table
from cafs.cli.progress import progress, progress_option
from cafs.errors import DaemonAbsentError, UsageError, first_foreseen
from cafs.units import human_count, human_duration, human_size, plural

if TYPE_CHECKING:
    from cafs.operate.candidates import Candidate, Found
    from cafs.view import View

SHOWN: Final = 20
"""Candidates that a dry run prints for people."""


@command(
    "age",
    example="cafs age /var/lib/cafs/blobs --dry-run\n"
    "cafs age --now\n"
    "cafs age --path /mnt/cc-droplets/ab/cd/abcd1234\n"
    "cafs age --thaw --path /mnt/cc-droplets",
)
@store_argument
@click.option("--now", "used_too", is_flag=True, help="Also what was used lately.")
@click.option("--dry-run", is_flag=True, help="Only say what would be taken apart.")
@click.option(
    "--path",
    type=PATH_TYPE,
    metavar="PATH",
    help="Only this file, or what is below this directory: whenever it was used, however small "
    "it is, and also what was left before.",
)
@click.option("--thaw", is_flag=True, help="With --path: make plain again, and leave it so.")
@click.option("--pause", is_flag=True, help="Stop, and take nothing apart until --resume.")
@click.option("--resume", is_flag=True, help="Go on in the background.")
@progress_option
def age(
    frame: Frame,
    store: Path | None,
    used_too: bool,
    dry_run: bool,
    path: Path | None,
    thaw: bool,
    pause: bool,
    resume: bool,
    progress: str,
) -> None:
    """Take archives of STORE apart that nobody uses, now, and wait until that is done.

    A mounted store does this by itself, in the background. Archives are droplets and buildpack
    caches (tar in gzip) and zips; what is inside them is stored once for all of them, and they
    are made again when they are read, bit for bit. Yields to whoever is served.

    What was stopped goes on with the next pass. Exit code 0: the pass is through; 9 or 10: the
    disk is full or read-only; 1: it was stopped by somebody.
    """
    if pause and resume:
        raise UsageError("--pause and --resume contradict each other")
    if (pause or resume) and (used_too or dry_run or path or thaw):
        raise UsageError("--pause and --resume go with no other option")
    if thaw and (path is None or used_too or dry_run):
        raise UsageError("--thaw goes with --path and nothing else", advice="see cafs age --help")
    inside = None
    if path is not None:
        named = resolve_store(store, frame) if store is not None else None
        resolved = resolve_path(path, frame, named)
        where, inside = resolved.store, os.fsdecode(resolved.inside)
    else:
        where = resolve_store(store, frame)
    if pause or resume:
        _pause(frame, where, paused=pause)
    elif dry_run:
        _dry_run(frame, where, inside, used_too=used_too, mode=progress)
    else:
        _age(frame, where, progress, used_too=used_too, below=inside, thaw=thaw)


def _pause(frame: Frame, store: Path, *, paused: bool) -> None:
    from cafs import control
    from cafs.operate.ageing_state import set_paused

    try:
        state = control.call(store, "pause_ageing", paused=paused)["state"]
    except DaemonAbsentError:
        set_paused(store, paused=paused)
        state = "paused" if paused else "idle"
    if frame.json:
        say_json({"store": str(store), "state": state})
    elif state == "off":
        say(
            f"{store}: ageing is not paused, but it is turned off: archives.enabled in the settings"
        )
    else:
        say(f"{store}: ageing {'is paused' if paused else 'goes on'}")


def _age(frame: Frame, store: Path, mode: str, **order: Any) -> None:
    answer = _order(frame, store, mode, order)
    code = answer.pop("exit_code")
    if frame.json:
        say_json({"store": str(store)} | answer)
    else:
        _say(store, answer, thaw=order["thaw"])
    if code:
        raise click.exceptions.Exit(code)


def _order(frame: Frame, store: Path, mode: str, order: dict[str, Any]) -> dict[str, Any]:
    from cafs import control

    with progress(mode, "ageing", "bytes") as advance:
        try:
            return control.call(
                store,
                "age",
                on_progress=lambda at: advance(at.get("done", 0), at.get("total", 0)),
                **order,
            )
        except DaemonAbsentError:
            pass
        except KeyboardInterrupt:
            note("the daemon goes on; to stop it: cafs age --pause")
            raise
        import functools

        import trio

        from cafs.operate.ageing_offline import age_offline

        settings = frame.settings()
        work = functools.partial(
            age_offline, store, settings.mount, settings.archives, order, advance
        )
        try:
            answer: dict[str, Any] = trio.run(work)
        except BaseExceptionGroup as group:
            raise first_foreseen(group) from group
        return answer


def _say(store: Path, answer: dict[str, Any], *, thaw: bool) -> None:
    if thaw:
        count, size = answer["thawed_count"], human_size(answer["thawed_bytes"])
        say(f"{store}: {plural(count, 'archive')} ({size}) stored plain again, to stay so")
    else:
        count, size = answer["taken_apart_count"], human_size(answer["taken_apart_bytes"])
        gained = answer["gained_bytes"]
        what = f"{human_size(gained)} saved" if gained >= 0 else f"{human_size(-gained)} more taken"
        say(f"{store}: {plural(count, 'archive')} ({size}) taken apart, {what}")
        if count:
            say("  compaction gives that space back in time; now: cafs compact")
    for name, text in (
        ("in_use_count", "files were used too recently (cafs age --now takes them, too)"),
        ("kept_newest_count", "archives are the newest of their directory, and stay plain"),
    ):
        if answer[name]:
            say(f"  {human_count(answer[name])} {text}")
    for reason, count in answer["left"].items():
        say(f"  {human_count(count)} archives stay as they are: {reason}")
    _say_passed(answer["passed"])
    if answer["stopped"]:
        say(f"  stopped before the end: {answer['stopped']}")


def _say_passed(passed: dict[str, int]) -> None:
    for reason, count in passed.items():
        say(f"  {plural(count, 'file')} passed over: {reason}")


def _dry_run(frame: Frame, store: Path, inside: str | None, *, used_too: bool, mode: str) -> None:
    from cafs import control
    from cafs.operate import candidates
    from cafs.operate.ageing_state import State
    from cafs.operate.candidates import Search
    from cafs.types import TIME_MAX_NS
    from cafs.view import View

    try:
        control.call(store, "commit")
    except DaemonAbsentError:
        pass
    options = frame.settings().archives
    ripe = time.time_ns() - int(options.age_after * 1e9)
    rules = candidates.Rules(
        used_before_ns=TIME_MAX_NS + 1 if used_too else ripe + 1,
        min_size=options.age_min_size,
        gains=State.load(store).gains(),
        below=inside,
    )
    with View(store) as view, progress(mode, "looking", "files"):
        found = Search(view, rules).run()
        shown = found.candidates if frame.json else found.candidates[:SHOWN]
        rows = _with_paths(view, shown)
    if frame.json:
        say_json(_fields(store, found, rows))
        return
    total = sum(each.size for each in found.candidates)
    expected = sum(each.expected for each in found.candidates)
    more = "at least " if found.more else ""
    say(
        f"{store}: {more}{plural(len(found.candidates), 'archive')} ({human_size(total)}) "
        "would be tried; "
        f"about {human_size(expected)} may be saved"
    )
    _say_passed(found.passed)
    if rows:
        now = time.time_ns()
        say()
        table(
            ["kind", "size", "unused for", "path"],
            [
                (
                    each.kind,
                    human_size(each.size),
                    human_duration(max(0, now - each.last_used_ns) / 1e9),
                    show_name(names[0]) if names else f"inode {each.ino}",
                )
                for each, names in rows
            ],
            right=["size", "unused for"],
        )
    if len(found.candidates) > len(rows):
        say(f"... and {len(found.candidates) - len(rows)} more")


def _with_paths(view: View, shown: list[Candidate]) -> list[tuple[Candidate, list[bytes]]]:
    from cafs.operate.paths import paths_of_inodes

    paths = dict(paths_of_inodes(view, [each.ino for each in shown])) if shown else {}
    return [(each, paths.get(each.ino, [])) for each in shown]


def _fields(store: Path, found: Found, rows: list[tuple[Candidate, list[bytes]]]) -> dict[str, Any]:
    return {
        "store": str(store),
        "candidates": [
            {
                "kind": each.kind,
                "size_bytes": each.size,
                "expected_bytes": each.expected,
                "last_used_ns": each.last_used_ns,
                "paths": [json_name("path", name) for name in names],
            }
            for each, names in rows
        ],
        "more": found.more,
        "in_use_count": found.in_use,
        "kept_newest_count": found.kept_newest,
        "passed": found.passed,
    }


COMMANDS: list[click.Command] = [age]
