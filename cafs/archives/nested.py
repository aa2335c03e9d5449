"""What engines take in, of an inner blob that has made parts itself: archives inside a tar.

Goes through the inner blob once, from its first byte on, and runs the engines of the archives
inside as it comes to them.  Invariant: as for any rebuild, only verified bytes come out, and
only a few MiB of them are in memory.  Belongs to the event loop.
"""

from __future__ import annotations

from collections import deque
from itertools import islice

import trio

from cafs.archives.engine_run import EngineRun, NestedRuns
from cafs.archives.rebuild import (
    PARTS_AT_ONCE,
    STEP,
    STREAM_COST,
    EngineOf,
    Source,
    Stored,
)
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.reader import Reader
from cafs.blobs.recipe import Part
from cafs.errors import RebuildError
from cafs.index.layout import BLOB_NESTED
from cafs.types import BlobNo
from cafs.workers import Workers


class Nested:
    """A source that is made while it is read."""

    def __init__(
        self,
        blobs: Blobs,
        reader: Reader,
        inner: BlobNo,
        engine_of: EngineOf,
        workers: Workers,
        *,
        background: bool,
    ) -> None:
        self._blobs = blobs
        self._reader = reader
        self._inner = inner
        self._engine_of = engine_of
        self._workers = workers
        self._background = background
        self._parts: deque[Part] = deque()
        """Those of the recipe that come next: not all of them are in memory ..."""
        self._looked = 0
        """... but those before this byte were looked up."""
        self._passed = 0
        """Bytes of the first part that are through."""
        self._ready = bytearray()
        """What is made and not read yet."""
        self._at = 0
        """Where it begins."""
        self._runs = NestedRuns(self._take)
        self._more = True
        """Whether there may be more to make."""

    def _take(self, data: bytes | memoryview) -> None:
        self._ready += data

    async def ready(self, end: int) -> bool:
        """Come a step closer to having all bytes before *end*; whether they are there.

        Raises RebuildError and its kin.
        """
        if self._more and self._at + len(self._ready) < end:
            await self._step()
        return not self._more or self._at + len(self._ready) >= end

    async def read(self, start: int, end: int) -> bytes | memoryview:
        """Bytes [start, end), which are the next ones; fewer if there are no more.

        Raises RebuildError and its kin.
        """
        if start != self._at:
            raise RebuildError("what is inside an archive is read from its start to its end")
        while not await self.ready(end):
            pass
        data = bytes(memoryview(self._ready)[: end - start])
        del self._ready[: end - start]
        self._at += len(data)
        return data

    async def _step(self) -> None:
        """Take as many parts as make a step: zips have thousands of short streams."""
        batch: list[EngineRun | int] = []
        stored: list[tuple[int, Part]] = []
        size = cost = 0
        while cost < STEP and await self._look():
            part = self._parts[0]
            if part.kind == recipe.MADE:
                batch.append(await self._begin())
                cost += STREAM_COST
                continue
            length = min(part.length - self._passed, STEP - cost)
            # They are read as if the stored parts alone made up a blob.
            stored.append((size - self._passed, part))
            batch.append(length)
            self._passed += length
            if self._passed == part.length:
                self._parts.popleft()
                self._passed = 0
            size += length
            cost += length
        self._more = bool(batch)
        data = memoryview(await self._reader.read_parts(stored, 0, size) if size else b"")
        if len(data) != size:
            raise RebuildError("a part of the recipe is too short")
        await self._workers.run(lambda: self._work(batch, data))

    def _work(self, batch: list[EngineRun | int], data: memoryview) -> None:
        """Hand on runs, and so many bytes, in order.  In a worker thread."""
        at = 0
        for each in batch:
            if isinstance(each, EngineRun):
                self._runs.begin(each)
            else:
                self._runs.data(data[at : at + each])
                at += each
        if not batch:
            self._runs.end()

    async def _look(self) -> bool:
        """Whether there is a next part; then it is at hand."""
        if not self._parts:
            await trio.lowlevel.checkpoint()
            size = self._blobs.get(self._inner).size
            found = self._blobs.parts(self._inner, self._looked, size)
            parts = [part for _, part in islice(found, PARTS_AT_ONCE)]
            self._looked += recipe.total_length(parts)
            self._parts.extend(parts)
        return bool(self._parts)

    async def _begin(self) -> EngineRun:
        how = recipe.made(self._parts[0])
        run = EngineRun(how, self._engine_of(how.engine), self._background)
        run.take(self._parts)
        # Its parts may go on behind those that were looked up.
        while not self._parts and await self._look():
            run.take(self._parts)
        return run

    async def close(self) -> None:
        """Let go of the engines, whose processes may take a moment to end."""
        self._parts.clear()
        await self._workers.run(self._runs.close)


def source_of(
    blobs: Blobs,
    reader: Reader,
    inner: BlobNo,
    engine_of: EngineOf,
    workers: Workers,
    *,
    nested: bool,
    background: bool,
) -> Source:
    """What engines take in of an inner blob; *nested*: it has made parts itself."""
    if nested:
        return Nested(blobs, reader, inner, engine_of, workers, background=background)

    async def stored(start: int, end: int) -> bytes | memoryview:
        return await reader.read(inner, start, end)

    return Stored(stored)


def engines_of(blobs: Blobs, blob: BlobNo) -> set[int]:
    """Numbers of the engines that an aged blob is made with, and what is inside it.

    Raises IndexDamagedError.
    """
    record = blobs.get(blob)
    recipes = [blobs.parts_of(blob, record, 0, record.size)]
    inner = blobs.get(record.mate)
    if inner.flags & BLOB_NESTED:
        recipes.append(blobs.parts_of(record.mate, inner, 0, inner.size))
    return {
        recipe.made(part).engine
        for parts in recipes
        for _, part in parts
        if part.kind == recipe.MADE
    }
