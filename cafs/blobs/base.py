"""The stored part of content that is being written: a blob that may be edited in place.

Invariants: bytes [0, covered) of the content are those of blob *number*; what the inode's record
names (*published*) is a prefix or an older state of the content at any moment.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Final, Protocol

from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.feeder import Feeder
from cafs.blobs.ingest import Cut, Ingest, Slice
from cafs.blobs.reader import Reader
from cafs.blobs.recipe import Part
from cafs.blobs.spool import Spool
from cafs.index.layout import BLOB_UNHASHED
from cafs.types import NO_BLOB, BlobNo, Ino
from cafs.workers import Workers

FORKED_AT_ONCE: Final = 16 << 20
"""Content up to this size is forked in one step: some hundred parts, of 26 us each."""


class Surroundings(Protocol):
    """What a draft needs of its store."""

    blobs: Blobs
    feeder: Feeder
    ingest: Ingest
    reader: Reader
    workers: Workers

    def publish(self, ino: Ino, blob: BlobNo, size: int) -> None:
        """The inode's content is now this blob: refer to it, let go of the one before."""

    def forked(self, ino: Ino, source: BlobNo, size: int) -> AbstractAsyncContextManager[BlobNo]:
        """A blob for this inode with the parts of the first *size* bytes of *source*."""

    def new_spool(self, ino: Ino) -> Spool:
        """An empty spool."""

    def digests_arrived(self, ino: Ino) -> None:
        """The digests that a draft waited for are there, or will not come."""

    def held(self, change_bytes: int) -> None:
        """So many bytes more (or less) wait in memory."""


class Base:
    """What of one inode's content is stored.  Belongs to the event loop."""

    def __init__(self, around: Surroundings, ino: Ino, blob: BlobNo, size: int) -> None:
        self._around = around
        self._ino = ino
        self.number = blob
        """The blob that bytes [0, covered) come from; NO_BLOB for none."""
        self.covered = size
        self._published = blob
        self._published_size = size

    @property
    def unpublished(self) -> bool:
        """Whether the inode's record does not yet say what *number* and *covered* say."""
        return self._published != self.number or self._published_size != self.covered

    @property
    def cut_short(self) -> bool:
        """Whether the blob still has bytes behind *covered*: the file was truncated."""
        return self._published == self.number and self._published_size > self.covered

    @property
    def hashed(self) -> bool:
        """Whether the published blob has its digests (or there is none)."""
        return self._published == NO_BLOB or not (
            self._around.blobs.get(self._published).flags & BLOB_UNHASHED
        )

    async def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), which must be covered.  Raises ChunkDamagedError."""
        return bytes(await self._around.reader.read(self.number, start, end))

    def forget(self) -> None:
        """Nothing of the blob counts any more: the file was truncated to nothing."""
        self.number = NO_BLOB
        self.covered = 0

    def publish(self, blob: BlobNo, size: int) -> None:
        """Make this blob, of this size, the base and what the inode's record names."""
        self._published = self.number = blob
        self._published_size = self.covered = size
        self._around.publish(self._ino, blob, size)

    def own(self) -> None:
        """Make the blob one that may be changed: this inode's own, without digests."""
        blobs = self._around.blobs
        covered = self.covered
        if self.number == NO_BLOB:
            self.publish(blobs.begin(self._ino), 0)
        elif not blobs.get(self.number).flags & BLOB_UNHASHED:
            fork = blobs.fork(self.number, self._ino)
            self.publish(fork, blobs.get(fork).size)
        self.covered = covered

    async def own_in_steps(self) -> None:
        """As own(), but large content holds nobody up; nobody else may change it meanwhile."""
        blobs, covered = self._around.blobs, self.covered
        shared = self.number != NO_BLOB and not blobs.get(self.number).flags & BLOB_UNHASHED
        if shared and covered > FORKED_AT_ONCE:
            async with self._around.forked(self._ino, self.number, covered) as fork:
                self.publish(fork, blobs.get(fork).size)
            self.covered = covered
        else:
            self.own()

    def replace(self, start: int, end: int, parts: list[Part], size: int) -> None:
        """Put parts in the place of [start, end), and publish.  See Blobs.splice()."""
        self._around.blobs.splice(self.number, start, end, parts, size)
        self.publish(self.number, size)

    def extend(self, size: int) -> None:
        """Add a hole up to *size*."""
        self.replace(self.covered, self.covered, [recipe.hole(size - self.covered)], size)

    async def shorten(self) -> None:
        """Make the blob end at *covered*."""
        await self.own_in_steps()
        blobs = self._around.blobs
        have = blobs.get(self.number).size
        parts: list[Part] = []
        start = covered = self.covered
        for begin, part in blobs.parts(self.number, start, start + 1):
            if begin < start and part.kind != recipe.HOLE:
                data = await self.read(begin, start)
                parts = (await self.cut(data, final=True)).parts
                start = begin
            break
        self.replace(start, have, parts, covered)

    def last_part(self) -> tuple[int, Part]:
        """The last part and its first byte; there must be one."""
        *_, last = self._around.blobs.parts(self.number, self.covered - 1, self.covered)
        return last

    def border(self, offset: int) -> int:
        """The last place up to *offset* where a part begins, or *offset* in a hole."""
        if offset >= self.covered:
            if not self.covered:
                return 0
            # Behind the end: what is appended is cut together with the last part.
            begin, part = self.last_part()
            return self.covered if part.kind == recipe.HOLE else begin
        for begin, part in self._around.blobs.parts(self.number, offset, offset + 1):
            return offset if part.kind == recipe.HOLE else begin
        return offset

    def border_behind(self, offset: int) -> int:
        """The first place at or behind *offset* where a part ends; *offset* if there is none."""
        if offset:
            for begin, part in self._around.blobs.parts(self.number, offset - 1, offset):
                return min(begin + part.length, self.covered)
        return offset

    def hole_behind(self, offset: int, horizon: int) -> int | None:
        """Where the first hole at or behind *offset* begins, if it does so before *horizon*."""
        for begin, part in self._around.blobs.parts(self.number, offset, horizon):
            if part.kind == recipe.HOLE:
                return max(begin, offset)
        return None

    async def cut(self, data: bytes, *, final: bool) -> Cut:
        """Cut and store bytes that begin at a border.  Raises DiskFullError and its kin."""
        ingest = self._around.ingest
        given = Slice(data, final, True)
        (cut,) = await self._around.workers.run(lambda: ingest.store([ingest.split(given)]))
        return cut

    def unpin(self, parts: list[Part]) -> None:
        """Let go of parts that will not be used."""
        self._around.blobs.chunks.unpin(recipe.chunk_refs(parts))
