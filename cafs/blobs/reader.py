"""Reading a blob: recipe to extents to verified bytes.

The recipe is looked up on the event loop; packs are read, checked (XXH3) and decompressed in a
worker thread, unless all of it is in the page cache and small.  Invariant: bytes leave here
only after their checksum was right.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Final

import xxhash

from cafs import _fetch
from cafs.blobs import codec, recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.pack import PackStore, StoredForm
from cafs.blobs.recipe import Part
from cafs.errors import CafsError, ChunkDamagedError, IndexDamagedError
from cafs.index.layout import BLOB_AGED
from cafs.types import DAMAGED, BlobNo, ChunkNo, Extent
from cafs.workers import Workers

INLINE_MAX = 64 << 10
"""Stored bytes that may be read on the event loop when the page cache has them."""
RUN_MAX = 4 << 20
"""Neighbouring extents are read at once up to this many bytes."""
LARGE = 256 << 10
"""Who asks for so many bytes goes on to others: nothing is kept for another look."""
_STORED: Final = frozenset({recipe.CHUNK, recipe.SLICE})


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
    """Chunks that lie side by side in a pack, and are read at once."""

    __slots__ = ("chunks", "data", "end", "extents", "kept", "offset", "pack", "raw", "stored")

    def __init__(self, extent: Extent) -> None:
        self.pack = extent.pack
        self.offset = extent.offset
        self.end = extent.offset
        self.stored = 0
        self.raw = 0
        """Bytes that reading it gives."""
        self.data: memoryview = _NOTHING
        """Those bytes, once they were read."""
        self.chunks: list[ChunkNo] = []
        self.extents: list[Extent] = []
        self.kept: list[tuple[ChunkNo, int, int]] = []
        """Chunks of which only a part is wanted now, and where they lie in the raw bytes."""

    def followed_by(self, extent: Extent) -> bool:
        """Whether the chunk can be read together with these."""
        return (
            extent.offset == self.end
            and extent.pack == self.pack
            and self.stored + extent.stored_length <= RUN_MAX
        )

    def add(self, number: ChunkNo, extent: Extent, *, keep: bool) -> int:
        """One more chunk; where its bytes begin in the raw ones."""
        start = self.raw
        self.chunks.append(number)
        self.extents.append(extent)
        self.end += extent.stored_length
        self.stored += extent.stored_length
        self.raw = start + extent.raw_length
        if keep:
            self.kept.append((number, start, self.raw))
        return start

    def forms(self) -> list[StoredForm]:
        """The chunks as they lie in the pack."""
        return [
            (extent.stored_length, extent.codec & ~DAMAGED, extent.raw_length, extent.xxh3)
            for extent in self.extents
        ]


_NOTHING = memoryview(b"")
_Piece = bytes | memoryview | tuple[_Run, int, int]
"""Bytes, or a stretch of what a run gives."""


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
        self.aged: Callable[[BlobNo, int, int], Awaitable[bytes | memoryview]] | None = None
        """Reads bytes [start, end) of a blob that was taken apart."""

    def forget(self) -> None:
        """Let go of the chunks that are kept."""
        self._cache = ChunkCache(self._cache_bytes)

    async def read(self, number: BlobNo, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end) of a blob; shorter when the blob ends before.

        Raises ChunkDamagedError when a chunk is not what was written.  Checkpoints only when a
        thread is needed.
        """
        record = self._blobs.get(number)
        if record.flags & BLOB_AGED:
            if self.aged is None:
                raise CafsError(f"blob {number} is taken apart, and nothing here can rebuild it")
            end = min(end, record.size)
            return await self.aged(number, start, end) if start < end else b""
        return await self.read_parts(self._blobs.parts_of(number, record, start, end), start, end)

    async def read_parts(
        self, parts: Iterable[tuple[int, Part]], start: int, end: int
    ) -> bytes | memoryview:
        """Bytes [start, end) of the blob to which these parts belong, each with its first byte.

        Raises ChunkDamagedError; IndexDamagedError if bytes of a part have to be made first.
        """
        if end - start >= LARGE:
            parts = list(parts)
            whole = self._plan_whole(parts, start, end)
            if whole is not None:
                return await self._read_whole(whole, start - parts[0][0], end - start)
        pieces, runs = self._plan(parts, start, end)
        if runs:
            raws = None
            if sum([run.stored for run in runs]) <= INLINE_MAX:
                raws = fetch(self._packs, runs, nowait=True)
            if raws is None:
                raws = await self._workers.run(lambda: fetch(self._packs, runs))
            assert raws is not None
            for run, raw in zip(runs, raws, strict=True):
                run.data = memoryview(raw)
                self.fetched += len(run.chunks)
                # What only a part was wanted of: the rest may be wanted next.
                for number, low, high in run.kept:
                    self._cache.put(number, raw[low:high])
        wanted = [
            each[0].data[each[1] : each[2]] if isinstance(each, tuple) else each for each in pieces
        ]
        return wanted[0] if len(wanted) == 1 else b"".join(wanted)

    def _plan_whole(
        self, parts: Sequence[tuple[int, Part]], start: int, end: int
    ) -> list[bytes | _Run] | None:
        """All of these parts, one behind the other; None if one is neither a whole chunk nor in
        the recipe itself, or there are none."""
        pieces: list[bytes | _Run] = []
        run: _Run | None = None
        for begin, part in parts:
            if part.kind == recipe.CHUNK:
                chunk = ChunkNo(part.ref)
                extent = self._blobs.chunks.extent_of(chunk)
                if extent.raw_length != part.length:
                    raise IndexDamagedError(f"a part of a recipe is not as long as chunk {chunk}")
                if run is None or not run.followed_by(extent):
                    run = _Run(extent)
                    pieces.append(run)
                run.add(chunk, extent, keep=False)
            elif part.kind in _STORED or part.kind == recipe.MADE:
                return None
            else:
                run = None
                # A hole may be longer than memory: only of its end nothing needs to be there.
                begins = max(start - begin, 0)
                pieces.append(recipe.expand(part, begins, min(end - begin, part.length)))
        return pieces or None

    async def _read_whole(
        self, pieces: Sequence[bytes | _Run], skip: int, length: int
    ) -> memoryview:
        """What the pieces give, but for the first *skip* bytes, in one copy."""
        runs = [piece for piece in pieces if isinstance(piece, _Run)]
        if isinstance(pieces[0], bytes):
            skip = 0
        raw = None
        if sum([run.stored for run in runs]) <= INLINE_MAX:
            raw = _fetch_whole(self._packs, pieces, runs, nowait=True)
        if raw is None:
            raw = await self._workers.run(lambda: _fetch_whole(self._packs, pieces, runs))
        assert raw is not None
        self.fetched += sum([len(run.chunks) for run in runs])
        return memoryview(raw)[skip : skip + length]

    def _plan(
        self, parts: Iterable[tuple[int, Part]], start: int, end: int
    ) -> tuple[list[_Piece], list[_Run]]:
        """What the answer is made of, and what has to be read for it."""
        pieces: list[_Piece] = []
        runs: list[_Run] = []
        run: _Run | None = None
        gathered: dict[ChunkNo, _Run] = {}
        for begin, part in parts:
            low, high = max(start - begin, 0), min(end - begin, part.length)
            kind = part.kind
            if kind == recipe.MADE:
                raise IndexDamagedError("a recipe has a made part, and its blob is not aged")
            if kind not in _STORED:
                pieces.append(recipe.expand(part, low, high))
                continue
            chunk = ChunkNo(part.ref)
            if kind == recipe.SLICE:
                offset = recipe.slice_offset(part)
                low, high = low + offset, high + offset
            data = self._cache.get(chunk)
            if data is not None:
                if high > len(data):
                    raise _beyond(chunk)
                pieces.append(memoryview(data)[low:high])
                continue
            if kind == recipe.SLICE:
                # Many parts are slices of one chunk: it is read once, in a run of its own, and
                # the run of those around it goes on over it.
                place = gathered.get(chunk)
                if place is None:
                    extent = self._blobs.chunks.extent_of(chunk)
                    own = _Run(extent)
                    runs.append(own)
                    own.add(chunk, extent, keep=True)
                    place = gathered[chunk] = own
                if high > place.raw:
                    raise _beyond(chunk)
                pieces.append((place, low, high))
                continue
            extent = self._blobs.chunks.extent_of(chunk)
            if run is None or not run.followed_by(extent):
                run = _Run(extent)
                runs.append(run)
            at = run.add(chunk, extent, keep=high - low < extent.raw_length)
            last = pieces[-1] if pieces else None
            if isinstance(last, tuple) and last[0] is run and last[2] == at + low:
                pieces[-1] = (run, last[1], at + high)
            else:
                pieces.append((run, at + low, at + high))
        return pieces, runs


