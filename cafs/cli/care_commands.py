"""``cafs check``, ``scrub``, ``sweep``, ``compact`` and ``rebuild``: keeping a store well.

Only asks and prints: the work is done in :mod:`cafs.operate`, by the daemon where one runs.
Invariant: what was found not clean ends with exit code 8, after all of it was said.

Imports that are slow lie within the functions that need them: help is to come at once.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from cafs.cli.frame import Frame, command, resolve_store, store_argument
from cafs.cli.output import json_name, note, say, say_json, show_json_name, show_name
from cafs.cli.progress import progress, progress_option
from cafs.errors import (
    CheckFailedError,
    DaemonAbsentError,
    UsageError,
    first_foreseen,
)
from cafs.units import (
    duration_text,
    human_duration,
    human_size,
    parse_duration,
    parse_size,
    plural,
)

if TYPE_CHECKING:
    from cafs.operate.finding import Finding
    from cafs.operate.rebuild import Rebuilt
    from cafs.operate.repair import Repaired
    from cafs.view import View

SHOWN: Final = 100
"""Findings that are printed one by one, with their paths; all are counted."""
GRACE_MAX_S: Final = 30 * 86400.0
"""As in the settings: who asks for more waits for ever."""
WORTH_TELLING_S: Final = 5.0
"""A wait that is told of beforehand."""


@command(
    "check",
    example="cafs check /var/lib/cafs/blobs\ncafs umount /mnt && cafs check /srv/store --repair",
)
@store_argument
@click.option("--repair", is_flag=True, help="Put right what can be; not while it is mounted.")
@progress_option
def check(frame: Frame, store: Path | None, repair: bool, progress: str) -> None:
    """Count every reference in STORE anew and compare.

    Reads the index and the names of the packs, not their content: that is what scrub does.
    Works on the newest commit, also while the store is mounted. Exit code 0: clean; 8: not.
    """
    path = resolve_store(store, frame)
    from cafs import storefile
    from cafs.cli.looking import commit_first
    from cafs.index import copyplace, pages
    from cafs.operate.check import Check

    # What a newer cafs wrote must not be called damaged.
    storefile.read(path)
    # LMDB trusts its pages; nobody else should before they were looked at.
    faults = pages.audit(path / "index").faults
    # What the index is brought back from must not be found damaged only then.
    of_copy = copyplace.faults(path)
    repaired: Repaired | None = None
    if repair and not faults:
        from cafs.operate.repair import repair as repair_store

        with _steps(progress, "repairing") as on_step:
            repaired = repair_store(path, on_step)
    else:
        commit_first(path)
    counted = Counter({"index-page": len(faults)}) + Counter({"index-copy": len(of_copy)})
    kept = [
        *(_of_index("index-page", str(fault), pages.ADVICE) for fault in faults[:SHOWN]),
        *(_of_index("index-copy", fault, copyplace.ADVICE) for fault in of_copy[:SHOWN]),
    ]
    checked: dict[str, int] = {}
    if not faults:
        from cafs.view import View

        with View(path) as view, _steps(progress, "checking") as on_step:
            work = Check(view)
            shown: list[Finding] = []
            for finding in work.findings(on_step):
                counted[finding.kind] += 1
                if len(kept) + len(shown) < SHOWN:
                    shown.append(finding)
            checked = work.checked
            kept += _with_paths(view, shown)
    _say_check(frame, path, checked, counted, kept, repaired)
    if counted:
        raise click.exceptions.Exit(_exit_code())


def _exit_code() -> int:
    return CheckFailedError("").meaning.exit_code


def _of_index(kind: str, what: str, repair: str) -> dict[str, Any]:
    """A finding about the index as a file, as all others are told."""
    return {"kind": kind, "what": what, "repair": repair, "repairable": False, "paths": []}


class _steps:
    """Progress of a check as a bar of its steps."""

    def __init__(self, mode: str, what: str) -> None:
        self._bar = progress(mode, what, "steps")

    def __enter__(self) -> Any:
        advance = self._bar.__enter__()
        return lambda _what, done, total: advance(done, total)

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)


def _with_paths(view: View, findings: list[Finding]) -> list[dict[str, Any]]:
    from cafs.errors import CafsError
    from cafs.operate.paths import paths_of_inodes

    paths: dict[Any, list[bytes]] = {}
    for ino in {finding.ino for finding in findings if finding.ino is not None}:
        paths[ino] = []
    try:
        paths = dict(paths_of_inodes(view, list(paths)))
    except CafsError:
        # The way to a name may be just what is broken; the inode number is in the text.
        pass
    return [
        {
            "kind": finding.kind,
            "what": finding.what,
            "repair": finding.repair,
            "repairable": finding.repairable,
            "paths": [json_name("path", name) for name in paths.get(finding.ino, [])],
        }
        for finding in findings
    ]


def _say_check(
    frame: Frame,
    path: Path,
    checked: dict[str, int],
    counted: Counter[str],
    kept: list[dict[str, Any]],
    repaired: Repaired | None,
) -> None:
    total = counted.total()
    if frame.json:
        say_json(
            {
                "store": str(path),
                "clean": not total,
                "checked": checked,
                "findings_count": total,
                "kinds": dict(counted),
                "findings": kept,
                "repaired": dict(repaired.repaired) if repaired else {},
            }
            | (_removed_fields(repaired) if repaired else {})
        )
        return
    for each in kept:
        say(f"{each['kind']}: {each['what']}")
        for name in each["paths"][:5]:
            say(f"    path: {show_json_name(name)}")
        say(f"    repair: {each['repair']}")
    if total > len(kept):
        say(f"... and {total - len(kept)} more")
    if repaired and repaired.repaired:
        done = sorted(repaired.repaired.items())
        say("repaired: " + ", ".join(f"{kind} {n}" for kind, n in done))
        _say_removed(repaired)
    seen = ", ".join(plural(n, kind.removesuffix("s_count")) for kind, n in checked.items())
    if total:
        kinds = ", ".join(f"{kind} {n}" for kind, n in sorted(counted.items()))
        say(f"{path} is not clean: {kinds}")
        if any(each.get("repairable") for each in kept):
            say(f"  what to do: unmount it, then: cafs check {path} --repair")
    else:
        say(f"{path} is clean" + (f": {seen}" if seen else ""))


def _removed_fields(repaired: Repaired) -> dict[str, Any]:
    return {
        "removed_names": [json_name("path", name) for name in repaired.removed],
        "removed_names_count": repaired.removed_count,
    }


def _say_removed(repaired: Repaired) -> None:
    """Names of which only these lines know from now on."""
    for name in repaired.removed:
        say(f"  removed, because what it led to is lost or has another name: {show_name(name)}")
    if repaired.removed_count > len(repaired.removed):
        say(f"  ... and {repaired.removed_count - len(repaired.removed)} more")


rate_option = click.option(
    "--rate", metavar="SIZE/s", help="Read no faster than this, as in 20MiB/s."
)


@command(
    "scrub",
    example="cafs scrub /var/lib/cafs/blobs\ncafs scrub /srv/store --rate 20MiB/s --json",
)
@store_argument
@rate_option
@click.option("--resume", "go_on", is_flag=True, help="Only go on with one that was interrupted.")
@click.option("--restart", is_flag=True, help="Begin anew, whatever was read already.")
@progress_option
def scrub(
    frame: Frame, store: Path | None, rate: str | None, go_on: bool, restart: bool, progress: str
) -> None:
    """Read all content of STORE back and compare it with its checksums.

    Goes on where an interrupted scrub stopped. Works while the store is mounted. What is damaged
    is named with every path that has it, and marked: the same bytes, written again, heal it.
    A random sample of the archives that were taken apart is made again and compared, and of the
    programs that this takes the copies in STORE are read.
    Exit code 0: all is well; 8: something is damaged.
    """
    from cafs.cli.scrubbing import NOT_CLEAN, run, say_report

    if go_on and restart:
        raise UsageError("--resume and --restart exclude each other")
    path = resolve_store(store, frame)
    report = run(path, _rate(rate), resume=go_on, restart=restart, mode=progress)
    if frame.json:
        say_json(report)
    else:
        say_report(path, report)
    if any(report[count] for count in NOT_CLEAN):
        raise click.exceptions.Exit(_exit_code())


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    if not text.endswith("/s"):
        raise UsageError(f"--rate {text!r} is not a rate; write it as in 20MiB/s")
    try:
        rate = parse_size(text.removesuffix("/s"))
    except ValueError as error:
        raise UsageError(f"--rate: {error}") from None
    if rate <= 0:
        raise UsageError("--rate must be above 0")
    return rate


@command("sweep", example="cafs sweep /var/lib/cafs/blobs")
@store_argument
@progress_option
def sweep(frame: Frame, store: Path | None, progress: str) -> None:
    """Take out of STORE what nothing refers to, now.

    A mounted store does this by itself. The space in packs comes back with compaction.
    """
    from cafs.operate import give_back

    path = resolve_store(store, frame)
    answer = _order(frame, path, "sweep", progress, give_back.sweep_offline)
    if frame.json:
        say_json({"store": str(path)} | answer)
        return
    dead = human_size(answer["dead_bytes"])
    say(f"{path}: {answer['swept_count']} blobs and chunks taken out; {dead} in packs are dead")
    if answer["dead_bytes"]:
        say("  compaction gives that space back in time; now: cafs compact")


@command("compact", example="cafs compact /var/lib/cafs/blobs\ncafs compact /srv/store --grace 0s")
@store_argument
@click.option(
    "--grace",
    metavar="DURATION",
    help="How long an emptied pack stays, because another process may be reading it "
    "[default: mount.grace of the settings; 0s when the store is not mounted].",
)
@progress_option
def compact(frame: Frame, store: Path | None, grace: str | None, progress: str) -> None:
    """Give the space of all that is dead in STORE back to the disk, now.

    Sweeps, rewrites each pack with something dead in it, and shrinks the index. A mounted store
    does the most of it by itself, in the background.
    Exit code 8: something that is alive in a pack cannot be read, and so the pack stays.
    """
    from cafs.operate import give_back

    path = resolve_store(store, frame)
    try:
        grace_s = None if grace is None else parse_duration(grace)
    except ValueError as error:
        raise UsageError(f"--grace: {error}") from None
    if grace_s is not None and grace_s > GRACE_MAX_S:
        raise UsageError(f"--grace {grace}: it must be at most {duration_text(GRACE_MAX_S)}")

    def offline(path: Path, options: Any, on_progress: Any) -> Any:
        return give_back.compact_offline(path, options, grace_s or 0.0, on_progress)

    answer = _order(frame, path, "compact", progress, offline, grace_s=grace_s)
    if frame.json:
        say_json({"store": str(path)} | answer)
        _exit_if_left(answer)
        return
    for each in answer.get("left_packs", []):
        say(f"pack {each['pack']} is left as it is: {each['why']}")
    packs, index = human_size(answer["freed_bytes"]), human_size(answer["freed_index_bytes"])
    say(f"{path}: {packs} of packs and {index} of the index given back")
    if answer.get("left_packs_count"):
        say("  what to do: cafs scrub names the files that are damaged; copy them in again")
    _exit_if_left(answer)


def _exit_if_left(answer: dict[str, Any]) -> None:
    # A daemon of an older cafs does not say.
    if answer.get("left_packs_count"):
        raise click.exceptions.Exit(_exit_code())


@command("rebuild", example="cafs umount /mnt && cafs rebuild /var/lib/cafs/blobs")
@store_argument
def rebuild(frame: Frame, store: Path | None) -> None:
    """Bring the index of STORE back after the disk has damaged or lost it.

    What is whole of the index stays; the rest comes from the copy that a mounted store makes of
    it now and then. Chunks are looked for in the packs, and everything is counted anew. The
    damaged index is kept. Not while it is mounted. Exit code 8: something could not be had back.
    """
    from cafs.operate.rebuild import rebuild as rebuild_store

    path = resolve_store(store, frame)
    done = rebuild_store(path, _phase)
    if frame.json:
        repaired = done.repaired
        answer = done._asdict() | {"repaired": dict(repaired.repaired)}
        answer |= {"left": dict(repaired.left)} | _removed_fields(repaired)
        say_json({"store": str(path)} | answer)
    else:
        _say_rebuilt(path, done)
    if done.lost_chunks or done.repaired.removed_count or done.repaired.left:
        raise click.exceptions.Exit(_exit_code())


def _phase(text: str) -> None:
    if sys.stderr.isatty():
        note(text)


def _say_rebuilt(path: Path, done: Rebuilt) -> None:
    for fault in done.faults[:SHOWN]:
        say(f"damaged: {fault}")
    how = {
        "index": "the index is whole",
        "both": "the index was made anew; "
        + (
            f"{done.from_copy} records of damaged pages came from its copy"
            if done.from_copy
            else "for what lay in damaged pages there was no copy"
        ),
        "copy": "the index was taken from its copy: what was changed after that is not in it",
    }
    say(f"{path}: {how[done.source]}")
    if done.kept_as:
        say(f"  the damaged index is kept as {path / done.kept_as}; remove it when all is well")
    if done.moved_chunks:
        say(f"  {done.moved_chunks} chunks were found in another place than it said")
    if done.remade_chunks:
        say(f"  {done.remade_chunks} chunks that had lost their records were found in the packs")
    if done.remade_blobs:
        say(f"  {done.remade_blobs} blobs that had lost their records were found by their digests")
    if done.lost_chunks:
        say(f"  {done.lost_chunks} chunks are in no pack: cafs scrub {path} names the files")
    if done.repaired.repaired:
        kinds = sorted(done.repaired.repaired.items())
        say("  repaired: " + ", ".join(f"{kind} {n}" for kind, n in kinds))
    _say_removed(done.repaired)
    if done.repaired.left:
        kinds = sorted(done.repaired.left.items())
        say("  not to be had back: " + ", ".join(f"{kind} {n}" for kind, n in kinds))
    say(f"  look it over: cafs check {path}")


def _order(
    frame: Frame, path: Path, name: str, mode: str, offline: Any, **arguments: Any
) -> dict[str, Any]:
    """Let the daemon do it, or do it here when there is none."""
    from cafs import control

    waits = False

    def on_progress(done: float, total: float, /, waiting_s: float = 0.0) -> None:
        nonlocal waits
        advance(done, total)
        if waiting_s >= WORTH_TELLING_S and not waits:
            waits = True
            note(
                f"waiting for at most {human_duration(waiting_s)}: another process may be reading "
                "from a pack that is to go (--grace 0s does not wait)"
            )

    with progress(mode, name, "packs") as advance:
        try:
            return control.call(
                path,
                name,
                on_progress=lambda at: on_progress(
                    at.get("done", 0), at.get("total", 0), at.get("waiting_s", 0.0)
                ),
                **arguments,
            )
        except DaemonAbsentError:
            pass
        import functools

        import trio

        options = frame.settings().mount
        work = functools.partial(offline, path, options, on_progress)
        try:
            answer: dict[str, Any] = trio.run(work)
        except BaseExceptionGroup as group:
            raise first_foreseen(group) from group
        return answer


COMMANDS: list[click.Command] = [check, scrub, sweep, compact, rebuild]
