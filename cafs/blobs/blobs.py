"""The table of blobs: records, digests, recipes and their reference counts.

Belongs to the event loop.  Two kinds of blob: a *hashed* one never changes and may be shared
by many inodes; an *unhashed* one is content that is still being written, owned by one inode,
and its recipe is edited in place.  Invariants: a blob's reference count is the number of inodes
that have it; a chunk is counted once for each part of a recipe that names it; the parts of a
recipe are contiguous from 0 to the blob's size.
"""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice

from cafs.blobs import recipe
from cafs.blobs.aged import Aged
from cafs.blobs.chunks import Chunks
from cafs.blobs.digests import ByDigest, Digests
from cafs.blobs.holes import HoleSums
from cafs.blobs.recipe import Part
from cafs.blobs.rows import Row, Rows, decoded, join, split
from cafs.errors import CafsError, IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import (
    BLOB_AGED,
    BLOB_HOLES,
    BLOB_INNER,
    BLOB_ROWS,
    BLOB_UNHASHED,
    NO_SHA1,
    NO_SHA256,
    BlobRecord,
)
from cafs.index.overlay import Overlay
from cafs.types import BlobNo, Ino

log = logging.getLogger(__name__)


class Blobs:
    """Blob records over the overlay."""

    def __init__(self, overlay: Overlay, counters: Counters, chunks: Chunks) -> None:
        self.overlay = overlay
        self._counters = counters
        self.chunks = chunks
        self.rows = Rows(overlay)
        self.by_digest = ByDigest(overlay, self.rows)
        self.aged = Aged(self)
        self._holes = HoleSums()
        self._edits: dict[BlobNo, int] = {}
        self.hidden: set[BlobNo] = set()
        """Unhashed blobs of uploads that have no name yet; see cafs.blobs.shown."""

    def get(self, number: BlobNo) -> BlobRecord:
        """The record of a blob.  Raises IndexDamagedError if there is none."""
        value = self.overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            raise IndexDamagedError(f"blob {number} has no record")
        return layout.unpack_blob(value)

    def hole_bytes(self, number: BlobNo) -> int:
        """Bytes of a blob that are stored nowhere.

        Asked for after each change of a file: the whole recipe is gone through only the first
        time.
        """
        record = self.get(number)
        if not record.flags & BLOB_HOLES:
            return 0
        known = self._holes.get(number)
        if known is None:
            known = recipe.hole_length(part for _, part in self.parts(number, 0, record.size))
            self._holes.set(number, known)
        return known

    def add_holes(self, number: BlobNo, before: BlobRecord, change: int) -> None:
        """A recipe that had this record *before* has so many bytes more (or less) in holes."""
        if before.flags & BLOB_HOLES:
            self._holes.add(number, change)
        elif change:
            self._holes.set(number, change)

    def edits(self, number: BlobNo) -> int:
        """How often the recipe of an unhashed blob was changed in place since the start.

        Who remembers such a blob over a checkpoint compares this: the number stays the same.
        """
        return self._edits.get(number, 0)

    def _edited(self, number: BlobNo) -> None:
        self._edits[number] = self.edits(number) + 1

    # -- making and changing -----------------------------------------------------------------

    def adopt(self, parts: Sequence[Part], size: int, digests: Digests) -> BlobNo:
        """The blob with this content: the one that is there, or a new one of these parts.

        One that is there and aged gets these parts as its recipe: content that was written
        just now is in use, and what was damaged is whole again.  The parts' chunks are pinned
        and are let go of either way.  The caller refers to it with ref() before the next
        checkpoint.
        """
        found = self.by_digest.find(digests.sha256)
        if found:
            if self.get(found).flags & BLOB_AGED:
                self.aged.thaw(found, parts)
            else:
                self.chunks.unpin(recipe.chunk_refs(parts))
            return found
        number = self.new_number()
        try:
            self.chunks.count(recipe.chunk_refs(parts))
        except BaseException:
            self.chunks.unpin(recipe.chunk_refs(parts))
            raise
        self._put_recipe(number, BlobRecord(size, 0, 0, *digests, b""), parts)
        self.by_digest.put(number, digests)
        return number

    def reveal(self, number: BlobNo) -> None:
        """A hidden blob gets a name: from now on others may be reading it."""
        if number in self.hidden:
            self.hidden.discard(number)
            self.chunks.shown.show_all()

    def begin(self, owner: Ino) -> BlobNo:
        """A new, empty, unhashed blob for one inode; the caller refers to it."""
        number = self.new_number()
        self.put(number, BlobRecord(0, 0, BLOB_UNHASHED, NO_SHA256, NO_SHA1, b""))
        self.overlay.put(layout.UNHASHED, layout.u48(number), layout.u48(owner))
        return number

    def fork(self, source: BlobNo, owner: Ino) -> BlobNo:
        """A new unhashed blob with the same recipe as *source*, for one inode.

        Raises CafsError if *source* is aged: what is edited is plain.
        """
        self._refuse_aged(source)
        number = self.begin(owner)
        record = self.get(source)
        parts = [part for _, part in self.parts(source, 0, record.size)]
        self.chunks.count_again(recipe.chunk_refs(parts))
        empty = self.get(number)
        self._put_recipe(number, empty._replace(size=record.size), parts)
        self.add_holes(number, empty, recipe.hole_length(parts))
        return number

    def fork_more(self, number: BlobNo, source: BlobNo, limit: int, end: int | None = None) -> int:
        """Continue an unhashed blob with at most *limit* parts of another one, from where it
        ends; how many.  begin() and this, again and again, are a fork() that holds nobody up.
        Parts that begin at or behind *end* are left out.
        """
        self._refuse_aged(source)
        record, whole = self.get(number), self.get(source)
        if not record.flags & BLOB_UNHASHED:
            raise IndexDamagedError(f"blob {number} is hashed and cannot change")
        rest = self.parts(source, record.size, whole.size if end is None else end)
        parts = [part for _, part in islice(rest, limit)]
        if parts:
            self.chunks.count_again(recipe.chunk_refs(parts))
            self._edited(number)
            size = record.size + recipe.total_length(parts)
            flags = record.flags | BLOB_ROWS | whole.flags & BLOB_HOLES
            self.put(number, record._replace(size=size, flags=flags))
            self.rows.put(number, record.size, parts)
            self.add_holes(number, record, recipe.hole_length(parts))
        return len(parts)

    def _refuse_aged(self, number: BlobNo) -> None:
        if self.get(number).flags & BLOB_AGED:
            raise CafsError(f"blob {number} is taken apart and has to be thawed first")

    def splice(
        self, number: BlobNo, start: int, end: int, parts: Sequence[Part], size: int
    ) -> None:
        """Put *parts* in the place of those from *start* to *end*; the blob's new size is *size*.

        Both are borders of parts (or lie in a hole).  The new parts must be as long as what
        they replace, unless *end* is the end of the blob.  Their chunks are pinned and are let
        go of either way.  Raises IndexDamagedError; then nothing has changed.
        """
        added = recipe.chunk_refs(parts)
        try:
            record, rows, before, removed, after = self._cut_out(number, start, end)
            hidden = number in self.hidden
            self.chunks.exchange(added, recipe.chunk_refs(removed), hidden=hidden)
        except BaseException:
            self.chunks.unpin(added)
            raise
        self._edited(number)
        first = rows[0].starts[0] if rows and rows[0].starts else start
        merged = join([*before, *parts, *after])
        change = recipe.hole_length(parts) - recipe.hole_length(removed)
        self.add_holes(number, record, change)
        record = record._replace(size=size)
        if not record.flags & BLOB_ROWS:
            self._put_recipe(number, record, merged)
            return
        for row in rows:
            if row.starts:
                self.rows.delete(number, row.starts[0])
        if any(part.kind == recipe.HOLE for part in parts):
            record = record._replace(flags=record.flags | BLOB_HOLES)
        self.put(number, record)
        self.rows.put(number, first, merged)

    def _cut_out(
        self, number: BlobNo, start: int, end: int
    ) -> tuple[BlobRecord, list[Row], list[Part], list[Part], list[Part]]:
        """A blob's record, the rows that a change affects, and their parts before the place, in
        it and behind it.
        """
        record = self.get(number)
        if not record.flags & BLOB_UNHASHED:
            raise IndexDamagedError(f"blob {number} is hashed and cannot change")
        rows = list(self._affected(number, record, start, end))
        before: list[Part] = []
        removed: list[Part] = []
        after: list[Part] = []
        for row in rows:
            for begin, part in zip(row.starts, row.parts, strict=True):
                for place, piece in split(begin, part, start, end):
                    (before if place < 0 else after if place > 0 else removed).append(piece)
        return record, rows, before, removed, after

    def _affected(self, number: BlobNo, record: BlobRecord, start: int, end: int) -> Iterator[Row]:
        if not record.flags & BLOB_ROWS:
            yield decoded(0, record.parts)
            return
        # One byte to the left: a part that is appended joins the last row, not a row of its own.
        for row in self.rows.range(number, max(0, start - 1), max(end, start + 1)):
            full = len(row.parts) >= layout.PARTS_PER_ROW and row.parts[-1].kind != recipe.HOLE
            if row.end > start or not full:
                yield row

    def unhashed(self) -> list[tuple[BlobNo, Ino]]:
        """Blobs without digests, and the inode that each belongs to."""
        return [
            (BlobNo(layout.from_u48(key)), Ino(layout.from_u48(value)))
            for key, value in self.overlay.scan(layout.UNHASHED, b"", b"")
        ]

    def hashed(self, number: BlobNo, digests: Digests) -> BlobNo:
        """An unhashed blob's digests are known: the number to refer to from now on.

        If the same content is there already that is its number, and *number* is the caller's
        to unref before the next checkpoint: if that blob is aged, it has the recipe of *number*
        then (see adopt()).  Raises IndexDamagedError if it has others already.
        """
        found = self.by_digest.find(digests.sha256)
        record = self.get(number)
        if found == number:
            # Two have hashed it.
            return number
        if not record.flags & BLOB_UNHASHED:
            raise IndexDamagedError(f"blob {number} is hashed and cannot change")
        self._edits.pop(number, None)
        if found:
            there = self.get(found)
            same = record.size == there.size and self.hole_bytes(number) == self.hole_bytes(found)
            if there.flags & BLOB_AGED and same:
                self.reveal(number)
                self.aged.take_plain(found, number)
            return found
        self.put(
            number,
            record._replace(
                flags=record.flags & ~BLOB_UNHASHED, sha256=digests.sha256, sha1=digests.sha1
            ),
        )
        self.overlay.delete(layout.UNHASHED, layout.u48(number))
        self.by_digest.put(number, digests)
        return number

    def ref(self, number: BlobNo) -> None:
        """One more inode has this blob."""
        record = self.get(number)
        self.put(number, record._replace(refs=record.refs + 1))
        if record.refs == 0:
            self.overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
            self._counters.blobs += 1
            self._counters.add_blob(record.size)

    def unref(self, number: BlobNo) -> None:
        """One inode less has this blob; without any it waits for the sweep.

        One that is lost has no count: a file that had it may be deleted or written anew.
        """
        value = self.overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            log.warning("blob %d is lost, and a file less needs it", number)
            return
        record = layout.unpack_blob(value)
        if record.refs == 0:
            raise IndexDamagedError(f"blob {number} has no references")
        self.put(number, record._replace(refs=record.refs - 1))
        if record.refs == 1:
            self.overlay.put(layout.DEAD, layout.dead_key(b"b", number), b"")
            self._counters.blobs -= 1
            self._counters.add_blob(-record.size)

    def sweep(self, number: BlobNo, limit: int) -> bool:
        """Take at most *limit* parts from the end of a dead blob; True when it is gone.

        A blob that somebody has come to need again, or holds, is left as it is (True as well).
        """
        if self.aged.held(number):
            return True
        key = layout.u48(number)
        value = self.overlay.get(layout.BLOBS, key)
        record = layout.unpack_blob(value) if value is not None else None
        if record is None or record.refs:
            self.overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
            return True
        # From now on nobody may find it: it is about to lose parts.
        self._holes.drop(number)
        self._edits.pop(number, None)
        if not record.flags & BLOB_UNHASHED:
            if not record.flags & BLOB_INNER:
                self.by_digest.delete(number, Digests(record.sha256, record.sha1))
            record = record._replace(
                flags=record.flags | BLOB_UNHASHED, sha256=NO_SHA256, sha1=NO_SHA1
            )
            self.put(number, record)
        if record.flags & BLOB_ROWS:
            some = self.rows.first(number, limit // layout.PARTS_PER_ROW + 1)
            for start, row in some:
                self.chunks.uncount(recipe.chunk_refs(recipe.decode(row)))
                self.rows.delete(number, start)
            if some:
                # Rows may hold fewer parts than they could: only when none is found is it over.
                return False
        else:
            self.chunks.uncount(recipe.chunk_refs(recipe.decode(record.parts)))
        if record.flags & BLOB_AGED:
            self.aged.gone_bytes += record.size
            # In one step with the last of the outer blob: until then each names the other.
            self.aged.release_inner(record.mate)
        self.hidden.discard(number)
        self.overlay.delete(layout.BLOBS, key)
        self.overlay.delete(layout.UNHASHED, key)
        self.overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
        return True

    # -- recipes -----------------------------------------------------------------------------

    def parts(self, number: BlobNo, start: int, end: int) -> Iterator[tuple[int, Part]]:
        """Parts that overlap bytes [start, end), each with its own first byte."""
        return self.parts_of(number, self.get(number), start, end)

    def parts_of(
        self, number: BlobNo, record: BlobRecord, start: int, end: int
    ) -> Iterator[tuple[int, Part]]:
        """As parts(), for who has the blob's record already."""
        rows: Iterator[Row]
        if record.flags & BLOB_ROWS:
            rows = self.rows.range(number, start, end)
        else:
            rows = iter((decoded(0, record.parts),))
        for row in rows:
            index = max(0, bisect_right(row.starts, start) - 1)
            for begin, part in zip(row.starts[index:], row.parts[index:], strict=True):
                if begin >= end:
                    return
                if begin + part.length > start:
                    yield begin, part

    def _put_recipe(self, number: BlobNo, record: BlobRecord, parts: Sequence[Part]) -> None:
        if any(part.kind == recipe.HOLE for part in parts):
            record = record._replace(flags=record.flags | BLOB_HOLES)
        encoded = recipe.encode(parts) if len(parts) <= layout.PARTS_PER_ROW else b""
        if len(parts) <= layout.PARTS_PER_ROW and len(encoded) <= layout.INLINE_PARTS_MAX:
            self.put(number, record._replace(parts=encoded))
        else:
            self.put(number, record._replace(parts=b"", flags=record.flags | BLOB_ROWS))
            self.rows.put(number, 0, parts)

    def put(self, number: BlobNo, record: BlobRecord, *, shown: bool = False) -> None:
        """Write a record.  *shown* marks it for other readers in any case (see Overlay.put())."""
        if record.refs and record.flags & BLOB_UNHASHED:
            # The size of content that is being written moves; the sum of sizes moves with it.
            old = self.overlay.get(layout.BLOBS, layout.u48(number))
            if old is not None:
                before = layout.unpack_blob(old)
                if before.refs:
                    self._counters.add_blob(record.size - before.size)
        # What a hashed blob has been stays right: only its count of references changes.
        shown = shown or bool(record.flags & BLOB_UNHASHED)
        self.overlay.put(layout.BLOBS, layout.u48(number), layout.pack_blob(record), shown=shown)

    def new_number(self) -> BlobNo:
        """A number that no blob has had."""
        number = BlobNo(self._counters.next_blob)
        self._counters.next_blob += 1
        return number
