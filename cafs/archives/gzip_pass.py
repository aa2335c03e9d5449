"""A gzip file read from start to end: its deflate streams into an inner blob, cut at tar members.

Invariant: the segments, in order, are the whole file.  Anything else about it than whole members
of gzip, one after the other, and little behind them is a reason to leave it as it is.
Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from cafs.archives import bytecode, gnu_gzip
from cafs.archives.deflated import DeflatedStream, NoEngineError, Stream
from cafs.archives.gzip_format import KEPT_MAX, Begin, End, Event, GzipReader, Header, Kept, Raw
from cafs.archives.inner import InnerWriter
from cafs.archives.inside import Inside
from cafs.archives.nested_file import NestedFile, Room
from cafs.archives.segments import Bounds, LeftError, Segment, UnmadeError
from cafs.archives.tar_format import Kind, Stretch, TarSplitter
from cafs.archives.trial import Guess, Sample
from cafs.blobs import recipe

STEP: Final = 8 << 10
"""Bytes that are fed at once: so that the sample's two sides match, and made parts end where what
they are made of is not too much."""
TRAILING_MAX: Final = 64 << 10
"""Bytes behind the last member that are kept beside; more is no gzip file."""
PROGRAMS_MAX: Final = 64
"""Members that take a process of their own to be made again."""
MEMBERS_MAX: Final = 10_000
STREAMS_MAX: Final = 250_000
"""Streams of archives inside it that are made again, each with a part of the recipe of its own."""

Guesser = Callable[[Sample, Header], list[Guess]]


class GzipPass:
    """Takes one file."""

    def __init__(
        self,
        inner: InnerWriter,
        outer: InnerWriter,
        guesser: Guesser,
        bounds: Bounds,
        nested: Inside,
    ) -> None:
        """*inner* takes what is inside, *outer* those bytes of the file that nobody makes.

        *nested* takes archives inside it.
        """
        self._inner = inner
        self._outer = outer
        self._guesser = guesser
        self._bounds = bounds
        self._nested = nested
        self._inside: NestedFile[Any] | None = None
        """The member that passes by, if it is an archive."""
        self._nested_bytes = 0
        """What came out of those that are through."""
        self._nested_streams = 0
        """Streams of them that engines make."""
        self._gzip = GzipReader()
        self._tar = TarSplitter()
        self._came: deque[bytes] = deque()
        """Raw bytes that were not stored yet."""
        self._lag = b""
        """Raw bytes that no stretch accounts for yet."""
        self._begins = True
        """Whether the next bytes of a member are its first ones."""
        self._segments: list[Segment] = []
        self._stream: DeflatedStream | None = None
        self._recent = b""
        """The bytes that are being pushed, and where they begin in the file."""
        self._recent_at = 0
        self._trailing = bytearray()
        self._rest = -1
        self._begun = 0
        self._raw_seen = 0

    @property
    def nested(self) -> bool:
        """Whether there was an archive inside it with streams that engines make."""
        return self._nested_streams > 0 or (self._inside is not None and self._inside.streams > 0)

    @property
    def tried_depth(self) -> int:
        """The outcome may be another one if archives that lie so deep are left as they lie."""
        return self._nested.tried

    def push(self, data: bytes) -> Iterator[None]:
        """The next bytes of the file, step by step; take all steps before the next bytes.

        A few bytes may hold a lot: a step is some tenths of a second of work at most, or a
        second where an engine is looked for.  Raises LeftError, DiskFullError and its kin.
        """
        for at in range(0, len(data), STEP):
            yield from self._push(data[at : at + STEP])

    def _push(self, piece: bytes) -> Iterator[None]:
        self._recent = piece
        if self._rest >= 0:
            self._trail(piece)
        if self._stream is not None:
            self._stream.feed(piece)
        for event in self._gzip.push(piece):
            self._take(event)
            yield from self._store()
        if self._stream is not None:
            inside = 0 if self._inside is None else self._inside.raw_bytes
            try:
                self._stream.advance(self._nested_bytes + inside)
            except NoEngineError:
                raise UnmadeError("no engine makes this stream") from None
        self._recent_at += len(piece)

    def _take(self, event: Event) -> None:
        if isinstance(event, Raw):
            self._raw_seen += len(event.data)
            self._check_bounds(0)
            assert self._stream is not None
            try:
                self._stream.raw(event.data)
            except NoEngineError:
                raise UnmadeError("no engine makes this stream") from None
        elif isinstance(event, Kept):
            if len(event.data) > KEPT_MAX:
                raise LeftError("a header of unusual length")
            for low in range(0, len(event.data), recipe.LITERAL_MAX):
                self._segments.append(recipe.literal(event.data[low : low + recipe.LITERAL_MAX]))
        elif isinstance(event, Begin):
            self._begin(event)
        elif isinstance(event, End):
            assert self._stream is not None
            try:
                self._segments.append(self._stream.end(event.length))
            except NoEngineError:
                raise UnmadeError("no engine makes this stream") from None
            self._stream = None
        else:
            self._leave_rest(event.start, event.reason)

    def _check_bounds(self, nested: int) -> None:
        """Whether all is not too much, with *nested* bytes out of the archive that passes by."""
        raw = self._raw_seen + self._nested_bytes + nested
        self._bounds.check(raw, self._recent_at + len(self._recent))

    def _begin(self, event: Begin) -> None:
        self._begun += 1
        if self._begun > MEMBERS_MAX:
            raise LeftError("too many members")

        def guess(sample: Sample) -> list[Guess]:
            return self._guesser(sample, event.header)

        # What the splitter holds back is not lost: it belongs to the stream it came from, and
        # both come out in the same order.
        self._stream = DeflatedStream(self._raw_seen, guess, self._came.append)
        self._stream.feed(self._recent[event.start - self._recent_at :])

    def _leave_rest(self, start: int, reason: str) -> None:
        if not self._segments or self._stream is not None or isinstance(self._segments[-1], Stream):
            raise LeftError(f"no whole gzip file: {reason}")
        self._rest = start
        # All but a few bytes of it are still at hand: a header is short.
        if start < self._recent_at:
            raise LeftError("trailing bytes that begin like a header")
        self._trail(self._recent[start - self._recent_at :])

    def _trail(self, data: bytes) -> None:
        self._trailing += data
        if len(self._trailing) > TRAILING_MAX:
            raise LeftError("more than an archive: many bytes follow it")

    def _store(self) -> Iterator[None]:
        """Store what came out of the file."""
        while self._came:
            raw = self._came.popleft()
            yield from self._route(self._tar.push(raw), raw)
        yield

    def _route(self, stretches: list[Stretch], raw: bytes) -> Iterator[None]:
        data = self._lag + raw if self._lag else raw
        at = 0
        for number, (kind, length) in enumerate(stretches):
            piece = data[at : at + length]
            at += length
            if kind is Kind.HEADER:
                yield from self._end_inside()
                self._inner.header(piece)
                self._begins = True
            else:
                follows = number + 1 < len(stretches)
                yield from self._member(piece, final=follows)
                self._begins = follows
        self._lag = data[at:]

    def _member(self, piece: bytes, *, final: bool) -> Iterator[None]:
        if self._begins:
            room = Room(self._check_bounds, STREAMS_MAX - self._nested_streams)
            self._inside = self._nested.takes(piece, self._inner, room)
        if self._inside is not None:
            yield from self._inside.push(piece)
            return
        at = 0
        if self._begins:
            for start, end in bytecode.varying(piece):
                self._inner.data(piece[at:start], final=True)
                self._inner.header(piece[start:end])
                at = end
        self._inner.data(piece[at:], final=final)

    def _end_inside(self) -> Iterator[None]:
        if self._inside is not None:
            yield from self._inside.end()
            self._nested_bytes += self._inside.raw_bytes
            self._nested_streams += self._inside.streams
            self._inside = None

    def end(self) -> Iterator[None]:
        """The file has ended; as push()."""
        for event in self._gzip.finish():
            self._take(event)
            yield from self._store()
        yield from self._route(self._tar.finish(), b"")
        yield from self._end_inside()

    def finish(self) -> list[Segment]:
        """What it consists of, behind end().  Raises LeftError, DiskFullError and its kin."""
        streams = [each for each in self._segments if isinstance(each, Stream)]
        if not streams:
            raise LeftError("no gzip member")
        programs = sum(each.guesses[0].engine.kind == gnu_gzip.KIND for each in streams)
        if programs > PROGRAMS_MAX:
            raise LeftError("too many members")
        if self._trailing:
            self._outer.data(bytes(self._trailing), final=True)
            self._outer.finish()
            self._segments += self._outer.take_all()
        return self._segments
