"""Digests for content that was written in pieces.

Such content has a recipe but no digests; they are computed by reading it back once nobody
writes to it any more, one blob at a time, behind everything else.  What waits is listed in the
index, so a restart goes on where the last run stopped.
"""

from __future__ import annotations

import logging
from functools import partial

import trio

from cafs import _digest
from cafs.blobs.digests import Digests
from cafs.contents import Contents
from cafs.errors import CafsError, DaemonError
from cafs.index.layout import BLOB_UNHASHED
from cafs.types import BlobNo, Ino

log = logging.getLogger(__name__)

PIECE = 4 << 20
"""Bytes that are read and hashed at once."""
PAUSE_S = 1.0
GIVE_WAY_S = 0.2
"""So long after the last bytes that were written somebody still writes ..."""
GIVE_WAY_MAX_S = 5.0
"""... but each piece has its turn after so long."""
STUCK_S = 600.0
"""What met damage is tried again after this time, or when it has changed."""


class Hasher:
    """Hashes blobs in the background.  Belongs to the event loop."""

    def __init__(self, contents: Contents) -> None:
        self._contents = contents
        self._stuck: dict[BlobNo, tuple[float, int]] = {}
        # What met damage: when it is tried again, and how many edits it has had.

    async def run(self) -> None:
        """Look for work now and then, for ever."""
        while True:
            await trio.sleep(PAUSE_S)
            try:
                await self._all(give_way=True)
            except DaemonError as error:
                # The store is being closed, and what waits is listed in its index.
                log.info("hashing ends: %s", error)
            except CafsError as error:
                log.warning("hashing stopped for now: %s", error)

    async def once(self) -> int:
        """Hash everything that nobody writes to; how many blobs."""
        with self._contents.feeder.in_haste():
            return await self._all(give_way=False)

    async def _all(self, *, give_way: bool) -> int:
        done = 0
        unhashed = self._contents.blobs.unhashed()
        self._stuck = {blob: self._stuck[blob] for blob, _ in unhashed if blob in self._stuck}
        for blob, ino in unhashed:
            if give_way and self._is_stuck(blob):
                continue
            done += await self._one(blob, ino, give_way=give_way)
        return done

    def _is_stuck(self, blob: BlobNo) -> bool:
        again, edits = self._stuck.get(blob, (0.0, 0))
        return trio.current_time() < again and self._contents.blobs.edits(blob) == edits

    async def catch_up(self) -> None:
        """Return when every file has its digests, but for those that somebody writes to."""
        for ino in list(self._contents.ahead()):
            await self._contents.finished(ino)
        await self.once()

    async def now(self, blob: BlobNo, ino: Ino) -> bool:
        """Hash this one before its turn; whether it has its digests then."""
        with self._contents.feeder.in_haste():
            return await self._one(blob, ino, give_way=False)

    def _settled(self, blob: BlobNo, ino: Ino, edits: int) -> bool:
        """Whether nobody writes to a file, and nobody did since its blob had so many edits."""
        attr = self._contents.tree.inodes.find(ino)
        if attr is None or attr.blob != blob or self._contents.has_draft(ino):
            return False
        blobs = self._contents.blobs
        if blobs.edits(blob) != edits or not blobs.get(blob).flags & BLOB_UNHASHED:
            # What is written in the meantime may be settled, in the same blob, and closed again.
            return False
        # Without a name it is a copy that grows, or about to go.
        return attr.nlink > 0

    async def _wait_for_writers(self) -> None:
        """Give way while somebody writes: hashing takes as much of a processor as storing does."""
        with trio.move_on_after(GIVE_WAY_MAX_S):
            while (left := self._contents.feeder.fed_at + GIVE_WAY_S - trio.current_time()) > 0:
                await trio.sleep(left)

    async def _one(self, blob: BlobNo, ino: Ino, *, give_way: bool) -> bool:
        try:
            return await self._hash(blob, ino, give_way=give_way)
        except DaemonError:
            raise
        except CafsError as error:
            text = "inode %d cannot be hashed for now: %s; what to do: %s"
            log.warning(text, ino, error, error.advice)
            edits = self._contents.blobs.edits(blob)
            self._stuck[blob] = trio.current_time() + STUCK_S, edits
            return False

    async def _hash(self, blob: BlobNo, ino: Ino, *, give_way: bool) -> bool:
        edits = self._contents.blobs.edits(blob)
        if not self._settled(blob, ino, edits):
            return False
        size = self._contents.tree.inodes.get(ino).size
        both = _digest.Both()
        for start in range(0, size, PIECE):
            if give_way:
                await self._wait_for_writers()
                if not self._settled(blob, ino, edits):
                    return False
            data = await self._contents.reader.read(blob, start, min(start + PIECE, size))
            may_wait = self._contents.feeder.may_wait()
            await self._contents.aside.run(partial(both.update, [data], may_wait))
            if not self._settled(blob, ino, edits):
                return False
        digests = Digests(*both.digests())
        number = self._contents.blobs.hashed(blob, digests)
        if number != blob:
            self._contents.publish(ino, number, size)
        return True
