"""Marking chunks that were found damaged, so that nothing new is built on them.

Whoever marks them reads them first: what somebody else has seen may be long gone, or moved.

A chunk that is marked is never shared with new content.  When the same bytes are written again
they are stored anew, and every file that had the damaged chunk has them back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from functools import partial
from pathlib import Path

from cafs import control
from cafs.blobs.pack import PackStore
from cafs.blobs.reader import verified
from cafs.errors import CafsError, DaemonAbsentError, StoreBusyError
from cafs.index import layout
from cafs.index.layout import ChunkRecord
from cafs.index.overlay import Overlay
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.store import Store
from cafs.types import ChunkNo
from cafs.view import View

AT_ONCE = 50_000


def problem_of(packs: PackStore, number: ChunkNo, record: ChunkRecord) -> str:
    """Read a chunk: what is wrong with it; empty if it is what was written.  Any thread."""
    extent = record.extent
    try:
        stored = packs.read_stored(extent.pack, extent.offset, extent.stored_length)
        if hashlib.sha256(verified(number, extent, stored)).digest() != record.sha256:
            return f"chunk {number} does not have its SHA-256"
    except CafsError as error:
        return str(error)
    return ""


def condemn(store: Path, chunks: Collection[int], *, damaged: bool = True) -> int:
    """Mark *chunks*, or take the mark away, by the daemon if one runs; how many it changed.

    Those that are not so, as they lie now, are left alone.
    Raises DaemonError, StoreBusyError, DiskFullError and its kin.
    """
    numbers = sorted(chunks)
    marked = 0
    for start in range(0, len(numbers), AT_ONCE):
        some = numbers[start : start + AT_ONCE]
        try:
            marked += by_daemon(store, some, damaged=damaged)
        except DaemonAbsentError:
            marked += _condemn_here(store, some, damaged)
    return marked


def by_daemon(store: Path, chunks: Collection[int], *, damaged: bool = True) -> int:
    """The same, by the daemon only.  Raises DaemonAbsentError if there is none."""
    answer = control.call(store, "condemn", chunks=sorted(chunks), damaged=damaged)
    return int(answer["marked_count"])


def records_of(overlay: Overlay, numbers: Collection[int]) -> list[tuple[ChunkNo, ChunkRecord]]:
    """Of chunks those that there are, and whose records can be read."""
    found = []
    for number in map(ChunkNo, numbers):
        try:
            value = overlay.get(layout.CHUNKS, layout.u48(number))
            if value is not None:
                found.append((number, layout.unpack_chunk(value)))
        except CafsError:
            # The damage of a record has its own way to be told.
            continue
    return found


async def condemn_in(store: Store, numbers: Collection[int], *, damaged: bool) -> int:
    """condemn() within the process that has the store open.  Commits."""
    marked = 0
    for chunk, record in records_of(store.overlay, numbers):
        problem = await store.workers.run(partial(problem_of, store.packs, chunk, record))
        now = records_of(store.overlay, [chunk])
        # If it was moved or swept meanwhile, what was read says nothing of it.
        if bool(problem) == damaged and now and now[0][1].extent == record.extent:
            marked += store.chunks.condemn([chunk], damaged=damaged)
    await store.commit()
    return marked


def _condemn_here(store: Path, numbers: Collection[int], damaged: bool) -> int:
    try:
        lock = StoreLock(store)
    except StoreBusyError:
        # A daemon that began just now, or that ends just now.
        return by_daemon(store, numbers, damaged=damaged)
    try:
        with View(store) as view:
            records = records_of(view.overlay, numbers)
            sure = [n for n, each in records if bool(problem_of(view.packs, n, each)) == damaged]
            marked = view.chunks.condemn(sure, damaged=damaged)
            if marked:
                writer = IndexWriter(store / "index", lock.fd)
                try:
                    writer.write(view.overlay.freeze())
                finally:
                    writer.close()
            return marked
    finally:
        lock.release()
