"""What a gzip file consists of (RFC 1952): headers, deflate streams, trailers, and the rest.

A pure reader: bytes go in as they come, events come out.  It never trusts a length that it
reads, keeps at most one header in memory, and never fails: from where it does not understand
the bytes any more, everything is the :class:`Rest`.  Invariant: the :class:`Kept` bytes, the
streams that have an :class:`End`, and the rest lie back to back and are the whole input.
"""

from __future__ import annotations

import zlib
from collections.abc import Generator, Iterator
from typing import Final, NamedTuple

MAGIC: Final = b"\x1f\x8b\x08"
"""ID1, ID2 and the compression method deflate (section 2.3.1)."""
TRAILER_SIZE: Final = 8
HEADER_MAX: Final = 128 << 10
"""The longest extra field has 64 KiB; a name or comment that is longer than that is none."""
KEPT_MAX: Final = 4 << 10
"""The longest header of an archive that is taken apart: others are a few dozen bytes long."""
RAW_MAX: Final = 256 << 10
"""Raw bytes in one event: so much is in memory, however well they were compressed."""

FIXED_SIZE: Final = 10
"""Bytes of a header that each one has."""
_INPUT_STEP: Final = 64 << 10
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 0x02, 0x04, 0x08, 0x10, 0xE0


class Header(NamedTuple):
    """What a member's header says about whoever made it."""

    xfl: int
    """2 from whoever compressed as well as he could, 4 as fast, else mostly 0."""
    os: int
    """3 on Unix; 255 from Python and Go, which do not say."""
    mtime: int
    named: bool
    """Whether it has the name of a file."""


class Kept(NamedTuple):
    """Bytes of a header or a trailer, as they are."""

    data: bytes


class Begin(NamedTuple):
    """A deflate stream begins."""

    start: int
    """Offset of its first byte in the file."""
    header: Header


class Raw(NamedTuple):
    """The next bytes of what the stream holds, at most RAW_MAX of them."""

    data: bytes


class End(NamedTuple):
    """The stream is complete."""

    length: int
    """Bytes of the deflate stream in the file."""
    raw_length: int


class Rest(NamedTuple):
    """All bytes from *start* on are to be left as they are.  The last event, if it comes.

    A stream that has begun at *start*, or not before it, has no end: what was given as Raw
    since its Begin does not count.
    """

    start: int
    reason: str


Event = Kept | Begin | Raw | End | Rest


def header_length(data: bytes | bytearray) -> int:
    """How long the header is that *data* begins with; 0 if more is needed, -1 if it is none."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        return -1
    if len(data) < FIXED_SIZE:
        return 0
    flags = data[3]
    if flags & _RESERVED:
        return -1
    at = FIXED_SIZE
    if flags & _FEXTRA:
        at += 2 + int.from_bytes(data[at : at + 2], "little")
    for flag in (_FNAME, _FCOMMENT):
        if flags & flag and at <= len(data):
            end = data.find(b"\0", at)
            at = end + 1 if end >= 0 else len(data) + 1
    if flags & _FHCRC:
        at += 2
    if at <= len(data):
        return at if at <= HEADER_MAX else -1
    return 0 if len(data) <= HEADER_MAX else -1


def read_header(data: bytes | bytearray) -> Header:
    """The fields of a header whose length is known."""
    return Header(data[8], data[9], int.from_bytes(data[4:8], "little"), bool(data[3] & _FNAME))


class GzipReader:
    """Takes a gzip file, gives :data:`Event`.  Not thread-safe; computes, never waits."""

    def __init__(self) -> None:
        self._position = 0
        """Offset in the file of the first byte that no event or stream accounts for."""
        self._waiting = bytearray()
        """A header or trailer of which more is to come."""
        self._inflater: zlib._Decompress | None = None
        self._length = 0
        self._raw_length = 0
        self._trailer = False
        self._members = 0
        self._over = False

    def push(self, data: bytes) -> Iterator[Event]:
        """The events that *data*, the next bytes of the file, leads to.

        They have to be taken all before the next call; *data* must not change meanwhile.
        """
        while data and not self._over:
            if self._inflater is not None:
                data = yield from self._stream(data)
            elif self._trailer:
                data = yield from self._take_trailer(data)
            else:
                data = yield from self._take_header(data)

    def finish(self) -> Iterator[Event]:
        """The file ends here.  Nothing follows if that is where a member ends."""
        if self._over:
            return
        if self._inflater is not None:
            yield self._rest("the stream has no end")
        elif self._trailer:
            yield self._rest("the trailer is not whole")
        elif self._waiting:
            yield self._rest("trailing bytes" if self._members else "no whole header")

    def _rest(self, reason: str) -> Rest:
        self._over = True
        self._inflater = None
        return Rest(self._position, reason)

    def _take_header(self, data: bytes) -> Generator[Event, None, bytes]:
        # A name is mostly short: what is behind it is not joined to what waits for nothing.
        known = len(self._waiting)
        self._waiting += data[: HEADER_MAX + 1]
        length = header_length(self._waiting)
        if length < 0:
            yield self._rest("trailing bytes" if self._members else "no gzip header")
            return b""
        if not length:
            return b""
        header = bytes(self._waiting[:length])
        self._waiting.clear()
        self._position += length
        self._inflater = zlib.decompressobj(-zlib.MAX_WBITS)
        self._length = self._raw_length = 0
        yield Kept(header)
        yield Begin(self._position, read_header(header))
        return data[length - known :]

    def _stream(self, data: bytes) -> Generator[Event, None, bytes]:
        """Inflate; what is behind the end of the stream."""
        inflater = self._inflater
        assert inflater is not None
        for at in range(0, len(data), _INPUT_STEP):
            step = data[at : at + _INPUT_STEP]
            left = step
            while True:
                try:
                    raw = inflater.decompress(left, RAW_MAX)
                except zlib.error as error:
                    yield self._rest(f"no deflate stream: {error}")
                    return b""
                left = inflater.unconsumed_tail
                self._raw_length += len(raw)
                if raw:
                    yield Raw(raw)
                if inflater.eof or (not left and len(raw) < RAW_MAX):
                    break
            if inflater.eof:
                used = len(step) - len(inflater.unused_data)
                self._length += used
                self._position += self._length
                self._inflater = None
                self._trailer = True
                yield End(self._length, self._raw_length)
                return data[at + used :]
            self._length += len(step)
        return b""

    def _take_trailer(self, data: bytes) -> Generator[Event, None, bytes]:
        missing = TRAILER_SIZE - len(self._waiting)
        self._waiting += data[:missing]
        if len(self._waiting) == TRAILER_SIZE:
            trailer = bytes(self._waiting)
            self._waiting.clear()
            self._trailer = False
            self._members += 1
            self._position += TRAILER_SIZE
            yield Kept(trailer)
        return data[missing:]
