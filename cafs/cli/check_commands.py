"""``cafs check`` and ``rebuild``: whether a store's index is right, and what makes it so.

Only asks and prints: the work is done in :mod:`cafs.operate`.  Invariant: what was found not clean
ends with exit code 8, after all of it was said; a name that is removed is printed.

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
from cafs.errors import CheckFailedError
from cafs.units import plural

if TYPE_CHECKING:
    from cafs.operate.finding import Finding
    from cafs.operate.rebuild import Rebuilt
    from cafs.operate.repair import Repaired
    from cafs.view import View

SHOWN: Final = 100
"""Findings that are printed one by one, with their paths; all are counted."""


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


COMMANDS: list[click.Command] = [check, rebuild]
