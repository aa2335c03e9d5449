"""A zip that is a member of a tar, as it passes by: its deflated members go into the inner blob.

Wheels in a buildpack's cache and jars in a droplet are such zips.  A pass over a tar cannot wait
for the central directory at a zip's end, so members are found by their local headers, and what
is not understood is stored as it lies from there to the end.  In the inner blob stand, for each
member that an engine makes, the made parts of its stream and right behind them what the engine
takes in.  Invariant: without the latter, the bytes are those of the zip, in order.
Runs in worker threads, one call at a time; blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import Enum
from typing import Final

from cafs.archives.deflated import Guesser, Stream
from cafs.archives.inner import InnerWriter
from cafs.archives.member import DeflatedMember
from cafs.archives.segments import LeftError
from cafs.archives.trial import Guess, Sample
from cafs.archives.zip_format import DEFLATED, ENCRYPTED, LOCAL, MAGIC, STREAMED
from cafs.blobs import recipe

LEAST: Final = recipe.LITERAL_MAX
"""A member of so many bytes is shorter than what says how to make it."""
RATIO_MAX: Final = 200
"""A member that holds so many times its bytes is stored as it lies: that costs next to nothing,
and for a few of its bytes a reader would wait until all that they hold was compressed."""
_SLACK: Final = 64 << 20
_SLACK_STREAMED: Final = 4 << 20
"""So many raw bytes may come out of a member ahead of what it holds on the whole; fewer where
nothing was said of it before."""
UNNUMBERED: Final = 0
"""Stands for the engine's number in made parts, until it has one; no made part may be stored so."""
_ZIP64: Final = 0xFFFFFFFF
_DESCRIPTOR: Final = struct.Struct("<4s3L")
"""Behind a member whose sizes were not known before it."""
_DESCRIPTOR_MAGIC: Final = b"PK\x07\x08"


class _Next(Enum):
    """What comes next."""

    HEADER = "header"
    AS_IT_LIES = "as it lies"
    """Bytes of a member, to be stored as they are."""
    DEFLATED = "deflated"
    REST = "rest"
    """Everything up to the end, to be stored as it is."""


class NestedZip:
    """Takes one zip."""

    def __init__(
        self,
        inner: InnerWriter,
        guesser: Guesser,
        check: Callable[[int], None],
        streams_max: int,
    ) -> None:
        """*check* is told how many bytes came out of members, and raises if these are too many.

        Behind *streams_max* members that an engine makes the rest is stored as it lies.
        """
        self._inner = inner
        self._guesser = guesser
        self._check = check
        self._streams_max = streams_max
        self._next = _Next.HEADER
        self._held = bytearray()
        """Of a header."""
        self._wanted = len(MAGIC)
        """Bytes of it that have to be there before more can be said."""
        self._left = 0
        """Bytes of the member that are to come, if its length is known."""
        self._known_length = False
        self._member: DeflatedMember | None = None
        self._place = -1
        self._place_at = 0
        self._member_raw = 0
        """Bytes that came out of the member ..."""
        self._member_max = 0
        """... and that may, if its length is known."""
        self.raw_bytes = 0
        """Bytes that came out of members."""
        self.streams = 0
        """Members that an engine makes."""

    def push(self, data: bytes | memoryview) -> None:
        """The next bytes of the zip.  Raises LeftError, DiskFullError and its kin."""
        view = memoryview(data)
        while view:
            if self._next is _Next.HEADER:
                taken = self._header(view)
            elif self._next is _Next.AS_IT_LIES:
                taken = self._as_it_lies(view)
            elif self._next is _Next.DEFLATED:
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
        wanted = _length_of(held)
        if wanted > len(held):
            self._wanted = wanted
            return
        self._held.clear()
        self._wanted = len(MAGIC)
        if not wanted:
            # The central directory, or something that only looked like a zip.
            self._inner.data(held)
            self._next = _Next.REST
            return
        self._inner.header(held)
        if held.startswith(MAGIC):
            self._begin_member(held)

    def _begin_member(self, header: bytes) -> None:
        _, _, flags, method, _, _, _, length, raw_length, _, _ = LOCAL.unpack_from(header)
        self._known_length = not flags & STREAMED
        self._left = length
        if _ZIP64 in (length, raw_length) or self.streams >= self._streams_max:
            self._next = _Next.REST
        elif self._worth_it(method, flags, length, raw_length):
            self._next = _Next.DEFLATED
            known = length if self._known_length else None
            self._member = DeflatedMember(0, self._guess, self, known)
            self._place = -1
            self._member_raw, self._member_max = 0, raw_length
        elif self._known_length:
            self._next = _Next.AS_IT_LIES if length else _Next.HEADER
        else:
            self._next = _Next.REST

    def _worth_it(self, method: int, flags: int, length: int, raw_length: int) -> bool:
        if method != DEFLATED or flags & ENCRYPTED:
            return False
        return not self._known_length or (length > LEAST and raw_length <= RATIO_MAX * length)

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
            self._next = _Next.HEADER
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
            self._next = _Next.REST if lost else _Next.HEADER
        return taken

    def raw(self, data: bytes) -> None:
        """The next bytes of what is inside the member, which an engine makes."""
        if self._place < 0:
            self._place = self._inner.reserve()
            self._place_at = self._inner.size
        self.raw_bytes += len(data)
        self._member_raw += len(data)
        self._check(self.raw_bytes)
        assert self._member is not None
        most = RATIO_MAX * self._member.seen
        if self._known_length:
            most = min(self._member_max, most + _SLACK)
        else:
            most += _SLACK_STREAMED
        if self._member_raw > most:
            raise LeftError("a member that holds more than it should")
        self._inner.data(data)

    def made(self, stream: Stream) -> None:
        """An engine makes the member."""
        # What an engine takes in is whole parts.
        self._inner.border()
        length = sum(length for length, _ in stream.pieces)
        stream = stream._replace(start=self._place_at + length)
        self._inner.fill(self._place, stream.parts(UNNUMBERED, stream.guesses[0].params))
        self.streams += 1

    def plain(self, data: bytes, *, final: bool) -> None:
        """Bytes of a member that is stored as it lies."""
        self._inner.data(data, final=final)


def _length_of(header: bytes) -> int:
    """How long a header is that begins so, or how much of it tells; 0: it is none."""
    if header.startswith(_DESCRIPTOR_MAGIC):
        return _DESCRIPTOR.size
    if not header.startswith(MAGIC):
        return 0
    if len(header) < LOCAL.size:
        return LOCAL.size
    name_length, extra_length = LOCAL.unpack_from(header)[-2:]
    return LOCAL.size + int(name_length) + int(extra_length)
