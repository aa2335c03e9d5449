"""An aged blob gets its plain recipe back: rebuilt, cut and stored as when it was written.

Invariant: the recipe is exchanged only when all bytes were rebuilt and their SHA-256 is the
blob's; whatever stops it before leaves the blob aged.  Belongs to the event loop.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final

import trio

from cafs.archives.rebuilds import Rebuilds
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.ingest import Ingest
from cafs.blobs.recipe import Part
from cafs.blobs.stream import Batch, IngestStream, feed_all
from cafs.errors import RebuildError
from cafs.index import layout
from cafs.index.layout import BLOB_AGED, PARTS_PER_ROW
from cafs.types import BlobNo
from cafs.workers import Workers

PIECE: Final = 1 << 20
ROWS_AT_ONCE: Final = 4 * PARTS_PER_ROW


class Thaw:
    """Thaws blobs; each only once at the same time, however many ask for it."""

    def __init__(
        self,
        blobs: Blobs,
        ingest: Ingest,
        rebuilds: Rebuilds,
        workers: Workers,
        admit: Callable[[], Awaitable[None]],
    ) -> None:
        """*admit* waits for room and raises DiskFullError and its kin where there is none."""
        self._blobs = blobs
        self._ingest = ingest
        self._rebuilds = rebuilds
        self._workers = workers
        self._admit = admit
        self._under_way: dict[BlobNo, trio.Event] = {}
        self.done = 0
        """Blobs that were thawed."""

    def aged(self, blob: BlobNo) -> bool:
        """Whether a blob is there and aged."""
        value = self._blobs.overlay.get(layout.BLOBS, layout.u48(blob))
        return value is not None and bool(layout.unpack_blob(value).flags & BLOB_AGED)

    async def thaw(self, blob: BlobNo) -> bool:
        """Make a blob plain; False if it was.  Raises RebuildError, DiskFullError and its kin."""
        while blob in self._under_way:
            await self._under_way[blob].wait()
        if not self.aged(blob):
            return False
        self._under_way[blob] = trio.Event()
        self._blobs.aged.hold(blob)
        try:
            await self._store(blob)
        finally:
            self._blobs.aged.let_go(blob)
            self._under_way.pop(blob).set()
        self.done += 1
        await self._rebuilds.forget(blob)
        return True

    async def _store(self, blob: BlobNo) -> None:
        record = self._blobs.get(blob)
        aged, stream = self._blobs.aged, IngestStream()
        drafted = aged.begin()
        exchanged = False
        pinned: list[Part] = []
        try:
            digests = None
            for start in range(0, record.size, PIECE):
                await self._admit()
                end = min(start + PIECE, record.size)
                data = bytes(await self._rebuilds.read_uncounted(blob, start, end))
                batch = Batch(stream, [data], end == record.size)
                (fed,) = await self._workers.run(partial(feed_all, self._ingest, [batch]))
                digests = fed.digests
                pinned += fed.parts
                while len(pinned) >= ROWS_AT_ONCE:
                    taken, pinned = pinned[:ROWS_AT_ONCE], pinned[ROWS_AT_ONCE:]
                    aged.extend(drafted, taken)
            if digests is None or digests.sha256 != record.sha256:
                raise RebuildError(f"blob {blob} was rebuilt with another SHA-256 than it had")
            taken, pinned = pinned, []
            aged.extend(drafted, taken)
            exchanged = True
            if not aged.swap_back(blob, drafted) and self.aged(blob):
                raise RebuildError(f"blob {blob} cannot be made plain: its holes would change")
        finally:
            self._blobs.chunks.unpin(recipe.chunk_refs(pinned))
            if not exchanged:
                aged.drop(drafted)
