"""The table of chunks: their records, references, damage, and how they go.

What workers do with it, and the lock between them and the event loop, is in
cafs.blobs.interning.  Invariant: a record's reference count is the number of parts of recipes
that name it.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence

from cafs.blobs.interning import Interning
from cafs.blobs.pack import PackStore
from cafs.blobs.packtable import PackTable
from cafs.blobs.shown import Shown
from cafs.errors import CafsError, IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import ChunkRecord
from cafs.index.overlay import Overlay
from cafs.types import ChunkNo, Extent, PackNo

log = logging.getLogger(__name__)

WRITE_BACK_FROM = 16 << 20
"""Stored bytes that are not left to wait for the next commit."""
UNSYNCED_MAX = 64 << 20
"""Stored bytes that may be kept in memory until a commit, in case their sync fails."""


class Chunks(Interning):
    """Chunk records over the overlay.  Methods belong to the event loop unless they say so."""

    def __init__(
        self, overlay: Overlay, counters: Counters, packs: PackStore, table: PackTable
    ) -> None:
        super().__init__(overlay, counters, packs)
        self._table = table
        self.shown = Shown(packs)
        self.damaged: set[ChunkNo] = set()
        """Those that were found damaged since the start, and are not whole again."""
        self._unhealed: set[ChunkNo] = set()

    # -- workers -----------------------------------------------------------------------------

    def write_back(self) -> None:
        """Begin early with what a commit would have to wait for.  Any thread; blocks.

        What goes wrong is the next commit's to report: it tries again.
        """
        try:
            self._packs.sync()
        except CafsError as error:
            log.debug("packs are not written back early: %s", error)

    @property
    def much_unsynced(self) -> bool:
        """Whether it is worth while to write back."""
        return self._packs.unsynced_bytes > WRITE_BACK_FROM

    def bound_unsynced(self) -> None:
        """Sync the packs when too many of their bytes are kept in memory.  Any thread; blocks."""
        if self._packs.unsynced_bytes > UNSYNCED_MAX:
            self._packs.sync()

    # -- the event loop ----------------------------------------------------------------------

    def get(self, number: ChunkNo) -> ChunkRecord:
        """The record of a chunk.  Raises IndexDamagedError if there is none."""
        record = self._find(number)
        if record is None:
            raise IndexDamagedError(f"chunk {number} has no record")
        return record

    def _find(self, number: ChunkNo) -> ChunkRecord | None:
        value = self._overlay.get(layout.CHUNKS, layout.u48(number))
        if value is not None:
            return layout.unpack_chunk(value)
        landing = self._landing_extents.get(number)
        return None if landing is None else ChunkRecord(landing[0], landing[1], 0)

    def extent_of(self, number: ChunkNo) -> Extent:
        """Where to read a chunk; of a damaged one the new copy, as soon as there is one."""
        extent = self.get(number).extent
        return self._healing.get(number, extent) if extent.damaged else extent

    def at(self, sha256: bytes, pack: PackNo, offset: int) -> tuple[ChunkNo, Extent] | None:
        """The chunk that lies just there, or None."""
        # All of them: where the same bytes were stored twice, either place is alive.
        numbers = self._overlay.committed_numbers(layout.CHUNK_SHA256, [sha256])[0]
        for number in (self._known(sha256), *map(ChunkNo, numbers)):
            record = None if number is None else self._find(number)
            if number is not None and record is not None:
                extent = record.extent
                if extent.pack == pack and extent.offset == offset:
                    return number, extent
        return None

    def void_tail(self, pack: PackNo) -> tuple[int, int] | None:
        """Where what only uploads that failed ever had begins and ends in a pack; None if there is
        more behind it.  An index on disk may still name it.  Any thread.
        """
        with self._lock:
            return self._void_tail(pack)

    def _void_tail(self, pack: PackNo) -> tuple[int, int] | None:
        end = self.shown.end(pack)
        ahead = [extent for _, extent in self._landing_extents.values()]
        waits = [*ahead, *self._healing.values()]
        if (
            self._appending
            or not self.shown.is_void(pack)
            or any(extent.pack == pack and extent.offset >= end for extent in waits)
        ):
            return None
        return end, self._packs.size_of(pack)

    def cut_tail(self, pack: PackNo, tail: tuple[int, int]) -> int:
        """Take what void_tail() said away from an unsealed pack, if nothing came behind it since;
        how many bytes.  Any thread; blocks while the pack is synced.

        Only when a commit that began after void_tail() is on disk: what is stored next is written
        over these bytes.  The file gets shorter with PackStore.trim(), once an index that has the
        pack's new size is on disk.
        """
        with self._packs.not_syncing(), self._lock:
            if self._void_tail(pack) != tail:
                return 0
            return self._packs.cut(pack, tail[0], 1)

    def landing_packs(self) -> set[PackNo]:
        """Packs with chunks that no record names yet, new copies of damaged ones among them; and
        all in which there may soon be some.
        """
        with self._lock:
            landing = {extent.pack for _, extent in self._landing_extents.values()}
            for packs, first in self._appending:
                landing |= packs
                landing.update(map(PackNo, range(first, self._packs.next_pack_no)))
            return landing | {extent.pack for extent in self._healing.values()}

    def count(self, numbers: Sequence[ChunkNo], *, hidden: bool = False) -> None:
        """Count one reference for each number and let go of its pin.

        *hidden*: for content that no name leads to, nor to anything it is shared with.  Raises
        :class:`IndexDamagedError` before anything has changed; then all stay pinned.
        """
        counted = Counter(numbers)
        with self._lock:
            there = {
                number: self.get(number)
                for number in counted
                if number not in self._landing_extents
            }
            for number, times in counted.items():
                landing = self._landing_extents.pop(number, None)
                if landing is not None:
                    self._land(number, landing[0], landing[1], times)
                    if hidden:
                        self.shown.landed_hidden(landing[1])
                    else:
                        self.shown.show(landing[1])
                else:
                    self._add(number, there[number], times, hidden=hidden)
                for _ in range(times):
                    self._unpin(number)

    def count_again(self, numbers: Sequence[ChunkNo]) -> None:
        """Count one more reference for each number; all have some already.  Raises as count()."""
        counted = [(number, self.get(number), n) for number, n in Counter(numbers).items()]
        for number, record, times in counted:
            self._add(number, record, times, hidden=False)

    def _land(self, number: ChunkNo, sha256: bytes, extent: Extent, refs: int) -> None:
        self._landing.pop(sha256, None)
        self.recent.add(sha256, number)
        self._put(number, ChunkRecord(sha256, extent, refs))
        self._overlay.put(layout.CHUNK_SHA256, layout.digest_key(sha256, number), b"")
        self._table.gained(extent)
        self._counters.chunks += 1
        self._counters.raw_bytes += extent.raw_length
        self._counters.stored_bytes += extent.stored_length

    def _add(self, number: ChunkNo, record: ChunkRecord, times: int, *, hidden: bool) -> None:
        if not hidden:
            self.shown.show(record.extent)
        self._put(number, record._replace(refs=record.refs + times))
        if record.refs == 0:
            self._overlay.delete(layout.DEAD, layout.dead_key(b"c", number))

    def _put(self, number: ChunkNo, record: ChunkRecord) -> None:
        self._overlay.put(layout.CHUNKS, layout.u48(number), layout.pack_chunk(record))

    def uncount(self, numbers: Sequence[ChunkNo]) -> None:
        """Take one reference from each number; those without any wait for the sweep.

        Raises :class:`IndexDamagedError` before anything has changed: it may be tried again.
        """
        for number, record, times in self._counted(numbers):
            self._put(number, record._replace(refs=record.refs - times))
            if record.refs == times:
                self._overlay.put(layout.DEAD, layout.dead_key(b"c", number), b"")

    def exchange(
        self, added: Sequence[ChunkNo], removed: Sequence[ChunkNo], *, hidden: bool
    ) -> None:
        """count() what is new in a recipe and uncount() what is not in it any more, or neither.

        Raises :class:`IndexDamagedError` before anything has changed.
        """
        self._counted(removed)
        self.count(added, hidden=hidden)
        self.uncount(removed)

    def _counted(self, numbers: Sequence[ChunkNo]) -> list[tuple[ChunkNo, ChunkRecord, int]]:
        """Each number with its record, and how often it is there; that many references it has."""
        counted = [(number, self.get(number), n) for number, n in Counter(numbers).items()]
        for number, record, times in counted:
            if record.refs < times:
                raise IndexDamagedError(f"chunk {number} has {record.refs} references")
        return counted

    def move(self, number: ChunkNo, old: Extent, new: Extent, now_ns: int) -> bool:
        """Point a chunk at a copy of its bytes; False when it was swept or moved meanwhile."""
        value = self._overlay.get(layout.CHUNKS, layout.u48(number))
        if value is None:
            return False
        record = layout.unpack_chunk(value)
        if record.extent != old:
            return False
        self._put(number, record._replace(extent=new))
        self._table.gained(new)
        self._table.lost(old, now_ns)
        self.shown.gone(old)
        self.shown.show(new)
        return True

    def condemn(self, numbers: Sequence[ChunkNo], *, damaged: bool) -> int:
        """Mark chunks whose bytes were found damaged, or sound again; how many that changed.

        What is marked is never taken for stored content: the same bytes, written again, are
        stored anew, and all recipes that name the chunk have them back (see heal()).
        """
        marked = 0
        for number in numbers:
            value = self._overlay.get(layout.CHUNKS, layout.u48(number))
            if value is None:
                continue
            record = layout.unpack_chunk(value)
            if damaged:
                self.damaged.add(number)
            else:
                self.damaged.discard(number)
            with self._lock:
                self.recent.drop(record.sha256)
            if record.extent.damaged != damaged:
                extent = record.extent.as_damaged() if damaged else record.extent.as_sound()
                self._put(number, record._replace(extent=extent))
                marked += 1
        return marked

    def heal(self, now_ns: int) -> int:
        """Point chunks that were marked as damaged at the new copies of their bytes; how many."""
        with self._lock:
            healing = dict(self._healing)
        healed = 0
        for number, new in healing.items():
            try:
                healed += self._heal(number, new, now_ns)
            except CafsError as error:
                # The others are not to wait for this one.  It stays: nobody can have counted it,
                # and if its record can be read again, whoever does must find it whole.
                if number not in self._unhealed:
                    self._unhealed.add(number)
                    text = "chunk %d was written anew and stays damaged: %s; what to do: %s"
                    log.error(text, number, error, error.advice)
                continue
            with self._lock:
                if self._healing.get(number) == new:
                    del self._healing[number]
        return healed

    def _heal(self, number: ChunkNo, new: Extent, now_ns: int) -> bool:
        value = self._overlay.get(layout.CHUNKS, layout.u48(number))
        if value is None:
            return False
        old = layout.unpack_chunk(value).extent
        if not old.damaged or not self.move(number, old, new, now_ns):
            return False
        self._counters.stored_bytes += new.stored_length - old.stored_length
        self.damaged.discard(number)
        return True

    def sweep(self, number: ChunkNo, now_ns: int) -> bool:
        """Remove the record of a dead chunk; False when somebody has come to need it."""
        with self._lock:
            value = self._overlay.get(layout.CHUNKS, layout.u48(number))
            self._overlay.delete(layout.DEAD, layout.dead_key(b"c", number))
            if value is None:
                return False
            record = layout.unpack_chunk(value)
            if record.refs:
                return False
            if number in self._pins:
                self._overlay.put(layout.DEAD, layout.dead_key(b"c", number), b"")
                return False
            self._overlay.delete(layout.CHUNKS, layout.u48(number))
            self._overlay.delete(layout.CHUNK_SHA256, layout.digest_key(record.sha256, number))
            self.recent.drop(record.sha256)
            self.shown.gone(record.extent)
        self._table.lost(record.extent, now_ns)
        self.damaged.discard(number)
        self._counters.chunks -= 1
        self._counters.raw_bytes -= record.extent.raw_length
        self._counters.stored_bytes -= record.extent.stored_length
        return True
