"""Aged blobs: exchanging the recipe of a blob for another one that makes the same bytes.

A blob that was taken apart has an *inner* blob with its inflated content, and a recipe that says
how to make its own bytes from that.  Recipes are long, so they are laid down beforehand, piece
by piece, in blobs that nobody refers to (*drafted* recipes); the exchange itself then takes a
few milliseconds.  Invariants: an aged blob and its inner one name each other, in every commit;
what is drafted is in the queue of the dead, so that a crash leaves it to the sweep.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from cafs.blobs import recipe
from cafs.blobs.recipe import Part
from cafs.errors import IndexDamagedError
from cafs.index import layout
from cafs.index.layout import (
    BLOB_AGED,
    BLOB_HOLES,
    BLOB_INNER,
    BLOB_LEFT,
    BLOB_MATED,
    BLOB_NESTED,
    BLOB_ROWS,
    BLOB_UNHASHED,
    BlobRecord,
)
from cafs.types import NO_BLOB, BlobNo

if TYPE_CHECKING:
    from cafs.blobs.blobs import Blobs

_PIECE: Final = 16 * layout.PARTS_PER_ROW
_RESUMED_MAX: Final = 10_000
_OF_RECIPE: Final = BLOB_ROWS | BLOB_HOLES
"""Flags that speak of the recipe, and go with it."""


class Aged:
    """The exchange of recipes.  Belongs to the event loop."""

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs
        self._held: Counter[BlobNo] = Counter()
        self._exchanged: set[BlobNo] = set()
        self._has_copy = False
        self.gone_bytes = 0
        """Sizes of blobs that were aged and are not any more: plain again, or swept."""

    # -- holding -----------------------------------------------------------------------------

    def hold(self, number: BlobNo) -> None:
        """Keep the sweep away from a blob, until let_go(); for who still reads an inner one."""
        self._held[number] += 1

    def let_go(self, number: BlobNo) -> None:
        """The other half of hold()."""
        left = self._held[number] - 1
        if left > 0:
            self._held[number] = left
        else:
            del self._held[number]

    def held(self, number: BlobNo) -> bool:
        """Whether somebody holds it."""
        return number in self._held

    # -- copies of the index -------------------------------------------------------------------

    def guard_copy(self, *, resume: bool) -> None:
        """There is a hot copy of the index: keep from now on what only that one names.

        Content that is taken apart is neither new nor deleted, so losing the index must not cost
        it: the copy's recipe of it stays good until there is a copy that has the new one.
        *resume*: what the sweep had not come to when the store was closed is kept, too.
        """
        self._has_copy = True
        if not resume or self._blobs.overlay.get(layout.META, layout.engine_key(1)) is None:
            return
        overlay = self._blobs.overlay
        above = 1 << 48
        for _ in range(_RESUMED_MAX):
            # From the end on: what was exchanged is newer than what was deleted with it.
            key = overlay.floor(layout.DEAD, layout.dead_key(b"b", above - 1), b"b")
            if key is None:
                return
            above = number = BlobNo(layout.from_u48(key[1:]))
            value = overlay.get(layout.BLOBS, layout.u48(number))
            if value is not None and layout.blob_use(value)[1] & (BLOB_UNHASHED | BLOB_INNER):
                self._keep(number)

    def only_in_copy(self) -> list[BlobNo]:
        """Blobs that are kept for the sake of the copy that there is."""
        return list(self._exchanged)

    def copied(self, numbers: Iterable[BlobNo]) -> None:
        """There is a newer copy, or none is possible: these are the sweep's."""
        for number in numbers:
            if number in self._exchanged:
                self._exchanged.discard(number)
                self.let_go(number)

    def _keep(self, number: BlobNo) -> None:
        if self._has_copy and number not in self._exchanged:
            self._exchanged.add(number)
            self.hold(number)

    # -- recipes in the making ---------------------------------------------------------------

    def begin(self) -> BlobNo:
        """A recipe in the making, empty and held; end it with swap(), swap_back() or drop()."""
        blobs = self._blobs
        number = blobs.new_number()
        flags = BLOB_UNHASHED | BLOB_ROWS
        blobs.put(number, BlobRecord(0, 0, flags, layout.NO_SHA256, layout.NO_SHA1, b""))
        blobs.overlay.put(layout.DEAD, layout.dead_key(b"b", number), b"")
        self.hold(number)
        return number

    def extend(self, drafted: BlobNo, parts: Sequence[Part]) -> None:
        """Add parts to a recipe in the making.  Their chunks are pinned and are let go of.

        Takes about 20 us a part: who has many comes again, with a multiple of 128 at a time.
        """
        blobs = self._blobs
        record = blobs.get(drafted)
        holes = BLOB_HOLES if any(part.kind == recipe.HOLE for part in parts) else 0
        blobs.chunks.count(recipe.chunk_refs(parts))
        blobs.rows.put(drafted, record.size, parts)
        size = record.size + recipe.total_length(parts)
        blobs.put(drafted, record._replace(size=size, flags=record.flags | holes))
        blobs.add_holes(drafted, record, recipe.hole_length(parts))

    def drop(self, drafted: BlobNo) -> None:
        """A recipe in the making is not wanted: the sweep takes it."""
        self.let_go(drafted)

    def _drafted(self, parts: Sequence[Part]) -> BlobNo:
        drafted = self.begin()
        for index in range(0, len(parts), _PIECE):
            self.extend(drafted, parts[index : index + _PIECE])
        return drafted

    # -- the exchange ------------------------------------------------------------------------

    def wanted(self, number: BlobNo) -> bool:
        """Whether a blob is still there, and something refers to it."""
        value = self._blobs.overlay.get(layout.BLOBS, layout.u48(number))
        return value is not None and layout.blob_use(value)[0] > 0

    def may_swap(self, number: BlobNo) -> bool:
        """Whether a blob can be taken apart: hashed, referred to, and not taken apart yet."""
        value = self._blobs.overlay.get(layout.BLOBS, layout.u48(number))
        if value is None:
            return False
        record = layout.unpack_blob(value)
        return record.refs > 0 and not record.flags & (BLOB_UNHASHED | BLOB_MATED)

    def swap(
        self,
        number: BlobNo,
        outer: BlobNo,
        inner: BlobNo,
        inner_sha256: bytes,
        *,
        nested: bool = False,
    ) -> bool:
        """A blob is aged: *outer* is its recipe from now on, *inner* becomes its inner blob.

        Both are recipes in the making, and are used up.  *nested*: the inner one has made parts
        itself, each stream of which is followed by what it is made of.  False, and nothing is
        changed, if the blob cannot be taken apart (any more), or if a hole of it would become
        something else: files remember how much of them is holes.  Who calls has proven that the
        new recipe makes the same bytes.  Raises IndexDamagedError if sizes do not fit.
        """
        blobs = self._blobs
        may = self.may_swap(number)
        same_size = not may or blobs.get(outer).size == blobs.get(number).size
        if not may or not same_size or blobs.hole_bytes(outer) != blobs.hole_bytes(number):
            self.drop(outer)
            self.drop(inner)
            if not same_size:
                raise IndexDamagedError(f"blob {number} and its new recipe differ in size")
            return False
        self._exchange(number, outer)
        record = blobs.get(number)
        blobs.put(number, record._replace(flags=record.flags | BLOB_AGED, mate=inner), shown=True)
        record = blobs.get(inner)
        flags = record.flags & _OF_RECIPE | BLOB_INNER | (BLOB_NESTED if nested else 0)
        record = record._replace(refs=1, flags=flags, sha256=inner_sha256, mate=number)
        blobs.put(inner, record)
        self._shorten(inner)
        blobs.overlay.delete(layout.DEAD, layout.dead_key(b"b", inner))
        self._keep(outer)
        self.drop(outer)
        self.drop(inner)
        return True

    def swap_back(self, number: BlobNo, plain: BlobNo) -> bool:
        """An aged blob gets a plain recipe again, one in the making, which is used up.

        False, and nothing is changed, if the blob is not aged (any more), or if holes would
        change.  The inner blob is the sweep's.
        """
        blobs = self._blobs
        value = blobs.overlay.get(layout.BLOBS, layout.u48(number))
        record = layout.unpack_blob(value) if value is not None else None
        if record is not None and record.flags & BLOB_AGED:
            if blobs.get(plain).size != record.size:
                self.drop(plain)
                raise IndexDamagedError(f"blob {number} and its new recipe differ in size")
            if blobs.hole_bytes(plain) == blobs.hole_bytes(number):
                self.take_plain(number, plain)
                self.drop(plain)
                return True
        self.drop(plain)
        return False

    def thaw(self, number: BlobNo, parts: Sequence[Part]) -> bool:
        """swap_back() for a recipe that is short, given as parts; their chunks are pinned."""
        return self.swap_back(number, self._drafted(parts))

    def take_plain(self, number: BlobNo, other: BlobNo) -> None:
        """Give an aged blob the plain recipe of *other*, which has the same content.

        *other* has the one that makes the bytes then, without an inner blob to make them of:
        it must be about to go.
        """
        blobs = self._blobs
        self._exchange(number, other)
        record = blobs.get(number)
        flags = record.flags & ~BLOB_AGED
        blobs.put(number, record._replace(flags=flags, mate=NO_BLOB), shown=True)
        self.gone_bytes += record.size
        self._keep(other)
        self._keep(record.mate)
        self.release_inner(record.mate)

    def release_inner(self, inner: BlobNo) -> None:
        """The outer blob does not need its inner one any more: it waits for the sweep."""
        blobs = self._blobs
        value = blobs.overlay.get(layout.BLOBS, layout.u48(inner))
        if value is not None:
            # Without its record there is nothing to sweep; `cafs check` tells of it.
            record = layout.unpack_blob(value)
            blobs.put(inner, record._replace(refs=0))
            blobs.overlay.put(layout.DEAD, layout.dead_key(b"b", inner), b"")

    def leave(self, number: BlobNo, *, left: bool = True) -> None:
        """Mark a blob as one that ageing leaves as it is, or take the mark away."""
        record = self._blobs.get(number)
        flags = record.flags | BLOB_LEFT if left else record.flags & ~BLOB_LEFT
        if flags != record.flags:
            self._blobs.put(number, record._replace(flags=flags))

    def _exchange(self, one: BlobNo, other: BlobNo) -> None:
        """Each of two blobs gets the recipe of the other, as it is encoded."""
        blobs = self._blobs
        records = blobs.get(one), blobs.get(other)
        rows = [
            blobs.rows.first(number) if record.flags & BLOB_ROWS else []
            for number, record in zip((one, other), records, strict=True)
        ]
        for number, old in zip((one, other), rows, strict=True):
            for start, _ in old:
                blobs.rows.delete(number, start)
        for number, mine, new, source in (
            (one, records[0], rows[1], records[1]),
            (other, records[1], rows[0], records[0]),
        ):
            for start, row in new:
                blobs.rows.put_encoded(number, start, row)
            flags = mine.flags & ~_OF_RECIPE | source.flags & _OF_RECIPE
            blobs.put(number, mine._replace(flags=flags, parts=source.parts), shown=True)
            self._shorten(number)

    def _shorten(self, number: BlobNo) -> None:
        """Put a recipe of one short row into the record, where short recipes belong."""
        blobs = self._blobs
        record = blobs.get(number)
        if not record.flags & BLOB_ROWS:
            return
        rows = blobs.rows.first(number, 2)
        if len(rows) == 1 and len(rows[0][1]) <= layout.INLINE_PARTS_MAX:
            blobs.rows.delete(number, rows[0][0])
            flags = record.flags & ~BLOB_ROWS
            blobs.put(number, record._replace(flags=flags, parts=rows[0][1]), shown=True)
