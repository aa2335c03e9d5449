"""Compaction: giving the space of dead chunks back.

Copies what is alive in a pack that is mostly dead to the end of the current one, points the
index there, and removes the old pack once a grace period has passed, because another process
may still be reading from it.  It may stop at any point: a copy that the index does not name is
dead bytes, and the old pack goes only after the commit that forgot it.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import trio

from cafs.blobs.pack import StoredChunk
from cafs.blobs.reader import verified
from cafs.errors import CafsError, DamagedError, DiskFullError, ReadOnlyError
from cafs.index import layout
from cafs.index.layout import PackRecord
from cafs.operate.holes import BLOCK, CHUNKS_AT_ONCE, Holes
from cafs.operate.pack_records import records_in
from cafs.store import Store
from cafs.types import ChunkNo, Extent, PackNo

log = logging.getLogger(__name__)

PAUSE_S = 5.0
PAUSE_FULL_S = 1.0
POLL_S = 0.1
MOSTLY_DEAD = 0.5
"""A pack of which less than this is alive is rewritten by itself."""
PARTLY_DEAD = 0.9
"""The same on a full disk."""
BATCH = 4 << 20
"""Bytes that are copied at once."""
CHUNKS_MOVED_AT_ONCE = 1024
"""Chunks that are copied at once, however small they are."""
WORTH_CUTTING = 1 << 20
"""Bytes at the end of a pack from which on they are given back before it is compacted."""
WORTH_CLOSING = 32 << 20
"""Bytes from which on a mostly dead pack is closed before it has its full size."""


class OnProgress(Protocol):
    """Is told how far the work is."""

    def __call__(self, done: int, total: int, /, waiting_s: float = 0.0) -> None:
        """*done* of *total* packs; if *waiting_s* is given nothing is done for at most that."""
        ...


_Batch = list[tuple[ChunkNo, Extent, bytes]]
"""Chunks, where they lie, and their SHA-256."""


class Compactor:
    """Rewrites packs.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = trio.Lock()
        self.left: dict[PackNo, str] = {}
        """Packs that hold what cannot be moved, and why: not tried again and again."""
        self._untrimmed: set[PackNo] = set()
        # Packs that are shorter than their files.
        self._doomed: list[tuple[PackNo, int]] = []
        # Packs that the index is about to forget, or has forgotten, with their sizes.
        self._stuck: set[PackNo] = set()
        # Those of them whose files could not be removed: logged once.
        self._holes = Holes(store)

    async def run(self) -> None:
        """Compact what is mostly dead, for ever."""
        while True:
            await trio.sleep(PAUSE_FULL_S if self._store.space.scarce else PAUSE_S)
            try:
                await self.step()
            except CafsError as error:
                log.warning("compaction stopped for now: %s", error)

    async def step(self) -> None:
        """Compact what is mostly dead, once."""
        if self._store.space.problem is not None and not self._is_full:
            # What cannot be stored must not become more; a full disk gets room by this.
            return
        threshold = PARTLY_DEAD if self._is_full else MOSTLY_DEAD
        await self.give_tails_back()
        await self._close_dead(threshold)
        await self.once(threshold, self._store.options.grace)

    @property
    def _is_full(self) -> bool:
        return isinstance(self._store.space.problem, DiskFullError)

    def candidates(self, threshold: float) -> list[tuple[PackNo, PackRecord]]:
        """Sealed packs of which less than *threshold* (0 to 1) is alive, the deadest first.

        On a full disk what costs least to move must be moved first.
        """
        found = [
            (number, record)
            for number, record in self._store.pack_table.items()
            if record.flags & layout.PACK_SEALED
            and record.live_bytes < threshold * record.size
            and record.live_chunks
            and number not in self.left
        ]
        return sorted(found, key=lambda pair: pair[1].live_bytes)

    async def give_tails_back(self) -> int:
        """Give back at once what only uploads that failed have had; how many bytes.

        Nobody can be sending that: no name ever led there, so there is no grace to be kept.
        """
        store = self._store
        least = BLOCK if self._is_full else WORTH_CUTTING
        freed = 0
        async with self._lock:
            tails = {
                number: tail
                for number, (_, sealed) in store.packs.sizes().items()
                if not sealed
                and (tail := store.chunks.void_tail(number)) is not None
                and tail[1] - tail[0] >= least
            }
            if tails:
                # After a crash the index on disk counts: nothing may be written over what it names.
                await store.commit()
            for number, tail in tails.items():
                cut = await store.workers.run(partial(store.chunks.cut_tail, number, tail))
                if cut:
                    self._untrimmed.add(number)
                    freed += cut
            if self._untrimmed:
                # First an index that does not count on these bytes, then the files.
                store.pack_table.save(store.packs, store.clock.now_ns())
                await store.commit()
            while self._untrimmed:
                number = next(iter(self._untrimmed))
                await store.workers.run(partial(store.packs.trim, number))
                self._untrimmed.discard(number)
                store.space.changed()
        if freed:
            log.info("%d bytes of uploads that failed were given back", freed)
        return freed

    async def _close_dead(self, threshold: float) -> None:
        """Seal the pack that takes chunks if less than *threshold* of it is alive.

        Small ones wait until they are worth it, unless the disk is full.
        """
        store = self._store
        least = 0 if self._is_full else WORTH_CLOSING
        for number, (size, sealed) in store.packs.sizes().items():
            record = store.pack_table.get(number)
            if sealed or record is None or number in store.chunks.landing_packs():
                continue
            if size > least and record.live_bytes < threshold * size:
                await self._close_current()
                return

    async def _close_current(self) -> None:
        store = self._store
        store.packs.roll()
        await trio.to_thread.run_sync(store.packs.sync)
        store.pack_table.save(store.packs, store.clock.now_ns())

    async def once(
        self, threshold: float, grace_s: float, on_progress: OnProgress | None = None
    ) -> int:
        """Rewrite packs below *threshold* and remove those that are empty long enough.

        A pack gives its space back only when all of it was moved.  Where there is no room for
        that, and in all packs where room is scarce, holes give back what is dead.  Returns the
        bytes of the packs that were removed, and of holes.
        """
        async with self._lock:
            freed = await self._remove_emptied(grace_s)
            scarce = self._store.space.scarce
            packs = self.candidates(threshold)
            freed += await self._holes.once(self._cramped(packs), grace_s)
            for done, (number, record) in enumerate(packs):
                if on_progress is not None:
                    on_progress(done, len(packs))
                with_holes = scarce and self._holes.can_do(number)
                if not with_holes and record.live_bytes <= self._room():
                    await self._rewrite(number, record)
                    freed += await self._remove_emptied(grace_s)
            return freed

    def _room(self) -> int:
        """Bytes that may be taken for copies until what they are copies of is removed."""
        space = self._store.space
        # Whoever writes must not find the disk full because of us.
        return space.room_to_move() if self._is_full else space.free() // 2

    def _cramped(self, packs: list[tuple[PackNo, PackRecord]]) -> list[tuple[PackNo, PackRecord]]:
        """Of the candidates those that cannot be rewritten; where room is scarce all packs."""
        if not self._store.space.scarce:
            room = self._room()
            return [pair for pair in packs if pair[1].live_bytes > room]
        return [
            (number, record)
            for number, record in self._store.pack_table.items()
            if record.flags & layout.PACK_SEALED and record.live_chunks
        ]

    async def whole(self, grace_s: float, on_progress: OnProgress | None = None) -> int:
        """Compact all that has anything dead in it, the open pack too, and wait for the grace.

        Not for that of packs which others empty meanwhile: on a busy store that has no end.
        """
        store = self._store
        await store.sync_all()
        self.left.clear()
        await self._close_current()
        removed = await self.once(0.95, grace_s, on_progress)
        emptied = self._emptied()
        end = store.clock.monotonic() + grace_s
        if emptied and grace_s and on_progress is not None:
            on_progress(0, len(emptied), grace_s)
        while emptied & self._emptied():
            over = store.clock.monotonic() > end
            await trio.sleep(min(POLL_S, grace_s))
            removed += await self.once(0.0, grace_s)
            if over:
                # What is still there is held by something else than the grace.
                break
        return removed

    def _emptied(self) -> set[PackNo]:
        """Packs that go when nobody can be reading from them any more."""
        return {
            number
            for number, record in self._store.pack_table.items()
            if record.flags & layout.PACK_SEALED and record.flags & layout.PACK_EMPTIED
        }

    async def _rewrite(self, number: PackNo, record: PackRecord) -> None:
        """Move what is alive in a pack.  One of which something cannot be read stays as it is."""
        store = self._store
        rate = store.options.compact_rate
        try:
            batches = await self._alive(number)
        except (DiskFullError, ReadOnlyError):
            raise
        except CafsError as error:
            self._leave(number, error)
            return
        for batch in batches:
            began = store.clock.monotonic()
            try:
                pieces = await store.workers.run(partial(self._read, batch))
            except CafsError as error:
                self._leave(number, error)
                return
            await self._move(batch, pieces)
            await store.make_room()
            size = sum(extent.stored_length for _, extent, _ in batch)
            await trio.sleep(max(0.0, size / rate - (store.clock.monotonic() - began)))
        left = store.pack_table.get(number)
        if left is not None and left.live_chunks:
            self._leave(number, DamagedError("it still has chunks"))
            return
        log.info(
            "pack %08x rewritten: %d of %d bytes were alive",
            number,
            record.live_bytes,
            record.size,
        )

    def _leave(self, number: PackNo, error: CafsError) -> None:
        """The pack is not tried again until somebody asks for it."""
        self.left[number] = str(error)
        log.error("pack %08x is left as it is: %s; what to do: %s", number, error, error.advice)

    async def _alive(self, number: PackNo) -> list[_Batch]:
        """What is alive in a pack, by its sidecar, some megabytes at a time."""
        chunks = self._store.chunks
        batches: list[_Batch] = []
        size = BATCH
        for count, record in enumerate(await records_in(self._store, number)):
            if count % CHUNKS_AT_ONCE == CHUNKS_AT_ONCE - 1:
                await trio.lowlevel.checkpoint()
            found = chunks.at(record.sha256, number, record.offset)
            if found is None:
                continue
            if size >= BATCH or len(batches[-1]) >= CHUNKS_MOVED_AT_ONCE:
                batches.append([])
                size = 0
            batches[-1].append((*found, record.sha256))
            size += record.stored_length
        return batches

    def _read(self, batch: _Batch) -> list[StoredChunk]:
        """The bytes of chunks.  Blocks; runs in a thread."""
        pieces = []
        for number, extent, sha256 in batch:
            stored = self._store.packs.read_stored(extent.pack, extent.offset, extent.stored_length)
            # A damaged chunk must not be moved: its copy would have a good new place.
            verified(number, extent, stored)
            pieces.append(StoredChunk(sha256, stored, extent.codec, extent.raw_length, extent.xxh3))
        return pieces

    async def _move(self, batch: _Batch, pieces: list[StoredChunk]) -> None:
        store = self._store

        def append() -> list[Extent]:
            store.chunks.bound_unsynced()
            return store.packs.append(pieces)

        extents = await store.workers.run(append)
        now_ns = store.clock.now_ns()
        for (number, old, _), new in zip(batch, extents, strict=True):
            store.chunks.move(number, old, new, now_ns)

    async def _remove_emptied(self, grace_s: float) -> int:
        store = self._store
        now_ns = store.clock.now_ns()
        landing = store.chunks.landing_packs()
        doomed = [
            (number, record.size)
            for number, record in store.pack_table.items()
            # One that never had a live chunk has emptied_ns = 0, and nobody can be reading it.
            if not record.live_chunks
            and record.flags & layout.PACK_SEALED
            and number not in landing
            and (
                store.chunks.shown.never(number)
                or not 0 <= now_ns - record.emptied_ns < grace_s * 1e9
            )
        ]
        for number, size in doomed:
            store.packs.retire(number)
            store.pack_table.removed(number)
            self._doomed.append((number, size))
        if not self._doomed:
            return 0
        # If it fails they stay on the list: the index forgets them with a later commit.
        await store.commit()
        freed = 0
        for each in list(self._doomed):
            number, size = each
            try:
                await store.workers.run(partial(store.packs.remove, number))
            except CafsError as error:
                # It stays on the list; others may go.
                if number not in self._stuck:
                    log.error("pack %08x is empty and stays: %s", number, error)
                self._stuck.add(number)
                continue
            store.chunks.shown.forget(number)
            self._doomed.remove(each)
            freed += size
        return freed
