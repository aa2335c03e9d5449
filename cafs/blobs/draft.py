"""Content that is being written: a file as its writers see it, until it is a blob.

Two ways to write, chosen by where each write falls.  *Appending*: bytes wait in memory, go to
the ingest pipeline about a megabyte at a time, and become parts of the blob as they are cut; a
file written from start to end is never stored twice.  *Patching*: anything else goes to a
spool; settling cuts anew only from the border before a changed range to the first old border
behind it, and keeps all other parts.

Invariants: bytes [0, covered) are those of *base*; the rest up to *size* is in memory, in the
spool, or zero.  What the inode's record names (*published*) is a prefix or an older state of
the content at any moment, so a commit may fall between any two steps.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

import trio

from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs, Digests
from cafs.blobs.ingest import Cut, Fed, Ingest, IngestStream, Slice
from cafs.blobs.reader import Reader
from cafs.blobs.recipe import Part
from cafs.blobs.spool import Spool
from cafs.errors import CafsError
from cafs.index.layout import BLOB_UNHASHED
from cafs.types import NO_BLOB, BlobNo, Ino
from cafs.workers import Workers

log = logging.getLogger(__name__)

BATCH = 1 << 20
"""Bytes that make a job for the ingest pipeline."""
WINDOW = 4 << 20
"""Bytes that are cut at once when a patched file is settled."""


class Surroundings(Protocol):
    """What a draft needs of its store."""

    blobs: Blobs
    ingest: Ingest
    reader: Reader
    workers: Workers

    def publish(self, ino: Ino, blob: BlobNo, size: int) -> None:
        """The inode's content is now this blob: refer to it, let go of the one before."""

    def new_spool(self, ino: Ino) -> Spool:
        """An empty spool."""

    def feed(
        self,
        stream: IngestStream,
        buffers: list[bytes],
        final: bool,
        done: Callable[[Fed | None, Exception | None], None],
    ) -> None:
        """Feed a stream in a worker, soon; *done* is called on the event loop."""

    def digests_later(
        self, stream: IngestStream, done: Callable[[Digests | None, Exception | None], None]
    ) -> None:
        """Call *done* on the event loop with the digests of what was fed so far."""

    def digests_arrived(self, ino: Ino) -> None:
        """The digests that a draft waited for are there, or will not come."""

    def hurry(self) -> None:
        """Somebody waits for what was fed."""

    def held(self, change_bytes: int) -> None:
        """So many bytes more (or less) wait in memory."""


