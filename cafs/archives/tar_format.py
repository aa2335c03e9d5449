"""Where the members of a tar lie: a pure splitter that cutting uses to find their borders.

Bytes go in as they come, stretches of HEADER and DATA come out.  Known are v7, ustar, pax
(POSIX.1-2001) and GNU tar's: long names, base-256 sizes, sparse files of every kind.  It is only
about deduplication: whatever is not understood is DATA from there to the end, never an error.

Invariant: the stretches lie back to back and are the whole input; joined where they are of the
same kind, they are the same however the input was cut.  Between the data of two members there
is always a header, so stretches of DATA that follow each other belong to one member.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final, NamedTuple

BLOCK: Final = 512
PAX_MAX: Final = 1 << 20
"""A pax header is read for the size that it may state, if it is not longer than this."""


class Kind(Enum):
    """What a stretch is."""

    HEADER = "header"
    """Header blocks, long names, pax records, padding, the blocks of zeros at the end."""
    DATA = "data"
    """Content of one member; or what is not understood."""


class Stretch(NamedTuple):
    """The next *length* bytes."""

    kind: Kind
    length: int


_NO_DATA: Final = frozenset(b"123456V")
"""Links, devices, directories, FIFOs and a volume's name: whatever size they state."""
_EXTENSIONS: Final = frozenset(b"LKxgX")
"""GNU long names, pax headers and (X) those of Solaris: their data describe what follows."""
_PAX: Final = frozenset(b"xX")
_ZEROS: Final = bytes(BLOCK)
_OCTAL = re.compile(rb" *([0-7]+)[ \0]*")
_CHECKSUM = slice(148, 156)
_PAX_RECORD = re.compile(rb"(\d{1,7}) ")


class TarSplitter:
    """Takes a tar, gives stretches.  Not thread-safe; computes, never waits."""

    def __init__(self) -> None:
        self._block = b""
        """A header block of which more is to come."""
        self._left = 0
        """Bytes of the current stretch that are to come."""
        self._kind = Kind.DATA
        self._padding = 0
        """Bytes that fill the last block behind it."""
        self._pax: bytearray | None = None
        """Data of the pax header that is passing by."""
        self._size: int | None = None
        """What a pax header said of the next member."""
        self._sparse = False
        """An old GNU sparse header goes on in the next block."""
        self._lost = False
        self._member = 0
        """Bytes of data behind the blocks of a sparse header."""

    def push(self, data: bytes | memoryview) -> list[Stretch]:
        """The stretches that are known by now; up to 511 bytes may wait for more."""
        found: list[Stretch] = []
        at, end = 0, len(data)
        while at < end:
            if self._lost:
                _add(found, Kind.DATA, end - at)
                break
            if self._left:
                length = min(self._left, end - at)
                if self._pax is not None:
                    self._pax += data[at : at + length]
                _add(found, self._kind, length)
                self._left -= length
                at += length
                if not self._left:
                    self._end_of_data()
            elif self._padding:
                length = min(self._padding, end - at)
                _add(found, Kind.HEADER, length)
                self._padding -= length
                at += length
            else:
                length = min(BLOCK - len(self._block), end - at)
                self._block += data[at : at + length]
                at += length
                if len(self._block) == BLOCK:
                    block, self._block = self._block, b""
                    self._take(block)
                    _add(found, Kind.DATA if self._lost else Kind.HEADER, BLOCK)
        return found

    def finish(self) -> list[Stretch]:
        """The input ends here: what has waited."""
        waiting, self._block = len(self._block), b""
        return [Stretch(Kind.DATA, waiting)] if waiting else []

    # -- inside

    def _take(self, block: bytes) -> None:
        """A whole header block: what follows it."""
        if self._sparse:
            # Byte 504 says whether there is one more (GNU tar manual, "Old GNU Format").
            self._sparse = bool(block[504])
            if not self._sparse:
                self._expect(Kind.DATA, self._member)
            return
        if block == _ZEROS:
            return
        size = _number(block[124:136]) if _is_header(block) else None
        if size is None:
            self._lost = True
            return
        type_flag = block[156]
        if type_flag in _EXTENSIONS:
            self._pax = bytearray() if type_flag in _PAX and size <= PAX_MAX else None
            self._expect(Kind.HEADER, size)
            return
        if self._size is not None:
            size, self._size = self._size, None
        if type_flag in _NO_DATA:
            return
        if type_flag == ord("S") and block[482]:
            self._sparse, self._member = True, size
            return
        self._expect(Kind.DATA, size)

    def _expect(self, kind: Kind, size: int) -> None:
        self._kind, self._left, self._padding = kind, size, -size % BLOCK
        if not size:
            self._pax = None

    def _end_of_data(self) -> None:
        if self._pax is not None:
            size = _pax_size(bytes(self._pax))
            self._size = self._size if size is None else size
            self._pax = None


def _add(found: list[Stretch], kind: Kind, length: int) -> None:
    if found and found[-1].kind is kind:
        found[-1] = Stretch(kind, found[-1].length + length)
    else:
        found.append(Stretch(kind, length))


def _is_header(block: bytes) -> bool:
    """Whether the checksum is right: of unsigned bytes, or, as old programs had it, signed."""
    stated = _number(block[_CHECKSUM])
    if stated is None:
        return False
    total = sum(block) - sum(block[_CHECKSUM]) + 8 * ord(" ")
    if stated == total:
        return True
    signed = block[: _CHECKSUM.start] + block[_CHECKSUM.stop :]
    return stated == total - 256 * sum(byte > 127 for byte in signed)


def _number(field: bytes) -> int | None:
    """A number in octal, or in base 256 as GNU tar has it; None if it is neither."""
    if field[0] == 0x80:
        # 63 bits are what any tar can have: more would be a length that nobody believes.
        value = int.from_bytes(field[1:], "big")
        return value if value < 1 << 63 else None
    if not field.strip(b" \0"):
        return 0
    match = _OCTAL.fullmatch(field)
    return int(match[1], 8) if match else None


def _pax_size(records: bytes) -> int | None:
    """The last size in pax records ("LENGTH KEY=VALUE\\n"); None if there is none."""
    size = None
    at = 0
    while match := _PAX_RECORD.match(records, at):
        length = int(match[1])
        record = records[match.end() : at + length]
        if length <= match.end() - at or not record.endswith(b"\n"):
            break
        key, _, value = record[:-1].partition(b"=")
        if key == b"size" and value.isdigit() and len(value) < 19:
            size = int(value)
        at += length
    return size
