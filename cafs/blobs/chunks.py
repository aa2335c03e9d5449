"""The table of chunks, and the one place where deduplication is decided.

Two threads meet here.  Workers find or store chunks and hold a *pin* on each until the event
loop has counted it into a recipe; the event loop counts references and sweeps.  Under the one
lock a chunk is therefore never swept between being found and being counted, and never stored
twice.  Invariant: a record's reference count is the number of parts of recipes that name it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from cafs.blobs.pack import PackStore, StoredChunk
from cafs.blobs.packtable import PackTable
from cafs.blobs.shown import Shown
from cafs.errors import CafsError, IndexDamagedError
from cafs.index import layout
from cafs.index.counters import Counters
from cafs.index.layout import ChunkRecord
from cafs.index.overlay import Overlay
from cafs.index.recent import Recent
from cafs.types import ChunkNo, Extent, PackNo

log = logging.getLogger(__name__)

WRITE_BACK_FROM = 16 << 20
"""Stored bytes that are not left to wait for the next commit."""
UNSYNCED_MAX = 64 << 20
"""Stored bytes that may be kept in memory until a commit, in case their sync fails."""


class Chunks:
    """Chunk records over the overlay.  Methods belong to the event loop unless they say so."""

    def __init__(
        self, overlay: Overlay, counters: Counters, packs: PackStore, table: PackTable
    ) -> None:
        self._overlay = overlay
        self._counters = counters
        self._packs = packs
        self._table = table
        self._lock = threading.Lock()
        self._pins: Counter[ChunkNo] = Counter()
        # Stored by a worker, not yet in the overlay.
        self._landing: dict[bytes, ChunkNo] = {}
        self._landing_extents: dict[ChunkNo, tuple[bytes, Extent]] = {}
        self.recent: Recent[ChunkNo] = Recent()
        self.shown = Shown(packs)
        # Damaged chunks whose bytes were stored anew by a worker.
        self._healing: dict[ChunkNo, Extent] = {}
        self.damaged: set[ChunkNo] = set()
        """Those that were found damaged since the start, and are not whole again."""

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

    def intern(
        self,
        digests: Sequence[bytes],
        encode: Callable[[list[int]], Sequence[StoredChunk]],
    ) -> list[ChunkNo]:
        """Find the chunks with these SHA-256 digests, store the others; all come back pinned.

        Any thread.  *encode* is given the positions of those that must be stored and returns
        what to store for them.  Raises DiskFullError and its kin; then nothing is pinned.
        """
        numbers: dict[bytes, ChunkNo] = {}
        with self._lock:
            for digest in digests:
                if digest not in numbers:
                    known = self._known(digest)
                    if known:
                        numbers[digest] = known
            self._pin(numbers.values())
        try:
            self._intern_unknown(digests, encode, numbers)
        except BaseException:
            self.unpin(list(numbers.values()))
            raise
        result = [numbers[digest] for digest in digests]
        with self._lock:
            # One pin for each position; the dict pinned each digest once.
            self._pin(result)
            for number in numbers.values():
                self._unpin(number)
        return result

    def _intern_unknown(
        self,
        digests: Sequence[bytes],
        encode: Callable[[list[int]], Sequence[StoredChunk]],
        numbers: dict[bytes, ChunkNo],
    ) -> None:
        missing = {
            digest: position for position, digest in enumerate(digests) if digest not in numbers
        }
        damaged: dict[bytes, ChunkNo] = {}
        candidates = self._committed(missing) if missing else {}
        if candidates:
            with self._lock:
                # The sweep may have taken some since.
                values = self._overlay.get_anywhere(
                    layout.CHUNKS, [layout.u48(number) for number in candidates.values()]
                )
                for (digest, number), value in zip(candidates.items(), values, strict=True):
                    if value is not None and layout.unpack_chunk(value).extent.damaged:
                        damaged[digest] = number
                    elif value is not None:
                        self._pin([number])
                        numbers[digest] = number
                        del missing[digest]
        if not missing:
            return
        stored = encode(list(missing.values()))
        with self._lock:
            fresh = []
            for chunk in stored:
                known = self._known(chunk.sha256)
                if known:
                    self._pin([known])
                    numbers[chunk.sha256] = known
                else:
                    fresh.append(chunk)
            if not fresh:
                return
            extents = self._packs.append(fresh)
            for chunk, extent in zip(fresh, extents, strict=True):
                if chunk.sha256 in damaged:
                    number = damaged[chunk.sha256]
                    self._healing[number] = extent
                else:
                    number = ChunkNo(self._counters.next_chunk)
                    self._counters.next_chunk += 1
                    self._landing[chunk.sha256] = number
                    self._landing_extents[number] = (chunk.sha256, extent)
                self._pin([number])
                numbers[chunk.sha256] = number
        # Not with the lock: a disk that is busy makes this wait.
        self._packs.begin_writing()

    def _known(self, digest: bytes) -> ChunkNo | None:
        return self._landing.get(digest) or self.recent.get(digest)

    def _committed(self, digests: Iterable[bytes]) -> dict[bytes, ChunkNo]:
        """Those of the digests that the newest commit knows."""
        digests = list(digests)
        found = self._overlay.committed_numbers(layout.CHUNK_SHA256, digests)
        pairs = [
            (digest, ChunkNo(number))
            for digest, numbers in zip(digests, found, strict=True)
            for number in numbers
        ]
        keys = [layout.u48(number) for _, number in pairs]
        values = self._overlay.get_anywhere(layout.CHUNKS, keys)
        return {
            digest: number
            for (digest, number), value in zip(pairs, values, strict=True)
            if value is not None and value.startswith(digest)
        }

    def _pin(self, numbers: Iterable[ChunkNo]) -> None:
        self._pins.update(numbers)

    def _unpin(self, number: ChunkNo) -> None:
        left = self._pins[number] - 1
        if left > 0:
            self._pins[number] = left
            return
        del self._pins[number]
        landed = self._landing_extents.pop(number, None)
        if landed is not None:
            # Stored and never counted: its bytes in the pack are dead from the start.
            self._landing.pop(landed[0], None)

    def pin_again(self, numbers: Sequence[ChunkNo]) -> None:
        """Pin each number once more; all are pinned already.  Any thread."""
        with self._lock:
            self._pin(numbers)

    def unpin(self, numbers: Sequence[ChunkNo]) -> None:
        """Let go of chunks that came from intern() and will not be counted.  Any thread."""
        with self._lock:
            for number in numbers:
                self._unpin(number)

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
        if not self.shown.is_void(pack) or any(
            extent.pack == pack and extent.offset >= end for extent in waits
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
        """Packs with chunks that no record names yet, new copies of damaged ones among them."""
        with self._lock:
            landing = {extent.pack for _, extent in self._landing_extents.values()}
            return landing | {extent.pack for extent in self._healing.values()}

    def count(self, numbers: Sequence[ChunkNo], *, hidden: bool = False) -> None:
        """Count one reference for each number and let go of its pin.

        *hidden*: for content that no name leads to, nor to anything it is shared with.
        """
        with self._lock:
            for number, times in Counter(numbers).items():
                landing = self._landing_extents.pop(number, None)
                if landing is not None:
                    self._land(number, landing[0], landing[1], times)
                    if hidden:
                        self.shown.landed_hidden(landing[1])
                    else:
                        self.shown.show(landing[1])
                else:
                    self._add(number, times, hidden=hidden)
                for _ in range(times):
                    self._unpin(number)

    def count_again(self, numbers: Sequence[ChunkNo]) -> None:
        """Count one more reference for each number; all have some already."""
        for number, times in Counter(numbers).items():
            self._add(number, times, hidden=False)

    def _land(self, number: ChunkNo, sha256: bytes, extent: Extent, refs: int) -> None:
        self._landing.pop(sha256, None)
        self.recent.add(sha256, number)
        self._put(number, ChunkRecord(sha256, extent, refs))
        self._overlay.put(layout.CHUNK_SHA256, layout.digest_key(sha256, number), b"")
        self._table.gained(extent)
        self._counters.chunks += 1
        self._counters.raw_bytes += extent.raw_length
        self._counters.stored_bytes += extent.stored_length

    def _add(self, number: ChunkNo, times: int, *, hidden: bool) -> None:
        record = self.get(number)
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
        counted = [(number, self.get(number), n) for number, n in Counter(numbers).items()]
        for number, record, times in counted:
            if record.refs < times:
                raise IndexDamagedError(f"chunk {number} has {record.refs} references")
        for number, record, times in counted:
            self._put(number, record._replace(refs=record.refs - times))
            if record.refs == times:
                self._overlay.put(layout.DEAD, layout.dead_key(b"c", number), b"")

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
            healing, self._healing = self._healing, {}
        healed = 0
        for number, new in healing.items():
            value = self._overlay.get(layout.CHUNKS, layout.u48(number))
            if value is not None:
                old = layout.unpack_chunk(value).extent
                if old.damaged and self.move(number, old, new, now_ns):
                    self._counters.stored_bytes += new.stored_length - old.stored_length
                    self.damaged.discard(number)
                    healed += 1
        return healed

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
