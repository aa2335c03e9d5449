"""From the parts of an aged blob back to its bytes, in order and verified.

A machine that goes step by step, driven from the event loop; engines run in worker threads.
Invariant: what is handed out has the checksum that was taken of these bytes when the archive
was taken apart (made parts), or that of its chunk; and never more than a few MiB are in memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from itertools import islice
from typing import Final, Protocol

import trio

from cafs.archives.engine import FEED_SIZE, Engine
from cafs.archives.engine_run import EngineRun, Sink
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.recipe import Part
from cafs.errors import RebuildError
from cafs.types import BlobNo
from cafs.workers import Workers

STEP: Final = 4 * FEED_SIZE
"""Raw bytes that one step takes: a few hundredths of a second of GNU gzip's time."""
STREAM_COST: Final = 16 << 10
"""What it takes to begin a stream and to find its bytes, in raw ones: some streams have none."""

PARTS_AT_ONCE: Final = 512
"""Parts that are looked up without letting others in: a few milliseconds."""

Fetch = Callable[[int, int], Awaitable[bytes | memoryview]]
"""Bytes [start, end) of a blob, verified."""


class Source(Protocol):
    """What engines take in."""

    def read(self, start: int, end: int, /) -> Awaitable[bytes | memoryview]:
        """Bytes [start, end), verified."""

    async def ready(self, end: int) -> bool:
        """Come a step closer to having all bytes before *end*; whether they are there."""

    async def close(self) -> None:
        """Nothing more is read."""


class Stored:
    """An inner blob all of whose bytes are stored."""

    def __init__(self, fetch: Fetch) -> None:
        self.read = fetch

    async def ready(self, _end: int) -> bool:
        """All bytes are."""
        return True

    async def close(self) -> None:
        """Nothing more is read."""


EngineOf = Callable[[int], Engine]
"""The engine of a number in made parts.  Raises EngineError."""


async def recipe_of(blobs: Blobs, blob: BlobNo) -> list[Part]:
    """All parts of a blob, without holding up the event loop for those of a large one.

    If somebody changes the recipe meanwhile it is neither: whoever asks has to look again.
    """
    parts: list[Part] = []
    at, size = 0, blobs.get(blob).size
    while at < size:
        some = [part for _, part in islice(blobs.parts(blob, at, size), PARTS_AT_ONCE)]
        if not some:
            break
        parts += some
        at += recipe.total_length(some)
        if at < size:
            await trio.lowlevel.checkpoint()
    return parts


class Rebuild:
    """One run over all parts.  Belongs to the event loop."""

    def __init__(
        self,
        parts: Sequence[Part],
        outer: Fetch,
        inner: Source,
        engine_of: EngineOf,
        workers: Workers,
        sink: Sink,
        *,
        background: bool,
    ) -> None:
        """*outer* is asked for those bytes of the blob that no engine makes.

        *inner* has what engines take in, and is closed with this.  The *sink* is told of the
        bytes in a worker thread.
        """
        self._parts = deque(parts)
        self._outer = outer
        self._inner = inner
        self._engine_of = engine_of
        self._workers = workers
        self._sink = sink
        self._background = background
        self._stream: EngineRun | None = None
        self._batch: list[bytes | memoryview | EngineRun] = []
        """Of the recipe, what waits for what engines take in."""
        self._at = 0
        """First byte of the next part."""
        self.longest_s = 0.0
        """Of a processor, the most that an engine has taken for one part."""

    async def step(self) -> bool:
        """Hand on some more bytes, or come closer to that; False when all are through.

        Raises RebuildError, EngineError, ChunkDamagedError and what the sink raises.  After that,
        and when it is cancelled, only close() may follow.
        """
        if self._stream is not None:
            await self._advance(self._stream)
        elif self._batch:
            await self._work()
        elif self._parts:
            await self._next()
        return self._stream is not None or bool(self._batch) or bool(self._parts)

    async def _advance(self, stream: EngineRun) -> None:
        """Feed a stream that is too long for one step."""
        how = stream.how
        low, high = stream.fed, min(stream.fed + STEP, how.raw_length)
        if not await self._inner.ready(how.start + high):
            return
        data = await self._raw(how.start + low, how.start + high)
        await self._workers.run(lambda: stream.work(data, self._sink))
        self.longest_s = max(self.longest_s, stream.longest_s)
        if stream.over:
            self._stream = None

    async def _next(self) -> None:
        """Take as many parts as make a step: zips have thousands of short streams."""
        size = 0
        while size < STEP and self._parts:
            part = self._parts[0]
            if part.kind == recipe.MADE:
                raw_length = recipe.made(part).raw_length
                if raw_length > STEP and self._batch:
                    break
                stream = self._begin()
                if raw_length > STEP:
                    self._stream = stream
                    await self._advance(stream)
                    return
                self._batch.append(stream)
                size += raw_length + STREAM_COST
            else:
                length = self._stretch(STEP - size)
                self._batch.append(await self._given(self._at - length, self._at))
                size += length
        await self._work()

    async def _work(self) -> None:
        """Hand on the batch, if what engines take in for it is there."""
        batch = self._batch
        streams = [each for each in batch if isinstance(each, EngineRun)]
        # Streams that follow each other in the archive mostly do so in the inner blob.
        low = min((each.how.start for each in streams), default=0)
        high = max((each.how.start + each.how.raw_length for each in streams), default=0)
        if streams and not await self._inner.ready(high):
            return
        raw: list[bytes | memoryview]
        if high - low <= 2 * STEP:
            all_of_it = memoryview(await self._raw(low, high))
            places = [each.how.start - low for each in streams]
            raw = [
                all_of_it[place : place + each.how.raw_length]
                for place, each in zip(places, streams, strict=True)
            ]
        else:
            raw = [
                await self._raw(each.how.start, each.how.start + each.how.raw_length)
                for each in streams
            ]

        def work() -> None:
            data = iter(raw)
            for each in batch:
                if isinstance(each, EngineRun):
                    try:
                        each.work(next(data), self._sink)
                    finally:
                        each.close()
                else:
                    self._sink(each)

        await self._workers.run(work)
        self.longest_s = max(self.longest_s, *(stream.longest_s for stream in streams), 0.0)
        self._batch = []

    async def _raw(self, low: int, high: int) -> bytes | memoryview:
        data = await self._inner.read(low, high) if low < high else b""
        if len(data) != high - low:
            raise RebuildError("the inner blob is too short")
        return data

    async def _given(self, low: int, high: int) -> bytes | memoryview:
        """Bytes [low, high), which no engine makes."""
        data = await self._outer(low, high)
        if len(data) != high - low:
            raise RebuildError("a part of the recipe is too short")
        return data

    def _stretch(self, most: int) -> int:
        """Pass by up to *most* bytes that no engine makes; how many they were."""
        length = 0
        while length < most and self._parts and self._parts[0].kind != recipe.MADE:
            part = self._parts.popleft()
            if length + part.length > most:
                # Only its length is of interest here.
                self._parts.appendleft(part._replace(length=length + part.length - most))
                length = most
            else:
                length += part.length
        self._at += length
        return length

    def _begin(self) -> EngineRun:
        how = recipe.made(self._parts[0])
        stream = EngineRun(how, self._engine_of(how.engine), self._background)
        stream.take(self._parts)
        self._at += stream.length
        return stream

    async def close(self) -> None:
        """Let go of the engine, whose process may take a moment to end."""
        stream, self._stream = self._stream, None
        self._batch = []
        self._parts.clear()
        try:
            if stream is not None:
                await self._workers.run(stream.close)
        finally:
            await self._inner.close()
