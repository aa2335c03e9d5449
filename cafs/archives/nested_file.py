"""An archive inside another, as it passes by: its content goes into the inner blob.

A pass over a tar cannot go back, nor forth, so streams are found by the headers in front of them,
and what is not understood is stored as it lies from there to the end.  In the inner blob stand,
for each stream that an engine makes, its made parts and right behind them what the engine takes
in; that may have made parts in turn, for an archive that is a member of the archive.  Invariant:
without what engines take in, the bytes are those of the archive, in order.
Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterator
from enum import Enum
from typing import Any, Final, Generic, NamedTuple, TypeVar

from cafs.archives import gnu_gzip, zlib_engine
from cafs.archives.deflated import Guesser, Stream
from cafs.archives.inner import InnerWriter
from cafs.archives.member import STEP, DeflatedMember
from cafs.archives.segments import LeftError
from cafs.archives.trial import Guess, Sample

RATIO_MAX: Final = 200
"""A member that holds so many times its bytes is stored as it lies: that costs next to nothing,
and for a few of its bytes a reader would wait until all that they hold was compressed."""
_SLACK: Final = 64 << 20
_SLACK_STREAMED: Final = 4 << 20
"""So many raw bytes may come out of a member ahead of what it holds on the whole; fewer where
nothing was said of it before."""
STAND_INS: Final = (zlib_engine.KIND, gnu_gzip.KIND)
"""Made parts name an engine by its place in here, from 1 on, until it has a number."""


_DEEPER_MAX: Final = 10_000
"""Streams inside one member: their parts wait in memory until the member is through."""

GuesserT = TypeVar("GuesserT")


class Room(NamedTuple):
    """What one archive inside another may take."""

    check: Callable[[int], None]
    """Is told how many bytes came out of members, and raises LeftError if these are too many."""
    streams: int
    """Members that may be made again; behind them the rest is stored as it lies."""
    ratio: int = RATIO_MAX
    """A member that holds so many times its bytes is stored as it lies."""


class Next(Enum):
    """What comes next."""

    HEADER = "header"
    AS_IT_LIES = "as it lies"
    """Bytes of a member, to be stored as they are."""
    DEFLATED = "deflated"
    REST = "rest"
    """Everything up to the end, to be stored as it is."""


class NestedFile(ABC, Generic[GuesserT]):
    """Takes one archive."""

    def __init__(
        self,
        inner: InnerWriter,
        guesser: GuesserT,
        room: Room,
        takes: Takes,
    ) -> None:
        """*guesser* knows who may have made a stream; each kind of archive tells it what it can.

        *takes* is for those of its members that are archives.
        """
        self._inner = inner
        self._guesser_of_kind = guesser
        self._room = room
        self._takes = takes
        self._next = Next.HEADER
        self._held = bytearray()
        """Of a header."""
        self._wanted = self._first()
        """Bytes of it that have to be there before more can be said."""
        self._left = 0
        """Bytes of the member that are to come, if its length is known."""
        self._known_length = False
        self._member: DeflatedMember | None = None
        self._guesser: Guesser = _nobody
        self._place = -1
        self._place_at = 0
        self._member_raw = 0
        """Bytes that came out of the member ..."""
        self._member_max = 0
        """... and that may, if its length is known."""
        self._inside: NestedFile[Any] | None = None
        """What takes the bytes that come out of the member, if it is an archive."""
        self._came: deque[bytes] = deque()
        """Bytes that came out of it and were not stored yet ..."""
        self._stream: Stream | None = None
        """... and how to make it again, once all of them came."""
        self.raw_bytes = 0
        """Bytes that came out of members, and out of those of members."""
        self.streams = 0
        """Members that an engine makes, and theirs."""

    def push(self, data: bytes | memoryview) -> Iterator[None]:
        """The next bytes of the archive, step by step; take all steps before the next bytes.

        Raises LeftError, DiskFullError and its kin.
        """
        view = memoryview(data)
        while view:
            if self._next is Next.HEADER:
                taken = self._header(view)
            elif self._next is Next.AS_IT_LIES:
                taken = self._as_it_lies(view)
            elif self._next is Next.DEFLATED:
                taken = yield from self._deflated(view)
            else:
                self._inner.data(bytes(view))
                break
            view = view[taken:]
            yield

    def end(self) -> Iterator[None]:
        """That was all of it, step by step.  Raises LeftError, DiskFullError and its kin."""
        if self._member is not None:
            yield from self._end_member(self._member)
        if self._held:
            self._inner.data(bytes(self._held))
            self._held.clear()
        self._inner.data(b"", final=True)

    # -- what lies between members -------------------------------------------------------------

    def _header(self, view: memoryview) -> int:
        taken = min(len(view), self._wanted - len(self._held))
        self._held += view[:taken]
        if len(self._held) == self._wanted:
            self._understand(bytes(self._held))
        return taken

    def _understand(self, held: bytes) -> None:
        """A header is there as far as it was wanted."""
        wanted = self._length_of(held)
        if wanted > len(held):
            self._wanted = wanted
            return
        self._held.clear()
        if not wanted:
            self._inner.data(held)
            self._next = Next.REST
            return
        self._inner.header(held)
        if self.streams >= self._room.streams:
            self._next = Next.REST
        else:
            self._follows(held)
            self._wanted = self._first()

    @abstractmethod
    def _first(self) -> int:
        """Bytes of the next header that have to be there before anything can be said of it."""

    @abstractmethod
    def _length_of(self, held: bytes) -> int:
        """How long a header is that begins so, or how much of it tells; 0: it is none."""

    @abstractmethod
    def _follows(self, header: bytes) -> None:
        """A header is there; say what follows, if that is not another one."""

    def _as_it_lies_for(self, length: int) -> None:
        """So many bytes follow that are stored as they lie, and then a header."""
        self._left = length
        self._next = Next.AS_IT_LIES if length else Next.HEADER

    def _begin(self, guesser: Guesser, length: int | None = None, raw_length: int = 0) -> None:
        """A stream follows, and then a header; its lengths, if they were said before it."""
        self._guesser = guesser
        self._known_length = length is not None
        self._left = length or 0
        self._next = Next.DEFLATED
        self._member = DeflatedMember(0, self._guess, self, length)
        self._place = -1
        self._member_raw, self._member_max = 0, raw_length

    def _guess(self, sample: Sample) -> list[Guess]:
        # What the header says of it may be missing, or not be true.
        assert self._member is not None
        if len(sample.raw) > self._room.ratio * self._member.inflated:
            return []
        return self._guesser(sample)

    # -- members -------------------------------------------------------------------------------

    def _as_it_lies(self, view: memoryview) -> int:
        taken = min(len(view), self._left)
        self._left -= taken
        self._inner.data(bytes(view[:taken]), final=not self._left)
        if not self._left:
            self._next = Next.HEADER
        return taken

    def _deflated(self, view: memoryview) -> Generator[None, None, int]:
        member = self._member
        assert member is not None
        if self._known_length:
            taken = member.feed(view[: min(self._left, STEP)])
            self._left -= taken
            over = not self._left
        else:
            taken = member.feed(view[:STEP])
            over = member.over or member.left_plain
        yield from self._store()
        if over:
            lost = member.left_plain and not self._known_length
            yield from self._end_member(member)
            self._next = Next.REST if lost else Next.HEADER
        return taken

    def _end_member(self, member: DeflatedMember) -> Iterator[None]:
        member.end()
        yield from self._store()
        stream, self._stream = self._stream, None
        if stream is not None:
            yield from self._end_made(stream)
        self._member = None

    def _store(self) -> Iterator[None]:
        """Store what came out of a member."""
        while self._came:
            data = self._came.popleft()
            if self._inside is None:
                self._inner.data(data)
                yield
            else:
                view = memoryview(data)
                for low in range(0, len(view), STEP):
                    yield from self._inside.push(view[low : low + STEP])

    def _end_made(self, stream: Stream) -> Iterator[None]:
        """All that came out of a member is stored, and an engine makes it again of that."""
        inside, self._inside = self._inside, None
        if inside is not None:
            yield from inside.end()
            self.raw_bytes += inside.raw_bytes
            self.streams += inside.streams
        # What an engine takes in is whole parts.
        self._inner.border()
        length = sum(length for length, _ in stream.pieces)
        stream = stream._replace(start=self._place_at + length)
        guess = stream.guesses[0]
        stand_in = STAND_INS.index(guess.engine.kind) + 1
        self._inner.fill(self._place, stream.parts(stand_in, guess.params))
        self.streams += 1

    def raw(self, data: bytes) -> None:
        """The next bytes of what is inside the member, which an engine makes."""
        assert self._member is not None
        self._member_raw += len(data)
        self.raw_bytes += len(data)
        if self._known_length and self._member_raw > self._member_max:
            raise LeftError("a member that holds more than it says")
        if self._place < 0:
            self._place = self._inner.reserve()
            self._place_at = self._inner.size
            self._inside = self._takes(data, self._inner, self._room_inside(self._member))
        self._check_member(0 if self._inside is None else self._inside.raw_bytes)
        self._came.append(data)

    def _room_inside(self, member: DeflatedMember) -> Room:
        """What the member may take, if it is an archive."""
        streams = min(self._room.streams - self.streams - 1, _DEEPER_MAX)
        ratio = self._room.ratio * member.inflated // max(1, self._member_raw)
        return Room(self._check_member, streams, max(1, ratio))

    def _check_member(self, deeper: int) -> None:
        """Whether all is not too much, with *deeper* bytes out of members of the member."""
        assert self._member is not None
        self._room.check(self.raw_bytes + deeper)
        slack = _SLACK if self._known_length else _SLACK_STREAMED
        if self._member_raw + deeper > self._room.ratio * self._member.seen + slack:
            raise LeftError("a member that holds more than it should")

    def made(self, stream: Stream) -> None:
        """An engine makes the member."""
        self._stream = stream

    def plain(self, data: bytes, *, final: bool) -> None:
        """Bytes of a member that is stored as it lies."""
        self._inner.data(data, final=final)


Takes = Callable[[bytes, InnerWriter, Room], NestedFile[Any] | None]
"""Makes what takes a file inside an archive, if its first bytes are those of an archive, too."""


def _nobody(_sample: Sample) -> list[Guess]:
    return []
