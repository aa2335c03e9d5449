"""Where the deflate streams of a zip lie (APPNOTE.TXT 6.3.10), by its central directory.

A pure reader that asks for the bytes it wants: a generator yields (offset, length) and is sent
exactly those bytes, so that who drives it may wait for them in whatever way.  Nothing that it
reads is trusted: lengths are bounded, a member whose local header says something else is left
out, and in a zip whose members overlap, or that is odd as a whole, none is found.

Invariant: the members that come out lie inside the file, in the order of their offsets, without
overlaps, and none reaches into the central directory.
"""

from __future__ import annotations

import struct
from collections.abc import Generator, Iterator
from operator import attrgetter
from typing import Final, NamedTuple

MAGIC: Final = b"PK\x03\x04"
"""A zip begins with the header of its first member, but for an empty or self-extracting one."""
DIRECTORY_MAX: Final = 64 << 20
MEMBERS_MAX: Final = 50_000
"""More are not even looked at: each takes memory, and a part of the recipe of its own."""

_END = struct.Struct("<4s4H2LH")
_END_MAGIC: Final = b"PK\x05\x06"
_LOCATOR = struct.Struct("<4sLQL")
_LOCATOR_MAGIC: Final = b"PK\x06\x07"
_END64 = struct.Struct("<4sQ2H2L4Q")
_END64_MAGIC: Final = b"PK\x06\x06"
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_CENTRAL_MAGIC: Final = b"PK\x01\x02"
LOCAL: Final = struct.Struct("<4s5H3L2H")
"""A member's own header: magic, version, flags, method, time, date, CRC-32, length, raw length,
and the lengths of name and extra field, which follow (section 4.3.7)."""
_COMMENT_MAX: Final = 0xFFFF
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
DEFLATED: Final = 8
ENCRYPTED: Final = 0x1 | 0x40 | 0x2000
"""Traditional encryption, strong encryption, a masked local header (section 4.4.4)."""
STREAMED: Final = 0x8
"""Sizes lie in a data descriptor behind the member, and in the central directory."""
_ZIP64_EXTRA: Final = 0x0001

Wanted = tuple[int, int]
"""Offset and length of bytes of the file; always inside it."""


class Member(NamedTuple):
    """A deflated member."""

    offset: int
    """Of the first byte of its deflate stream."""
    length: int
    """Bytes of the stream."""
    raw_length: int
    """Bytes that are said to come out of it."""
    crc: int
    """CRC-32 that they are said to have."""


class ZipLayout(NamedTuple):
    """What was found."""

    members: list[Member]
    others: int
    """Members that are no deflate stream, or not one that can be trusted."""
    reason: str
    """Why none was found in a file that is odd as a whole; else empty."""


class _Entry(NamedTuple):
    """A record of the central directory."""

    header: int
    """Offset of the local header."""
    length: int
    raw_length: int
    crc: int
    flags: int
    method: int


class _OddError(Exception):
    """The file as a whole is not as it should be.  Never leaves this module."""


def scan(size: int) -> Generator[Wanted, bytes, ZipLayout]:
    """Find the members of a file of *size* bytes.  Raises nothing.

    Who drives it sends the bytes that were asked for; when it cannot, it closes the generator.
    """
    try:
        entries, end = yield from _directory(size)
        # Two at one place overlap, whichever is the first.
        entries.sort(key=attrgetter("header"))
        members: list[Member] = []
        others = 0
        behind = 0
        for index, entry in enumerate(entries):
            limit = entries[index + 1].header if index + 1 < len(entries) else end
            if entry.header < behind:
                raise _OddError("members overlap")
            data = yield from _data_of(entry, limit)
            if data < 0:
                others += 1
                behind = entry.header + 1
                continue
            behind = data + entry.length
            if entry.method != DEFLATED or entry.flags & ENCRYPTED or not entry.length:
                others += 1
                continue
            members.append(Member(data, entry.length, entry.raw_length, entry.crc))
        return ZipLayout(members, others, "")
    except _OddError as error:
        return ZipLayout([], 0, str(error))


