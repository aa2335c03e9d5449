"""Reading a blob: recipe to extents to verified bytes.

The recipe is looked up on the event loop; packs are read, checked (XXH3) and decompressed in a
worker thread, unless all of it is in the page cache and small.  Invariant: bytes leave here
only after their checksum was right.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import xxhash

from cafs.blobs import codec, recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.codec import StoredForm
from cafs.blobs.pack import PackStore
from cafs.errors import ChunkDamagedError
from cafs.types import BlobNo, ChunkNo, Extent
from cafs.workers import Workers

INLINE_MAX = 64 << 10
"""Stored bytes that may be read on the event loop when the page cache has them."""
RUN_MAX = 4 << 20
"""Neighbouring extents are read at once up to this many bytes."""


class _Wanted(NamedTuple):
    number: ChunkNo
    extent: Extent


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

    async def read(self, number: BlobNo, start: int, end: int) -> bytes:
        """Bytes [start, end) of a blob; shorter when the blob ends before.

        Raises ChunkDamagedError when a chunk is not what was written.  Checkpoints only when a
        thread is needed.
        """
        parts = list(self._blobs.parts(number, start, end))
        have: dict[ChunkNo, bytes] = {}
        wanted: dict[ChunkNo, _Wanted] = {}
        stored = 0
        for _, part in parts:
            if part.kind == recipe.CHUNK:
                chunk = ChunkNo(part.ref)
                data = self._cache.get(chunk)
                if data is not None:
                    have[chunk] = data
                elif chunk not in wanted:
                    extent = self._blobs.chunks.extent_of(chunk)
                    wanted[chunk] = _Wanted(chunk, extent)
                    stored += extent.stored_length
        if wanted:
            fetched = None
            runs = neighbours(list(wanted.values()))
            if stored <= INLINE_MAX:
                fetched = fetch(self._packs, runs, nowait=True)
            if fetched is None:
                fetched = await self._workers.run(lambda: fetch(self._packs, runs, nowait=False))
            assert fetched is not None
            have.update(fetched)
            self.fetched += len(fetched)
            for chunk, data in fetched.items():
                self._cache.put(chunk, data)
        pieces: list[bytes | memoryview] = []
        for begin, part in parts:
            low, high = max(start - begin, 0), min(end - begin, part.length)
            if part.kind == recipe.CHUNK:
                data = have[ChunkNo(part.ref)]
                pieces.append(data if high - low == len(data) else memoryview(data)[low:high])
            else:
                pieces.append(recipe.expand(part, low, high))
        if len(pieces) == 1 and isinstance(pieces[0], bytes):
            return pieces[0]
        return b"".join(pieces)


def neighbours(wanted: Sequence[_Wanted]) -> list[list[_Wanted]]:
    """Group extents that follow one another in a pack, so that each group is one read."""
    runs: list[list[_Wanted]] = []
    end = (-1, -1)
    length = 0
    for item in wanted:
        extent = item.extent
        if (extent.pack, extent.offset) == end and length + extent.stored_length <= RUN_MAX:
            runs[-1].append(item)
            length += extent.stored_length
        else:
            runs.append([item])
            length = extent.stored_length
        end = (extent.pack, extent.offset + extent.stored_length)
    return runs


def fetch(
    packs: PackStore, runs: Sequence[Sequence[_Wanted]], *, nowait: bool
) -> dict[ChunkNo, bytes] | None:
    """Read, verify and decode runs of chunks.  Any thread.

    With *nowait* None when something is not in the page cache.  Raises ChunkDamagedError.
    """
    numbers: list[ChunkNo] = []
    forms: list[StoredForm] = []
    for run in runs:
        first = run[0].extent
        length = sum(item.extent.stored_length for item in run)
        try:
            data = packs.read_stored(first.pack, first.offset, length, nowait=nowait)
        except ChunkDamagedError as error:
            if len(run) == 1:
                raise _of_chunk(run[0].number, error) from error
            # The pack ends somewhere within, or is gone: name the chunk that it is about.
            for item in run:
                fetch(packs, [[item]], nowait=False)
            raise
        if data is None:
            return None
        view = memoryview(data)
        offset = 0
        for number, extent in run:
            stored = view[offset : offset + extent.stored_length]
            offset += extent.stored_length
            check(number, extent, stored)
            numbers.append(number)
            forms.append(StoredForm(extent.as_sound().codec, stored, extent.raw_length))
    return dict(zip(numbers, codec.decode_many(forms), strict=True))


def check(number: ChunkNo, extent: Extent, stored: bytes | memoryview) -> None:
    """Raise ChunkDamagedError unless the stored bytes have their checksum."""
    if xxhash.xxh3_64_intdigest(stored) != extent.xxh3:
        error = ChunkDamagedError(
            f"chunk {number}: the {extent.stored_length} bytes at {extent.offset} of pack "
            f"{extent.pack:08x} do not match their checksum"
        )
        error.chunk = number
        raise error


def _of_chunk(number: ChunkNo, error: ChunkDamagedError) -> ChunkDamagedError:
    named = ChunkDamagedError(f"chunk {number}: {error}")
    named.chunk = number
    return named


def verified(number: ChunkNo, extent: Extent, stored: bytes | memoryview) -> bytes:
    """The raw bytes of a chunk, after its checksum was found right.

    One that is marked as damaged is given all the same if it is right after all.
    """
    check(number, extent, stored)
    return codec.decode(extent.as_sound().codec, stored, extent.raw_length)
