"""Bringing an index back: from what is whole of it, its last copy, and the packs.

Three steps, each of which is left out where there is nothing to do:

1. The index is made anew from its pages that are whole; what lay in damaged ones is taken from
   the copy, and so is everything when there is nothing left to read (cafs.operate.new_index).
2. Each chunk must lie where the sidecars say; one that moved since the copy is found there
   (cafs.operate.relink).  What has lost its record gets it back, where the rest of it is there
   (also cafs.operate.remake).
3. A repair counts everything anew.

The damaged index is kept beside the new one.  Invariants: the store's lock is held throughout;
``STORE/index`` is replaced by renames, when the new one is whole and durable; no daemon starts
with it before step 3 is through, whenever this is stopped, and the next rebuild goes on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from cafs import storefile
from cafs.errors import IndexDamagedError
from cafs.index import layout, meta, pages, unfinished
from cafs.index.counters import AHEAD
from cafs.index.counters import KEY as COUNTERS_KEY
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.operate import new_index
from cafs.operate.relink import Relink, Relinked
from cafs.operate.remake import remake_blobs
from cafs.operate.repair import Repaired, repair_locked
from cafs.view import View

OnPhase = Callable[[str], None]
_FAULTS_NOTED = 1000


class Rebuilt(NamedTuple):
    """What was done."""

    source: str
    """``index``: it was whole; ``both``: parts came from the copy; ``copy``: all did."""
    faults: list[str]
    """What was wrong with the index."""
    from_copy: int
    """Records that came from the copy."""
    kept_as: str
    """The damaged index's new name in the store; empty if it was whole."""
    moved_chunks: int
    """Chunks that were found in another place than the index said."""
    lost_chunks: int
    """Chunks that are in no pack."""
    remade_chunks: int
    """Chunks that had lost their records, and were found in the packs."""
    remade_blobs: int
    """Blobs that had lost their records, and of which the rest was there."""
    repaired: Repaired


class _Made(NamedTuple):
    """What step 1 did; kept with the index until all is done."""

    source: str = "index"
    faults: tuple[str, ...] = ()
    from_copy: int = 0
    kept_as: str = ""

    def note(self) -> dict[str, Any]:
        return self._replace(faults=self.faults[:_FAULTS_NOTED])._asdict()


def rebuild(store: Path, on_phase: OnPhase) -> Rebuilt:
    """Bring the index of *store* back.

    Raises StoreBusyError, IndexDamagedError when there is neither an index nor a copy,
    DiskFullError and its kin; then the store is as it was, or the next rebuild goes on.
    """
    storefile.read(store)
    lock = StoreLock(store)
    try:
        new_index.go_on(store)
        index = store / "index"
        on_phase("looking at the index")
        made = _make(store, on_phase)
        if made.faults:
            _pass_over_numbers(store, lock)
        on_phase("comparing chunks with the packs")
        relinked, remade_blobs = _relink(store, lock, made)
        on_phase("counting everything anew")
        repaired = repair_locked(store, lock)
        if unfinished.note(index) is not None:
            unfinished.end(index)
    finally:
        lock.release()
    return Rebuilt(
        made.source,
        list(made.faults),
        made.from_copy,
        made.kept_as,
        relinked.moved,
        relinked.lost,
        relinked.remade,
        remade_blobs,
        repaired,
    )


def _make(store: Path, on_phase: OnPhase) -> _Made:
    """Step 1: afterwards the index is whole."""
    index = store / "index"
    note = unfinished.note(index)
    made = _Made()
    if note is not None:
        # Only what it knows of: another version may have written it.
        known = {name: value for name, value in note.items() if name in _Made._fields}
        made = _Made(**known)
        made = made._replace(faults=tuple(made.faults))
    mended = meta.mend(index, lose_commit=True)
    if mended is not None:
        made = made._replace(faults=(*made.faults, str(mended)))
    unreadable = ""
    found: list[pages.Fault] = []
    try:
        found = pages.audit(index).faults
        made = made._replace(faults=(*made.faults, *map(str, found)))
        if new_index.has_no_roots(found):
            unreadable = str(found[0])
    except IndexDamagedError as error:
        unreadable = str(error)
        made = made._replace(faults=(*made.faults, unreadable))
    if not found and not unreadable:
        new_index.discard(store)
        return made
    kept = new_index.free_name(store)
    try:
        if unreadable:
            on_phase("taking the copy of the index")
            of_copy = [f"in the copy: {fault}" for fault in new_index.of_copy(store)]
            made = _Made("copy", (*made.faults, *of_copy), 0, kept)
        else:
            on_phase("making the index anew")
            made = _Made("both", made.faults, new_index.of_pages(store, index, found), kept)
        unfinished.begin(store / new_index.NEW, made.note())
    except BaseException:
        new_index.discard(store)
        raise
    new_index.put_in_place(store, kept)
    return made


def _relink(store: Path, lock: StoreLock, made: _Made) -> tuple[Relinked, int]:
    """Step 2: the chunk table is as the packs are; and how many blobs have their records back."""
    index = store / "index"
    with View(store) as view:
        relinked = Relink(store, view).run()
        remade_blobs = remake_blobs(view)
        if view.overlay.dirty:
            if unfinished.note(index) is None:
                # Packs have the wrong figures from here until all is counted anew: a daemon
                # would take one for empty.
                unfinished.begin(index, made.note())
            _write(store, lock, view)
        return relinked, remade_blobs


def _pass_over_numbers(store: Path, lock: StoreLock) -> None:
    """No inode gets a number that one had since the commit that is left."""
    with View(store) as view:
        view.overlay.put(layout.META, COUNTERS_KEY, view.counters.encode(AHEAD))
        _write(store, lock, view)


def _write(store: Path, lock: StoreLock, view: View) -> None:
    writer = IndexWriter(store / "index", lock.fd)
    try:
        writer.write(view.overlay.freeze())
    finally:
        writer.close()
