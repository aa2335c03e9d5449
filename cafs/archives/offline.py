"""Content of blobs for commands that look at a store by themselves: no event loop, no cache.

As cafs.archives.rebuild, in one thread and straight on.  Invariant: every byte that is given out
was verified: chunks by their checksum, made parts by theirs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final

from cafs.archives.choice import Choice
from cafs.archives.engine import Engine
from cafs.archives.engine_record import records_in
from cafs.archives.engine_run import EngineRun, NestedRuns, OtherBytesError
from cafs.archives.engines import Engines
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.recipe import Part
from cafs.durable import Disk
from cafs.errors import IndexDamagedError, RebuildError
from cafs.index.layout import BLOB_AGED, BLOB_NESTED
from cafs.types import BlobNo, ChunkNo, Extent

_PIECE: Final = 1 << 20
_KEPT: Final = 8
"""Chunks that slices come from, and are kept for the next of them."""

_Source = Callable[[int, int], Iterator[bytes]]
"""Bytes [start, end) of what engines take in."""

ReadChunk = Callable[[ChunkNo, Extent], bytes]
"""A chunk's bytes, verified.  Raises ChunkDamagedError."""


class Offline:
    """Reads blobs of one commit."""

    def __init__(self, store: Path, blobs: Blobs, read_chunk: ReadChunk) -> None:
        self._store = store
        self._blobs = blobs
        self._read_chunk = read_chunk
        self._kept: dict[ChunkNo, bytes] = {}
        self._engines: Engines | None = None

    def content(self, number: BlobNo) -> Iterator[bytes]:
        """A blob's bytes, piece by piece.

        Raises ChunkDamagedError, and RebuildError and EngineError for one that was taken apart.
        """
        choice = Choice(self)
        given = 0
        while True:
            passed = 0
            try:
                for piece in self._content(number, choice):
                    # What is made once more is the same: the checks of its parts say so.
                    if passed + len(piece) > given:
                        fresh = piece[max(0, given - passed) :]
                        given = passed + len(piece)
                        yield fresh
                    passed += len(piece)
                return
            except OtherBytesError as error:
                if not choice.goes_on(error):
                    raise

    def rebuilder(self, number: int) -> Engine:
        """See Engines; they are looked for when they are needed."""
        return self._ready().rebuilder(number)

    def others(self, number: int) -> Sequence[Engine]:
        """See Engines."""
        return self._ready().others(number)

    def _content(self, number: BlobNo, choice: Choice) -> Iterator[bytes]:
        record = self._blobs.get(number)
        parts = self._blobs.parts_of(number, record, 0, record.size)
        if not record.flags & BLOB_AGED:
            for _, part in parts:
                yield from self.stored(part)
            return
        inner = self._blobs.get(record.mate)
        plain = partial(self.range, record.mate)
        source: _Source = plain
        if inner.flags & BLOB_NESTED:
            inside = self._blobs.parts_of(record.mate, inner, 0, inner.size)
            source = _Onward(self._inside(deque(part for _, part in inside), choice)).read
        left = deque(part for _, part in parts)
        while left:
            if left[0].kind == recipe.MADE:
                yield from self._made(left, source, choice)
            else:
                yield from self.stored(left.popleft())

    def _inside(self, left: deque[Part], choice: Choice) -> Iterator[bytes]:
        """What engines take in, of a nested inner blob: as cafs.archives.nested.Nested."""
        done: list[bytes] = []
        runs = NestedRuns(lambda data: done.append(bytes(data)))
        try:
            while left:
                if left[0].kind == recipe.MADE:
                    runs.begin(_begin(left, choice))
                else:
                    for piece in self.stored(left.popleft()):
                        runs.data(piece)
                        yield from done
                        done.clear()
                yield from done
                done.clear()
            runs.end()
        finally:
            runs.close()

    def range(self, number: BlobNo, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end) of a blob that was not taken apart."""
        for begin, part in self._blobs.parts(number, start, end):
            at = begin
            for piece in self.stored(part):
                low, high = max(start - at, 0), min(end - at, len(piece))
                if low < high:
                    yield piece[low:high]
                at += len(piece)

    def stored(self, part: Part) -> Iterator[bytes]:
        """The bytes of a part that has not to be made."""
        if part.kind == recipe.MADE:
            raise IndexDamagedError("a recipe has a made part, and its blob is not aged")
        number = ChunkNo(part.ref)
        if part.kind == recipe.CHUNK:
            data = self._read_chunk(number, self._blobs.chunks.get(number).extent)
            if len(data) != part.length:
                raise IndexDamagedError(f"a part of a recipe is not as long as chunk {number}")
            yield data
        elif part.kind == recipe.SLICE:
            offset = recipe.slice_offset(part)
            data = self._gathered(number)[offset : offset + part.length]
            if len(data) != part.length:
                raise IndexDamagedError(f"a slice ends behind the end of chunk {number}")
            yield data
        else:
            # A hole may be longer than memory.
            for low in range(0, part.length, _PIECE):
                yield recipe.expand(part, low, min(part.length, low + _PIECE))

    def _gathered(self, number: ChunkNo) -> bytes:
        data = self._kept.get(number)
        if data is None:
            data = self._read_chunk(number, self._blobs.chunks.get(number).extent)
            while len(self._kept) >= _KEPT:
                del self._kept[next(iter(self._kept))]
            self._kept[number] = data
        return data

    def _made(self, left: deque[Part], source: _Source, choice: Choice) -> Iterator[bytes]:
        """The bytes of the made parts that one run of an engine gives."""
        run = _begin(left, choice)
        done: list[bytes] = []

        def sink(data: bytes | memoryview) -> None:
            done.append(bytes(data))

        start, length = run.how.start, run.how.raw_length
        try:
            for piece in source(start, start + length) if length else (b"",):
                run.work(piece, sink)
                yield from done
                done.clear()
            if not run.over:
                raise RebuildError("the inner blob is too short")
        finally:
            run.close()

    def _ready(self) -> Engines:
        if self._engines is None:
            self._engines = Engines(self._store, _no_writer, Disk())
            self._engines.open(records_in(self._blobs.overlay))
        return self._engines


class _Onward:
    """A source whose bytes come one after the other."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""
        self._at = 0

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Bytes [start, end), which are the next ones."""
        if start != self._at:
            raise RebuildError("what is inside an archive is read from its start to its end")
        while self._at < end:
            piece = self._rest or next(self._pieces, b"")
            if not piece:
                return
            given, self._rest = piece[: end - self._at], piece[end - self._at :]
            self._at += len(given)
            yield given


def _begin(left: deque[Part], choice: Choice) -> EngineRun:
    """The next run of an engine, with all its parts."""
    how = recipe.made(left[0])
    run = EngineRun(how, choice.engine_of(how.engine), background=True)
    run.take(left)
    return run


def _no_writer(_number: int, _value: bytes) -> None:
    raise AssertionError("who only looks records no engine")
