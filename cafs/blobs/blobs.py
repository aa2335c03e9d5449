"""The table of blobs: records, digests, recipes and their reference counts.

Belongs to the event loop.  Two kinds of blob: a *hashed* one never changes and may be shared
by many inodes; an *unhashed* one is content that is still being written, owned by one inode,
and its recipe is edited in place.  Invariants: a blob's reference count is the number of inodes
that have it; a chunk is counted once for each part of a recipe that names it; the parts of a
recipe are contiguous from 0 to the blob's size.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from cafs.blobs import recipe
from cafs.blobs.chunks import Chunks
from cafs.blobs.recipe import Part
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import BLOB_HOLES, BLOB_ROWS, BLOB_UNHASHED, BlobRecord
from cafs.index.overlay import Overlay
from cafs.index.recent import Recent
from cafs.types import NO_BLOB, BlobNo, Ino

_NO_SHA256 = bytes(32)
_NO_SHA1 = bytes(20)
_ROW_CACHE = 256


class Digests(NamedTuple):
    """Both names of a blob."""

    sha256: bytes
    sha1: bytes


class Row(NamedTuple):
    """A stretch of a recipe, decoded."""

    starts: list[int]
    """First byte of each part."""
    parts: list[Part]
    end: int


class Blobs:
    """Blob records over the overlay."""

    def __init__(self, overlay: Overlay, counters: Counters, chunks: Chunks) -> None:
        self._overlay = overlay
        self._counters = counters
        self.chunks = chunks
        self.recent: Recent[BlobNo] = Recent()
        self._rows: OrderedDict[bytes, Row] = OrderedDict()

    def get(self, number: BlobNo) -> BlobRecord:
        """The record of a blob.  Raises IndexDamagedError if there is none."""
        value = self._overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            raise IndexDamagedError(f"blob {number} has no record")
        return layout.unpack_blob(value)

    def find(self, sha256: bytes) -> BlobNo:
        """The blob with this SHA-256, or NO_BLOB."""
        recent = self.recent.get(sha256)
        if recent is not None:
            return recent
        for number in self._overlay.committed_numbers(layout.BLOB_SHA256, sha256):
            value = self._overlay.get(layout.BLOBS, layout.u48(number))
            if value is not None and layout.unpack_blob(value).sha256 == sha256:
                return BlobNo(number)
        return NO_BLOB

    def hole_bytes(self, number: BlobNo) -> int:
        """Bytes of a blob that are stored nowhere."""
        record = self.get(number)
        if not record.flags & BLOB_HOLES:
            return 0
        parts = self.parts(number, 0, record.size)
        return sum(part.length for _, part in parts if part.kind == recipe.HOLE)

    # -- making and changing -----------------------------------------------------------------

    def adopt(self, parts: Sequence[Part], size: int, digests: Digests) -> BlobNo:
        """The blob with this content: the one that is there, or a new one of these parts.

        The parts' chunks are pinned and are let go of either way.  The caller refers to it
        with ref() before the next checkpoint.
        """
        found = self.find(digests.sha256)
        if found:
            self.chunks.unpin(recipe.chunk_refs(parts))
            return found
        number = self._next()
        self.chunks.count(recipe.chunk_refs(parts))
        self._put_recipe(number, BlobRecord(size, 0, 0, *digests, b""), parts)
        self._put_digests(number, digests)
        return number

    def begin(self, owner: Ino) -> BlobNo:
        """A new, empty, unhashed blob for one inode; the caller refers to it."""
        number = self._next()
        self._put(number, BlobRecord(0, 0, BLOB_UNHASHED, _NO_SHA256, _NO_SHA1, b""))
        self._overlay.put(layout.UNHASHED, layout.u48(number), layout.u48(owner))
        return number

    def fork(self, source: BlobNo, owner: Ino) -> BlobNo:
        """A new unhashed blob with the same recipe as *source*, for one inode."""
        number = self.begin(owner)
        record = self.get(source)
        parts = [part for _, part in self.parts(source, 0, record.size)]
        self.chunks.count_again(recipe.chunk_refs(parts))
        self._put_recipe(number, self.get(number)._replace(size=record.size), parts)
        return number

    def fork_more(self, number: BlobNo, source: BlobNo, limit: int) -> int:
        """Continue an unhashed blob with at most *limit* parts of another one, from where it
        ends; how many.  begin() and this, again and again, are a fork() that holds nobody up.
        """
        record, whole = self.get(number), self.get(source)
        rest = self.parts(source, record.size, whole.size)
        parts = [part for _, part in islice(rest, limit)]
        if parts:
            self.chunks.count_again(recipe.chunk_refs(parts))
            size = record.size + recipe.total_length(parts)
            flags = record.flags | BLOB_ROWS | whole.flags & BLOB_HOLES
            self._put(number, record._replace(size=size, flags=flags))
            self._put_rows(number, record.size, parts)
        return len(parts)

    def splice(
        self, number: BlobNo, start: int, end: int, parts: Sequence[Part], size: int
    ) -> None:
        """Put *parts* in the place of those from *start* to *end*; the blob's new size is *size*.

        Both are borders of parts (or lie in a hole).  The new parts must be as long as what
        they replace, unless *end* is the end of the blob.  Their chunks are pinned and are let
        go of.
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
                for place, piece in _split(begin, part, start, end):
                    (before if place < 0 else after if place > 0 else removed).append(piece)
        self.chunks.count(recipe.chunk_refs(parts))
        self.chunks.uncount(recipe.chunk_refs(removed))
        first = rows[0].starts[0] if rows and rows[0].starts else start
        merged = _join([*before, *parts, *after])
        record = record._replace(size=size)
        if not record.flags & BLOB_ROWS:
            self._put_recipe(number, record, merged)
            return
        for row in rows:
            if row.starts:
                self._delete_row(number, row.starts[0])
        if any(part.kind == recipe.HOLE for part in parts):
            record = record._replace(flags=record.flags | BLOB_HOLES)
        self._put(number, record)
        self._put_rows(number, first, merged)

    def _affected(self, number: BlobNo, record: BlobRecord, start: int, end: int) -> Iterator[Row]:
        if not record.flags & BLOB_ROWS:
            yield _row(0, record.parts)
            return
        # One byte to the left: a part that is appended joins the last row, not a row of its own.
        yield from self._row_range(number, max(0, start - 1), max(end, start + 1))

    def unhashed(self) -> list[tuple[BlobNo, Ino]]:
        """Blobs without digests, and the inode that each belongs to."""
        return [
            (BlobNo(layout.from_u48(key)), Ino(layout.from_u48(value)))
            for key, value in self._overlay.scan(layout.UNHASHED, b"", b"")
        ]

    def hashed(self, number: BlobNo, digests: Digests) -> BlobNo:
        """An unhashed blob's digests are known: the number to refer to from now on.

        If the same content is there already that is its number, and *number* is the caller's
        to unref.
        """
        found = self.find(digests.sha256)
        if found:
            return found
        record = self.get(number)
        self._put(
            number,
            record._replace(
                flags=record.flags & ~BLOB_UNHASHED, sha256=digests.sha256, sha1=digests.sha1
            ),
        )
        self._overlay.delete(layout.UNHASHED, layout.u48(number))
        self._put_digests(number, digests)
        return number

    def ref(self, number: BlobNo) -> None:
        """One more inode has this blob."""
        record = self.get(number)
        self._put(number, record._replace(refs=record.refs + 1))
        if record.refs == 0:
            self._overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
            self._counters.blobs += 1
            self._counters.unique_bytes += record.size

    def unref(self, number: BlobNo) -> None:
        """One inode less has this blob; without any it waits for the sweep."""
        record = self.get(number)
        if record.refs == 0:
            raise IndexDamagedError(f"blob {number} has no references")
        self._put(number, record._replace(refs=record.refs - 1))
        if record.refs == 1:
            self._overlay.put(layout.DEAD, layout.dead_key(b"b", number), b"")
            self._counters.blobs -= 1
            self._counters.unique_bytes -= record.size

    def sweep(self, number: BlobNo, limit: int) -> bool:
        """Take at most *limit* parts from the end of a dead blob; True when it is gone.

        A blob that somebody has come to need again is left as it is (True as well).
        """
        key = layout.u48(number)
        value = self._overlay.get(layout.BLOBS, key)
        record = layout.unpack_blob(value) if value is not None else None
        if record is None or record.refs:
            self._overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
            return True
        # From now on nobody may find it: it is about to lose parts.
        if not record.flags & BLOB_UNHASHED:
            self._delete_digests(number, Digests(record.sha256, record.sha1))
            record = record._replace(
                flags=record.flags | BLOB_UNHASHED, sha256=_NO_SHA256, sha1=_NO_SHA1
            )
            self._put(number, record)
        if record.flags & BLOB_ROWS:
            rows = self._overlay.scan(layout.RECIPES, key, key)
            some = list(_limited(rows, limit // layout.PARTS_PER_ROW + 1))
            for row_key, row_value in some:
                self.chunks.uncount(recipe.chunk_refs(recipe.decode(row_value)))
                self._delete_row(number, layout.recipe_start(row_key))
            if some:
                # Rows may hold fewer parts than they could: only when none is found is it over.
                return False
        else:
            self.chunks.uncount(recipe.chunk_refs(recipe.decode(record.parts)))
        self._overlay.delete(layout.BLOBS, key)
        self._overlay.delete(layout.UNHASHED, key)
        self._overlay.delete(layout.DEAD, layout.dead_key(b"b", number))
        return True

    # -- recipes -----------------------------------------------------------------------------

    def parts(self, number: BlobNo, start: int, end: int) -> Iterator[tuple[int, Part]]:
        """Parts that overlap bytes [start, end), each with its own first byte."""
        record = self.get(number)
        rows: Iterator[Row]
        if record.flags & BLOB_ROWS:
            rows = self._row_range(number, start, end)
        else:
            rows = iter((_row(0, record.parts),))
        for row in rows:
            index = max(0, bisect_right(row.starts, start) - 1)
            for begin, part in zip(row.starts[index:], row.parts[index:], strict=True):
                if begin >= end:
                    return
                if begin + part.length > start:
                    yield begin, part

    def _row_range(self, number: BlobNo, start: int, end: int) -> Iterator[Row]:
        prefix = layout.u48(number)
        first = self._overlay.floor(layout.RECIPES, layout.recipe_key(number, start), prefix)
        for key, value in self._overlay.scan(layout.RECIPES, first or prefix, prefix):
            begin = layout.recipe_start(key)
            if begin >= end:
                return
            yield self._decoded(key, begin, value)

    def _decoded(self, key: bytes, begin: int, value: bytes) -> Row:
        row = self._rows.get(key)
        if row is None:
            row = _row(begin, value)
            self._rows[key] = row
            if len(self._rows) > _ROW_CACHE:
                self._rows.popitem(last=False)
        return row

    def _put_recipe(self, number: BlobNo, record: BlobRecord, parts: Sequence[Part]) -> None:
        if any(part.kind == recipe.HOLE for part in parts):
            record = record._replace(flags=record.flags | BLOB_HOLES)
        encoded = recipe.encode(parts) if len(parts) <= layout.PARTS_PER_ROW else b""
        if len(parts) <= layout.PARTS_PER_ROW and len(encoded) <= layout.INLINE_PARTS_MAX:
            self._put(number, record._replace(parts=encoded))
        else:
            self._put(number, record._replace(parts=b"", flags=record.flags | BLOB_ROWS))
            self._put_rows(number, 0, parts)

    def _put_rows(self, number: BlobNo, start: int, parts: Sequence[Part]) -> None:
        index = 0
        while index < len(parts):
            group = parts[index : index + layout.PARTS_PER_ROW]
            while len(encoded := recipe.encode(group)) > layout.ROW_MAX and len(group) > 1:
                group = group[: len(group) // 2]
            key = layout.recipe_key(number, start)
            self._rows.pop(key, None)
            self._overlay.put(layout.RECIPES, key, encoded)
            start += recipe.total_length(group)
            index += len(group)

    def _delete_row(self, number: BlobNo, start: int) -> None:
        key = layout.recipe_key(number, start)
        self._rows.pop(key, None)
        self._overlay.delete(layout.RECIPES, key)

    def _put(self, number: BlobNo, record: BlobRecord) -> None:
        if record.refs and record.flags & BLOB_UNHASHED:
            # The size of content that is being written moves; the sum of sizes moves with it.
            old = self._overlay.get(layout.BLOBS, layout.u48(number))
            if old is not None:
                before = layout.unpack_blob(old)
                if before.refs:
                    self._counters.unique_bytes += record.size - before.size
        # What a hashed blob has been stays right: only its count of references changes.
        shown = bool(record.flags & BLOB_UNHASHED)
        self._overlay.put(layout.BLOBS, layout.u48(number), layout.pack_blob(record), shown=shown)

    def _put_digests(self, number: BlobNo, digests: Digests) -> None:
        self.recent.add(digests.sha256, number)
        self._overlay.put(layout.BLOB_SHA256, layout.digest_key(digests.sha256, number), b"")
        self._overlay.put(layout.BLOB_SHA1, layout.digest_key(digests.sha1, number), b"")

    def _delete_digests(self, number: BlobNo, digests: Digests) -> None:
        self.recent.drop(digests.sha256)
        self._overlay.delete(layout.BLOB_SHA256, layout.digest_key(digests.sha256, number))
        self._overlay.delete(layout.BLOB_SHA1, layout.digest_key(digests.sha1, number))

    def _next(self) -> BlobNo:
        number = BlobNo(self._counters.next_blob)
        self._counters.next_blob += 1
        return number


def _row(start: int, encoded: bytes) -> Row:
    parts = recipe.decode(encoded)
    starts = []
    for part in parts:
        starts.append(start)
        start += part.length
    return Row(starts, parts, start)


def _split(begin: int, part: Part, start: int, end: int) -> Iterator[tuple[int, Part]]:
    """A part as pieces before (-1), inside (0) and after (1) [start, end): only holes are cut."""
    stop = begin + part.length
    if stop <= start:
        yield -1, part
    elif begin >= end:
        yield 1, part
    elif begin >= start and stop <= end:
        yield 0, part
    elif part.kind == recipe.HOLE:
        if begin < start:
            yield -1, part._replace(length=start - begin)
        yield 0, part._replace(length=min(stop, end) - max(begin, start))
        if stop > end:
            yield 1, part._replace(length=stop - end)
    else:
        raise IndexDamagedError(f"a part at {begin} is no border for [{start}, {end})")


def _join(parts: list[Part]) -> list[Part]:
    """Neighbouring holes as one; empty parts left out."""
    joined: list[Part] = []
    for part in parts:
        if not part.length:
            continue
        if part.kind == recipe.HOLE and joined and joined[-1].kind == recipe.HOLE:
            joined[-1] = part._replace(length=part.length + joined[-1].length)
        else:
            joined.append(part)
    return joined


def _limited(rows: Iterator[tuple[bytes, bytes]], count: int) -> Iterator[tuple[bytes, bytes]]:
    for index, row in enumerate(rows):
        if index >= count:
            return
        yield row
