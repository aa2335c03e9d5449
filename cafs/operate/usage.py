"""How much a part of the tree holds, and what deleting it would give back.

Counts from the top: names lead to inodes, inodes to blobs, blobs to chunks.  At each step what
was met inside is compared with the record's own count of references: if they agree, nothing
outside has it.  Invariant: what would be freed is exactly what a deletion, a sweep and a full
compaction would take out of the packs.
"""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cafs.blobs import recipe
from cafs.index import layout
from cafs.index.layout import BLOB_AGED, BLOB_ROWS
from cafs.operate.numbers import Counts
from cafs.operate.paths import STEP, Named, attr_of
from cafs.types import BlobNo, Ino
from cafs.view import View

_DIRECTORY: Final = stat.S_IFDIR >> 12

Advance = Callable[[int], None]
"""Told how many records have been looked at, in all steps together."""


class Usage(NamedTuple):
    """What lies below some paths; sizes in bytes."""

    files: int
    """Regular files, each once however many names it has."""
    directories: int
    """Those that were named included."""
    others: int
    """Symbolic links, devices and the like."""
    logical: int
    """Sum of the files' sizes."""
    blobs: int
    """Different contents of files."""
    chunks: int
    """Different chunks."""
    unique: int
    """Sum of the lengths of those chunks, each once."""
    stored: int
    """What those chunks take in packs."""
    shared: int
    """The part of *unique* that something outside has, too."""
    freed: int
    """The part of *stored* that would go with it: what nothing outside has."""


def usage(view: View, roots: Iterable[Named], advance: Advance | None = None) -> Usage:
    """What *roots* and everything below them hold together; roots may overlap.

    Raises IndexDamagedError.
    """
    step = _Step(advance)
    links = _links(view, roots, step)
    files = directories = others = logical = 0
    inside, whole = Counts(view.counters.next_blob), Counts(view.counters.next_blob)
    for ino, value in links.records(view, layout.INODES, view.counters.inodes):
        step()
        mode, nlink, size, blob = layout.inode_content(value)
        if stat.S_ISDIR(mode):
            directories += 1
            continue
        if not stat.S_ISREG(mode):
            others += 1
            continue
        files += 1
        logical += size
        if blob:
            inside.add(blob)
            # A name outside keeps the file alive.
            if nlink == links[ino]:
                whole.add(blob)
    used, gone = _chunks(view, inside, whole, step)
    unique = stored = shared = freed = 0
    for number, value in used.records(view, layout.CHUNKS, view.counters.chunks):
        step()
        stored_length, raw_length, refs = layout.chunk_use(value)
        unique += raw_length
        stored += stored_length
        if refs > gone[number]:
            shared += raw_length
        else:
            freed += stored_length
    return Usage(
        files, directories, others, logical, len(inside), len(used), unique, stored, shared, freed
    )


class _Step:
    """Counts records and passes the count on now and then."""

    def __init__(self, advance: Advance | None) -> None:
        self._advance = advance
        self._seen = 0

    def __call__(self) -> None:
        self._seen += 1
        if self._advance is not None and self._seen % STEP == 0:
            self._advance(self._seen)


def _links(view: View, roots: Iterable[Named], step: _Step) -> Counts:
    """Every inode at and below *roots*, with how many of its names lie there."""
    links = Counts(view.counters.next_ino)
    single: set[Named] = set()
    for root in roots:
        if not stat.S_ISDIR(attr_of(view, root.ino).mode):
            single.add(root)
            continue
        left = [root.ino] if not links.add(root.ino) else []
        while left:
            prefix = layout.u48(left.pop())
            for _, value in view.overlay.scan(layout.ENTRIES, prefix, prefix):
                step()
                ino = Ino(int.from_bytes(value[:6], "little"))
                # A directory has one name: a second meeting is another root's.
                if not links.add(ino) and value[6] == _DIRECTORY:
                    left.append(ino)
    for name in single:
        if not links[name.parent]:
            links.add(name.ino)
    return links


def _chunks(view: View, inside: Counts, whole: Counts, step: _Step) -> tuple[Counts, Counts]:
    """Chunks of the blobs in *inside*; and how many references to chunks would go with them."""
    used, gone = Counts(view.counters.next_chunk), Counts(view.counters.next_chunk)
    inner: dict[int, bool] = {}
    for number, value in inside.records(view, layout.BLOBS, view.counters.blobs):
        step()
        # References are those of inodes; *whole* counts the ones that would go.
        refs, flags = layout.blob_use(value)
        exclusive = refs <= whole[number]
        _count(view, BlobNo(number), value, used, gone if exclusive else None)
        if flags & BLOB_AGED:
            # What it is made of belongs to it alone.
            inner[layout.unpack_blob(value).mate] = exclusive
    for number, exclusive in sorted(inner.items()):
        step()
        record = _record(view, number)
        if record is not None:
            _count(view, BlobNo(number), record, used, gone if exclusive else None)
    # What was deleted and not swept yet has references, but no claim on anything.
    for key, _ in view.overlay.scan(layout.DEAD, b"b", b"b"):
        step()
        number = int.from_bytes(key[1:], "big")
        record = _record(view, number)
        if record is not None and not inside[number]:
            _count(view, BlobNo(number), record, None, gone)
            _, flags = layout.blob_use(record)
            mate = layout.unpack_blob(record).mate if flags & BLOB_AGED else 0
            outgoing = _record(view, mate) if mate else None
            # One that is dead by itself comes by on its own.
            if outgoing is not None and layout.blob_use(outgoing)[0]:
                _count(view, BlobNo(mate), outgoing, None, gone)
    return used, gone


def _record(view: View, number: int) -> bytes | None:
    return view.overlay.get(layout.BLOBS, layout.u48(number))


def _count(
    view: View, number: BlobNo, record: bytes, used: Counts | None, gone: Counts | None
) -> None:
    """Count the references of a blob's recipe in those that are given."""
    if layout.blob_use(record)[1] & BLOB_ROWS:
        prefix = layout.u48(number)
        rows: Iterable[bytes] = (
            row for _, row in view.overlay.scan(layout.RECIPES, prefix, prefix)
        )
    else:
        rows = (layout.blob_row(record),)
    for row in rows:
        for ref in recipe.row_refs(row):
            if used is not None:
                used.add(ref)
            if gone is not None:
                gone.add(ref)
