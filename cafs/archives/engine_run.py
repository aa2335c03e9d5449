"""Runs of engines: what they take in, and the pieces that come out, each verified.

Invariant: what is handed on has the checksum that was taken of these bytes when the archive was
taken apart.  Everything here runs in worker threads, one call at a time, and blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

import xxhash

from cafs.archives.engine import FEED_SIZE, Compressor, Engine
from cafs.blobs import recipe
from cafs.blobs.recipe import Made, Part
from cafs.errors import RebuildError

DEPTH_MAX: Final = 2
"""Runs inside each other, in one inner blob: a wheel in a cache, and a gzip file in the wheel."""

Sink = Callable[[bytes | memoryview], None]
"""Takes the next bytes.  What it raises ends the rebuild."""


class OtherBytesError(RebuildError):
    """An engine does not make what it once did."""

    def __init__(self, message: str, number: int) -> None:
        """*number*: of the engine."""
        super().__init__(message)
        self.number = number


class EngineRun:
    """The made parts that come from one run of an engine."""

    def __init__(self, how: Made, engine: Engine, background: bool) -> None:
        """*how*: of its first part, which take() takes as well."""
        if how.position:
            raise RebuildError("the recipe begins in the middle of a stream")
        self.how = how
        self._engine = engine
        self._background = background
        self._parts: deque[tuple[int, int]] = deque()
        """Length and check of each that is still to come."""
        self.length = 0
        """Bytes of its parts."""
        self.fed = 0
        """Bytes that the engine was given."""
        self.longest_s = 0.0
        """Of a processor, the most that one of its parts has taken of the engine."""
        self._part_began_s = 0.0
        self._out = bytearray()
        self._compressor: Compressor | None = None

    def take(self, parts: deque[Part]) -> None:
        """Take off the front of a recipe what is of this run and comes next in it."""
        while parts and parts[0].kind == recipe.MADE:
            how, length = recipe.made(parts[0]), parts[0].length
            if how != self.how._replace(check=how.check, position=self.length):
                break
            self._parts.append((length, how.check))
            self.length += length
            parts.popleft()

    @property
    def over(self) -> bool:
        """Whether the engine was given all it takes in."""
        return self.fed == self.how.raw_length

    def work(self, data: bytes | memoryview, sink: Sink) -> None:
        """Feed the next raw bytes, hand on what is whole and right.

        Raises RebuildError, EngineError and what the sink raises.
        """
        self.fed += len(data)
        if self.fed > self.how.raw_length:
            raise RebuildError("an engine would be given more than it once was")
        if self._compressor is None:
            self._compressor = self._engine.compressor(self.how.params, background=self._background)
        view = memoryview(data)
        for start in range(0, len(view), FEED_SIZE):
            self._take(self._compressor.feed(view[start : start + FEED_SIZE]), sink)
        if self.over:
            self._take(self._compressor.finish(), sink)
            self._measure()
            self.close()
            if self._out or self._parts:
                raise OtherBytesError("the engine made a stream of another length", self.how.engine)

    def _take(self, made: bytes, sink: Sink) -> None:
        self._out += made
        if self._parts and len(self._out) >= self._parts[0][0]:
            self._measure()
        while self._parts and len(self._out) >= self._parts[0][0]:
            length, check = self._parts.popleft()
            piece = bytes(memoryview(self._out)[:length])
            del self._out[:length]
            if xxhash.xxh3_64_intdigest(piece) != check:
                raise OtherBytesError(
                    "the engine made other bytes than it once did", self.how.engine
                )
            sink(piece)
        if not self._parts and self._out:
            raise OtherBytesError("the engine made a stream of another length", self.how.engine)

    def _measure(self) -> None:
        """A part is through."""
        assert self._compressor is not None
        now = self._compressor.cpu_s()
        self.longest_s = max(self.longest_s, now - self._part_began_s)
        self._part_began_s = now

    def close(self) -> None:
        """Let go of the engine."""
        if self._compressor is not None:
            self._compressor.close()
            self._compressor = None


class NestedRuns:
    """Runs with what their engines take in right behind them, which may be runs again.

    So is the recipe of a nested inner blob: told of its runs and bytes in order, this hands on
    what the archive has inside.
    """

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._open: list[EngineRun] = []
        """Those that wait for bytes; each is part of what the one before takes in."""
        self._at = 0
        """Bytes of the recipe so far."""

    def begin(self, run: EngineRun) -> None:
        """The next of the recipe is a run, all of whose parts are known."""
        self._at += run.length
        if run.how.start != self._at:
            raise RebuildError("a stream inside is not followed by what it is made of")
        if len(self._open) == DEPTH_MAX:
            raise RebuildError("archives are nested too deep")
        if run.how.raw_length:
            self._open.append(run)
        else:
            try:
                run.work(b"", partial(self._give, len(self._open)))
            finally:
                run.close()
            self._let_go()

    def data(self, data: bytes | memoryview) -> None:
        """The next of the recipe are bytes that are stored."""
        self._at += len(data)
        self._give(len(self._open), data)
        self._let_go()

    def _give(self, depth: int, data: bytes | memoryview) -> None:
        if depth:
            self._open[depth - 1].work(data, partial(self._give, depth - 1))
        else:
            self._sink(data)

    def _let_go(self) -> None:
        while self._open and self._open[-1].over:
            self._open.pop()

    def end(self) -> None:
        """That was the whole recipe.  Raises RebuildError if a run still waits for bytes."""
        if self._open:
            raise RebuildError("a stream inside is not followed by what it is made of")

    def close(self) -> None:
        """Let go of all engines."""
        while self._open:
            self._open.pop().close()
