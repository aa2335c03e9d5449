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
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, Generic, TypeVar

from cafs.archives import gnu_gzip, zlib_engine
from cafs.archives.deflated import Guesser, Stream
from cafs.archives.inner import InnerWriter
from cafs.archives.member import DeflatedMember
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


GuesserT = TypeVar("GuesserT")


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
        check: Callable[[int], None],
        streams_max: int,
        takes: Takes,
    ) -> None:
        """*guesser* knows who may have made a stream; each kind of archive tells it what it can.

        *check* is told how many bytes came out of members, and raises if these are too many.

        Behind *streams_max* streams that an engine makes the rest is stored as it lies.

        *takes* is for those of its members that are archives.
        """
        self._inner = inner
        self._guesser_of_kind = guesser
        self._check = check
        self._streams_max = streams_max
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
        self.raw_bytes = 0
        """Bytes that came out of members, and out of those of members."""
        self.streams = 0
        """Members that an engine makes, and theirs."""

    def push(self, data: bytes | memoryview) -> None:
        """The next bytes of the archive.  Raises LeftError, DiskFullError and its kin."""
        view = memoryview(data)
        while view:
            if self._next is Next.HEADER:
                taken = self._header(view)
            elif self._next is Next.AS_IT_LIES:
                taken = self._as_it_lies(view)
            elif self._next is Next.DEFLATED:
                taken = self._deflated(view)
            else:
                self._inner.data(bytes(view))
                break
            view = view[taken:]

    def end(self) -> None:
        """That was all of it.  Raises LeftError, DiskFullError and its kin."""
        if self._member is not None:
            self._member.end()
            self._member = None
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
        if self.streams >= self._streams_max:
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
        if len(sample.raw) > RATIO_MAX * len(sample.stream):
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

    def _deflated(self, view: memoryview) -> int:
        member = self._member
        assert member is not None
        if self._known_length:
            taken = member.feed(view[: self._left])
            self._left -= taken
            over = not self._left
        else:
            taken = member.feed(view)
            over = member.over or member.left_plain
        if over:
            lost = member.left_plain and not self._known_length
            member.end()
            self._member = None
            self._next = Next.REST if lost else Next.HEADER
        return taken

    def raw(self, data: bytes) -> None:
        """The next bytes of what is inside the member, which an engine makes."""
        if self._place < 0:
            self._place = self._inner.reserve()
            self._place_at = self._inner.size
            most = self._streams_max - self.streams - 1
            self._inside = self._takes(data, self._inner, self._check_member, most)
        self._member_raw += len(data)
        self.raw_bytes += len(data)
        if self._known_length and self._member_raw > self._member_max:
            raise LeftError("a member that holds more than it says")
        if self._inside is None:
            self._check_member(0)
            self._inner.data(data)
        else:
            self._check_member(self._inside.raw_bytes)
            self._inside.push(data)

    def _check_member(self, deeper: int) -> None:
        """Whether all is not too much, with *deeper* bytes out of members of the member."""
        self._check(self.raw_bytes + deeper)
        assert self._member is not None
        slack = _SLACK if self._known_length else _SLACK_STREAMED
        if self._member_raw + deeper > RATIO_MAX * self._member.seen + slack:
            raise LeftError("a member that holds more than it should")

    def made(self, stream: Stream) -> None:
        """An engine makes the member."""
        if self._inside is not None:
            inside, self._inside = self._inside, None
            inside.end()
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

    def plain(self, data: bytes, *, final: bool) -> None:
        """Bytes of a member that is stored as it lies."""
        self._inner.data(data, final=final)


Takes = Callable[[bytes, InnerWriter, Callable[[int], None], int], NestedFile[Any] | None]
"""Makes what takes a file inside an archive, if it is one itself: of its first bytes, where it
goes, what is told of the bytes that come out of it, and how many streams of it may be made."""


def _nobody(_sample: Sample) -> list[Guess]:
    return []
