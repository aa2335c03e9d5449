"""Reading a blob: recipe to extents to verified bytes.

The recipe is looked up on the event loop; packs are read, checked (XXH3) and decompressed in a
worker thread, unless all of it is in the page cache and small.  Invariant: bytes leave here
only after their checksum was right.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import xxhash

from cafs import _fetch
from cafs.blobs import codec, recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.pack import PackStore
from cafs.errors import ChunkDamagedError
from cafs.types import BlobNo, ChunkNo, Extent
from cafs.workers import Workers

INLINE_MAX = 64 << 10
"""Stored bytes that may be read on the event loop when the page cache has them."""
RUN_MAX = 4 << 20
"""Neighbouring extents are read at once up to this many bytes."""
LARGE = 256 << 10
"""Who asks for so many bytes goes on to others: nothing is kept for another look."""
AHEAD = 4 << 20
"""Bytes of a pack that are asked for early behind a large read."""


class ChunkCache:
    """Decoded chunks that were just read, the oldest let go of first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._used = 0
        self._chunks: OrderedDict[ChunkNo, bytes] = OrderedDict()

    def get(self, number: ChunkNo) -> bytes | None:
        """The chunk's bytes if they are here."""
        data = self._chunks.get(number)
        if data is not None:
            self._chunks.move_to_end(number)
        return data

    def put(self, number: ChunkNo, data: bytes) -> None:
        """Keep a chunk's bytes for a while."""
        if number in self._chunks or len(data) > self._limit:
            return
        self._chunks[number] = data
        self._used += len(data)
        while self._used > self._limit:
            self._used -= len(self._chunks.popitem(last=False)[1])


class _Run:
    """Chunks that lie side by side in a pack, and what of them is wanted."""

    __slots__ = ("chunks", "end", "extents", "offset", "pack", "raw", "skip", "stored", "take")

    def __init__(self, extent: Extent, skip: int) -> None:
        self.pack = extent.pack
        self.offset = extent.offset
        self.end = extent.offset
        self.skip = skip
        """Bytes of the first chunk that are not wanted."""
        self.take = 0
        """Bytes that are wanted."""
        self.stored = 0
        self.raw = 0
        self.chunks: list[ChunkNo] = []
        self.extents: list[Extent] = []

    def followed_by(self, extent: Extent) -> bool:
        """Whether the chunk can be read together with these."""
        return (
            extent.offset == self.end
            and extent.pack == self.pack
            and self.stored + extent.stored_length <= RUN_MAX
        )

    def add(self, number: ChunkNo, extent: Extent, take: int) -> None:
        """One more chunk, and how many of its bytes are wanted."""
        self.chunks.append(number)
        self.extents.append(extent)
        self.end += extent.stored_length
        self.stored += extent.stored_length
        self.raw += extent.raw_length
        self.take += take


class Reader:
    """Reads blobs for the event loop."""

    def __init__(self, blobs: Blobs, packs: PackStore, workers: Workers, cache_bytes: int) -> None:
        self._blobs = blobs
        self._packs = packs
        self._workers = workers
        self._cache_bytes = cache_bytes
        self._cache = ChunkCache(cache_bytes)
        self.fetched = 0
        """Chunks that were read from packs so far."""

    def forget(self) -> None:
        """Let go of the chunks that are kept."""
        self._cache = ChunkCache(self._cache_bytes)

    async def read(self, number: BlobNo, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end) of a blob; shorter when the blob ends before.

        Raises ChunkDamagedError when a chunk is not what was written.  Checkpoints only when a
        thread is needed.
        """
        large = end - start >= LARGE
        plan: list[bytes | memoryview | _Run] = []
        runs: list[_Run] = []
        stored = 0
        for begin, part in self._blobs.parts(number, start, end):
            low, high = max(start - begin, 0), min(end - begin, part.length)
            if part.kind != recipe.CHUNK:
                plan.append(recipe.expand(part, low, high))
                continue
            chunk = ChunkNo(part.ref)
            data = None if large else self._cache.get(chunk)
            if data is not None:
                plan.append(memoryview(data)[low:high])
                continue
            extent = self._blobs.chunks.extent_of(chunk)
            last = plan[-1] if plan else None
            if not isinstance(last, _Run) or not last.followed_by(extent):
                last = _Run(extent, low)
                plan.append(last)
                runs.append(last)
            last.add(chunk, extent, high - low)
            stored += extent.stored_length
        if runs:
            raws = None
            if stored <= INLINE_MAX:
                raws = fetch(self._packs, runs, nowait=True)
            if raws is None:
                ahead = AHEAD if large else 0
                raws = await self._workers.run(lambda: fetch(self._packs, runs, ahead=ahead))
            assert raws is not None
            if not large:
                self._keep(runs, raws)
            self.fetched += sum(len(run.chunks) for run in runs)
            found = iter(raws)
            plan = [
                memoryview(next(found))[each.skip : each.skip + each.take]
                if isinstance(each, _Run)
                else each
                for each in plan
            ]
        pieces = [each for each in plan if not isinstance(each, _Run)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _keep(self, runs: Sequence[_Run], raws: Sequence[bytes]) -> None:
        """Keep those chunks of which only a part was wanted: the rest may be wanted next."""
        for run, raw in zip(runs, raws, strict=True):
            if run.take == run.raw:
                continue
            at = 0
            for number, extent in zip(run.chunks, run.extents, strict=True):
                upto = at + extent.raw_length
                if at < run.skip or upto > run.skip + run.take:
                    self._cache.put(number, raw[at:upto])
                at = upto


def fetch(
    packs: PackStore, runs: Sequence[_Run], *, nowait: bool = False, ahead: int = 0
) -> list[bytes] | None:
    """Read, verify and decode runs of chunks: the raw bytes of each.  Any thread.

    With *nowait* None when something is not in the page cache.  The kernel is asked to begin
    with the *ahead* bytes behind the last run.  Raises ChunkDamagedError.
    """
    raws = []
    for run in runs:
        chunks = [
            (extent.stored_length, extent.as_sound().codec, extent.raw_length, extent.xxh3)
            for extent in run.extents
        ]
        try:
            raw = packs.read_run(
                run.pack, run.offset, chunks, nowait, ahead if run is runs[-1] else 0
            )
        except _fetch.BadChunk as error:
            place, why = error.args
            raise _damaged(run.chunks[place], run.extents[place], why) from error
        except ChunkDamagedError as error:
            error.chunk = run.chunks[0]
            raise
        if raw is None:
            return None
        raws.append(raw)
    return raws


def _damaged(number: ChunkNo, extent: Extent, why: str) -> ChunkDamagedError:
    error = ChunkDamagedError(
        f"chunk {number}: the {extent.stored_length} bytes at {extent.offset} of pack "
        f"{extent.pack:08x} {why}"
    )
    error.chunk = number
    return error


def check(number: ChunkNo, extent: Extent, stored: bytes | memoryview) -> None:
    """Raise ChunkDamagedError unless the stored bytes have their checksum."""
    if xxhash.xxh3_64_intdigest(stored) != extent.xxh3:
        raise _damaged(number, extent, "do not match their checksum")


def verified(number: ChunkNo, extent: Extent, stored: bytes | memoryview) -> bytes:
    """The raw bytes of a chunk, after its checksum was found right.

    One that is marked as damaged is given all the same if it is right after all.
    """
    check(number, extent, stored)
    return codec.decode(extent.as_sound().codec, stored, extent.raw_length)