def _directory(size: int) -> Generator[Wanted, bytes, tuple[list[_Entry], int]]:
    """The records of the central directory, and the offset where it begins."""
    tail_size = min(size, _END.size + _COMMENT_MAX)
    tail = yield (size - tail_size, tail_size)
    at = _find_end(tail)
    fields = _END.unpack_from(tail, at)
    disks, count, length, offset = (fields[1], fields[2]), fields[4], fields[5], fields[6]
    if (fields[3] != count or disks != (0, 0)) and _MAX16 not in (*disks, fields[3], count):
        raise _OddError("more than one disk")
    end = size - tail_size + at
    if _MAX16 in (count, *disks) or _MAX32 in (length, offset):
        found = yield from _end64(end)
        if found is not None:
            count, length, offset, end = found
    if count > MEMBERS_MAX or length > DIRECTORY_MAX:
        raise _OddError("too many members")
    # A file to which something was prepended has a directory that is not where it says.
    if offset + length > end or length < count * _CENTRAL.size:
        raise _OddError("the central directory is not where it should be")
    if not count:
        return [], offset
    directory = yield (offset, length)
    return list(_entries(directory, count, offset)), offset


def _find_end(tail: bytes) -> int:
    """The end record whose comment reaches exactly to the end of the file."""
    at = tail.rfind(_END_MAGIC)
    while at >= 0:
        if at + _END.size <= len(tail):
            comment = _END.unpack_from(tail, at)[7]
            if at + _END.size + comment == len(tail):
                return at
        at = tail.rfind(_END_MAGIC, 0, at)
    raise _OddError("no end of a central directory")


def _end64(end: int) -> Generator[Wanted, bytes, tuple[int, int, int, int] | None]:
    """Count, length and offset by the zip64 end record, and where that lies; None without one."""
    if end < _LOCATOR.size + _END64.size:
        return None
    magic, _, offset, _ = _LOCATOR.unpack((yield (end - _LOCATOR.size, _LOCATOR.size)))
    if magic != _LOCATOR_MAGIC:
        return None
    if offset > end - _LOCATOR.size - _END64.size:
        raise _OddError("the zip64 end record is not where it should be")
    fields = _END64.unpack((yield (offset, _END64.size)))
    if fields[0] != _END64_MAGIC or fields[4:6] != (0, 0) or fields[6] != fields[7]:
        raise _OddError("no zip64 end record where there should be one")
    return fields[7], fields[8], fields[9], offset


def _entries(directory: bytes, count: int, end: int) -> Iterator[_Entry]:
    at = 0
    for _ in range(count):
        if at + _CENTRAL.size > len(directory):
            raise _OddError("the central directory is too short")
        fields = _CENTRAL.unpack_from(directory, at)
        if fields[0] != _CENTRAL_MAGIC:
            raise _OddError("no record of the central directory where there should be one")
        flags, method, crc = fields[3], fields[4], fields[7]
        length, raw_length, header = fields[8], fields[9], fields[16]
        name_end = at + _CENTRAL.size + fields[10]
        extra_end = name_end + fields[11]
        if _MAX32 in (length, raw_length, header):
            sizes = (raw_length, length, header)
            raw_length, length, header = _zip64(directory[name_end:extra_end], sizes)
        if header + LOCAL.size > end or length > end:
            raise _OddError("a member lies outside of the file")
        yield _Entry(header, length, raw_length, crc, flags, method)
        at = extra_end + fields[12]


def _zip64(extra: bytes, sizes: tuple[int, int, int]) -> tuple[int, ...]:
    """The values that did not fit, from the zip64 extra field, in its order (section 4.5.3)."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == _ZIP64_EXTRA:
            field = extra[at + 4 : at + 4 + length]
            found = []
            for value in sizes:
                if value == _MAX32:
                    if len(field) < 8:
                        break
                    value, field = int.from_bytes(field[:8], "little"), field[8:]
                found.append(value)
            else:
                return tuple(found)
            break
        at += 4 + length
    # Without one the value is what it says; it will be found outside of the file.
    return sizes


def _data_of(entry: _Entry, limit: int) -> Generator[Wanted, bytes, int]:
    """Where a member's data begin; -1 if its local header says something else.

    *limit* is where the next member, or the central directory, begins.
    """
    if entry.header + LOCAL.size > limit:
        raise _OddError("members overlap")
    fields = LOCAL.unpack((yield (entry.header, LOCAL.size)))
    magic, _, flags, method, _, _, crc, length, raw_length, name_size, extra_size = fields
    if magic != MAGIC or method != entry.method:
        return -1
    if not flags & STREAMED:
        stated = (crc, length, raw_length)
        told = (entry.crc, entry.length, entry.raw_length)
        # Sizes that lie in the zip64 extra field are all ones here.
        if any(one not in (other, _MAX32) for one, other in zip(stated, told, strict=True)):
            return -1
    data = entry.header + LOCAL.size + name_size + extra_size
    return data if data + entry.length <= limit else -1
