"""One deflate stream on its way out of an archive: who made it, and checks of its bytes.

Takes the bytes of the stream and what they inflate to, side by side.  Holds back the beginning
until it is known which engine may have made it; then raw bytes go on, and the stream itself is
only counted and summed.  Invariant: the checks are of exactly the bytes of the stream, in
lengths that tile it.  Runs in worker threads, one call at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

import xxhash

from cafs.archives.trial import RAW_MAX, Guess, Sample
from cafs.blobs import recipe
from cafs.blobs.recipe import Made, Part

FIRST_PIECE: Final = 64 << 10
"""Bytes of the first made part: the sooner it is verified the sooner a reader has bytes."""
PIECE_MAX: Final = 256 << 10
"""Bytes of the later ones ..."""
RAW_PIECE_MAX: Final = 2 << 20
"""... and of what they are made of, as nearly as it is known: these are what takes time."""

BEGUN_MAX: Final = 2 << 20
"""Bytes of a stream that may pass without it being known who made it: they are held back, and no
compressor makes that much of the RAW_MAX bytes that are looked at."""

Guesser = Callable[[Sample], list[Guess]]
Emit = Callable[[bytes], None]


class NoEngineError(Exception):
    """No engine makes this stream.  The raw bytes were not passed on."""


class Stream(NamedTuple):
    """A whole stream, as made parts can be made of it."""

    start: int
    """Where its raw bytes begin in the inner blob."""
    raw_length: int
    pieces: tuple[tuple[int, int], ...]
    """Length and check of each made part."""
    guesses: tuple[Guess, ...]

    def parts(self, engine: int, params: int) -> list[Part]:
        """The made parts, for an engine's number and parameters."""
        made = []
        position = 0
        for length, check in self.pieces:
            how = Made(check, engine, params, self.start, self.raw_length, position)
            made.append(recipe.made_part(length, how))
            position += length
        return made


class DeflatedStream:
    """Takes one stream."""

    def __init__(self, start: int, guesser: Guesser, emit: Emit) -> None:
        self._start = start
        self._guesser = guesser
        self._emit = emit
        self._bytes = bytearray()
        """Of the stream (or what follows it), from what is not summed yet."""
        self._raw = bytearray()
        """What is held back."""
        self._raw_length = 0
        self._work_summed = 0
        """Raw bytes of what is summed, and those that they are made of in turn."""
        self._guesses: list[Guess] = []
        self._pieces: list[tuple[int, int]] = []
        self._summed = 0

    @property
    def known(self) -> bool:
        """Whether it is known who may have made it."""
        return bool(self._guesses)

    def feed(self, data: bytes | memoryview) -> None:
        """The next bytes of the file; what is behind the end of the stream may be among them."""
        self._bytes += data

    def raw(self, data: bytes) -> None:
        """The next raw bytes.  Raises NoEngineError."""
        self._raw_length += len(data)
        if self.known:
            self._emit(data)
            return
        self._raw += data
        if len(self._raw) >= RAW_MAX:
            self._decide(bytes(self._bytes), whole=False)

    def _decide(self, stream: bytes, *, whole: bool) -> None:
        raw = bytes(self._raw)
        self._guesses = self._guesser(Sample(stream, raw[:RAW_MAX], whole))
        if not self._guesses:
            raise NoEngineError
        self._raw.clear()
        self._emit(raw)

    def advance(self, deeper: int = 0) -> None:
        """All that was fed is of the stream.  Raises NoEngineError.

        *deeper*: how many bytes so far came out of what is inside it, and have to be made into
        its raw bytes first.
        """
        if not self.known:
            if len(self._bytes) > BEGUN_MAX:
                raise NoEngineError
            return
        work = self._raw_length + deeper
        while len(self._bytes) >= self._next_length:
            self._sum(self._next_length)
            self._work_summed = work
        if self._bytes and work - self._work_summed >= RAW_PIECE_MAX:
            self._sum(len(self._bytes))
            self._work_summed = work

    @property
    def _next_length(self) -> int:
        return min(PIECE_MAX, max(FIRST_PIECE, self._summed))

    def _sum(self, length: int) -> None:
        piece = bytes(memoryview(self._bytes)[:length])
        del self._bytes[:length]
        self._pieces.append((length, xxhash.xxh3_64_intdigest(piece)))
        self._summed += length

    def end(self, length: int) -> Stream:
        """The stream has *length* bytes in all, which were fed.  Raises NoEngineError."""
        del self._bytes[length - self._summed :]
        if not self.known:
            self._decide(bytes(self._bytes), whole=len(self._raw) <= RAW_MAX)
        self.advance()
        if self._bytes:
            self._sum(len(self._bytes))
        return Stream(self._start, self._raw_length, tuple(self._pieces), tuple(self._guesses))
