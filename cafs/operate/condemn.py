"""Marking chunks that were found damaged, so that nothing new is built on them.

A chunk that is marked is never shared with new content.  When the same bytes are written again
they are stored anew, and every file that had the damaged chunk has them back.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from cafs import control
from cafs.errors import DaemonAbsentError, StoreBusyError
from cafs.index.writer import IndexWriter
from cafs.lock import StoreLock
from cafs.types import ChunkNo
from cafs.view import View

AT_ONCE = 50_000


def condemn(store: Path, chunks: Collection[int], *, damaged: bool = True) -> int:
    """Mark *chunks*, or take the mark away, by the daemon if one runs; how many it changed.

    Raises DaemonError, StoreBusyError, DiskFullError and its kin.
    """
    numbers = sorted(chunks)
    marked = 0
    for start in range(0, len(numbers), AT_ONCE):
        some = numbers[start : start + AT_ONCE]
        try:
            marked += int(
                control.call(store, "condemn", chunks=some, damaged=damaged)["marked_count"]
            )
        except DaemonAbsentError:
            marked += _condemn_here(store, some, damaged)
    return marked


def _condemn_here(store: Path, numbers: Collection[int], damaged: bool) -> int:
    try:
        lock = StoreLock(store)
    except StoreBusyError:
        # A daemon that began just now, or that ends just now.
        answer = control.call(store, "condemn", chunks=list(numbers), damaged=damaged)
        return int(answer["marked_count"])
    try:
        with View(store) as view:
            marked = view.chunks.condemn([ChunkNo(n) for n in numbers], damaged=damaged)
            if marked:
                writer = IndexWriter(store / "index", lock.fd)
                try:
                    writer.write(view.overlay.freeze())
                finally:
                    writer.close()
            return marked
    finally:
        lock.release()
