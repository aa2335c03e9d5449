"""Putting right what a check found, as far as that can be done without guessing.

Check, write the changes of what was found, check again: until nothing is left that a change
would help.  One record is changed once a round, because the changes of two findings were
computed without knowing of each other.  Content is never made up: what is lost is marked, and
what has no name gets one in ``lost+found``.  Names that are removed are told.  Invariant: the
store's lock is held throughout, and every round is one transaction.
"""

from __future__ import annotations

import contextlib
import stat
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from cafs.errors import CafsError, StoreError
from cafs.index import layout, unfinished
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.layout import BLOB_UNHASHED
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate.check import Check, OnStep
from cafs.operate.finding import Finding
from cafs.operate.paths import directories
from cafs.types import ROOT, BlobNo, Ino
from cafs.view import View

LOST_AND_FOUND = b"lost+found"
AT_ONCE = 200_000
"""Changes of one round; what is above waits for the next."""
ROUNDS_MAX = 50
REMOVED_MAX = 10_000


class Repaired(NamedTuple):
    """What a repair did."""

    rounds: int
    repaired: Counter[str]
    """By kind of finding."""
    removed: list[bytes]
    """Paths that led nowhere, or to what another path leads to; so many as REMOVED_MAX."""
    removed_count: int
    """All of them."""
    left: Counter[str]
    """What could not be repaired, by kind of finding."""


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
    removed: list[bytes] = []
    removed_count = 0
    writer = IndexWriter(path / "index", lock.fd)
    try:
        for done in range(ROUNDS_MAX):
            each = _round(path, writer, on_step)
            if not each.repaired:
                return Repaired(done, repaired, removed, removed_count, each.left)
            repaired += each.repaired
            removed += each.removed[: REMOVED_MAX - len(removed)]
            removed_count += each.removed_count
    finally:
        writer.close()
    raise StoreError(
        f"{path} is not repaired yet: {ROUNDS_MAX} rounds put {repaired.total()} findings right, "
        "and there are more",
        advice="go on with the same command; what was put right stays so",
    )


def _round(path: Path, writer: IndexWriter, on_step: OnStep | None) -> Repaired:
    with View(path) as view:
        chosen, left = _choose(view, on_step)
        counters = view.counters
        names = [name for finding in chosen for name in _removed_names(view, finding)]
        removed = _paths(view, names[:REMOVED_MAX])
        for finding in chosen:
            for database, key, value in finding.changes:
                if value is None:
                    view.overlay.delete(database, key)
                else:
                    view.overlay.put(database, key, value)
        lost = [finding.lost for finding in chosen if finding.lost is not None]
        fileless = [finding.fileless for finding in chosen if finding.fileless is not None]
        if lost or fileless:
            home = _lost_and_found(view)
            _give_names(view, home, lost)
            _give_files(view, home, fileless)
        if chosen:
            counters.generation += 1
            # Unless the counters themselves were repaired: those that were read are wrong.
            if not any(finding.kind == "counters" for finding in chosen):
                view.overlay.put(layout.META, COUNTERS_KEY, counters.encode())
            writer.write(view.overlay.freeze())
        done = Counter(finding.kind for finding in chosen)
        return Repaired(1, done, removed, len(names), left)


def _choose(view: View, on_step: OnStep | None) -> tuple[list[Finding], Counter[str]]:
    """What is repaired now; and what cannot be, by kind."""
    chosen: list[Finding] = []
    left: Counter[str] = Counter()
    touched: set[tuple[int, bytes]] = set()
    for finding in Check(view).findings(on_step):
        if not finding.repairable:
            left[finding.kind] += 1
            continue
        if finding.kind == "root":
            # Nothing else is to be said before that: all below it looks lost.
            return [finding], left
        places = {(database, key) for database, key, _ in finding.changes}
        if touched & places:
            continue
        touched |= places
        chosen.append(finding)
        if len(touched) >= AT_ONCE:
            break
    if any(finding.needs_name for finding in chosen):
        # Making names needs counters that are right, and changes them.
        kinds = {"counters"} & {finding.kind for finding in chosen}
        chosen = [finding for finding in chosen if not finding.needs_name or not kinds]
    return chosen, left


def _removed_names(view: View, finding: Finding) -> list[tuple[Ino, bytes]]:
    """Names that go with a repair and do not come to another place: directory and name."""
    gone: list[tuple[Ino, bytes]] = []
    kept: set[bytes] = set()
    for database, key, value in finding.changes:
        if database != layout.ENTRIES:
            continue
        if value is not None:
            kept.add(layout.split_entry(value)[2])
            continue
        old = view.overlay.get(layout.ENTRIES, key)
        if old is not None:
            gone.append((Ino(layout.from_u48(key)), layout.split_entry(old)[2]))
    return [(parent, name) for parent, name in gone if name not in kept]


def _paths(view: View, names: list[tuple[Ino, bytes]]) -> list[bytes]:
    """Paths of names, as far as the way to them can be told."""
    parents = {parent for parent, _ in names}
    above: dict[Ino, bytes] = {}
    try:
        above = directories(view, parents)
    except CafsError:
        # The way to one of them is broken itself.
        for parent in parents:
            with contextlib.suppress(CafsError):
                above |= directories(view, [parent])
    return [above.get(parent, b"inode %d" % parent) + b"/" + name for parent, name in names]


def _lost_and_found(view: View) -> Ino:
    tree = view.tree
    home = tree.lookup(ROOT, LOST_AND_FOUND)
    if home is None or not stat.S_ISDIR(tree.inodes.get(home).mode):
        name, number = LOST_AND_FOUND, 0
        while home is not None:
            number += 1
            name = LOST_AND_FOUND + b".%d" % number
            home = tree.lookup(ROOT, name)
        home = tree.create(ROOT, name, stat.S_IFDIR | 0o700, 0, 0)
    return home


def _give_names(view: View, home: Ino, lost: list[Ino]) -> None:
    """Names in lost+found; the counts that go with them are the next round's business."""
    tree = view.tree
    for ino in lost:
        name = b"#%d" % ino
        place = tree.names.place(home, name)
        if place is None:
            raise StoreError("lost+found takes no more names")
        kind = tree.inodes.get(ino).mode >> 12
        tree.names.put(home, place[0], name, ino, kind)


def _give_files(view: View, home: Ino, fileless: list[BlobNo]) -> None:
    """Files in lost+found for content that has lost its own; each is named by its SHA-256."""
    tree = view.tree
    for blob in fileless:
        record = view.blobs.get(blob)
        unhashed = bool(record.flags & BLOB_UNHASHED)
        name = b"blob-%d" % blob if unhashed else record.sha256.hex().encode()
        if tree.lookup(home, name) is not None:
            name += b".%d" % blob
        ino = tree.create(home, name, stat.S_IFREG | 0o600, 0, 0)
        tree.publish(ino, blob, record.size)
        if unhashed:
            view.overlay.put(layout.UNHASHED, layout.u48(blob), layout.u48(ino))