class Draft:
    """The content of one inode.  Belongs to the event loop."""

    def __init__(self, around: Surroundings, ino: Ino, blob: BlobNo, size: int) -> None:
        self._around = around
        self.ino = ino
        self.size = size
        """What stat(2) shows."""
        self.error: CafsError | None = None
        """Why the last attempt to store something failed; it is tried again."""
        self._base = blob
        self._published = blob
        self._published_size = size
        self._covered = size
        self._stream: IngestStream | None = None
        self._memory: deque[tuple[int, bytes]] = deque()
        self._queue: list[bytes] = []
        self._queued = 0
        self._running = False
        self._idle = trio.Event()
        self._idle.set()
        self._spool: Spool | None = None
        self._digests: Digests | None = None
        self.awaits_digests = False
        """Whether its digests are still being computed."""
        self._broken: CafsError | None = None
        self._lock = trio.Lock()

    @property
    def dirty(self) -> bool:
        """Whether the published blob is not yet all of the content."""
        return (
            self._running
            or bool(self._queue)
            or self._patched
            or self._published != self._base
            or self._published_size != self._covered
            or self._covered != self.size
        )

    @property
    def hashed(self) -> bool:
        """Whether the published blob has its digests (or the file is empty)."""
        return self._published == NO_BLOB or not (
            self._around.blobs.get(self._published).flags & BLOB_UNHASHED
        )

    @property
    def busy(self) -> bool:
        """Whether a job runs or somebody works on it."""
        return self._running or self._lock.locked()

    @property
    def _cut_short(self) -> bool:
        """Whether base still has bytes behind *covered*: the file was truncated."""
        return self._base == self._published and self._published_size > self._covered

    @property
    def _patched(self) -> bool:
        return self._spool is not None and bool(self._spool.ranges)

    @property
    def _in_order(self) -> bool:
        """Whether all that is there is in base or in memory, without patches and holes."""
        memory = self._memory[-1] if self._memory else None
        end = memory[0] + len(memory[1]) if memory else self._covered
        return not self._patched and end == self.size

    # -- reading -----------------------------------------------------------------------------

    async def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), shorter at the end of the file.  Raises ChunkDamagedError."""
        end = min(end, self.size)
        if start >= end:
            return b""
        covered = self._covered
        if end <= covered and not self._patched:
            return await self._around.reader.read(self._base, start, end)
        # What is not in base is copied before the first checkpoint: it may move to base there,
        # and then memory and spool have it no more.
        above = bytearray(end - max(start, covered)) if end > covered else bytearray()
        above_start = max(start, covered)
        for offset, data in self._memory:
            low, high = max(offset, above_start), min(offset + len(data), end)
            if low < high:
                above[low - above_start : high - above_start] = data[low - offset : high - offset]
        patches = self._spool.pieces(start, end) if self._spool is not None else []
        below = b""
        if start < covered:
            below = await self._around.reader.read(self._base, start, min(end, covered))
        merged = bytearray(below) + above
        for offset, data in patches:
            merged[offset - start : offset - start + len(data)] = data
        return bytes(merged)

    # -- writing -----------------------------------------------------------------------------

    def append_now(self, offset: int, data: bytes) -> bool:
        """Take *data* without a checkpoint if it simply continues a stream; else say False."""
        if offset != self.size or self._lock.locked() or not self._in_order:
            return False
        if self._stream is None:
            if self.size:
                return False
            self._stream = IngestStream()
        self._digests = None
        self._memory.append((offset, data))
        self._queue.append(data)
        self._queued += len(data)
        self.size += len(data)
        self._around.held(len(data))
        if self._queued >= BATCH and not self._running:
            self._feed(final=False)
        return True

    async def write(self, offset: int, data: bytes) -> None:
        """Put *data* at *offset*.  Raises DiskFullError and its kin; then nothing has changed."""
        if self.append_now(offset, data):
            return
        async with self._lock:
            if offset == self.size and self._in_order:
                # An empty file has nothing to continue: append_now() takes it.
                if self._stream is None and self.size:
                    await self._begin_appending()
            else:
                await self._begin_patching()
                assert self._spool is not None
                self._spool.write(offset, data)
                self.size = max(self.size, offset + len(data))
                return
        # The lock is free again: no checkpoint lies between this and the try above.
        if not self.append_now(offset, data):
            await self.write(offset, data)

    async def _begin_appending(self) -> None:
        """Continue a blob that is there: its last part is cut again with what comes."""
        if self._cut_short:
            await self._cut_base()
        *_, (start, last) = self._around.blobs.parts(self._base, self.size - 1, self.size)
        read = self._around.reader.read
        if last.kind == recipe.HOLE:
            start = self.size
        tail = await read(self._base, start, self.size)
        head = await read(self._base, 0, min(64, self.size))
        self._stream = IngestStream(head, tail)

    async def _begin_patching(self) -> None:
        await self._drain()
        self._stream = None
        self._digests = None
        if self._spool is None:
            self._spool = self._around.new_spool(self.ino)

    async def truncate(self, size: int) -> None:
        """Set the size; what is added reads as zeros and takes no space."""
        if size == self.size:
            return
        async with self._lock:
            if size == 0:
                self._around.hurry()
                await self._idle.wait()
                self._forget_memory()
                if self._spool is not None:
                    self._spool.reset()
                self._base = NO_BLOB
                self._covered = 0
            else:
                await self._begin_patching()
                assert self._spool is not None
                self._spool.cut(size)
                self._covered = min(self._covered, size)
            self._stream = None
            self._digests = None
            self.size = size

    # -- settling ----------------------------------------------------------------------------

    async def settle(self) -> None:
        """Bring everything into the published blob.  Raises DiskFullError and its kin."""
        if not self.dirty:
            return
        async with self._lock:
            await self._drain()
            if self._patched or self._cut_short or self._covered != self.size:
                await self._settle_patches()
            if self._published != self._base:
                self._publish(self._base, self._covered)
            self.error = None

    def finish_now(self, done: Callable[[], None]) -> bool:
        """Begin to settle without a checkpoint if only memory must be written; else say False.

        *done* is called on the event loop when it is over, well or not (see *error*).
        """
        if self._running or self._lock.locked() or not self._in_order or not self._memory:
            return False
        self._feed(final=True, done=done)
        return True

    def take_digests(self) -> None:
        """Nobody writes any more: give the published blob its digests if they are known."""
        if self._digests is None or self.dirty or self._published == NO_BLOB or self.hashed:
            return
        number = self._around.blobs.hashed(self._published, self._digests)
        if number != self._published:
            self._publish(number, self.size)

    async def _drain(self) -> None:
        """Bring what waits in memory into base."""
        while True:
            self._around.hurry()
            await self._idle.wait()
            if not self._memory:
                return
            self._feed(final=True)
            self._around.hurry()
            await self._idle.wait()
            if self.error is not None:
                raise self.error

    def _feed(self, *, final: bool, done: Callable[[], None] | None = None) -> None:
        if self._broken is not None:
            raise self._broken
        assert self._stream is not None
        stream, buffers = self._stream, self._queue
        self._queue, self._queued = [], 0
        self._running = True
        self._idle = trio.Event()

        def fed(result: Fed | None, error: Exception | None) -> None:
            self._running = False
            if result is None:
                # Nothing has changed in the stream: the same bytes are fed again later.
                self._queue[:0] = buffers
                self._queued += sum(map(len, buffers))
                self.error = _foreseen(error)
            else:
                self.error = None
                try:
                    self._apply(result)
                    if final and stream.whole and result.digests is None:
                        self._await_digests(stream)
                except Exception as defect:
                    # The stream has gone on without its parts: what follows would be put in
                    # the wrong place, so nothing follows.
                    self._broken = _foreseen(defect)
                    self.error = self._broken
                if self._queued >= BATCH and not self._lock.locked() and not self._broken:
                    self._feed(final=False)
            if not self._running:
                self._idle.set()
            if done is not None:
                done()

        self._around.feed(stream, buffers, final, fed)

    def _await_digests(self, stream: IngestStream) -> None:
        position = stream.position
        self.awaits_digests = True

        def arrived(digests: Digests | None, _error: Exception | None) -> None:
            self.awaits_digests = False
            if stream is self._stream and stream.position == position == self.size:
                self._digests = digests
            self._around.digests_arrived(self.ino)

        self._around.digests_later(stream, arrived)

    def _apply(self, fed: Fed) -> None:
        blobs = self._around.blobs
        start = self._covered - fed.rewound
        end = start + fed.length
        self._digests = fed.digests
        if not fed.length:
            return
        if self._base == NO_BLOB and fed.digests is not None:
            self._base = blobs.adopt(fed.parts, end, fed.digests)
            self._publish(self._base, end)
        else:
            try:
                self._own()
            except BaseException:
                blobs.chunks.unpin(recipe.chunk_refs(fed.parts))
                raise
            blobs.splice(self._base, start, self._covered, fed.parts, end)
            self._publish(self._base, end)
        self._covered = end
        while self._memory and self._memory[0][0] + len(self._memory[0][1]) <= end:
            self._around.held(-len(self._memory.popleft()[1]))

    def _own(self) -> None:
        """Make base a blob that may be changed: this draft's own, without digests."""
        blobs = self._around.blobs
        if self._base == NO_BLOB:
            self._base = blobs.begin(self.ino)
            self._publish(self._base, 0)
        elif not blobs.get(self._base).flags & BLOB_UNHASHED:
            self._base = blobs.fork(self._base, self.ino)
            self._publish(self._base, blobs.get(self._base).size)

    def _publish(self, blob: BlobNo, size: int) -> None:
        self._published = self._base = blob
        self._published_size = size
        self._around.publish(self.ino, blob, size)

    async def _settle_patches(self) -> None:
        if self._cut_short:
            await self._cut_base()
        self._own()
        done = 0
        for start, end in list(self._spool.ranges) if self._spool is not None else ():
            if end > done:
                done = await self._settle_range(max(start, done), end)
        if self.size > self._covered:
            self._extend(self.size)
        if self._spool is not None:
            self._spool.reset()

    async def _cut_base(self) -> None:
        """Make base end at *covered*."""
        self._own()
        blobs = self._around.blobs
        have = blobs.get(self._base).size
        parts: list[Part] = []
        start = self._covered
        for begin, part in blobs.parts(self._base, start, start + 1):
            if begin < start and part.kind != recipe.HOLE:
                data = await self._around.reader.read(self._base, begin, start)
                parts = (await self._cut(data, final=True)).parts
                start = begin
            break
        blobs.splice(self._base, start, have, parts, self._covered)
        self._publish(self._base, self._covered)

    def _extend(self, size: int) -> None:
        hole = recipe.hole(size - self._covered)
        self._around.blobs.splice(self._base, self._covered, self._covered, [hole], size)
        self._covered = size
        self._publish(self._base, size)

    async def _settle_range(self, start: int, end: int) -> int:
        """Cut anew from the border before *start* to a border at or behind *end*; where that is."""
        assert self._spool is not None
        if start > self._covered:
            self._extend(start)
        first = self._border(start)
        parts: list[Part] = []
        try:
            stop = await self._cut_anew(first, end, parts)
        except BaseException:
            self._around.blobs.chunks.unpin(recipe.chunk_refs(parts))
            raise
        size = max(stop, self._covered)
        self._around.blobs.splice(self._base, first, min(stop, self._covered), parts, size)
        self._covered = size
        self._publish(self._base, size)
        return stop

    async def _cut_anew(self, first: int, end: int, parts: list[Part]) -> int:
        """Fill *parts* with those from *first* to a border at or behind *end*; where that is."""
        assert self._spool is not None
        position = first
        rest = b""
        while True:
            stop = self._data_end(max(end, position + 1))
            upto = min(position + WINDOW, stop)
            data = rest + await self.read(position, upto)
            cut = await self._cut(data, final=upto == stop)
            at = position - len(rest)
            for index, part in enumerate(cut.parts):
                parts.append(part)
                at += part.length
                for low, high in self._spool.ranges.within(at - 1, at + 1):
                    # Another changed range has been reached: its end is the one to reach.
                    end = max(end, self._range_end(low, high))
                if at >= end and (at >= self._covered or self._border(at) == at):
                    self._around.blobs.chunks.unpin(recipe.chunk_refs(cut.parts[index + 1 :]))
                    return at
            rest = data[cut.length :]
            position = upto

    def _range_end(self, low: int, high: int) -> int:
        assert self._spool is not None
        return next(end for start, end in self._spool.ranges if start <= low and high <= end)

    def _border(self, offset: int) -> int:
        """The last place up to *offset* where a part of base begins, or *offset* in a hole."""
        if offset >= self._covered:
            if not self._covered:
                return 0
            offset = self._covered
            for begin, part in self._around.blobs.parts(self._base, offset - 1, offset):
                # Behind the end: what is appended is cut together with the last part.
                return offset if part.kind == recipe.HOLE else begin
        for begin, part in self._around.blobs.parts(self._base, offset, offset + 1):
            return offset if part.kind == recipe.HOLE else begin
        return offset

    def _data_end(self, offset: int) -> int:
        """Where the data around *offset* ends: a hole of base behind it, or the end."""
        assert self._spool is not None
        end = max(
            self._covered, *(high for _, high in self._spool.ranges.within(offset - 1, offset)), 0
        )
        horizon = min(self._covered, offset + WINDOW)
        for begin, part in self._around.blobs.parts(self._base, offset, horizon):
            if part.kind == recipe.HOLE:
                return max(begin, offset)
        return end

    async def _cut(self, data: bytes, *, final: bool) -> Cut:
        ingest = self._around.ingest
        (cut,) = await self._around.workers.run(lambda: ingest.cut([Slice(data, final, True)]))
        return cut

    def _forget_memory(self) -> None:
        self._around.held(-sum(len(data) for _, data in self._memory))
        self._memory.clear()
        self._queue.clear()
        self._queued = 0

    def discard(self) -> None:
        """Drop what is not published: the file goes."""
        self._forget_memory()
        self.close()

    def close(self) -> None:
        """Let go of the spool."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None


def _foreseen(error: Exception | None) -> CafsError:
    if isinstance(error, CafsError):
        return error
    log.error("defect while content was stored", exc_info=error)
    return CafsError(f"defect while content was stored: {error!r}")
