"""Compaction: giving the space of dead chunks back.

Copies what is alive in a pack that is mostly dead to the end of the current one, points the
index there, and removes the old pack once a grace period has passed, because another process
may still be reading from it.  It may stop at any point: a copy that the index does not name is
dead bytes, and the old pack goes only after the commit that forgot it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import trio

from cafs.blobs import sidecar
from cafs.blobs.pack import StoredChunk
from cafs.blobs.reader import verified
from cafs.errors import CafsError, DamagedError
from cafs.index import layout
from cafs.index.layout import PackRecord
from cafs.store import Store
from cafs.types import ChunkNo, Extent, PackNo

log = logging.getLogger(__name__)

PAUSE_S = 5.0
MOSTLY_DEAD = 0.5
"""A pack of which less than this is alive is rewritten by itself."""
BATCH = 4 << 20
"""Bytes that are copied at once."""

OnProgress = Callable[[int, int], None]


class Compactor:
    """Rewrites packs.  Belongs to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = trio.Lock()

    async def run(self) -> None:
        """Compact what is mostly dead, for ever."""
        while True:
            await trio.sleep(PAUSE_S)
            try:
                await self.once(MOSTLY_DEAD, self._store.options.grace)
            except CafsError as error:
                log.warning("compaction stopped for now: %s", error)

    def candidates(self, threshold: float) -> list[tuple[PackNo, PackRecord]]:
        """Sealed packs of which less than *threshold* (0 to 1) is alive."""
        return [
            (number, record)
            for number, record in self._store.pack_table.items()
            if record.flags & layout.PACK_SEALED
            and record.live_bytes < threshold * record.size
            and record.live_chunks
        ]

    async def once(
        self, threshold: float, grace_s: float, on_progress: OnProgress | None = None
    ) -> int:
        """Rewrite packs below *threshold* and remove those that are empty long enough.

        Returns the bytes of the packs that were removed.
        """
        async with self._lock:
            packs = self.candidates(threshold)
            for done, (number, record) in enumerate(packs):
                if on_progress is not None:
                    on_progress(done, len(packs))
                await self._rewrite(number, record)
            return await self._remove_emptied(grace_s)

    async def whole(self, grace_s: float, on_progress: OnProgress | None = None) -> int:
        """Compact all that has anything dead in it, the open pack too, and wait for the grace."""
        store = self._store
        await store.sync_all()
        store.packs.roll()
        await trio.to_thread.run_sync(store.packs.sync)
        store.pack_table.save(store.packs)
        removed = await self.once(0.95, grace_s, on_progress)
        while any(record.flags & layout.PACK_EMPTIED for _, record in store.pack_table.items()):
            await trio.sleep(min(0.1, grace_s))
            removed += await self.once(0.0, grace_s)
        return removed

    async def _rewrite(self, number: PackNo, record: PackRecord) -> None:
        store = self._store
        rate = store.options.compact_rate
        for batch in self._batches(number):
            began = store.clock.monotonic()
            if not await self._move(batch):
                return
            await store.make_room()
            size = sum(extent.stored_length for _, extent, _ in batch)
            await trio.sleep(max(0.0, size / rate - (store.clock.monotonic() - began)))
        log.info(
            "pack %08x rewritten: %d of %d bytes were alive",
            number,
            record.live_bytes,
            record.size,
        )

    def _batches(self, number: PackNo) -> Iterator[list[tuple[ChunkNo, Extent, bytes]]]:
        """What is alive in a pack, by its sidecar, some megabytes at a time."""
        chunks = self._store.chunks
        batch: list[tuple[ChunkNo, Extent, bytes]] = []
        size = 0
        for record in list(sidecar.read_sidecar(self._store.packs.sidecar_path(number))):
            found = chunks.at(record.sha256, number, record.offset)
            if found is None:
                continue
            batch.append((*found, record.sha256))
            size += record.stored_length
            if size >= BATCH:
                yield batch
                batch, size = [], 0
        if batch:
            yield batch

    async def _move(self, batch: list[tuple[ChunkNo, Extent, bytes]]) -> bool:
        store = self._store

        def copy() -> list[Extent]:
            pieces = []
            for number, extent, sha256 in batch:
                stored = store.packs.read_stored(extent.pack, extent.offset, extent.stored_length)
                assert stored is not None
                # A damaged chunk must not be moved: its copy would have a good new place.
                verified(number, extent, stored)
                pieces.append(
                    StoredChunk(sha256, stored, extent.codec, extent.raw_length, extent.xxh3)
                )
            return store.packs.append(pieces)

        try:
            extents = await store.workers.run(copy)
        except DamagedError as error:
            log.error("pack %08x is left as it is: %s", batch[0][1].pack, error)
            return False
        now_ns = store.clock.now_ns()
        for (number, old, _), new in zip(batch, extents, strict=True):
            store.chunks.move(number, old, new, now_ns)
        return True

    async def _remove_emptied(self, grace_s: float) -> int:
        store = self._store
        now_ns = store.clock.now_ns()
        landing = store.chunks.landing_packs()
        doomed = [
            (number, record.size)
            for number, record in store.pack_table.items()
            if record.flags & layout.PACK_EMPTIED
            and record.flags & layout.PACK_SEALED
            and number not in landing
            and not 0 <= now_ns - record.emptied_ns < grace_s * 1e9
        ]
        if not doomed:
            return 0
        for number, _ in doomed:
            store.packs.retire(number)
            store.pack_table.removed(number)
        await store.commit()
        for number, _ in doomed:
            store.packs.remove(number)
        return sum(size for _, size in doomed)
