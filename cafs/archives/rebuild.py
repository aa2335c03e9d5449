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
import xxhash

from cafs.archives.engine import FEED_SIZE, Compressor, Engine
from cafs.blobs import recipe
from cafs.blobs.blobs import Blobs
from cafs.blobs.recipe import Made, Part
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


Sink = Callable[[bytes | memoryview], None]
"""Takes the next bytes, in a worker thread.  What it raises ends the rebuild."""
EngineOf = Callable[[int], Engine]
"""The engine of a number in made parts.  Raises EngineError."""
More = Callable[[], Awaitable[Sequence[Part]]]
"""The next parts of a recipe, in order; none at its end."""


def recipe_in_pieces(blobs: Blobs, blob: BlobNo) -> More:
    """The parts of a blob that keeps its recipe meanwhile, some at a time."""
    at, size = 0, blobs.get(blob).size

    async def more() -> list[Part]:
        nonlocal at
        await trio.lowlevel.checkpoint()
        parts = [part for _, part in islice(blobs.parts(blob, at, size), PARTS_AT_ONCE)]
        at += recipe.total_length(parts)
        return parts

    return more


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


class Stream:
    """The made parts that come from one run of an engine."""

    def __init__(self, how: Made, engine: Engine, background: bool) -> None:
        self.how = how
        self._engine = engine
        self._background = background
        self.parts: deque[tuple[int, int]] = deque()
        """Length and check of each that is still to come."""
        self.length = 0
        self.fed = 0
        self._out = bytearray()
        self._compressor: Compressor | None = None

    def add(self, length: int, how: Made) -> bool:
        """One more part, if it is of this stream and the next."""
        if how != self.how._replace(check=how.check, position=self.length):
            return False
        self.parts.append((length, how.check))
        self.length += length
        return True

    def work(self, data: bytes | memoryview, last: bool, sink: Sink) -> None:
        """Feed the next raw bytes, hand on what is whole and right.  In a worker thread."""
        if self._compressor is None:
            self._compressor = self._engine.compressor(self.how.params, background=self._background)
        view = memoryview(data)
        for start in range(0, len(view), FEED_SIZE):
            self._take(self._compressor.feed(view[start : start + FEED_SIZE]), sink)
        if last:
            self._take(self._compressor.finish(), sink)
            self.close()
            if self._out or self.parts:
                raise RebuildError("the engine made a stream of another length")

    def _take(self, made: bytes, sink: Sink) -> None:
        self._out += made
        while self.parts and len(self._out) >= self.parts[0][0]:
            length, check = self.parts.popleft()
            piece = bytes(memoryview(self._out)[:length])
            del self._out[:length]
            if xxhash.xxh3_64_intdigest(piece) != check:
                raise RebuildError("the engine made other bytes than it once did")
            sink(piece)
        if not self.parts and self._out:
            raise RebuildError("the engine made a stream of another length")

    def close(self) -> None:
        """Let go of the engine."""
        if self._compressor is not None:
            self._compressor.close()
            self._compressor = None


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
        more: More | None = None,
        input_follows: bool = False,
    ) -> None:
        """*more* gives the parts behind *parts*, so that not all of them are in memory.

        *outer* is asked for those bytes of the blob that no engine makes.

        *inner* has what engines take in, and is closed with this; *input_follows*: that lies
        right behind each stream in the recipe itself, and is no part of what is handed on.
        """
        self._parts = deque(parts)
        self._more = more
        self._outer = outer
        self._inner = inner
        self._engine_of = engine_of
        self._workers = workers
        self._sink = sink
        self._background = background
        self._input_follows = input_follows
        self._stream: Stream | None = None
        self._batch: list[bytes | memoryview | Stream] = []
        """Of the recipe, what waits for what engines take in."""
        self._at = 0
        """First byte of the next part."""

    async def step(self) -> bool:
        """Hand on some more bytes, or come closer to that; False when all are through.

        Raises RebuildError, EngineError, ChunkDamagedError and what the sink raises.  After that,
        and when it is cancelled, only close() may follow.
        """
        if self._stream is not None:
            await self._advance(self._stream)
        elif self._batch:
            await self._work()
        elif await self._look():
            await self._next()
        waits = self._stream is not None or bool(self._batch)
        return waits or bool(self._parts) or self._more is not None

    async def _look(self) -> bool:
        """Whether there is a next part; then it is at hand."""
        if not self._parts and self._more is not None:
            self._parts.extend(await self._more())
            if not self._parts:
                self._more = None
        return bool(self._parts)

    async def _advance(self, stream: Stream) -> None:
        """Feed a stream that is too long for one step."""
        how = stream.how
        low, high = stream.fed, min(stream.fed + STEP, how.raw_length)
        if not await self._inner.ready(how.start + high):
            return
        data = await self._raw(how.start + low, how.start + high)
        last = high == how.raw_length
        await self._workers.run(lambda: stream.work(data, last, self._sink))
        stream.fed = high
        if last:
            self._stream = None

    async def _next(self) -> None:
        """Take as many parts as make a step: zips have thousands of short streams."""
        size = 0
        while size < STEP and await self._look():
            part = self._parts[0]
            if part.kind == recipe.MADE:
                raw_length = recipe.made(part).raw_length
                if raw_length > STEP and self._batch:
                    break
                stream = await self._begin()
                if raw_length > STEP:
                    self._stream = stream
                    await self._advance(stream)
                    return
                self._batch.append(stream)
                size += raw_length + STREAM_COST
            else:
                length = await self._stretch(STEP - size)
                self._batch.append(await self._given(self._at - length, self._at))
                size += length
        await self._work()

    async def _work(self) -> None:
        """Hand on the batch, if what engines take in for it is there."""
        batch = self._batch
        streams = [each for each in batch if isinstance(each, Stream)]
        # Streams that follow each other in the archive mostly do so in the inner blob.
        low = min((each.how.start for each in streams), default=0)
        high = max((each.how.start + each.how.raw_length for each in streams), default=0)
        if streams and not await self._inner.ready(high):
            return
        raw: list[bytes | memoryview]
        if high - low <= 2 * STEP and not self._input_follows:
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
                if isinstance(each, Stream):
                    try:
                        each.work(next(data), True, self._sink)
                    finally:
                        each.close()
                else:
                    self._sink(each)

        await self._workers.run(work)
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

    async def _stretch(self, most: int) -> int:
        """Pass by up to *most* bytes that no engine makes; how many they were."""
        length = 0
        while length < most and await self._look() and self._parts[0].kind != recipe.MADE:
            part = self._parts.popleft()
            if length + part.length > most:
                # Only its length is of interest here.
                self._parts.appendleft(part._replace(length=length + part.length - most))
                length = most
            else:
                length += part.length
        self._at += length
        return length

    async def _begin(self) -> Stream:
        how = recipe.made(self._parts[0])
        if how.position:
            raise RebuildError("the recipe begins in the middle of a stream")
        stream = Stream(how, self._engine_of(how.engine), self._background)
        while await self._look() and self._parts[0].kind == recipe.MADE:
            part = self._parts[0]
            if not stream.add(part.length, recipe.made(part)):
                break
            self._at += part.length
            self._parts.popleft()
        if self._input_follows and (
            how.start != self._at or await self._stretch(how.raw_length) != how.raw_length
        ):
            raise RebuildError("a stream inside is not followed by what it is made of")
        return stream

    async def close(self) -> None:
        """Let go of the engine, whose process may take a moment to end."""
        stream, self._stream = self._stream, None
        self._batch = []
        self._parts.clear()
        self._more = None
        try:
            if stream is not None:
                await self._workers.run(stream.close)
        finally:
            await self._inner.close()
