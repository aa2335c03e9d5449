"""Putting right what a check found, as far as that can be done without guessing.

Check, write the changes of what was found, check again: until nothing is left that a change
would help.  One record is changed once a round, because the changes of two findings were
computed without knowing of each other.  Content is never made up: what is lost is marked, and
what has no name gets one in ``lost+found``.  Invariant: the store's lock is held throughout,
and every round is one transaction.
"""

from __future__ import annotations

import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cafs.errors import StoreError
from cafs.index import layout, unfinished
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate.check import Check, OnStep
from cafs.operate.finding import Finding
from cafs.types import ROOT, Ino
from cafs.view import View

LOST_AND_FOUND = b"lost+found"
AT_ONCE = 200_000
"""Changes of one round; what is above waits for the next."""
ROUNDS_MAX = 50


class Repaired(NamedTuple):
    """What a repair did."""

    rounds: int
    repaired: Counter[str]
    """By kind of finding."""


def repair(path: Path, on_step: OnStep | None = None) -> Repaired:
    """Repair the store at *path*; check it afterwards to see what is left.

    Raises StoreBusyError when a daemon has it, DiskFullError and its kin (the rounds before
    have been written then), IndexDamagedError when a rebuild comes first, StoreError when it
    does not come to an end.
    """
    lock = StoreLock(path)
    try:
        unfinished.refuse(path / "index")
        return repair_locked(path, lock, on_step)
    finally:
        lock.release()


def repair_locked(path: Path, lock: StoreLock, on_step: OnStep | None = None) -> Repaired:
    """As repair(), for who has the store's lock."""
    repaired: Counter[str] = Counter()
    writer = IndexWriter(path / "index", lock.fd)
    try:
        for done in range(ROUNDS_MAX):
            counted = _round(path, writer, on_step)
            if not counted:
                return Repaired(done, repaired)
            repaired += counted
    finally:
        writer.close()
    raise StoreError(
        f"{path} is not repaired yet: {ROUNDS_MAX} rounds put {repaired.total()} findings right, "
        "and there are more",
        advice="go on with the same command; what was put right stays so",
    )


def _round(path: Path, writer: IndexWriter, on_step: OnStep | None) -> Counter[str]:
    with View(path) as view:
        chosen = _choose(view, on_step)
        counters = view.counters
        for finding in chosen:
            for database, key, value in finding.changes:
                if value is None:
                    view.overlay.delete(database, key)
                else:
                    view.overlay.put(database, key, value)
        lost = [finding.lost for finding in chosen if finding.lost is not None]
        if lost:
            _give_names(view, lost)
        if chosen:
            counters.generation += 1
            # Unless the counters themselves were repaired: those that were read are wrong.
            if not any(finding.kind == "counters" for finding in chosen):
                view.overlay.put(layout.META, COUNTERS_KEY, counters.encode())
            writer.write(view.overlay.freeze())
        return Counter(finding.kind for finding in chosen)


def _choose(view: View, on_step: OnStep | None) -> list[Finding]:
    chosen: list[Finding] = []
    touched: set[tuple[int, bytes]] = set()
    for finding in Check(view).findings(on_step):
        if not finding.repairable:
            continue
        places = {(database, key) for database, key, _ in finding.changes}
        if touched & places:
            continue
        touched |= places
        chosen.append(finding)
        if len(touched) >= AT_ONCE:
            break
    if any(finding.lost is not None for finding in chosen):
        # Making names needs counters that are right, and changes them.
        kinds = {"counters"} & {finding.kind for finding in chosen}
        chosen = [finding for finding in chosen if finding.lost is None or not kinds]
    return chosen


def _give_names(view: View, lost: list[Ino]) -> None:
    """Names in lost+found; the counts that go with them are the next round's business."""
    tree = view.tree
    home = tree.lookup(ROOT, LOST_AND_FOUND)
    if home is None or not stat.S_ISDIR(tree.inodes.get(home).mode):
        name, number = LOST_AND_FOUND, 0
        while home is not None:
            number += 1
            name = LOST_AND_FOUND + b".%d" % number
            home = tree.lookup(ROOT, name)
        home = tree.create(ROOT, name, stat.S_IFDIR | 0o700, 0, 0)
    for ino in lost:
        name = b"#%d" % ino
        place = tree.names.place(home, name)
        if place is None:
            raise StoreError("lost+found takes no more names")
        kind = tree.inodes.get(ino).mode >> 12
        tree.names.put(home, place[0], name, ino, kind)
