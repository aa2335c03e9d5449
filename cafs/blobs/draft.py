"""Content that is being written: a file as its writers see it, until it is a blob.

Two ways to write, chosen by where each write falls.  *Appending*: bytes wait in memory, go to
the ingest pipeline about a megabyte at a time, and become parts of the blob as they are cut; a
file written from start to end is never stored twice.  *Patching*: anything else goes to a
spool until it is settled (cafs.blobs.patching).

Invariant: what *base* covers is stored; the rest up to *size* is in memory, in the spool, or
zero.  A commit may fall between any two steps (cafs.blobs.base).
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

import trio

from cafs.blobs import patching, recipe
from cafs.blobs.base import Base, Surroundings
from cafs.blobs.digests import Digests
from cafs.blobs.flow import Flow
from cafs.blobs.spool import Spool
from cafs.blobs.stream import Fed, IngestStream
from cafs.errors import CafsError
from cafs.types import NO_BLOB, Attr, BlobNo, Ino

log = logging.getLogger(__name__)

BATCH = 1 << 20
"""Bytes from which on a job is made for the ingest pipeline."""
BATCH_MAX = 4 << 20
"""Bytes of the largest job: while earlier ones are under way, what comes gathers for the next.

Each job costs some hand-overs of the interpreter lock, and SHA-256 works on sixteen chunks at
once: of one megabyte there are too few.
"""


class Draft:
    """The content of one inode.  Belongs to the event loop."""

    def __init__(self, around: Surroundings, ino: Ino, blob: BlobNo, size: int) -> None:
        self._around = around
        self.ino = ino
        self.size = size
        """What stat(2) shows."""
        self.error: CafsError | None = None
        """Why the last attempt to store something failed; it is tried again."""
        self._base = Base(around, ino, blob, size)
        self._flow: Flow | None = None
        self._memory: deque[tuple[int, bytes]] = deque()
        self._queue: deque[bytes] = deque()
        self._queued = 0
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
            not self._idle.is_set()
            or bool(self._queue)
            or self._patched
            or self._base.unpublished
            or self._base.covered != self.size
        )

    def rests_on(self, blob: BlobNo) -> bool:
        """Whether bytes of it are those of a blob."""
        return self._base.number == blob

    @property
    def busy(self) -> bool:
        """Whether a job runs or somebody works on it."""
        return not self._idle.is_set() or self._lock.locked()

    def over(self, record: Attr) -> Attr:
        """The attributes in the inode's record, with size and holes as they are now.

        What is overwritten in a file with holes counts twice until it is settled: finding out
        takes a look at the recipe.
        """
        stored = min(self._base.covered, record.size - record.aux)
        if self._memory:
            offset, data = self._memory[-1]
            stored += max(0, offset + len(data) - self._base.covered)
        if self._spool is not None:
            stored += self._spool.ranges.length
        holes = self.size - min(max(0, stored), self.size)
        if (self.size, holes) == (record.size, record.aux):
            return record
        return record._replace(size=self.size, aux=holes)

    @property
    def _patched(self) -> bool:
        return self._spool is not None and bool(self._spool.ranges)

    @property
    def _in_order(self) -> bool:
        """Whether all that is there is in base or in memory, without patches and holes."""
        memory = self._memory[-1] if self._memory else None
        end = memory[0] + len(memory[1]) if memory else self._base.covered
        return not self._patched and end == self.size

    # -- reading -----------------------------------------------------------------------------

    async def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), shorter at the end of the file.  Raises ChunkDamagedError."""
        end = min(end, self.size)
        if start >= end:
            return b""
        covered = self._base.covered
        if end <= covered and not self._patched:
            return await self._base.read(start, end)
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
            below = await self._base.read(start, min(end, covered))
        merged = bytearray(below) + above
        for offset, data in patches:
            merged[offset - start : offset - start + len(data)] = data
        return bytes(merged)

    # -- writing -----------------------------------------------------------------------------

    def append_now(self, offset: int, data: bytes, *, last: bool = False) -> bool:
        """Take *data* without a checkpoint if it simply continues a stream; else say False.

        With *last* it is taken for the end of the content, and if nothing is under way all that
        waits is stored as one: the rest of a batch would make a trip to a worker of its own.
        Raises CafsError if what came before can never be stored.
        """
        if self._broken is not None:
            raise self._broken
        if offset != self.size or self._lock.locked() or not self._in_order:
            return False
        if self._flow is None:
            if self.size:
                return False
            self._flow = Flow(self._around.feeder, IngestStream())
        self._digests = None
        if data:
            self._memory.append((offset, data))
            self._queue.append(data)
            self._queued += len(data)
            self.size += len(data)
            self._around.held(len(data))
        if last and self._memory and self._queued <= BATCH_MAX and self._flow.idle:
            self._feed(final=True)
        else:
            self._feed_on()
        return True

    async def write(self, offset: int, data: bytes) -> None:
        """Put *data* at *offset*.

        Raises DiskFullError and its kin; then nothing has changed, but for what Spool.write()
        says.
        """
        if self.append_now(offset, data) or not data:
            return
        async with self._lock:
            if offset == self.size and self._in_order:
                # An empty file has nothing to continue: append_now() takes it.
                if self._flow is None and self.size:
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
        if self._base.cut_short:
            await self._base.shorten()
        await self._base.own_in_steps()
        start, last = self._base.last_part()
        if last.kind == recipe.HOLE:
            start = self.size
        tail = await self._base.read(start, self.size)
        head = await self._base.read(0, min(64, self.size))
        self._flow = Flow(self._around.feeder, IngestStream(head, tail))

    async def _begin_patching(self) -> None:
        await self._drain()
        self._flow = None
        self._digests = None
        if self._spool is None:
            self._spool = self._around.new_spool(self.ino)

    async def truncate(self, size: int) -> None:
        """Set the size; what is added reads as zeros and takes no space."""
        if size == self.size:
            return
        async with self._lock:
            if size == 0:
                self._take(self._queued)
                await self._until_idle()
                self._forget_memory()
                if self._spool is not None:
                    self._spool.reset()
                self._base.forget()
                # Nothing is left that could be put in the wrong place.
                self._broken = self.error = None
            else:
                await self._begin_patching()
                assert self._spool is not None
                self._spool.cut(size)
                self._base.covered = min(self._base.covered, size)
            self._flow = None
            self._digests = None
            self.size = size

    # -- settling ----------------------------------------------------------------------------

    async def settle(self) -> None:
        """Bring everything into the published blob.  Raises DiskFullError and its kin."""
        if not self.dirty:
            return
        async with self._lock:
            await self._drain()
            if self._spool is not None and (
                self._patched or self._base.cut_short or self._base.covered != self.size
            ):
                await patching.settle(self._base, self._spool, self.size, self.read)
            if self._base.unpublished:
                self._base.publish(self._base.number, self._base.covered)
            self.error = None

    def finish_now(self, done: Callable[[], None]) -> bool:
        """Begin to settle without a checkpoint if only memory must be written; else say False.

        *done* is called on the event loop when it is over, well or not (see *error*).
        """
        if self.busy or not self._in_order or not self._memory or self._queued >= BATCH:
            return False
        if self._broken is not None:
            # Who settles is told.
            return False
        self._feed(final=True, done=done)
        return True

    def take_digests(self) -> None:
        """Nobody writes any more: give the published blob its digests if they are known."""
        if self._digests is None or self.dirty or self._base.hashed:
            return
        number = self._around.blobs.hashed(self._base.number, self._digests)
        if number != self._base.number:
            self._base.publish(number, self.size)

    async def _drain(self) -> None:
        """Bring what waits in memory into base."""
        await self._until_idle()
        while self._memory:
            if self._queued >= BATCH:
                self._feed_on()
            else:
                self._feed(final=True)
            await self._until_idle()
            if self.error is not None:
                raise self.error

    async def _until_idle(self) -> None:
        self._around.feeder.flush()
        await self._idle.wait()

    def _feed_on(self) -> None:
        while self._queued >= BATCH and self._flow is not None and not self._flow.full:
            if self._broken is not None:
                return
            self._feed(final=False)

    def _take(self, most: int) -> list[bytes]:
        """What waits longest: about *most* bytes, or all."""
        buffers = []
        taken = 0
        while taken < most and self._queue:
            buffers.append(self._queue.popleft())
            taken += len(buffers[-1])
        self._queued -= taken
        return buffers

    def _feed(self, *, final: bool, done: Callable[[], None] | None = None) -> None:
        if self._broken is not None:
            raise self._broken
        assert self._flow is not None
        flow, buffers = self._flow, self._take(self._queued if final else BATCH_MAX)
        if self._idle.is_set():
            self._idle = trio.Event()

        def fed(result: Fed | None, error: Exception | None) -> None:
            if result is None:
                # Nothing has changed in the stream: the same bytes are fed again later.
                self._queue.extendleft(reversed(buffers))
                self._queued += sum(map(len, buffers))
                self.error = _foreseen(error)
            elif self._broken is not None:
                self._base.unpin(result.parts)
            else:
                self.error = None
                try:
                    self._apply(result)
                    if final and flow.stream.whole and result.digests is None:
                        self._await_digests(flow.stream)
                except Exception as defect:
                    # The stream has gone on without its parts: what follows would be put in
                    # the wrong place, so nothing follows.
                    self._broken = _foreseen(defect)
                    self.error = self._broken
                self._feed_on()
            if flow.idle:
                self._idle.set()
            if done is not None:
                done()

        flow.feed(buffers, final, fed)

    def _await_digests(self, stream: IngestStream) -> None:
        position = stream.position
        self.awaits_digests = True

        def arrived(digests: Digests | None, _error: Exception | None) -> None:
            self.awaits_digests = False
            same = self._flow is not None and self._flow.stream is stream
            if same and stream.position == position == self.size:
                self._digests = digests
            self._around.digests_arrived(self.ino)

        self._around.feeder.digests_later(stream, arrived)

    def _apply(self, fed: Fed) -> None:
        base = self._base
        start = base.covered - fed.rewound
        end = start + fed.length
        self._digests = fed.digests
        if not fed.length:
            return
        if base.number == NO_BLOB and fed.digests is not None:
            base.publish(self._around.blobs.adopt(fed.parts, end, fed.digests), end)
        else:
            try:
                base.own()
            except BaseException:
                base.unpin(fed.parts)
                raise
            base.replace(start, base.covered, fed.parts, end)
        while self._memory and self._memory[0][0] + len(self._memory[0][1]) <= end:
            self._around.held(-len(self._memory.popleft()[1]))

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