def fetch(packs: PackStore, runs: Sequence[_Run], *, nowait: bool = False) -> list[bytes] | None:
    """Read, verify and decode runs of chunks: the raw bytes of each.  Any thread.

    With *nowait* None when something is not in the page cache.  Raises ChunkDamagedError.
    """
    raws = []
    for run in runs:
        try:
            raw = packs.read_run(run.pack, run.offset, run.forms(), nowait)
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


def _fetch_whole(
    packs: PackStore, pieces: Sequence[bytes | _Run], runs: Sequence[_Run], *, nowait: bool = False
) -> bytes | None:
    """What *pieces* give, of which *runs* have to be read.  Any thread."""
    asked = [
        piece if isinstance(piece, bytes) else (piece.pack, piece.offset, piece.forms())
        for piece in pieces
    ]
    try:
        return packs.read_pieces(asked, nowait)
    except _fetch.BadChunk as error:
        place, why = error.args
        numbers = [number for run in runs for number in run.chunks]
        extents = [extent for run in runs for extent in run.extents]
        raise _damaged(numbers[place], extents[place], why) from error
    except ChunkDamagedError:
        # A pack is missing: that is said of one run, with its chunk.
        fetch(packs, runs)
        raise


def _beyond(number: ChunkNo) -> IndexDamagedError:
    return IndexDamagedError(f"a part of a recipe ends behind the end of chunk {number}")


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
